"""Chains as jobs of a sweep, each in a process of an engine's, that share one run directory; and searches."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from bayeslora.app.cli import require_extras
from bayeslora.errors import ConfigError
from bayeslora.runs.provenance import provenance
from tests.run.tools import TINY, Command, Ended, digests, ended, manifest, process

PLUGINS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}
QUIET_RAY = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""No token in the user's home, no report to Ray's makers, and workers that get their share beside other tests."""


def multirun(folder: Path, *arguments: str) -> Ended:
    """A multirun of the tiny quickstart in a process of its own."""
    started = process("train", "-m", *TINY, "logger=none", *arguments, cwd=folder, env=QUIET_RAY)
    return ended(started, timeout=400)


@pytest.mark.parametrize("launcher", PLUGINS)
def test_two_jobs_make_the_run_that_two_chains_in_a_row_make(launcher: str, finished: Path, tmp_path: Path) -> None:
    pytest.importorskip(PLUGINS[launcher], reason=f"pip install 'bayeslora[{launcher.removesuffix('_local')}]'")
    folder = tmp_path / "run"
    result = multirun(tmp_path, f"hydra/launcher={launcher}", "chain.index=0,1", f"run_dir={folder}")
    assert result.code == 0, result.err
    assert digests(folder) == digests(finished)
    assert [manifest(folder, chain) for chain in range(2)] == [manifest(finished, chain) for chain in range(2)]
    assert (folder / "chains/0/map.safetensors").read_bytes() == (finished / "chains/0/map.safetensors").read_bytes()
    ours, theirs = (json.loads((f / "metrics.json").read_text()) for f in (folder, finished))
    assert len(ours["chains"]) == 2
    assert {**ours, "provenance": None} == {**theirs, "provenance": None}  # whoever ended last evaluated all of it
    assert f"all jobs have ended: {folder}/report/index.html" in result.out
    command = yaml.safe_load((folder / "config.yaml").read_text())["provenance"]["command"]
    assert command.startswith("python -m bayeslora.train experiment=digits_resnet ")  # not that of a launcher's worker
    left = {file.name for file in folder.iterdir() if file.is_dir() and not file.name.startswith(".")}
    assert left == {"chains"}  # no folders of the jobs' own


# Searches

SEARCHED = tuple(setting for setting in TINY if not setting.startswith("sampler.lr"))
SEARCH = ("search=step_prior_temperature", "hydra.sweeper.n_trials=2", "chain.num_chains=1", "logger=none")


@pytest.fixture
def search(tmp_path: Path, command: Command) -> Callable[..., Ended]:
    """A search of two trials, in this process; its folder is `tmp_path`."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install 'bayeslora[optuna]'")
    return partial(command, "train", "-m", *SEARCHED, *SEARCH, f"hydra.sweep.dir={tmp_path}")


def test_a_search_minimises_the_nll_on_the_validation_set(search: Callable[..., Ended], tmp_path: Path) -> None:
    """The second trial, whose step size is the larger one, diverges: it counts as the worst there is."""
    before = provenance()["command"]
    exploding = ("sampler._target_=tests.run.tools.Exploding", "sampler.at=3", "sampler.above=0.06")
    result = search("dataset.validation_size=40", *exploding)
    assert result.code == 0, result.err
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    trials = [yaml.safe_load((tmp_path / str(trial) / "config.yaml").read_text()) for trial in (0, 1)]
    assert trials[0]["sampler"]["lr"] < 0.06 < trials[1]["sampler"]["lr"]
    assert best["best_params"] == {
        "sampler.lr": trials[0]["sampler"]["lr"],
        "prior.variance": trials[0]["prior"]["variance"],
        "temperature": trials[0]["temperature"],
    }
    metrics = json.loads((tmp_path / "0" / "metrics.json").read_text())
    assert metrics["provenance"]["split"] == "validation"
    assert best["best_value"] == metrics["ensemble"]["nll"]
    assert "the worst a trial can be" in result.out
    assert f"sampler.lr={trials[1]['sampler']['lr']}" in trials[1]["provenance"]["command"]
    assert provenance()["command"] == before  # what this process does next is no trial's


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((), "evaluate.split=validation needs a validation set"),
        (("dataset.validation_size=40", "evaluate.split=test"), "evaluate.split=test: a search would fit"),
        (("dataset.validation_size=40", "sampler.lr=0.1"), "sampler.lr: given and searched for"),
    ],
)
def test_a_search_that_could_not_be_trusted_is_refused(
    wrong: tuple[str, ...], message: str, search: Callable[..., Ended]
) -> None:
    result = search(*wrong)
    assert result.code == 2
    assert message in result.err


def test_a_launcher_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require_extras(["hydra/launcher=basic", "seed=0"])
    monkeypatch.setattr(metadata, "distributions", lambda name: [])
    with pytest.raises(ConfigError, match=r"hydra/launcher=ray needs an extra: pip install 'bayeslora\[ray\]'"):
        require_extras(["hydra/launcher=ray", "seed=0"])
    with pytest.raises(ConfigError, match=r"^logger=mlflow needs an extra: pip install 'bayeslora\[mlflow\]'$"):
        require_extras(["logger=[csv, mlflow]"])


def test_slurm_is_asked_for_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda name: [name])
    monkeypatch.setenv("PATH", str(tmp_path))
    require_extras(["hydra/launcher=submitit_slurm", "--cfg", "job"])
    with pytest.raises(ConfigError, match="there is no srun here"):
        require_extras(["-m", "hydra/launcher=submitit_slurm", "chain.index=range(0,1000)"])
    (tmp_path / "srun").touch(mode=0o755)
    require_extras(["-m", "hydra/launcher=submitit_slurm", "chain.index=range(0,1000)"])
