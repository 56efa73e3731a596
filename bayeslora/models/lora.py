"""LoRA adapters on pretrained transformers, as classifiers of token batches: adapter and head are sampled."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.datasets.text import ATTENTION_MASK, LAYOUTS, hub_folder, local_folder
from bayeslora.errors import ConfigError, DataError, Problems, require
from bayeslora.factories import first_line
from bayeslora.models.bi_encoder import BiEncoder, model_fields
from bayeslora.models.fingerprint import is_saved
from bayeslora.models.prefix import Prefix
from bayeslora.rng import seeded

MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
ATTENTION = ("eager", "sdpa", "flash_attention_2")
"""Implementations of attention in transformers."""
ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the head."""
PEFT_HEADS = ("classifier", "score")
"""Modules that PEFT trains and saves with every adapter of a sequence classifier."""
UNUSED = "encoder.pooler."
"""What a `BiEncoder` has and does not run."""


class LoraClassifier(nn.Module):
    """A PEFT model behind one input: tokens int64 [B, S, F, L] -> logits [B, C].

    Fields F are those of `bayeslora.datasets.text.FIELDS`. The base is a sequence classifier of transformers, which
    takes S = 1 sequence an example (a pair joined into one), or a `BiEncoder`, which takes S = 2.

    Args:
        peft_model: a `PeftModel` whose adapter and head require gradients and whose base does not.
        cache_prefix: whether the layers below the lowest adapter may be replaced by their remembered output.
    """

    def __init__(self, peft_model: Any, cache_prefix: bool = True) -> None:
        super().__init__()
        self.peft = peft_model
        self.prefix = Prefix(peft_model) if cache_prefix else None

    @property
    def num_classes(self) -> int:
        """C."""
        return self.base.num_classes if isinstance(self.base, BiEncoder) else int(self.base.config.num_labels)

    @property
    def base(self) -> Any:
        """The model under the adapter: a sequence classifier, or a `BiEncoder`."""
        return self.peft.get_base_model()

    def forward(self, inputs: Tensor | dict[str, Tensor]) -> Tensor:
        """Tokens int64 [B, S, F, L], or what `prefix.FromPrefix` makes of them -> logits [B, C]."""
        if isinstance(inputs, Tensor):
            return self._logits(inputs)
        assert self.prefix is not None
        with self.prefix.replaced_by(inputs["hidden"].flatten(0, 1)):
            return self._logits(inputs["tokens"])

    def _logits(self, tokens: Tensor) -> Tensor:
        if isinstance(self.base, BiEncoder):
            return self.peft(tokens)
        require(tokens.shape[1] == 1, "this model takes a pair as one sequence; set dataset.layout=pair")
        fields = model_fields(self.base, tokens[:, 0])
        # the tokenizer may pad with another token than the model looks for to find a text's end
        real = tokens[:, 0, ATTENTION_MASK].bool()
        fields["input_ids"] = fields["input_ids"].masked_fill(~real, self.base.config.pad_token_id)
        return self.peft(**fields).logits


def lora_classifier(
    num_classes: int,
    name_or_path: str,
    *,
    layout: str = "pair",
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] | str = ("query", "key", "value", "attention.output.dense"),
    modules_to_save: Sequence[str] = (),
    top_layers: int | None = None,
    sample_head: bool = True,
    cache_prefix: bool = True,
    attention: str | None = None,
) -> LoraClassifier:
    """A pretrained transformer with a LoRA adapter: W x + (α/r) B A x at every target, A and B sampled, W frozen.

    The head is what the checkpoint lacks, as transformers reports it, whatever a family calls it: it starts at random
    values of its own in every chain. A `classifier` or `score` that the checkpoint holds is sampled from where it is.

    Args:
        num_classes: C.
        name_or_path: a folder, a model of the hub, or `package:NAME/FOLDER` inside an installed Python package.
        layout: `"pair"`, a sequence classifier (`AutoModelForSequenceClassification`); or `"separate"`, a `BiEncoder`.
        rank, alpha: r and α.
        targets: names of linear layers, from the right (`"query"`, `"attention.output.dense"`, `"c_attn"`), or
            `"all-linear"`.
        modules_to_save: further modules that are sampled whole, from their pretrained values, and exported.
        top_layers: so many layers at the top carry adapters; None: all.
        sample_head: whether the classification head is sampled; else it keeps one random start, the same in all chains.
        cache_prefix: compute the layers below the lowest adapter once (exact, since dropout is off).
        attention: `"eager"`, `"sdpa"` or `"flash_attention_2"`; None: as transformers chooses. On a CPU, the backward
            pass of texts of some 30 tokens is many times faster eagerly.

    Raises:
        ConfigError: a setting is impossible, or a target matches nothing.
        DataError: the model cannot be had, or is none that classifies sequences; the message says what to do.

    Source: Hu et al. 2021, arXiv:2106.09685, by PEFT.
    """
    from peft import LoraConfig, TaskType
    from peft.tuners.tuners_utils import check_target_module_exists
    from transformers.pytorch_utils import Conv1D

    _check_settings(layout, rank, alpha, top_layers, attention)
    base, new = _load(name_or_path, layout, num_classes, attention)
    layers = _adapted_layers(base, top_layers)
    own = _modules_called(base, modules_to_save)
    saved = _saved_modules(base, new, own, PEFT_HEADS if layout == "pair" else ())
    linear = {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if layout == "pair" else None,
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT takes fractions too
        target_modules=_target_modules(linear, targets, saved),
        layers_to_transform=layers,
        lora_dropout=0.0,
        modules_to_save=[name for name in saved if layout == "separate" or name not in PEFT_HEADS],
    )
    adapted = [name for name, _ in base.named_modules() if check_target_module_exists(config, name)]
    _check_adapted(adapted, linear, layers, saved)
    config.fan_in_fan_out = any(isinstance(linear[name], Conv1D) for name in adapted)
    sampled = saved if sample_head else own
    scale = getattr(base.config, "initializer_range", 0.02)
    starts = {
        name: torch.empty_like(p).normal_(std=scale)
        for name, p in base.named_parameters()
        if name in new and p.ndim > 1 and is_saved(name, sampled) and not name.startswith(UNUSED)
    }
    model = _with_adapter(base, config, adapted)
    for name, p in model.named_parameters():
        inside = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        unused = inside.startswith(UNUSED)
        p.requires_grad_(p.requires_grad and not unused and ("lora_" in name or is_saved(inside, sampled)))
        if unused and "lora_" in name:
            nn.init.zeros_(p)
        if p.requires_grad and inside in starts:
            p.data.copy_(starts[inside])
    return LoraClassifier(model, cache_prefix)


def _with_adapter(base: Any, config: Any, adapted: Sequence[str]) -> Any:
    """The model with an adapter at the layers of these names.

    Raises:
        ConfigError: PEFT would adapt the fused experts of the model.
    """
    from peft import get_peft_model

    with warnings.catch_warnings():  # PEFT asks transformers by a name of old
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        try:
            model = get_peft_model(base, config)
        except ValueError as error:
            raise ConfigError(f"model.targets: {first_line(error)}") from error
    if config.target_parameters:
        left, all_of_them = ({name.rpartition(".")[2] for name in names} for names in (config.target_modules, adapted))
        raise ConfigError(
            f"model.targets: PEFT takes {', '.join(sorted(all_of_them - left))} for the fused experts of this model,"
            f" whose adapters cannot be exported; choose among {', '.join(sorted(left))}"
        )
    return model


def load_base(name_or_path: str, layout: str, num_classes: int, attention: str | None = None) -> Any:
    """The pretrained model without an adapter, in fp32, on the meta device its structure alone.

    What the checkpoint lacks, the head above all, starts at the same random values every time: what is not sampled
    must be equal in all chains.

    Raises:
        DataError: there is none, it is none that classifies sequences, or its weights are of another model.
    """
    return _load(name_or_path, layout, num_classes, attention)[0]


def _load(name_or_path: str, layout: str, num_classes: int, attention: str | None) -> tuple[Any, list[str]]:
    """`load_base`, and the names of the parameters that the checkpoint lacks or holds in another shape."""
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # it reports at length that the head is new
    transformers_logging.disable_progress_bar()
    folder = model_folder(name_or_path)
    auto = AutoModelForSequenceClassification if layout == "pair" else AutoModel
    head = {"num_labels": num_classes} if layout == "pair" else {}
    settings: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    default = torch.get_default_device()
    if default.type == "meta":
        settings["device_map"] = "meta"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **head)
        config.pad_token_id = padding_token(config)
        config.use_cache = False
        settings |= {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
        settings |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        with seeded(0, 0, 0, "base"):
            with torch.device("cpu" if default.type == "meta" else default):
                model, report = auto.from_pretrained(folder, config=config, dtype=torch.float32, **settings)
            model.name_or_path = name_or_path
            whole = model if layout == "pair" else BiEncoder(model, num_classes)
    except (OSError, ValueError, KeyError) as error:
        what = "a sequence classifier" if layout == "pair" else "an encoder"
        reason = str(error).strip().splitlines()[0][:300]
        raise DataError(
            f"model.name_or_path={name_or_path} cannot be loaded as {what} ({reason}); name a model with a config.json"
            " and safetensors weights, e.g. roberta-base"
        ) from error
    new = _new_parameters(model, report, name_or_path)
    return whole, new if layout == "pair" else [*(f"encoder.{name}" for name in new), "head.weight", "head.bias"]


def _new_parameters(model: nn.Module, report: Any, name_or_path: str) -> list[str]:
    """Names of the parameters that transformers initialised, since the checkpoint lacks them or has another shape.

    Raises:
        DataError: one of them is no part of a head or of a pooler.
    """
    missing, reshaped = set(report["missing_keys"]), {name for name, *_ in report["mismatched_keys"]}
    new = [name for name, _ in model.named_parameters() if name in missing | reshaped]
    prefix = str(model.base_model_prefix)
    layers = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    for name in new:
        inside = name.startswith((f"{prefix}.", *layers)) or not hasattr(model, prefix) or "." not in name
        if inside and (name in reshaped or "pooler" not in name.split(".")):
            fault = "have another shape at" if name in reshaped else "lack"
            raise DataError(
                f"the weights of model.name_or_path={name_or_path} {fault} {name}, which is no part of a head: they do"
                " not belong to the config.json beside them; fetch both again"
            )
    return new


def model_folder(name_or_path: str) -> Path:
    """The folder of a model that is named by folder, by package or by the hub.

    Raises:
        DataError: it cannot be had; the message says which files to put where.
    """
    folder = local_folder(name_or_path)
    if folder is not None:
        return folder
    advice = (
        f"Fetch config.json and model.safetensors (and the tokenizer's files) of https://huggingface.co/{name_or_path}"
        " by other means, put them into a folder, and set model.name_or_path=FOLDER"
    )
    return hub_folder(name_or_path, "model", MODEL_FILES, lambda f: any(f.glob("*.safetensors")), advice)


def padding_token(config: Any) -> int:
    """The number of the padding token: the model's own, or its end-of-text token where it has none (decoders).

    Raises:
        DataError: it has neither, or one that is no token of the vocabulary.
    """
    pad, end = getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
    chosen = pad if pad is not None else end[0] if isinstance(end, list) else end
    if chosen is None:
        raise DataError("the model's config.json names neither a pad_token_id nor an eos_token_id; add one to it")
    size = getattr(config, "vocab_size", None)
    if chosen < 0 or (size is not None and chosen >= size):
        key = "eos_token_id" if pad is None else "pad_token_id"
        raise DataError(
            f"the model's config.json says {key}={chosen}, which is no token of its {size or 'unknown number of'}; set"
            " pad_token_id in it to the number of the padding token, or to that of the end-of-text token"
        )
    return int(chosen)


def _check_settings(layout: str, rank: int, alpha: float, top_layers: int | None, attention: str | None) -> None:
    problems = Problems()
    if layout not in LAYOUTS:
        problems.add(f"model.layout={layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    if rank < 1:
        problems.add(f"model.rank={rank} must be at least 1")
    if not alpha > 0:
        problems.add(f"model.alpha={alpha} must be positive")
    if top_layers is not None and top_layers < 1:
        problems.add(f"model.top_layers={top_layers} must be at least 1, or null for all layers")
    if attention not in (None, *ATTENTION):
        problems.add(f"model.attention={attention!r} is unknown; choose one of {', '.join(ATTENTION)}, or null")
    problems.raise_if_any()


def _modules_called(base: nn.Module, names: Sequence[str]) -> list[str]:
    """Full names of the modules that have one of some names from the right.

    Raises:
        ConfigError: none with parameters has one of the names.
    """
    if isinstance(names, str):
        raise ConfigError(f"model.modules_to_save={names} must be a list: [{names}]")
    modules = [name for name, module in base.named_modules() if name and any(True for _ in module.parameters())]
    wrong = [called for called in names if not any(f".{name}".endswith(f".{called}") for name in modules)]
    if wrong:
        outer = ", ".join(name for name in modules if "." not in name)
        raise ConfigError(
            f"model.modules_to_save: no module with parameters is called {', '.join(wrong)}; the outermost are {outer}"
        )
    return [name for name in modules if any(f".{name}".endswith(f".{called}") for called in names)]


def _saved_modules(base: nn.Module, new: Collection[str], more: Collection[str], heads: Sequence[str]) -> list[str]:
    """Full names of the modules that an adapter holds whole, none inside another.

    Args:
        base: the model without an adapter.
        new: names of the parameters that the checkpoint lacks.
        more: further modules.
        heads: what PEFT adds, ends of names.
    """
    chosen: list[str] = []
    for name, module in base.named_modules():  # outer modules come before inner ones
        held = [f"{name}.{own}" for own, _ in module.named_parameters()]
        wanted = all(own in new for own in held) or name in more or name.endswith(tuple(heads))
        if name and held and wanted and not is_saved(f"{name}.", chosen):
            chosen.append(name)
    return chosen + sorted({own.rpartition(".")[0] for own in new if not is_saved(own, chosen)})


def _target_modules(linear: Collection[str], targets: Sequence[str] | str, saved: Sequence[str]) -> list[str]:
    """Names of the layers to adapt, from the right, as PEFT takes them.

    Args:
        linear: full names of the model's linear layers.
        targets: names from the right, or `all-linear`.
        saved: modules that are sampled whole.

    Raises:
        ConfigError: a target is the end of no linear layer's name.
    """
    free = [name for name in linear if not is_saved(f"{name}.", saved)]
    called = sorted({name.rpartition(".")[2] for name in free})
    if targets == ALL_LINEAR or list(targets) == [ALL_LINEAR]:
        # not the last part alone, which others may have, such as `0`; nor in full, which PEFT adapts in any layer
        return [name.partition(".")[2] or name for name in free]
    if isinstance(targets, str) or not targets:
        raise ConfigError(f"model.targets={targets or '[]'} must be {ALL_LINEAR} or a list of {', '.join(called)}")
    wrong = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in linear)]
    if wrong:
        raise ConfigError(
            f"model.targets: no linear layer is called {', '.join(wrong)}; this model's are {', '.join(called)}"
        )
    return list(targets)


def _check_adapted(
    adapted: Sequence[str], linear: Collection[str], layers: Sequence[int] | None, saved: Sequence[str]
) -> None:
    """Raise `ConfigError` where adapters would be on nothing, or on a module that is no linear layer."""
    problems = Problems()
    if not adapted and layers:
        problems.add(
            f"model.top_layers={len(layers)}: none of model.targets lies in a layer numbered {layers[0]} to"
            f" {layers[-1]} (a model may share the weights of one layer among all); set model.top_layers=null"
        )
    elif not adapted:
        problems.add(f"model.targets lie in modules that are sampled whole ({', '.join(saved)}); name others")
    other = [name for name in adapted if name not in linear]
    if other:
        problems.add(f"model.targets match {other[0]}, which is no linear layer; write more of the names that you mean")
    problems.raise_if_any()


def _adapted_layers(base: Any, top: int | None) -> list[int] | None:
    """Numbers of the layers that carry adapters; None for all."""
    if top is None:
        return None
    count = getattr(base.config, "num_hidden_layers", None)
    if count is None:
        raise ConfigError(f"model.top_layers={top}: the model does not say how many layers it has; set it to null")
    if top > count:
        raise ConfigError(f"model.top_layers={top}: the model has {count} layers; choose at most so many, or null")
    return list(range(count - top, count))
