"""`--help` on one screen, and completion in bash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bayeslora.app import command_help
from bayeslora.app.config import CONF_DIR
from tests.cases import each
from tests.run.tools import Command

COMMANDS = ("train", "evaluate", "compare", "export", "bias_check")
CONF = Path(CONF_DIR)


@each("name", COMMANDS)
def test_help_says_what_it_does_with_examples_settings_and_exit_codes(name: str, command: Command, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    for flag in ("--help", "-h"):
        ended = command(name, flag)
        assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"python -m bayeslora.{name}")
    assert ended.out.count(f"    python -m bayeslora.{name} ") >= 3
    unwrapped = " ".join(ended.out.split())
    assert all(f"{code} {meaning}" in unwrapped for code, meaning in command_help.EXIT_CODES.items())
    assert "docs/cli.md" in ended.out
    assert len(ended.out.splitlines()) <= 70
    assert max(map(len, ended.out.splitlines())) <= 130


def test_the_help_of_train_has_every_group_choice_and_experiment(command: Command) -> None:
    words = {word.rstrip("*") for word in command("train", "--help").out.split()}
    for file in CONF.glob("*/*.yaml"):
        if file.parent.name != "hydra":
            assert {file.stem, file.parent.name} - {"experiment", "optimizer"} <= words
    assert {"optimizer@chain.warmup.optimizer", "hydra/launcher", "submitit_slurm"} <= words


def test_defaults_are_marked_and_experiments_described(command: Command) -> None:
    lines = command("train", "--help").out.splitlines()
    (dataset,) = (line for line in lines if line.startswith("  dataset "))
    assert "digits*" in dataset
    assert dataset.count("*") == 1
    (quickstart,) = (line for line in lines if line.startswith("  quickstart "))
    assert "Handwritten digits, one hidden layer" in quickstart


@each("option", ["--config-dir={}", "--config-dir {}", "-cd {}"])
def test_experiments_of_ones_own_are_listed(option: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n# What I try.\n# At length.\n\n# Else.\n")
    out = command("train", *option.format(tmp_path).split(), "--help").out
    assert "  mine " in out
    assert "What I try. At length.\n" in out


def test_every_experiment_describes_itself() -> None:
    for file in (CONF / "experiment").glob("*.yaml"):
        assert len(command_help.first_comment(file)) > 20


def test_the_settings_of_evaluate_are_shown_with_their_meaning(command: Command) -> None:
    out = command("evaluate", "--help").out
    assert "  split: null               # test or validation" in out
    assert "defaults:" not in out


def complete(line: str, installed: str, tmp_path: Path) -> list[str]:
    """What bash offers at the end of a line, after the script that the command installs."""
    script = f"""PATH={Path(sys.executable).parent}:$PATH
    {installed}
    COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; read -ra COMP_WORDS <<< "$COMP_LINE"
    [[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
    COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
    complete -p python >&2
    _bayeslora; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True, cwd=tmp_path,
                           env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert "-F _bayeslora python" in ended.stderr
    return ended.stdout.split()


def test_bash_completes_modules_choices_and_keys(command: Command, tmp_path: Path) -> None:
    installed = command("train", "-sc", "install=bash").out
    assert "bayeslora.train" in complete("python -m bayes", installed, tmp_path)
    assert complete("python -m bayeslora.train experiment=quick", installed, tmp_path) == ["experiment=quickstart"]
    found = complete("python -m bayeslora.train experiment=quickstart chain.num_", installed, tmp_path)
    assert {word.partition("=")[0] for word in found} == {"chain.num_chains", "chain.num_draws"}
    assert complete("python script.py a", installed, tmp_path) == []


def test_hydra_answers_other_shells(command: Command) -> None:
    ended = command("train", "-sc", "install=fish")
    assert (ended.code, ended.err) == (0, "")
    assert "function" in ended.out
