"""Draws as PEFT adapters: plain PEFT loads each and gives the draw's logits; another base is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from bayeslora.datasets.text import FIELDS
from bayeslora.errors import ConfigError, DataError
from bayeslora.models import LoraClassifier, load_base, lora_classifier, resnet_small
from bayeslora.posterior import DrawStore, Posterior
from bayeslora.posterior.export import export_adapters, load_adapter
from bayeslora.rng import seeded
from tests.data.text_models import SHAPES, TARGETS, tiny_checkpoint, tiny_model

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


def exported(made: LoraClassifier, folder: Path) -> Path:
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
    plain = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=2,
        ignore_mismatched_sizes=checkpoint == "other classes",
        pad_token_id=made.base.config.pad_token_id,
    )
    with torch.no_grad():
        wanted = made(x)
        assert wanted.std(0).max() > 1e-4
        torch.testing.assert_close(PeftModel.from_pretrained(plain, folder).eval()(ids, mask).logits, wanted)
        again = load_adapter(load_base(str(base), "pair", 2), folder).eval()
        torch.testing.assert_close(again(ids, mask).logits, wanted)


def test_a_bi_encoders_draw_loads_onto_its_base(base: Path, tmp_path: Path):
    loaded, models = posterior(tmp_path / "run", base, layout="separate")
    folder = loaded.adapters(tmp_path / "out")[1]
    x = torch.cat([tokens(), tokens().flip(0)], dim=1)
    adapted = PeftModel.from_pretrained(load_base(str(base), "separate", 2), folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(x), models[1](x))


def test_the_card_says_what_it_is(base: Path, tmp_path: Path):
    loaded, _ = posterior(tmp_path / "run", base)
    facts = {"title": "SGLD on MRPC", "Temperature": "1 (the Bayes posterior)", "Data": "MRPC | GLUE"}
    card = (loaded.adapters(tmp_path / "out", facts)[1] / "README.md").read_text()
    assert card.startswith(f"---\nbase_model: {base}\n")
    for part in ("# Draw 0 of chain 1: SGLD on MRPC", "| Temperature | 1 (the Bayes posterior) |", "| MRPC / GLUE |"):
        assert part in card
    assert "| This draw's potential | 12.5 |" in card
    program = card.split("```python\n")[1].split("```")[0].replace('"chain-', f'"{tmp_path}/out/chain-')
    names: dict = {}
    exec(program, names)
    assert isinstance(names["model"], PeftModel)


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


def test_a_model_without_an_adapter_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="only draws of a LoRA model"):
        export_adapters(resnet_small(10), [], tmp_path)
