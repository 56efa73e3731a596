"""The MRPC experiments through the whole application: a tiny RoBERTa, pairs made by the test, real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bayeslora.app.config import CONF_DIR
from tests.data.text_models import tiny_model
from tests.data.text_tools import mrpc
from tests.run.tools import Command, digests, draw, manifest, run

EXPERIMENTS = sorted(path.stem for path in (Path(CONF_DIR) / "experiment").glob("mrpc_*.yaml"))
SIZES = (
    "trainer.num_threads=1", "logger=none", "chain.num_chains=2", "chain.batch_size=4", "chain.bucket=2",
    "chain.warmup.steps=2", "chain.burn_in=1", "chain.num_draws=2", "chain.thin=1", "chain.probe_size=8",
    "dataset.max_length=32", "dataset.validation_size=4", "evaluate.batch_size=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "roberta", "roberta")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mrpc(tmp_path_factory.mktemp("texts") / "mrpc")


def experiment(name: str, roberta: Path, pairs: Path) -> tuple[str, ...]:
    return (f"experiment={name}", f"model.name_or_path={roberta}", f"dataset.path={pairs}", *SIZES)


@pytest.fixture(scope="module")
def finished(roberta: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mrpc"
    run(folder, base=experiment("mrpc_roberta_sgld", roberta, pairs))
    return folder


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_and_judges_the_ensemble_beside_map(
    name: str, roberta: Path, pairs: Path, tmp_path: Path
):
    metrics = run(tmp_path / "run", base=experiment(name, roberta, pairs))
    for row in (metrics["map"], metrics["ensemble"]):
        assert {"accuracy", "f1", "nll", "ece", "brier"} <= row.keys()
    split = metrics["uncertainty"]["ensemble"]
    assert split["total"] == pytest.approx(split["aleatoric"] + split["mutual_information"], abs=1e-6)
    tokens = metrics["provenance"]["tokens"]
    assert 0 <= tokens["padding"] < 0.5
    assert tokens["per_second"] > 0


def test_draws_hold_adapter_and_head_only(finished: Path, roberta: Path):
    sizes = [record["scalars"] for record in manifest(finished, 0)]
    assert len(sizes) == 2
    file = next((finished / "chains" / "0" / "draws").glob("*.safetensors"))
    assert file.stat().st_size < (roberta / "model.safetensors").stat().st_size / 2


def test_the_report_shows_pairs_tokens_and_padding(finished: Path):
    page = (finished / "report" / "index.html").read_text()
    for words in ("padding beside them", "a second", "lora_A", "mutual information"):
        assert words in page
    assert "cat" in page  # a sentence of the pairs that the ensemble is least sure of


def test_stacked_chains_are_those_one_after_the_other(finished: Path, roberta: Path, pairs: Path, tmp_path: Path):
    run(tmp_path / "run", "chain.parallel=sequential", base=experiment("mrpc_roberta_sgld", roberta, pairs))
    for chain in range(2):
        one, other = draw(finished, chain, 1), draw(tmp_path / "run", chain, 1)
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6)


def test_the_same_command_gives_the_same_draws(finished: Path, roberta: Path, pairs: Path, tmp_path: Path):
    run(tmp_path / "run", base=experiment("mrpc_roberta_sgld", roberta, pairs))
    assert digests(tmp_path / "run") == digests(finished)


def test_exported_draws_load_into_plain_peft(finished: Path, roberta: Path, tmp_path: Path, command: Command):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    ended = command("export", f"run_dir={finished}", f"out_dir={tmp_path / 'adapters'}")
    assert ended.code == 0, ended.err
    folders = sorted(p.parent for p in (tmp_path / "adapters").rglob("adapter_config.json"))
    assert len(folders) == 4
    for folder in folders:
        base = AutoModelForSequenceClassification.from_pretrained(roberta, num_labels=2)
        loaded = PeftModel.from_pretrained(base, folder)
        assert any("lora_A" in name for name, _ in loaded.named_parameters())
        assert "SGLD" in (folder / "README.md").read_text()


def test_a_target_that_matches_nothing_is_refused_before_anything_is_written(
    roberta: Path, pairs: Path, tmp_path: Path, command: Command
):
    settings = experiment("mrpc_roberta_sgld", roberta, pairs)
    ended = command("train", *settings, "model.targets=[nothing]", f"run_dir={tmp_path / 'run'}")
    assert ended.code == 2
    assert "nothing" in ended.err
    assert not (tmp_path / "run" / "chains").exists()


@pytest.mark.realdata
def test_minilm_runs_on_real_pairs(real_data: Path, minilm: str, tmp_path: Path):
    run_dir = tmp_path / "run"
    sizes = tuple(size for size in SIZES if "max_length" not in size)
    run(
        run_dir, f"dataset.path={real_data / 'mrpc'}", *sizes, "dataset.limit_train=96", "dataset.limit_test=80",
        "chain.batch_size=16", "chain.warmup.steps=20", base=("experiment=mrpc_minilm_sgld",),
    )  # fmt: skip
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert 0.5 < metrics["map"]["accuracy"] <= 1.0
    assert metrics["provenance"]["tokens"]["padding"] < 0.4
