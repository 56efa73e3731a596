"""The targets of make: what they call, and that they remove nothing unasked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bayeslora.app.config import CONF_DIR
from bayeslora.datasets import Cifar10, Cifar100, synthetic
from bayeslora.datasets.glue import Glue
from tests.cases import each
from tests.run.tools import composed

ROOT = Path(__file__).parents[2]
IMAGES = {
    "cifar10-resnet18-sgld": "cifar10_resnet18_sgld",
    "cifar100-wrn2810-sgld": "cifar100_wrn_sgld",
    "cifar100-wrn2810-sam-sgld": "cifar100_wrn_samsgld",
    "cifar100-wrn2810-sam-sgld-r1": "cifar100_wrn_samsgld_r1",
}
TRAINED = {f"experiment-{name}": experiment for name, experiment in IMAGES.items()} | {
    "train-mrpc-lora": "mrpc_roberta_sgld",
    "experiment-mrpc-lora": "mrpc_roberta_sgld",
}
GROUPS = {"experiments-cifar": 4, "experiments-all": 5, "eval-cifar": 4, "eval-all": 5}
OTHERS = ("install", "test", "format", "lint", "help", "clean", "clean-cifar", "clean-all", "quickstart")


def make(*arguments: str, answer: str = "", check: bool = True) -> str:
    """What make prints, with this interpreter in place of .venv's."""
    settings = (f"RUN={sys.executable}", "RUN_READY=")
    command = ["make", "-C", os.fspath(ROOT), "--no-print-directory", *settings, *arguments]
    ran = subprocess.run(command, input=answer, capture_output=True, text=True, check=False)
    assert not check or ran.returncode == 0, ran.stderr
    return ran.stdout


def commands(*arguments: str) -> list[str]:
    """The commands of this package that a target runs."""
    return [line.partition(" -m ")[2] for line in make("-n", *arguments).splitlines() if " -m bayeslora." in line]


@each("target", TRAINED)
def test_an_experiments_target_is_a_thin_call(target: str) -> None:
    experiment = TRAINED[target]
    (command,) = commands(target, "ARGS=seed=1")
    assert command == f"bayeslora.train experiment={experiment} run_dir=outputs/{experiment}/make seed=1"
    assert (Path(CONF_DIR) / "experiment" / f"{experiment}.yaml").is_file()


@each("target", TRAINED)
def test_with_data_of_ones_own_its_folder_is_given(target: str) -> None:
    (command,) = commands(target, "DATA=D", "ROBERTA=R")
    data = TRAINED[target].partition("_")[0]
    assert f" dataset.path=D/{data} " in command
    assert (" model.name_or_path=R " in command) == (data == "mrpc")


@each("target", TRAINED)
def test_smoke_calls_compose_and_are_small(target: str, tmp_path: Path) -> None:
    written, command = commands(target, "SMOKE=1", f"OUT={tmp_path}")
    assert written == f"bayeslora.datasets.synthetic {tmp_path}/synthetic"
    cfg = composed(*command.split()[1:])
    assert cfg.dataset.path == f"{tmp_path}/synthetic/{TRAINED[target].partition('_')[0]}"
    assert cfg.trainer.accelerator == "cpu"
    assert cfg.chain.num_draws * cfg.chain.thin + cfg.chain.burn_in + cfg.chain.warmup.steps <= 8
    assert cfg.run_dir == f"{tmp_path}/smoke/{TRAINED[target]}"


@each("name", [*IMAGES, "mrpc-lora"])
def test_evaluation_finds_the_experiments_run(name: str) -> None:
    train = "train" if name == "mrpc-lora" else "experiment"
    for smoke in ((), ("SMOKE=1",)):
        trained, (evaluated,) = commands(f"{train}-{name}", *smoke)[-1], commands(f"eval-{name}", *smoke)
        run_dir = next(word for word in trained.split() if word.startswith("run_dir="))
        assert evaluated == f"bayeslora.evaluate {run_dir}"


@each("target", GROUPS)
def test_groups_call_all_of_them(target: str) -> None:
    kind = "evaluate" if target.startswith("eval") else "train"
    assert [c.partition(" ")[0] for c in commands(target)] == [f"bayeslora.{kind}"] * GROUPS[target]


def test_help_lists_every_target() -> None:
    shown = {line.split()[0] for line in make("help").splitlines()}
    assert {*TRAINED, *GROUPS, *OTHERS, "eval-mrpc-lora"} <= shown


@each("target", ["install", "test", "format", "lint", "clean"])
def test_the_other_targets_exist(target: str) -> None:
    assert make("-n", target)


@each(("target", "spared"), [("clean-cifar", {"README.md", "mrpc_roberta_sgld"}), ("clean-all", {"README.md"})])
def test_cleaning_asks_unless_forced(target: str, spared: set[str], tmp_path: Path) -> None:
    out, venv = tmp_path / "out", tmp_path / "venv"
    for place in (venv, out / "cifar100_wrn_sgld" / "make", out / "cifar10_resnet18_map", out / "mrpc_roberta_sgld"):
        place.mkdir(parents=True)
    (out / "README.md").touch()
    everything = {entry.name for entry in out.iterdir()}
    settings = (target, f"OUT={out}", f"VENV={venv}", "CACHES=")
    for answer in ("n\n", "\n", ""):
        assert "[y/N]" in make(*settings, answer=answer, check=False)
        assert {entry.name for entry in out.iterdir()} == everything
    make(*settings, answer="y\n") if target == "clean-cifar" else make(*settings, "FORCE=1")
    assert {entry.name for entry in out.iterdir()} == spared
    assert venv.exists() == (target == "clean-cifar")


def test_synthetic_data_are_what_the_experiments_take(tmp_path: Path) -> None:
    assert synthetic.main([str(tmp_path)]) == 0
    ten, hundred = Cifar10(tmp_path / "cifar10").load(), Cifar100(tmp_path / "cifar100").load()
    assert (ten.num_classes, hundred.num_classes) == (10, 100)
    assert len(ten.train) == len(hundred.train) == synthetic.TRAIN
    texts = Glue(tmp_path / "mrpc", tokenizer=str(tmp_path / "roberta"), max_length=256).load()
    assert (texts.num_classes, len(texts.test)) == (2, synthetic.TEST)


def test_one_smoke_run_end_to_end(tmp_path: Path) -> None:
    """Synthetic data, MRPC trained on a tiny RoBERTa and evaluated, by make alone."""
    make("SMOKE=1", "experiment-mrpc-lora", f"OUT={tmp_path}", "ARGS=evaluate.report=false chain.num_chains=1")
    run = tmp_path / "smoke" / "mrpc_roberta_sgld"
    before = (run / "metrics.json").read_text()
    make("SMOKE=1", "eval-mrpc-lora", f"OUT={tmp_path}")
    assert (run / "metrics.json").read_text() == before
