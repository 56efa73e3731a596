"""Evaluating odd runs (a reason in the report, null in metrics.json, no crash), criteria, other data, a reference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import arviz
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor

from bayeslora.app.compose import load_experiment, to_experiment
from bayeslora.datasets.base import Data, Split
from bayeslora.diagnostics.calibration import fit_temperature
from bayeslora.evaluation.acceptance import full_data_acceptance
from bayeslora.posterior import Posterior
from bayeslora.runs.directory import RunDirectory
from tests.data.text_models import tiny_model
from tests.data.text_tools import mrpc
from tests.run.test_bad_input import shards
from tests.run.tools import STEPS, TINY, Command, composed, run
from tests.unit.report_tools import Page

RHATS = {"potential_rhat", "function_space_rhat", "l2_norm_rhat"}
CONVERGENCE = RHATS | {"potential_ess", "l2_norm_ess"}
AGAINST_MAP = {"nll_above_map", "ece_above_map", "accuracy_below_map"}


def lines_of(folder: Path, chain: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"chains/{chain}/manifest.jsonl").read_text().splitlines()]


def rewrite(folder: Path, chain: int, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"chains/{chain}/manifest.jsonl").write_text(text)


def one_chain(folder: Path) -> None:
    shutil.rmtree(folder / "chains/1")


def one_draw(folder: Path) -> None:
    one_chain(folder)
    rewrite(folder, 0, lines_of(folder, 0)[:1])


def different_lengths(folder: Path) -> None:
    rewrite(folder, 1, lines_of(folder, 1)[:4])


def constant(folder: Path) -> None:
    for chain in (0, 1):
        lines = lines_of(folder, chain)
        for line in lines:
            line["scalars"]["potential"] = 7.0
        rewrite(folder, chain, lines)


def with_nan(folder: Path) -> None:
    lines = lines_of(folder, 0)
    lines[2]["scalars"]["potential"] = float("nan")
    rewrite(folder, 0, lines)


def without_map(folder: Path) -> None:
    (folder / "chains/0/map.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "unknown", "reason"),
    [
        (one_chain, RHATS, "R-hat compares chains and there is only one"),
        (one_draw, CONVERGENCE, "fewer than 4 draws a chain (the shortest has 1)"),
        (different_lengths, CONVERGENCE, "chains of 4 to 5 draws cannot be judged together until all are as long"),
        (constant, {"potential_rhat", "potential_ess"}, "the series is constant in every chain"),
        (with_nan, CONVERGENCE, "fewer than 4 draws a chain (the shortest has 2)"),
        (without_map, AGAINST_MAP, "there is no MAP baseline"),
    ],
)
def test_what_is_odd_has_a_reason_is_null_and_does_not_pass(
    command: Command, finished: Path, tmp_path: Path, spoil: Callable[[Path], None], unknown: set[str], reason: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    spoil(folder)
    ended = command("evaluate", f"run_dir={folder}", "--strict")
    assert ended.code == 4, ended.err
    assert "Traceback" not in ended.err
    metrics = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    criteria = metrics["criteria"]
    assert {name for name, one in criteria.items() if one["value"] is None} - {"temperature"} == unknown
    assert not any(criteria[name]["passed"] for name in unknown | {"temperature"})
    page = Page(folder / "report" / "index.html").text
    assert reason in page
    assert "✗ not known" in page
    assert "The chains agree" not in page
    assert (metrics["map"] is None) == (spoil is without_map)
    diagnostics = metrics["diagnostics"]
    assert (diagnostics["agreement"]["kl"] is None) == (spoil in (one_chain, one_draw))
    single = metrics["uncertainty"]["ensemble"]["mutual_information"], metrics["draw"]["nll"]["sd"]
    assert (single == (None, None)) == (spoil is one_draw)
    arviz.from_netcdf(folder / "diagnostics.nc")


def test_a_probe_set_larger_than_the_data_is_all_of_them_and_the_report_says_so(tmp_path: Path) -> None:
    metrics = run(tmp_path / "run", "chain.probe_size=5000", "chain.num_draws=1", "evaluate.report=true")
    assert metrics["diagnostics"]["potential"]["rhat"] is None
    page = Page(tmp_path / "run" / "report" / "index.html").text
    assert "Probe set all 64 training examples" in " ".join(page.split())


# Criteria decide on the exit code


def test_strict_ends_with_4_where_a_criterion_is_not_met_and_all_is_written(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "metrics.json").unlink()
    strict = command("evaluate", f"run_dir={folder}", "--strict")
    assert strict.code == 4
    criteria = json.loads((folder / "metrics.json").read_text())["criteria"]
    problems = [one["title"] for one in criteria.values() if not one["passed"]]
    assert len(problems) >= 3
    assert strict.err.startswith("bayeslora: ")
    for title in problems:
        assert f"{title} is " in strict.err
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    assert command("evaluate", f"run_dir={folder}").code == 0


def test_training_ends_with_4_too_and_with_0_where_the_limits_are_met(command: Command, tmp_path: Path) -> None:
    names = sorted(CONVERGENCE | AGAINST_MAP)
    met = [f"evaluate.criteria.{name}={-1e9 if name.endswith('_ess') else 1e9}" for name in names]
    met.append("evaluate.criteria.temperature=null")
    good = command("train", *TINY, f"run_dir={tmp_path / 'run'}", *met, "--strict")
    assert good.code == 0, good.err
    criteria = json.loads((tmp_path / "run" / "metrics.json").read_text())["criteria"]
    assert {name for name, one in criteria.items() if one["passed"]} == set(names)
    but_one = [one for one in met if "nll_above_map" not in one]
    again = command("train", *TINY, f"run_dir={tmp_path / 'run'}", *but_one, "evaluate.strict=true")
    assert again.code == 4
    one = command("train", *TINY, f"run_dir={tmp_path / 'run'}", "evaluate.criteria.potential_ess=1e9")
    assert one.code == 0, one.err


# Beyond the test set


def test_another_dataset_of_the_same_size_is_told_apart(command: Command, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    ended = command("evaluate", f"run_dir={folder}", "ood=digits", "corruptions=true", "corruption_examples=5")
    assert ended.code == 0, ended.err
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["ood"]["dataset"] == "digits"
    for score in ("entropy", "mutual_information", "map_entropy"):
        assert 0.3 < metrics["ood"][score]["auroc"] < 0.7  # more of the same digits
    corrupted = {key: row for key, row in metrics["corruptions"].items() if key != "examples"}
    assert set(corrupted) == {"gaussian_noise", "gaussian_blur", "contrast", "brightness", "pixelate", "jpeg"}
    for row in corrupted.values():
        assert row["severity"] == [1, 2, 3, 4, 5]
        for source in ("map", "ensemble"):
            assert all({"accuracy", "nll", "ece"} <= set(values) for values in row[source])


def test_another_dataset_is_cut_as_the_test_set_is() -> None:
    experiment = to_experiment(composed(*TINY, "dataset.limit_test=8", "evaluate.ood=digits"))
    assert experiment.make_ood is not None
    assert len(experiment.make_ood().test) == 8


def test_another_dataset_of_another_size_has_a_reason(command: Command, finished: Path, tmp_path: Path) -> None:
    folder, other = tmp_path / "run", shards(tmp_path / "cifar")
    shutil.copytree(finished, folder)
    ended = command("evaluate", f"run_dir={folder}", "ood=cifar10", f"ood_path={other}")
    assert ended.code == 0, ended.err
    found = json.loads((folder / "metrics.json").read_text())["ood"]
    reason = (
        "cifar10 holds images of 32 × 32 pixels in 3 channels, and digits images of 8 × 8 pixels in 1 channel;"
        " choose a dataset of the same kind and size"
    )
    nothing = dict.fromkeys(("entropy", "mutual_information", "map_entropy"))
    assert found == {"dataset": "cifar10"} | nothing | {"reason": reason}
    assert reason in Page(folder / "report" / "index.html").text


def test_of_texts_other_texts_are_told_apart_and_corruptions_have_a_reason(tmp_path: Path, command: Command) -> None:
    """Through the remembered activations of frozen layers, which are the run's own data's only."""
    model, data = tiny_model(tmp_path / "model", "bert"), mrpc(tmp_path / "mrpc", train=40, test=16)
    ours = (f"model.name_or_path={model}", f"dataset.path={data}", "dataset.max_length=60")
    few = ("dataset.limit_test=16", "chain.num_draws=2", "evaluate.report=false")  # fewer pairs than are held out
    trained = command("train", "experiment=mrpc_minilm_sgld", "size=smoke", *ours, *few, f"run_dir={tmp_path / 'run'}")
    assert trained.code == 0, trained.err
    for ood, path, known in (("mrpc", data, True), ("digits", "null", False)):
        asked = (f"run_dir={tmp_path / 'run'}", f"ood={ood}", f"ood_path={path}", "corruptions=true")
        ended = command("evaluate", *asked)
        assert ended.code == 0, ended.err
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert metrics["corruptions"] == {
            "examples": None,
            "reason": "the data are texts, and corruptions are of images",
        }
        if known:
            assert metrics["ood"]["entropy"]["auroc"] == pytest.approx(0.5, abs=1e-3)  # the run's own test set
        else:
            assert metrics["ood"]["entropy"] is None
            assert "digits holds images of 8 × 8 pixels in 1 channel, and" in metrics["ood"]["reason"]


def test_datasets_that_are_not_there_are_refused_before_any_work(command: Command, finished: Path) -> None:
    before = (finished / "metrics.json").read_bytes()
    unknown = command("evaluate", f"run_dir={finished}", "ood=cifr10")
    assert (unknown.code, "evaluate.ood=cifr10 is no dataset; did you mean cifar10?" in unknown.err) == (2, True)
    gone = command("evaluate", f"run_dir={finished}", "ood=cifar10", f"ood_path={finished / 'gone'}")
    assert (gone.code, "gone does not exist" in gone.err) == (2, True)
    assert (finished / "metrics.json").read_bytes() == before


# A reference posterior


def reference_for(file: Path, shift: int = 0, classes: int = 10) -> Path:
    """A reference for all the test digits; `shift` moves its order, fewer `classes` make it another task's."""
    from bayeslora.datasets import Digits

    labels = Digits().load().test.targets.numpy()
    labels = np.roll(labels, shift)
    probs = np.full((len(labels), 10), 0.3 / 9)
    probs[np.arange(len(labels)), labels] = 0.7
    probs = probs[:, :classes] / probs[:, :classes].sum(1, keepdims=True)
    np.savez(file, index=np.arange(len(labels)), probs=probs, labels=labels)
    return file


def test_a_run_is_scored_against_a_reference(command: Command, finished: Path, tmp_path: Path) -> None:
    """With the test set whole, as `index` takes it; here by a run whose recorded limit is taken away."""
    folder, file = tmp_path / "run", tmp_path / "reference.npz"
    shutil.copytree(finished, folder)
    limited = command("evaluate", f"run_dir={folder}", f"reference={reference_for(file)}")
    assert limited.code == 2
    assert "needs the whole test set in its order: set evaluate.split=test and dataset.limit_test=null" in limited.err
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("limit_test: 40", "limit_test: null"))
    ended = command("evaluate", f"run_dir={folder}", f"reference={reference_for(file)}")
    assert ended.code == 0, ended.err
    found = json.loads((folder / "metrics.json").read_text())["reference"]
    assert set(found) == {"map", "map_ensemble", "draw", "chain 0", "chain 1", "ensemble", "curve"}
    for name in ("map", "draw", "chain 0", "chain 1", "ensemble"):
        assert 0 <= found[name]["agreement"] <= 1
        assert 0 < found[name]["agreement_se"] < 0.1
        assert 0 < found[name]["total_variation"] < 1
        assert 0 < found[name]["total_variation_se"] < 0.1
    assert found["curve"]["draws"] == [2, 4, 6, 8, 10]
    assert found["curve"]["agreement"][-1] == found["ensemble"]["agreement"]
    page = Page(folder / "report" / "index.html").text
    assert "Fidelity ± standard error over examples" in page
    refused = command("evaluate", f"run_dir={folder}", f"reference={reference_for(file, shift=1)}")
    assert refused.code == 2
    nine = command("evaluate", f"run_dir={folder}", f"reference={reference_for(file, classes=9)}")
    assert nine.code == 2


# What other programs read


def test_arviz_plots_the_diagnostics_file(finished: Path) -> None:
    data = arviz.from_netcdf(finished / "diagnostics.nc")
    assert data.posterior["probe_log_prob"].dims == ("chain", "draw", "example", "class")
    names = ["potential", "l2_norm", "norm"]
    for plot in (arviz.plot_trace, arviz.plot_rank, arviz.plot_autocorr, arviz.plot_forest, arviz.plot_posterior):
        axes = plot(data, var_names=names)
        assert np.size(axes) >= 1, plot.__name__
        plt.close("all")
    summary = arviz.summary(data, var_names=names)
    assert {"potential", "l2_norm", "norm[head]"} <= set(summary.index)


def test_the_time_of_every_draw_is_noted(finished: Path) -> None:
    for chain in (0, 1):
        entries = [json.loads(line) for line in (finished / f"chains/{chain}/timing.jsonl").read_text().splitlines()]
        drawn = [entry for entry in entries if "draw" in entry]
        assert [(entry["draw"], entry["step"]) for entry in drawn] == list(enumerate(STEPS))
        assert all(entry["seconds"] > 0 for entry in drawn)
        spent = sum(entry["seconds"] for entry in entries if "phase" in entry)
        assert sum(entry["seconds"] for entry in drawn) == pytest.approx(spent, rel=1e-3)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a validation set and batches of unequal size, on which means of means would differ."""
    folder = tmp_path_factory.mktemp("uneven") / "run"
    run(folder, "chain.num_draws=4", "dataset.validation_size=30", "evaluate.batch_size=27", "chain.warmup.steps=60",
        "chain.warmup.optimizer.lr=0.05", "chain.probe_size=32", "logger=none")  # fmt: skip
    return folder


def log_probs(model: Any, split: Split, data: Data) -> Tensor:
    with torch.no_grad():
        return model.eval()(data.transform(split.inputs)).log_softmax(-1)


def test_maps_temperature_is_fitted_to_the_validation_set(uneven: Path) -> None:
    setup = load_experiment(RunDirectory(uneven))
    posterior = Posterior.load(uneven, setup.model())
    baseline, data = posterior.map_model(), setup.data
    fits = [fit_temperature(log_probs(baseline, s, data), s.targets).temperature
            for s in (data.validation, data.test, data.train)]  # fmt: skip
    metrics = json.loads((uneven / "metrics.json").read_text())
    tempered, found = metrics["map_tempered"], metrics["map_tempered"]["temperature"]
    assert found == pytest.approx(fits[0], rel=1e-4)
    scaled = (log_probs(baseline, data.test, data) / found).log_softmax(-1)
    assert tempered["nll"] == pytest.approx(torch.nn.functional.nll_loss(scaled, data.test.targets).item(), rel=1e-4)
    assert all(abs(found - other) > 0.01 for other in fits[1:])


def test_differences_are_those_of_the_scores(uneven: Path) -> None:
    metrics = json.loads((uneven / "metrics.json").read_text())
    for name in ("map", "map_tempered", "map_ensemble"):
        difference = metrics["ensemble"]["nll"] - metrics[name]["nll"]
        assert metrics["differences"][name]["nll"]["value"] == pytest.approx(difference, rel=1e-4)


def test_a_step_on_all_data_is_tried_in_batches_of_any_size(uneven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayeslora.evaluation.acceptance.SHARE", 1e6)  # of so few steps nothing would be tried
    setup = load_experiment(RunDirectory(uneven))
    posterior = Posterior.load(uneven, setup.model())
    sizes = (replace(setup, evaluation=replace(setup.evaluation, batch_size=size)) for size in (27, 1000))
    uneven_batches, whole = (full_data_acceptance(posterior, experiment) for experiment in sizes)
    assert 0 < whole.mean < 1
    assert uneven_batches.mean == pytest.approx(whole.mean, rel=1e-3)


def test_a_draws_nll_is_the_mean_over_the_probe_sets_examples(uneven: Path) -> None:
    """Batches of 27 and 5: the mean of their means is another number."""
    setup = load_experiment(RunDirectory(uneven))
    posterior = Posterior.load(uneven, setup.model())
    inputs, targets = (torch.cat(parts) for parts in zip(*setup.probe()(), strict=True))
    assert len(targets) == 32
    for store in posterior.stores:
        for record in store.records():
            with torch.no_grad():
                outputs = posterior.model_of(store.load(record)).eval()(inputs)
            nll = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
            mean, of_means = nll.mean().item(), torch.stack([part.mean() for part in nll.split(27)]).mean().item()
            assert record.scalars["nll"] == pytest.approx(mean, rel=1e-5)
            held_out = setup.data.validation
            predicted = log_probs(posterior.model_of(store.load(record)), held_out, setup.data)
            own = torch.nn.functional.nll_loss(predicted, held_out.targets).item()
            assert record.scalars["validation/nll"] == pytest.approx(own, rel=1e-5)
            assert abs(of_means - mean) > 1e-3 * mean
