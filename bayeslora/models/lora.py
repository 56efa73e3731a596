"""LoRA adapters on pretrained transformers, as classifiers of token batches: adapter and head are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.datasets.text import ATTENTION_MASK, LAYOUTS, hub_folder, local_folder
from bayeslora.errors import ConfigError, DataError, Problems, require
from bayeslora.models.bi_encoder import BiEncoder
from bayeslora.models.fields import model_fields
from bayeslora.models.fingerprint import is_head
from bayeslora.models.prefix import Prefix
from bayeslora.rng import seeded

MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
ATTENTION = ("eager", "sdpa", "flash_attention_2")
"""Implementations of attention in transformers."""


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
    targets: Sequence[str] = ("query", "key", "value", "attention.output.dense"),
    top_layers: int | None = None,
    sample_head: bool = True,
    cache_prefix: bool = True,
    attention: str | None = None,
) -> LoraClassifier:
    """A pretrained transformer with a LoRA adapter: W x + (α/r) B A x at every target, A and B sampled, W frozen.

    Args:
        num_classes: C.
        name_or_path: a folder, a model of the hub, or `package:NAME/FOLDER` inside an installed Python package.
        layout: `"pair"`, a sequence classifier (`AutoModelForSequenceClassification`); or `"separate"`, a `BiEncoder`.
        rank, alpha: r and α.
        targets: names of linear layers, from the right (`"query"`, `"attention.output.dense"`, `"q_proj"`).
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
    from peft import LoraConfig, TaskType, get_peft_model

    _check_settings(layout, rank, alpha, top_layers, attention)
    base = load_base(name_or_path, layout, num_classes, attention)
    if sample_head:
        _restart_head(base)
    layers = _adapted_layers(base, top_layers)
    _check_targets(base, targets)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if layout == "pair" else None,
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT takes fractions too
        target_modules=list(targets),
        layers_to_transform=layers,
        lora_dropout=0.0,
        modules_to_save=["head"] if layout == "separate" else None,
    )
    model = get_peft_model(base, config)
    if not sample_head:
        for name, p in model.named_parameters():
            p.requires_grad_(p.requires_grad and "lora_" in name)
    return LoraClassifier(model, cache_prefix)


def load_base(name_or_path: str, layout: str, num_classes: int, attention: str | None = None) -> Any:
    """The pretrained model without an adapter, in fp32, on the meta device its structure alone.

    What the checkpoint lacks, the head above all, starts at the same random values every time: what is not sampled
    must be equal in all chains.

    Raises:
        DataError: there is none, or it is none that classifies sequences.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # it reports at length that the head is new
    transformers_logging.disable_progress_bar()
    folder = model_folder(name_or_path)
    auto = AutoModelForSequenceClassification if layout == "pair" else AutoModel
    head = {"num_labels": num_classes} if layout == "pair" else {}
    choice = {} if attention is None else {"attn_implementation": attention}
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **head)
        config.pad_token_id = padding_token(config)
        config.use_cache = False
        with seeded(0, 0, 0, "base"):
            if torch.get_default_device().type == "meta":
                model = auto.from_config(config, **choice)
            else:
                safe = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
                model = auto.from_pretrained(folder, config=config, dtype=torch.float32, **safe, **choice)
            model.name_or_path = name_or_path
            return model if layout == "pair" else BiEncoder(model, num_classes)
    except (OSError, ValueError, KeyError) as error:
        what = "a sequence classifier" if layout == "pair" else "an encoder"
        reason = str(error).strip().splitlines()[0][:200]
        raise DataError(
            f"model.name_or_path={name_or_path} cannot be loaded as {what} ({reason}); name a model with a config.json"
            " and safetensors weights, e.g. roberta-base"
        ) from error


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
        DataError: it has neither.
    """
    pad, end = getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
    chosen = pad if pad is not None else end[0] if isinstance(end, list) else end
    if chosen is None:
        raise DataError("the model's config.json names neither a pad_token_id nor an eos_token_id; add one to it")
    return int(chosen)


def _restart_head(base: Any) -> None:
    """Random values for the head, other ones in every chain: weights N(0, initializer_range²), biases 0."""
    scale = getattr(base.config, "initializer_range", 0.02)
    for name, p in base.named_parameters():
        if is_head(name):
            nn.init.normal_(p, std=scale) if p.ndim > 1 else nn.init.zeros_(p)


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


def _check_targets(base: nn.Module, targets: Sequence[str]) -> None:
    """Raise `ConfigError` for a target that is the end of no linear layer's name."""
    linear = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    wrong = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in linear)]
    known = sorted({name.rpartition(".")[2] for name in linear if not is_head(name)})
    if wrong:
        raise ConfigError(
            f"model.targets: no linear layer is called {', '.join(wrong)}; this model's are {', '.join(known)}"
        )


def _adapted_layers(base: Any, top: int | None) -> list[int] | None:
    """Numbers of the layers that carry adapters; None for all."""
    if top is None:
        return None
    count = base.config.num_hidden_layers
    if top > count:
        raise ConfigError(f"model.top_layers={top}: the model has {count} layers; choose at most so many, or null")
    return list(range(count - top, count))
