"""python -m bayeslora.doctor: each check finds what is wrong, one line a check, and an exit code that tells."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from bayeslora import doctor, rng
from bayeslora.doctor import command, config_groups, machine, sampling
from bayeslora.doctor.finding import Check, Finding, Status, failure, ok, warning
from bayeslora.errors import ConfigError
from bayeslora.evaluation.results import Results
from bayeslora.evaluation.scores import ClassificationScores
from bayeslora.laws import checks
from bayeslora.runs.directory import RunDirectory
from tests.cases import each

TWO = [next(checks.linear_checks()), next(checks.sam_checks())]


def only(found: Iterator[Finding]) -> Finding:
    """The finding of a check that has one."""
    (finding,) = found
    return finding


# -- the command -----------------------------------------------------------------------------------------------


def commands(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    """Let the doctor have one check, which finds these."""
    monkeypatch.setattr(command, "checks", lambda *_, **__: iter([Check("one", lambda: findings)]))


def test_warnings_do_not_fail_and_failures_do(monkeypatch, capsys):
    commands(monkeypatch, ok("python", "is here"), warning("dataset x", "not here", "fetch it"))
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "python", "is", "here"]
    assert lines[1].endswith("not here -> fetch it")
    assert lines[2].endswith("1 ok, 1 with a warning")
    commands(monkeypatch, ok("python", "is here"), failure("run", "is broken", "mend it"))
    assert doctor.main([]) == 1
    assert "failure  run                   is broken -> mend it" in capsys.readouterr().out


def test_json_holds_every_line_and_nothing_else(monkeypatch, capsys):
    commands(monkeypatch, ok("python", "ü"), failure("run", "is broken", "mend it"))
    assert doctor.main(["--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["counts"]) == (False, {"ok": 1, "warning": 0, "failure": 1})
    assert found["findings"][1] == {"status": "failure", "name": "run", "message": "is broken", "fix": "mend it"}


def test_what_a_check_raises_is_its_line_and_the_next_check_runs(monkeypatch, capsys):
    def breaks() -> Iterator[Finding]:
        yield ok("first", "fine")
        raise RuntimeError("no such operator")

    def wrong() -> Iterator[Finding]:
        raise ConfigError("lr must be positive", "so must thin")
        yield

    found = [Check("first", breaks), Check("second", wrong), Check("third", lambda: [ok("third", "fine")])]
    monkeypatch.setattr(command, "checks", lambda *_, **__: iter(found))
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "failure  first                 RuntimeError: no such operator" in out
    assert "failure  second                lr must be positive; so must thin" in out
    assert "ok       third" in out


def test_without_torch_it_says_so_and_does_not_crash(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # what an import that fails looks like
    found = only(machine.torch_works())
    assert (found.status, found.fix) == (Status.FAILURE, machine.REINSTALL)


def test_a_wrong_option_ends_with_2_and_help_has_examples_and_exit_codes(capsys):
    for arguments, code in (["--fast"], 2), (["--help"], 0):
        with pytest.raises(SystemExit) as ended:
            doctor.main(arguments)
        assert ended.value.code == code
    out = capsys.readouterr().out
    assert "python -m bayeslora.doctor --quick" in out
    assert "exit codes: 0 no failure, 1 a failure" in out


def test_the_checks_are_explained_in_their_order():
    text = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
    titles = [line.removeprefix("## `").partition("`")[0].split()[0] for line in text.splitlines() if "## `" in line]
    names = [check.name for check in command.checks(quick=False)]
    plural = {"datasets": "dataset", "models": "model", "laws": "law"}
    order = [plural.get(name, name) for name in names]
    order.insert(order.index("run") + 1, "chains")
    assert titles == order


def test_quick_leaves_out_laws_and_the_run():
    names = [check.name for check in command.checks(quick=True)]
    assert names == ["python", "torch", "cuda", "versions", "disk", "datasets", "models", "wandb"]


# -- the machine -----------------------------------------------------------------------------------------------


def test_another_python_fails():
    assert only(machine.python()).status is Status.OK
    found = only(machine.python("3.14.0"))
    assert found.status is Status.FAILURE
    assert "needs <3.14,>=3.11" in found.message


def test_a_lock_with_other_versions_is_a_warning(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("# made up\ntorch==1.0.0\nnumpy==1.0 ; python_version < '3'\nno-such-package==1.0\n")
    found = only(machine.versions(lock))
    assert found.status is Status.WARNING
    assert found.message == f"1 other than in requirements.lock: torch {version('torch')} is not ==1.0.0"
    lock.write_text(f"torch=={version('torch').partition('+')[0]}\n")
    assert only(machine.versions(lock)).status is Status.OK
    assert only(machine.versions(tmp_path / "none")).message.endswith("no requirements.lock to compare with")


def test_a_package_that_is_missing_or_too_old_fails(monkeypatch):
    needed = ["torch>=99", "no-such-package>=1", "no-such-extra ; extra == 'bench'"]
    monkeypatch.setattr(machine.metadata, "requires", lambda name: needed)
    found = only(machine.versions())
    assert found.status is Status.FAILURE
    assert found.message == f"torch {version('torch')} is not >=99; no-such-package is not installed"


def test_little_room_is_a_warning_and_none_a_failure(tmp_path):
    here = {"outputs": tmp_path / "deep" / "outputs", "cache": tmp_path}
    for limits, status in (
        ({"least": 0, "enough": 0}, Status.OK),
        ({"least": 0, "enough": 1e9}, Status.WARNING),
        ({"least": 1e9}, Status.FAILURE),
    ):
        assert [finding.status for finding in machine.disk(**here, **limits)] == [status] * 2


def test_a_folder_that_cannot_be_written_fails(tmp_path):
    (tmp_path / "file").write_text("")
    found = next(machine.disk(tmp_path / "file" / "outputs", tmp_path, least=0))
    assert found.status is Status.FAILURE
    assert found.message.endswith("cannot be written: Not a directory")


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at a machine without GPU")
def test_a_driver_without_a_gpu_that_torch_sees_is_a_warning(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    if not Path("/dev/nvidiactl").exists():
        assert only(machine.cuda()).status is Status.OK
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert only(machine.cuda()).status is Status.WARNING


# -- configurations, data, models ------------------------------------------------------------------------------


def test_an_experiment_with_a_wrong_key_or_choice_fails(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for entry in Path(config_groups.CONF_DIR).iterdir():
        if entry.name != "experiment":
            (own / entry.name).symlink_to(entry)
    (own / "experiment").mkdir()
    typo = {"defaults": [{"override /sampler": "sgld"}], "chain": {"num_drws": 3}}
    other = {"defaults": [{"override /sampler": "sgdl"}]}
    for name, content in (("typo", typo), ("other", other)):
        (own / "experiment" / f"{name}.yaml").write_text("# @package _global_\n" + yaml.safe_dump(content))
    (own / "experiment" / "broken.yaml").write_text("# @package _global_\na: [1\n")
    found = {finding.name: finding for finding in config_groups.experiments(own)}
    assert {finding.status for finding in found.values()} == {Status.FAILURE}
    assert "num_drws" in found["experiment typo"].message
    assert "sampler/sgdl" in found["experiment other"].message
    assert found["experiment broken"].fix == f"mend {own / 'experiment' / 'broken'}.yaml"


def test_datasets_that_are_nowhere_are_warnings_with_the_way_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESLORA_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = {finding.name: finding for finding in config_groups.datasets()}
    assert found["dataset cifar10"].status is Status.WARNING
    assert "cifar-10-python.tar.gz" in found["dataset cifar10"].fix
    assert str(tmp_path) in found["dataset cifar10"].fix
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    *_, here = config_groups.datasets()
    assert (here.name, here.status) == ("dataset", Status.OK)
    assert "cifar10 packed in" in here.message


def test_a_folder_that_holds_another_dataset_fails(tmp_path):
    (tmp_path / "cifar10" / "cifar-100-python").mkdir(parents=True)
    found = next(finding for finding in config_groups.datasets(tmp_path) if finding.name == "dataset cifar10")
    assert found.status is Status.FAILURE
    assert "choose dataset=cifar100" in found.message


class Wrong(nn.Module):
    """A model that is not right."""

    def __init__(self, num_classes: int, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, num_classes + (how == "shape"))
        self.idle = nn.Linear(2, 2) if how == "idle" else nn.Identity()
        self.scale = float("nan") if how == "nan" else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) * self.scale


@each(
    ("how", "message"),
    [
        ("shape", "gives [2, 11] for two examples"),
        ("idle", "2 of 4 sampled tensors get no gradient"),
        ("nan", "logits or gradients are not finite"),
        ("right", "30,730 sampled parameters, forward and backward on cpu"),
    ],
)
def test_a_model_that_is_not_right_fails(how, message):
    found = config_groups.run_once("model wrong", partial(Wrong, how=how), "cpu")
    assert found.message == message
    assert found.status is (Status.OK if how == "right" else Status.FAILURE)


def test_weights_that_are_not_here_are_a_warning(tmp_path, monkeypatch):
    assert config_groups._missing_weights("model x", "package:no_such_package/model").status is Status.WARNING
    assert "hub" in config_groups._missing_weights("model x", "nobody/no-such-model").message
    assert config_groups._missing_weights("model x", str(tmp_path)) is None


# -- samplers and chains ---------------------------------------------------------------------------------------


def test_a_run_is_whole_apart_and_repeats():
    found = list(sampling.run_and_repeat())
    assert [(finding.name, finding.status) for finding in found] == [
        ("run", Status.OK),
        ("chains apart", Status.OK),
        ("chains repeat", Status.OK),
    ]


def test_a_run_that_lacks_a_file_or_a_finite_score_is_found(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for file in (run.config_file, run.map_file(), run.diagnostics_file, run.report / "index.html"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert "left no metrics.json" in sampling._whole(run).message
    run.write_metrics(Results(ensemble=ClassificationScores(0.9, math.nan, 0.1, 0.2)).to_json())
    assert "not finite: {'accuracy': 0.9, 'nll': None" in sampling._whole(run).message
    run.write_metrics(Results(ensemble=ClassificationScores(0.9, 0.5, 0.1, 0.2)).to_json())
    assert sampling._whole(run).status is Status.OK


def test_chains_that_share_all_their_randomness_and_that_do_not_repeat_are_found(monkeypatch):
    derive_seed = rng.derive_seed
    monkeypatch.setattr(rng, "derive_seed", lambda seed, _, step, purpose: derive_seed(seed, 0, step, purpose))
    monkeypatch.setattr(sampling, "RUNS", {"whole": (), "again": ("chain.index=0", "seed=1")})
    found = {finding.name: finding.status for finding in sampling.run_and_repeat()}
    assert found == {"run": Status.OK, "chains apart": Status.FAILURE, "chains repeat": Status.FAILURE}


def test_a_run_that_diverges_is_a_failure_with_its_message():
    check = Check("run", lambda: sampling.run_and_repeat("sampler.lr=1e30"))
    found = only(check.run())
    assert found.status is Status.FAILURE
    assert "sampler.lr" in found.message


def test_prints_a_line_a_law_and_ends_with_0(monkeypatch, capsys):
    monkeypatch.setattr(checks, "all_checks", lambda: TWO)
    assert doctor.main(["--laws"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if " ok" in line] == ["SGLD", "SAMSGLD"]
    assert "every sampler has its law" in out


def test_a_broken_law_ends_with_1_in_the_table_and_in_json(monkeypatch, capsys):
    wrong = replace(TWO[0], expected={"cov 00": 1.1 * TWO[0].expected["cov 00"]})
    monkeypatch.setattr(checks, "all_checks", lambda: [TWO[1], wrong])
    assert doctor.main(["--laws"]) == 1
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert "1 of 2 checks failed" in out
    assert doctor.main(["--laws", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert {line["name"]: line["status"] for line in found} == {"law SGLD": "failure", "law": "ok"}


# -- W&B -------------------------------------------------------------------------------------------------------


def test_wandb_is_offline_without_an_account_and_warns_where_it_cannot_be_reached(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    assert "no account" in only(machine.wandb()).message
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    found = only(machine.wandb())
    assert found.status is Status.WARNING
    assert "cannot be reached" in found.message
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert only(machine.wandb()).status is Status.OK
