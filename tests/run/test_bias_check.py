"""python -m bayeslora.bias_check: the run at half the step size, what it is compared by, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from bayeslora.app.commands import command_settings
from bayeslora.app.compose import plain
from bayeslora.bias_check import BiasSettings, bias_check, change_verdict, half_step, metric_changes
from bayeslora.diagnostics.paired import between, read
from bayeslora.errors import ConfigError, CriteriaError, DataError
from bayeslora.evaluation.results import Results
from tests.run.tools import OWN, composed, digests, manifest, run, same

LIMITS = {"nll": 0.01, "ece": 0.005}


def check(folder: Path, *overrides: str) -> dict[str, Any]:
    cfg = composed(f"run_dir={folder}", *overrides, config="bias_check")
    return bias_check(command_settings(BiasSettings, cfg, "bias_check"))


@pytest.fixture(scope="module")
def checked(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny quickstart, checked; not to be changed."""
    folder = tmp_path_factory.mktemp("bias") / "run"
    shutil.copytree(finished, folder)
    check(folder)
    return folder


def half(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_half_step")


def test_the_run_is_repeated_at_half_the_step_size_over_the_same_time(checked: Path, finished: Path) -> None:
    ours, theirs = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (half(checked), finished))
    assert (ours["sampler"].pop("lr"), theirs["sampler"].pop("lr")) == (0.005, 0.01)
    assert (ours["chain"].pop("burn_in"), theirs["chain"].pop("burn_in")) == (4, 2)
    assert (ours["chain"].pop("thin"), theirs["chain"].pop("thin")) == (4, 2)
    assert ours["logger"]["csv"]["save_dir"] == f"{half(checked)}/logs"
    assert ours["run_dir"] == str(half(checked))
    for part in ("run_dir", "logger", "provenance"):
        del ours[part], theirs[part]
    assert ours == theirs
    for chain in (0, 1):
        assert [record["step"] for record in manifest(half(checked), chain)] == [11, 15, 19, 23, 27]
        assert {record["scalars"]["lr"] for record in manifest(half(checked), chain)} == {0.005}
    assert same(load_file(half(checked) / "chains/0/map.safetensors"), load_file(finished / "chains/0/map.safetensors"))
    assert digests(checked) == digests(finished)


def test_the_changes_are_those_of_the_two_metrics_files(checked: Path, finished: Path) -> None:
    found = json.loads((checked / "bias.json").read_text())
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (finished, half(checked)))
    for name, limit in LIMITS.items():
        change = after["ensemble"][name] - before["ensemble"][name]
        assert found[name]["change"] == pytest.approx(change)
        each = np.array([a[name] - b[name] for a, b in zip(after["chains"], before["chains"], strict=True)])
        assert found[name]["se"] == pytest.approx(each.std(ddof=1) / 2**0.5)
        assert found[name]["chains_change"] == pytest.approx(each.mean())
        assert found[name]["limit"] == limit
        assert found[name]["passed"] == (abs(change) < limit)
        assert found[name]["test_se"] > 0
    runs = before["diagnostics"]["acceptance"], after["diagnostics"]["acceptance"]
    assert found["acceptance"] == [run["mean"] for run in runs] == [None, None]
    assert {run["reason"] for run in runs} == {"one step would take more than 5 % of the run's gradients"}
    errors = between(*(read(folder / "examples.npz") for folder in (finished, half(checked))))
    assert {name: found[name]["test_se"] for name in LIMITS} == {name: errors[name].se for name in LIMITS}
    assert found["lr"] == [0.01, 0.005]


def test_repeating_the_check_runs_nothing_again(
    checked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (checked, half(checked)):
        shutil.copytree(folder, tmp_path / folder.name)
    (tmp_path / "run" / "examples.npz").unlink()
    before = digests(tmp_path / "run_half_step")
    again = check(tmp_path / "run")
    assert digests(tmp_path / "run_half_step") == before
    out = capsys.readouterr().out
    assert out.count("all 5 draws are on disk") == 2
    assert "NLL" in out
    assert again["nll"]["test_se"] is None
    first = json.loads((checked / "bias.json").read_text())
    assert again["nll"]["change"] == pytest.approx(first["nll"]["change"])


def test_strict_asks_for_both_changes_to_be_small(checked: Path, tmp_path: Path) -> None:
    for folder in (checked, half(checked)):
        shutil.copytree(folder, tmp_path / folder.name)
    wide = ("limits.nll=10", "limits.ece=1", "strict=true")
    assert check(tmp_path / "run", *wide)["nll"]["passed"] is True
    with pytest.raises(
        CriteriaError, match=r"ECE changes by .* at half the step size .it must be below 1e-09"
    ) as error:
        check(tmp_path / "run", *wide, "limits.ece=1e-9")
    assert error.value.exit_code == 4
    written = json.loads((tmp_path / "run" / "bias.json").read_text())
    assert (written["nll"]["passed"], written["ece"]["passed"]) == (True, False)


def test_one_chain_is_told_apart_from_a_pass(tmp_path: Path) -> None:
    run(tmp_path / "run", "chain.num_chains=1", base=OWN)
    out = tmp_path / "elsewhere"
    with pytest.raises(CriteriaError, match="it needs at least two"):
        check(tmp_path / "run", "strict=true", f"out_dir={out}", "keep_time=false")
    found = json.loads((tmp_path / "run" / "bias.json").read_text())
    assert (found["nll"]["se"], found["nll"]["passed"]) == (None, None)
    assert "one chain" in found["nll"]["reason"]
    assert [record["step"] for record in manifest(out, 0)] == [7, 9, 11, 13, 15]  # keep_time=false: the same steps


def test_runs_that_cannot_be_compared_are_refused(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "metrics.json").unlink()
    with pytest.raises(DataError, match=r"was evaluated with 0 of 10 draws: python -m bayeslora\.evaluate"):
        check(folder)
    (folder / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot read .*metrics\.json"):
        check(folder)
    shutil.rmtree(folder / "chains" / "1")
    with pytest.raises(DataError, match="has 5 of 10 draws"):
        check(folder)
    with pytest.raises(DataError, match="is no run directory"):
        check(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="which run"):
        command_settings(BiasSettings, composed(config="bias_check"), "bias_check")
    for wrong in ("limits.brier=1", "rundir=3", "bootstrap=10"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
            check(finished, wrong)
    assert not (tmp_path / "run_half_step").exists()


def recorded(*overrides: str) -> Any:
    """A configuration as a run records it."""
    return plain(composed(*OWN, "run_dir=a", *overrides))


def test_a_run_that_samples_nothing_has_no_bias() -> None:
    for cold in ("sampler=map", "temperature=0"):
        with pytest.raises(ConfigError, match="temperature 0"):
            half_step(recorded(cold), Path("b"), "test")


def test_schedules_keep_their_shape_in_time() -> None:
    polynomial = half_step(recorded("chain.schedule=polynomial"), Path("b"), "test")
    assert polynomial["chain"]["schedule_settings"] == {"offset": 2.0}
    settings = ("chain.schedule=exponential", "chain.schedule_settings={end: 0.5, decay_steps: 30}")
    longer = half_step(recorded(*settings), Path("b"), "test")
    assert longer["chain"]["schedule_settings"] == {"end": 0.5, "decay_steps": 60}
    same_steps = half_step(recorded(*settings), Path("b"), "test", keep_time=False)
    assert same_steps["chain"]["schedule_settings"]["decay_steps"] == 30
    grouped = half_step(recorded("chain.lr_factors={head: 10}"), Path("b"), "test")
    assert (grouped["sampler"]["lr"], grouped["chain"]["lr_factors"]["head"]) == (0.005, 10)


def test_chains_are_paired_by_their_numbers() -> None:
    def of(ensemble: float, chains: dict[int, float]) -> Results:
        entry = {"nll": ensemble, "ece": ensemble}
        each = [{"chain": k, "nll": v, "ece": v} for k, v in chains.items()]
        return Results.from_json({"ensemble": entry, "chains": each})

    found = metric_changes(of(1.0, {0: 1.0, 1: 2.0, 2: 3.0}), of(1.004, {2: 3.02, 0: 1.01, 1: 2.0}), LIMITS)
    assert found["nll"]["chains_change"] == pytest.approx(0.01)
    assert found["nll"]["se"] == pytest.approx(0.01 / 3**0.5)
    assert (found["nll"]["passed"], found["ece"]["passed"]) == (True, True)
    assert "chains differ by as much" in change_verdict(found["nll"])
    quiet = metric_changes(of(1.0, {0: 1.0, 1: 2.0}), of(1.1, {0: 1.1, 1: 2.1}), LIMITS)
    assert change_verdict(quiet["nll"]) == "too large"


def test_a_regression_is_compared_by_its_own_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = np.random.default_rng(0)
    x = source.normal(size=(80, 3))
    np.savez(tmp_path / "data.npz", x=x, y=x @ [1.0, -2.0, 0.5] + 0.1 * source.normal(size=80))
    small = ("experiment=template", "model=mlp", "size=smoke", "logger=none", "likelihood=gaussian", "dataset=npz",
             "evaluate.report=false")  # fmt: skip
    run(tmp_path / "run", f"dataset.path={tmp_path / 'data.npz'}", base=small)
    found = check(tmp_path / "run")
    before, after = (
        json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "run", half(tmp_path / "run"))
    )
    for name in ("nll", "calibration_error"):
        assert found[name]["change"] == pytest.approx(after["ensemble"][name] - before["ensemble"][name])
        assert found[name]["test_se"] > 0
    assert "ece" not in found
    shown = capsys.readouterr().out.rpartition("ε = ")[2]
    assert re.search(r"^calibration error: .*\(limit 0.005\)$", shown, re.MULTILINE)
    table, _, _ = shown.partition("NLL: ")
    assert "calibration error" in table
    assert max(map(len, table.splitlines())) <= 80
