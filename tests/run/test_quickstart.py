"""The main job, end to end: what it writes, that it repeats itself bit for bit, and what must not touch the draws."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from bayeslora.app.compose import to_experiment
from bayeslora.datasets import Digits
from bayeslora.models import resnet_small
from tests.run.tools import (
    OWN,
    STEPS,
    TINY,
    Command,
    Watch,
    composed,
    digests,
    draw,
    ended,
    manifest,
    process,
    run,
    same,
)

METRICS = {"accuracy", "nll", "ece", "brier"}


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def numbers_of(folder: Path) -> dict[str, Any]:
    """The metrics without where, when and how fast they were made."""
    return {key: value for key, value in metrics_of(folder).items() if key != "provenance"}


def inodes(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a file was written again."""
    files = [file for file in folder.glob("chains/**/*") if file.is_file()]
    return {str(file.relative_to(folder)): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


# What is there afterwards


def test_the_run_directory_holds_what_the_design_says(finished: Path) -> None:
    for name in ("config.yaml", "chains/0/map.safetensors", "metrics.json", "diagnostics.nc", "report/index.html"):
        assert (finished / name).stat().st_size > 100, name
    for chain in (0, 1):
        records = manifest(finished, chain)
        assert [record["index"] for record in records] == [0, 1, 2, 3, 4]
        assert [record["step"] for record in records] == STEPS
        blocks = {f"norm/{block}" for block in ("stem.0", "stem.1", "blocks.0", "blocks.1", "blocks.2", "head")}
        names = {"potential", "nll", "prior", "l2_norm", "lr"} | blocks | {f"projection/{i}" for i in range(10)}
        names |= {"temperature/all"} | {name.replace("norm/", "temperature/") for name in blocks}
        assert all(set(record["scalars"]) == names for record in records)
        assert (finished / "logs" / f"chain_{chain}" / "metrics.csv").read_text().count("\n") > 5
    assert not list(finished.rglob("*.tmp"))


def test_the_recorded_configuration_says_where_it_comes_from(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    provenance = config["provenance"]
    assert config["chain"]["num_draws"] == 5
    assert config["logger"]["csv"]["save_dir"] == f"{finished}/logs"
    assert re.fullmatch(r"[0-9a-f]{12}\+?|[\w.-]+", provenance["commit"])
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    assert shlex.split(provenance["command"]) == ["python", *sys.orig_argv[1:]]
    assert set(provenance) == {"layout", "command", "commit", "python", "versions", "hardware"}


def test_metrics_have_the_keys_that_scripts_read(finished: Path) -> None:
    metrics = metrics_of(finished)
    assert set(metrics["map"]) == set(metrics["ensemble"]) == METRICS
    assert [set(chain) for chain in metrics["chains"]] == [METRICS | {"chain"}] * 2
    assert set(metrics["draw"]) == METRICS
    assert all(set(values) == {"mean", "sd", "mcse"} for values in metrics["draw"].values())
    for name in ("potential", "l2_norm"):
        values = metrics["diagnostics"][name]
        assert values["rhat"] > 0.9
        assert values["ess_bulk"] > 0
        assert values["ess_tail"] > 0
    assert (metrics["provenance"]["draws"], metrics["provenance"]["split"]) == (10, "test")


def test_the_diagnostics_file_opens_in_arviz(finished: Path) -> None:
    posterior = arviz.from_netcdf(finished / "diagnostics.nc").posterior
    for chain in (0, 1):
        expected = [record["scalars"]["potential"] for record in manifest(finished, chain)]
        np.testing.assert_array_equal(posterior["potential"].values[chain], expected)


def test_the_report_is_one_page_with_pictures(finished: Path) -> None:
    page = (finished / "report" / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#|\.\./metrics\.json")', page)  # all in one page
    shown = ("quickstart", "the Bayes posterior", "Augmentation", "none", "variance 0.03; head: 4", "Ensemble", "MAP")
    for words in shown:
        assert words in page
    assert "not finished" not in page
    pictures = sorted((finished / "report").glob("*.png"))
    assert len(pictures) >= 4
    for picture in pictures:
        with Image.open(picture) as image:
            assert min(image.size) > 200
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 10  # not one colour


def test_the_ensembles_numbers_are_those_of_plain_torch(finished: Path) -> None:
    data = Digits(limit_train=64, limit_test=40).load()
    inputs = data.transform(data.test.inputs)
    net = resnet_small(10, 1, width=4).eval()

    def probabilities(tensors: dict[str, torch.Tensor]) -> np.ndarray:
        net.load_state_dict(tensors)
        with torch.no_grad():
            return net(inputs).double().softmax(1).numpy()

    def scores(p: np.ndarray) -> dict[str, float]:
        truth = data.test.targets.numpy()
        right, confidence = p.argmax(1) == truth, p.max(1)
        bins = np.minimum((confidence * 15).astype(int), 14)
        gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins)]
        return {
            "accuracy": right.mean(),
            "nll": -np.log(p[np.arange(len(truth)), truth]).mean(),
            "ece": sum(gaps),
            "brier": ((p - np.eye(10)[truth]) ** 2).sum(1).mean(),
        }

    each = np.array([[probabilities(draw(finished, chain, i)) for i in range(5)] for chain in (0, 1)])
    metrics = metrics_of(finished)
    assert metrics["ensemble"] == pytest.approx(scores(each.mean((0, 1))), rel=1e-5)
    for chain, found in enumerate(metrics["chains"]):
        assert found.pop("chain") == chain
        assert found == pytest.approx(scores(each[chain].mean(0)), rel=1e-5)
    ends = [probabilities(load_file(finished / f"chains/{chain}/map.safetensors")) for chain in range(2)]
    assert metrics["map"] == pytest.approx(scores(ends[0]), rel=1e-5)
    assert metrics["map_ensemble"].pop("members") == 2
    assert metrics["map_ensemble"].pop("reason") is None
    assert metrics["map_ensemble"] == pytest.approx(scores((ends[0] + ends[1]) / 2), rel=1e-5)
    for name, one in metrics["differences"]["map_ensemble"].items():
        assert one["value"] == pytest.approx(metrics["ensemble"][name] - metrics["map_ensemble"][name], abs=1e-6)
    singles = [scores(p) for p in each.reshape(10, *each.shape[2:])]
    for name in METRICS:
        values = [single[name] for single in singles]
        assert metrics["draw"][name]["mean"] == pytest.approx(np.mean(values), rel=1e-5)
        assert metrics["draw"][name]["sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-4)


def test_a_draws_scalars_are_those_of_its_tensors(finished: Path) -> None:
    setup = to_experiment(composed(*TINY))
    net = resnet_small(10, 1, width=4).eval()
    for chain, index in ((0, 0), (1, 4)):
        tensors, scalars = draw(finished, chain, index), manifest(finished, chain)[index]["scalars"]
        net.load_state_dict(tensors)
        inputs, targets = map(torch.cat, zip(*setup.probe()(), strict=True))
        assert len(targets) == 8
        nll = torch.nn.functional.cross_entropy(net(inputs), targets).item()
        energy = sum(
            (p.double().square().sum() * setup.potential.prior.precision(name, p.shape) / 2).item()
            for name, p in tensors.items()
        )
        assert scalars["nll"] == pytest.approx(nll, rel=1e-5)
        assert scalars["prior"] == pytest.approx(energy, rel=1e-5)
        assert scalars["potential"] == pytest.approx(64 * nll + energy, rel=1e-5)
        norm = torch.cat([p.flatten() for p in tensors.values()]).norm().item()
        assert scalars["l2_norm"] == pytest.approx(norm, rel=1e-5)
        assert scalars["lr"] == 0.01


# Steps


@pytest.mark.parametrize("sampler", ["sgld", "sam_sgld", "map"])
def test_every_batch_is_one_optimizer_step_of_the_plan(tmp_path: Path, sampler: str) -> None:
    watch = "callbacks.watch._target_=tests.run.tools.Watch"
    run(tmp_path / "run", f"sampler={sampler}", "chain.num_chains=1", watch, base=OWN)
    phases = ["warm-up"] * 3 + ["burn-in"] * 2 + ["sampling"] * 10
    assert Watch.last.seen == [*enumerate(phases), (15, "end")]
    assert [record["step"] for record in manifest(tmp_path / "run", 0)] == STEPS


def test_map_is_sampled_at_temperature_zero_and_its_last_draw_is_the_baseline(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, "sampler=map", "chain.num_chains=1", base=OWN)
    assert same(load_file(folder / "chains/0/map.safetensors"), draw(folder, 0, 4))
    setup = to_experiment(composed(*OWN, "sampler=map"))
    parameter = torch.nn.Parameter(torch.zeros(1))
    assert setup.make_sampler([parameter], kT=setup.potential.kT(1.0), seed=0, chain=0).kT == 0


def test_the_baseline_of_a_sampler_is_the_warm_ups_end(tmp_path: Path) -> None:
    run(tmp_path / "run", "chain.num_chains=1", base=OWN)
    still = ("sampler=map", "sampler.lr=1e-30", "sampler.momentum=0")
    run(tmp_path / "still", *still, "chain.num_chains=1", "chain.burn_in=0", "chain.num_draws=1", base=OWN)
    baseline = load_file(tmp_path / "run" / "chains/0/map.safetensors")
    assert same(baseline, draw(tmp_path / "still", 0, 0))
    assert not same(baseline, draw(tmp_path / "run", 0, 0))


# The same command, the same draws


def test_the_same_command_gives_the_same_draws_bit_for_bit_also_in_another_process(
    tmp_path: Path, finished: Path
) -> None:
    arguments = [*TINY, "evaluate.report=true", f"run_dir={tmp_path / 'elsewhere'}"]
    started = process("train", *arguments, cwd=tmp_path)
    run(tmp_path / "again")
    other = ended(started)
    assert other.code == 0, other.err
    assert digests(tmp_path / "again") == digests(tmp_path / "elsewhere") == digests(finished)
    for folder in ("again", "elsewhere"):
        for end in ("chains/0/map.safetensors", "chains/1/map.safetensors"):
            assert same(load_file(tmp_path / folder / end), load_file(finished / end))
        ours, theirs = metrics_of(tmp_path / folder), metrics_of(finished)
        assert {k: v for k, v in ours.items() if k != "provenance"} == {
            k: v for k, v in theirs.items() if k != "provenance"
        }
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == []  # no log files of Hydra
    recorded = yaml.safe_load((tmp_path / "elsewhere" / "config.yaml").read_text())["provenance"]
    assert recorded["command"] == shlex.join(["python", "-m", "bayeslora.train", *arguments])
    assert all(words in other.out for words in ("chain 2/2", "step 15/15", "potential", "step size", "draws 5/5"))
    assert "Draw ± sd" in other.out
    assert "…" not in other.out
    assert f"report: {tmp_path}/elsewhere/report/index.html" in other.out
    assert other.err == ""


def test_chains_draws_and_seeds_differ(tmp_path: Path, finished: Path) -> None:
    run(tmp_path / "seed", "seed=1")
    every = [sha for folder in (finished, tmp_path / "seed") for chain in digests(folder) for sha in chain]
    assert len(set(every)) == 20
    end = "chains/0/map.safetensors"
    assert not same(load_file(tmp_path / "seed" / end), load_file(finished / end))
    first = [draw(finished, chain, 0)["head.weight"] for chain in (0, 1)]
    assert (first[0] - first[1]).abs().max() > 0.1  # chains have starts of their own


def test_repeating_the_command_keeps_every_draw_and_runs_nothing(
    finished: Path, tmp_path: Path, command: Command
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before, metrics = inodes(folder), (folder / "metrics.json").read_bytes()
    result = command("train", *TINY, f"run_dir={folder}")
    assert result.code == 0
    assert result.out.count("all 5 draws are on disk") == 2
    assert not re.search(r"step \d+/\d+", result.out)
    assert inodes(folder) == before
    assert (folder / "metrics.json").read_bytes() == metrics


def test_a_chain_without_warm_up_is_not_run_again_either(tmp_path: Path, command: Command) -> None:
    arguments = (*TINY, "chain.warmup.steps=0", "chain.num_chains=1", f"run_dir={tmp_path / 'run'}")
    assert command("train", *arguments).code == 0
    assert metrics_of(tmp_path / "run")["map"] is None
    assert "all 5 draws are on disk" in command("train", *arguments).out


# Evaluating, also what is not finished


def test_evaluate_repeats_the_numbers(finished: Path, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(finished, folder)
    for name in ("metrics.json", "diagnostics.nc"):
        (folder / name).unlink()
    shutil.rmtree(folder / "report")
    before = inodes(folder)
    result = command("evaluate", f"run_dir={folder}")
    assert result.code == 0, result.err
    assert (folder / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()
    assert (folder / "diagnostics.nc").exists()
    assert len(list((folder / "report").iterdir())) == len(list((finished / "report").iterdir()))
    assert inodes(folder) == before
    small = command("evaluate", f"run_dir={folder}", "batch_size=7")
    assert small.code == 0
    assert metrics_of(folder)["ensemble"] == pytest.approx(metrics_of(finished)["ensemble"], rel=1e-4)


def test_a_run_from_a_machine_with_an_accelerator_is_evaluated_without_one(
    finished: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gpu"
    shutil.copytree(finished, folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("accelerator: cpu", "accelerator: gpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = command("evaluate", f"run_dir={folder}")
    assert result.code == 0, result.err
    assert metrics_of(folder)["ensemble"] == metrics_of(finished)["ensemble"]


def test_settings_are_chosen_on_validation_and_reported_on_test(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "run"
    chosen = run(folder, "dataset.validation_size=30", "evaluate.split=validation", "chain.num_chains=1")
    assert chosen["provenance"]["split"] == "validation"
    assert chosen["ensemble"]["accuracy"] * 30 == pytest.approx(round(chosen["ensemble"]["accuracy"] * 30))
    assert command("evaluate", f"run_dir={folder}", "split=test").code == 0
    reported = metrics_of(folder)
    assert reported["provenance"]["split"] == "test"
    assert reported["ensemble"]["nll"] != chosen["ensemble"]["nll"]


def cut(folder: Path) -> None:
    """Leave chain 1 as a crash would: two draws listed, a third line cut off, a fourth draw's file not listed."""
    lines = (folder / "chains/1/manifest.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "chains/1/manifest.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:30])
    (folder / "chains/1/draws/000004.safetensors").unlink()


def without_chain(folder: Path) -> None:
    shutil.rmtree(folder / "chains" / "1")


@pytest.mark.parametrize(("spoil", "kept"), [(without_chain, 0), (cut, 2)])
def test_a_half_finished_run_is_evaluated_with_a_note_and_completed_with_the_same_draws(
    finished: Path, tmp_path: Path, command: Command, spoil: Any, kept: int
) -> None:
    folder = tmp_path / "half"
    shutil.copytree(finished, folder)
    spoil(folder)
    chain_0 = {name: at for name, at in inodes(folder).items() if name.startswith("chains/0")}
    assert command("evaluate", f"run_dir={folder}").code == 0
    page = (folder / "report" / "index.html").read_text()
    assert f"Chain 1 has {kept} of 5 draws: the run is not finished." in page
    metrics = metrics_of(folder)
    assert metrics["provenance"]["draws"] == 5 + kept
    assert len(metrics["chains"]) == (2 if kept else 1)
    assert metrics["chains"][0] == metrics_of(finished)["chains"][0]
    assert metrics["diagnostics"]["potential"]["rhat"] is None
    assert metrics["diagnostics"]["potential"]["reason"]
    result = command("train", *TINY, "evaluate.report=true", f"run_dir={folder}")
    assert result.code == 0, result.err
    assert chain_0.items() <= inodes(folder).items()
    for index in range(5):
        assert same(draw(folder, 1, index), draw(finished, 1, index))
    assert numbers_of(folder) == numbers_of(finished)
    assert "not finished" not in (folder / "report" / "index.html").read_text()


def test_an_interrupted_run_ends_with_130_and_is_completed_with_the_same_draws(
    finished: Path, tmp_path: Path, command: Command
) -> None:
    folder = tmp_path / "run"
    slow = ("callbacks.slow._target_=tests.run.tools.Slow", "callbacks.slow.seconds=0.3")
    started = process("train", *TINY, f"run_dir={folder}", *slow)
    second = folder / "chains" / "1" / "draws" / "000000.safetensors"
    deadline = time.monotonic() + 90
    while not second.exists() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    started.send_signal(2)
    result = ended(started)
    assert result.code == 130, result.err
    assert "stopped by SIGINT after step 7; nothing is lost. Repeat the command with run_dir=" in result.err
    assert 1 <= len(list(second.parent.iterdir())) < 5
    assert not (folder / "metrics.json").exists()
    assert command("evaluate", f"run_dir={folder}", "trust=[tests]").code == 0
    run(folder)
    assert digests(folder) == digests(finished)
