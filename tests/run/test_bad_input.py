"""What is wrong ends with one clear message and its exit code, before any work starts; draws kept stay readable."""

from __future__ import annotations

import io
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image

from bayeslora.posterior import DrawStore, Posterior
from tests.cases import each
from tests.run.tools import STEPS, TINY, Command, Ended, digests, draw, ended, manifest, process, run, same


def refused(result: Ended, *words: str, code: int = 2) -> list[str]:
    """The problems of a command that was refused with one message and nothing else."""
    assert result.code == code, result
    for noise in ("Traceback", "Error executing job", "HYDRA_FULL_ERROR", "++", "full_key"):
        assert noise not in result.err
    assert result.err.startswith("bayeslora: ")
    lines = result.err.strip().splitlines()
    assert len(lines) == 1 or all(line.startswith("  - ") for line in lines[1:])
    for part in words:
        assert part in result.err
    return [line.removeprefix("  - ") for line in lines[1:]] or [lines[0].removeprefix("bayeslora: ")]


def before_work(result: Ended, *words: str) -> list[str]:
    assert result.out == ""
    return refused(result, *words)


# Configuration


def test_an_unknown_experiment_is_answered_by_the_list_of_them(command: Command) -> None:
    unknown = command("train", "experiment=quickstrt")
    no_setting = command("train", "experiment=quickstart", "quickstart")
    before_work(
        unknown, "there is no experiment called quickstrt; choose one of", "cifar10_resnet18_sgld", "quickstart"
    )
    before_work(no_setting, "cannot read 'quickstart' on the command line: write KEY=VALUE")


@each(("mark", "shown"), [(";", ";"), (",", "','"), ("\t", '"\\t"'), (r"\t", r"\t")])
def test_a_value_of_one_mark_needs_no_quotes_within_quotes(mark: str, shown: str, command: Command) -> None:
    result = command("train", "dataset=csv", f"dataset.separator={mark}", "--cfg", "job", "-p", "dataset")
    assert f"separator: {shown}\n" in result.out


def test_all_problems_are_told_at_once_by_the_real_command(tmp_path: Path) -> None:
    """Every kind of value; a process of its own, since what is at stake is what a user sees."""
    wrong = {
        "sampler.lr=-0.1": "sampler.lr=-0.1 must be a positive finite number",
        "chain.num_draws=0": "chain.num_draws=0 must be at least 1: a chain that keeps no draw has no posterior",
        "chain.burn_in=-1": "chain.burn_in=-1 must be at least 0",
        "chain.num_chains=0": "chain.num_chains=0 must be at least 1",
        "chain.schedule=linaer": "chain.schedule=linaer is unknown; choose one of constant, cosine",
        "chain.warmup.optimizer.lr=nan": "chain.warmup.optimizer.lr=nan must be a positive finite number",
        "prior.scaling=fan": "prior.scaling='fan' is unknown; choose constant or fan_in",
        "temperature=-1": "temperature=-1 must be finite and at least 0",
        "trainer.precision=16-mixed": "trainer.precision=16-mixed cannot be used for sampling",
        "trainer.compile=maybe": "trainer.compile=maybe must be true, false or auto",
        "trainer.num_threads=0": "trainer.num_threads=0 must be at least 1, or null",
        "trainer.noise_ahead=often": "trainer.noise_ahead=often must be true, false or auto",
        "trainer.channels_last=true": "trainer.channels_last=true cannot be used on a CPU",
        "model.norm=layer": "model.norm='layer' is unknown; choose one of batch, group, frn",
        "dataset.limit_train=0": "dataset.limit_train must be a whole number of at least 1",
        "evaluate.split=train": "evaluate.split=train must be test or validation",
    }
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    result = ended(process("train", "experiment=digits_resnet", *wrong, f"run_dir={tmp_path / 'taken'}"))
    problems = before_work(result, f"{len(wrong) + 1} problems, nothing was started:")
    for message in (*wrong.values(), "taken holds files but no run; choose another run_dir"):
        assert len([problem for problem in problems if message in problem]) == 1, message
    assert len(problems) == len(wrong) + 1
    assert [file.name for file in (tmp_path / "taken").iterdir()] == ["thesis.tex"]


def test_keys_and_types_are_told_at_once(command: Command, tmp_path: Path) -> None:
    wrong = ("sampler.lrr=1", "chain.thn=2", "modle.norm=frn", "seed=one", "dataset.augment=no")
    problems = before_work(command("train", "experiment=digits_resnet", *wrong, f"run_dir={tmp_path / 'run'}"))
    assert sorted(problems) == [
        "dataset.augment=no must be true or false",
        "seed: Value 'one' of type 'str' could not be converted to Integer",
        "unknown key chain.thn: did you mean thin?",
        "unknown key modle: did you mean model?",
        "unknown key sampler.lrr: did you mean lr?",
    ]
    assert not (tmp_path / "run").exists()


def test_forms_and_values_are_told_at_once(command: Command, tmp_path: Path) -> None:
    wrong = ("temperature=-1", "sampler.lr=abc", "chain.num_chains=two", "chain.thin=0", "model.width=0")
    problems = before_work(command("train", "experiment=digits_resnet", *wrong, f"run_dir={tmp_path / 'run'}"))
    assert [problem.partition("=")[0].partition(":")[0].split()[0] for problem in sorted(problems)] == [
        "chain.num_chains", "chain.thin", "model.width", "sampler.lr", "temperature",
    ]  # fmt: skip


def test_a_mistyped_key_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    script = (
        "import sys, bayeslora.train as t\n"
        "try: t.main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    for key in ("chain.num_draw=3", "sampler.lrr=3", "model.widht=3"):
        arguments = [sys.executable, "-c", script, "experiment=digits_resnet", key, f"run_dir={tmp_path / 'run'}"]
        result = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert result.stdout.strip() == "2 False", result.stderr
        assert f"unknown key {key.partition('=')[0]}: did you mean" in result.stderr


@each(
    ("arguments", "write"),
    [
        (["--experiment", "quickstart"], "write experiment=quickstart"),
        (["experiment=quickstart", "--lr", "0.1"], "write sampler.lr=0.1"),
        (["--burn-in=3"], "write chain.burn_in=3"),
        (["--seed"], "write seed=…"),
    ],
)
def test_settings_written_as_options_are_answered_by_what_to_write(
    command: Command, arguments: list[str], write: str
) -> None:
    before_work(
        command("train", *arguments), f"{next(a for a in arguments if a[0] == '-').partition('=')[0]} is", write
    )


def test_mistyped_keys_in_an_experiment_file_are_named(command: Command, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /sampler: sam_sgld\n"
        "name: mine\nsed: 3\nsampler:\n  roh: 0.1\nchain:\n  warmup:\n    stps: 3\n"
    )
    problems = before_work(command("train", f"--config-dir={tmp_path}", "experiment=mine"))
    assert sorted(problems) == [
        "unknown key chain.warmup.stps: did you mean steps?",
        "unknown key sampler.roh: did you mean rho?",
        "unknown key sed: did you mean seed?",
    ]


@each(
    ("arguments", "words"),
    [
        (["sampler.lr=nan"], ["sampler.lr=nan must be a positive finite number"]),
        (["sampler.lr=0"], ["sampler.lr=0 must be a positive finite number"]),
        (["sampler=sam_sgld", "sampler.rho=-1"], ["sampler.rho=-1 must be finite and at least 0"]),
        (["sampler=sam_sgld", "sampler.rho=null"], ["sampler.rho=null must be a number"]),
        (["sampler=map", "sampler._target_=torch.optim.SGD"], ["sampler: ", "unexpected keyword argument 'kT'"]),
        (["chain.warmup.optimizer.lr=fast"], ["chain.warmup.optimizer.lr=fast must be a positive finite number"]),
        (["chain=default", "chain.warmup.optimizer.momentum=-1"], ["chain.warmup.optimizer: Invalid momentum value"]),
        (["trainer.precision=16-true"], ["half-precision parameters lose steps", "32-true, bf16-mixed"]),
        (["chain.batch_size=2000"], ["chain.batch_size=2000 must be from 1 to 1437", "or null"]),
        (["dataset.validation_size=1437"], ["leaves nothing of the 1437 training examples"]),
        (["evaluate.split=validation"], ["needs a validation set: train with dataset.validation_size=…"]),
        (["model=resnet_small", "model.width=0"], ["model.width must be at least 1, not 0"]),
        (["model._target_=torch.nn.Linear"], ["unknown key model.hidden: known here: ", "~model.hidden takes it away"]),
        (["model._target_=bayeslora.models.resnet"], ["is a module; name a class or function in it"]),
        (["sampler=hmc"], ["there is no sampler called hmc; choose one of ", " map, "]),
        (["~seed"], ["seed"]),
        (["seed=${nothing}"], ["Interpolation key 'nothing' not found"]),
        (["seed=1,2"], ["seed=1,2 names several values", "add -m", "'seed=[1,2]'"]),
        (["trainer.precision=64-true"], ["is not needed: a model of your own in float64", "module.double()"]),
        (["run_dir=/proc/version"], ["run_dir=/proc/version is a file; choose a folder"]),
        (["run_dir=/proc/version/x", "size=smoke"], ["run_dir=/proc/version/x cannot be written to"]),
        (["chain.num_draws=[1,2]"], ["chain.num_draws: Value"]),
    ],
)
def test_one_wrong_setting_gives_one_message(command: Command, arguments: list[str], words: list[str]) -> None:
    before_work(command("train", *arguments), *words)


def test_an_accelerator_that_is_not_there_is_refused(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before_work(command("train", "experiment=quickstart", "trainer=gpu"), "torch sees no CUDA device; use trainer=cpu")


def test_the_module_itself_refuses_fp16(tmp_path: Path) -> None:
    """Also where somebody builds the trainer by hand."""
    from lightning import Trainer
    from lightning.pytorch.plugins import MixedPrecision

    from bayeslora.app.compose import to_experiment
    from bayeslora.engine.module import SamplingModule
    from bayeslora.engine.runner import Steps
    from bayeslora.errors import ConfigError
    from tests.run.tools import composed

    setup = to_experiment(composed(*TINY))
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, plugins=[MixedPrecision("16-mixed", "cpu")],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="16-mixed cannot be used for sampling"):
        trainer.fit(SamplingModule(setup.new_chain(0)), Steps(setup.batches(0), 1))


# Data


def shards(folder: Path, label: str = "label", spoil: bool = False) -> Path:
    """A CIFAR of three images a split, as the hub's parquet; `spoil` cuts one image short."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        cells = []
        for _ in range(3):
            buffer = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
            cells.append({"bytes": buffer.getvalue(), "path": None})
        if spoil and split == "test":
            cells[1]["bytes"] = cells[1]["bytes"][:900]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"img": pa.array(cells, kind), label: [0, 1, 2]})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def cifar(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`cifar(*arguments)`: train on CIFAR-10 with a cache and downloads of its own."""
    monkeypatch.setenv("BAYESLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BAYESLORA_DATA", str(tmp_path / "data"))
    common = (
        "size=smoke",
        "chain.batch_size=2",
        "model=resnet_small",
        "evaluate.report=false",
        f"run_dir={tmp_path / 'run'}",
    )

    def train(*arguments: str) -> Ended:
        result = command("train", "experiment=cifar10_resnet18_sgld", *common, *arguments)
        assert result.code == 0 or not (tmp_path / "run").exists()
        return result

    return train


def test_folders_without_the_dataset_are_refused(cifar: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path = shards(tmp_path / "hundred", "fine_label")
    before_work(cifar(f"dataset.path={tmp_path / 'empty'}"), "empty holds nothing; dataset.path must be a folder that")
    before_work(cifar(f"dataset.path={tmp_path / 'gone'}"), "gone does not exist; dataset.path must be a folder that")
    before_work(cifar(f"dataset.path={path}"), "holds another dataset (perhaps CIFAR-100: choose dataset=cifar100)")


def test_a_folder_and_settings_are_told_at_once(cifar: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    problems = before_work(cifar(f"dataset.path={tmp_path / 'empty'}", "sampler.lr=-1", "dataset.std=[0,1,1]"))
    assert len(problems) == 3


def test_a_corrupt_shard_is_named_with_the_row(cifar: Any, tmp_path: Path) -> None:
    spoilt = shards(tmp_path / "spoilt", spoil=True)
    words = ("test-00000-of-00001.parquet, row 1 cannot be read as an image", "fetch the shard again")
    result = cifar(f"dataset.path={spoilt}")
    refused(result, *words)
    assert re.fullmatch(r"decoding cifar10 once into \S+\n", result.out)
    assert cifar(f"dataset.path={shards(tmp_path / 'good')}").code == 0  # the same command on good shards


def test_without_a_network_it_says_which_file_to_put_where(
    cifar: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/cifar-10-python.tar.gz")
    words = ("downloading failed", "Fetch cifar-10-python.tar.gz", f"put it into {tmp_path / 'data'}", "dataset.path=")
    refused(cifar(), *words)


# Run directories


def test_another_configuration_is_refused_and_the_difference_named(command: Command, finished: Path) -> None:
    before = digests(finished)
    result = command("train", *TINY, f"run_dir={finished}", "sampler.lr=0.02", "chain.thin=3")
    words = ("another configuration", "chain.thin (here 3, there 2)", "sampler.lr (here 0.02, there 0.01)")
    before_work(result, *words, "Choose another run_dir, or repeat the settings")
    assert digests(finished) == before
    other = command("train", *TINY, f"run_dir={finished}", "sampler._target_=tests.run.tools.Exploding")
    before_work(other, "sampler._target_ (here 'tests.run.tools.Exploding', there 'bayeslora.samplers.SGLD')")


def test_what_does_not_change_the_target_may_differ(command: Command, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    settings = ("logger=none", "trainer.num_threads=null", "evaluate.batch_size=9", "callbacks.progress.every=1")
    assert command("train", *TINY, f"run_dir={tmp_path / 'run'}", *settings).code == 0


def test_evaluate_needs_a_run(command: Command, tmp_path: Path, finished: Path) -> None:
    before_work(command("evaluate"), "which run? Give its folder: run_dir=")
    before_work(command("evaluate", f"run_dir={tmp_path}"), "is no run directory: it has no config.yaml")
    before_work(command("evaluate", f"run_dir={tmp_path / 'gone'}"), "is no run directory")
    before_work(command("evaluate", f"run_dir={finished}", "temprature=1"), "unknown key temprature: evaluate takes")
    before_work(command("evaluate", f"run_dir={finished}", "split=train"), "evaluate.split=train must be test or")
    before_work(command("evaluate", f"run_dir={finished}", "batch_size=0"), "evaluate.batch_size=0 must be at least 1")


def test_a_reference_that_cannot_be_used_is_told_before_the_chains_run(command: Command, tmp_path: Path) -> None:
    limited = command("train", *TINY, f"run_dir={tmp_path / 'run'}", "evaluate.reference=gone.npz")
    before_work(limited, "evaluate.reference needs the whole test set")
    whole = (f"run_dir={tmp_path / 'run'}", "dataset.limit_test=null", "evaluate.reference=gone.npz")
    before_work(command("train", *TINY, *whole), "gone.npz")
    assert not (tmp_path / "run").exists()


def test_data_that_have_moved_are_named_by_the_evaluation(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = np.random.default_rng(0)
    x = source.normal(size=(60, 3))
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(int))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    small = ("size=smoke", "experiment=template", "model=mlp", "logger=none", "evaluate.report=false")
    trained = command("train", *small, "dataset=npz", "dataset.path=data.npz", "run_dir='~/run'")
    assert trained.code == 0, trained.err
    assert "warning: 2 steps of burn-in are too few" in trained.out
    there = tmp_path / "home" / "run"
    metrics = (there / "metrics.json").read_text()
    assert not (tmp_path / "~").exists()
    assert "steps of burn-in are too few" in metrics
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("evaluate", "run_dir=~/run").code == 0
    (tmp_path / "data.npz").rename(tmp_path / "moved.npz")
    before_work(command("evaluate", f"run_dir={there}"), "data.npz does not exist")
    before_work(command("evaluate", f"run_dir={there}", "dataset.pth=../moved.npz"), "unknown key dataset.pth")
    (there / "metrics.json").unlink()
    assert command("evaluate", f"run_dir={there}", "dataset.path=../moved.npz").code == 0
    assert (there / "metrics.json").read_text() == metrics
    np.savez(tmp_path / "other.npz", x=source.normal(size=(60, 3)), y=(x[:, 0] > 0).astype(int))
    other = command("evaluate", f"run_dir={there}", "dataset.path=../other.npz")
    assert other.code == 2
    assert "so the training data or the model are not those of the run: give the run's own" in other.err


def test_resume_goes_on_with_the_run_that_was_named_or_says_which(
    command: Command, tmp_path: Path, finished: Path
) -> None:
    folder = tmp_path / "2026-11-24_12-00-00"
    shutil.copytree(finished, folder)
    before = digests(folder)
    named = command("train", *TINY, "resume=true", f"run_dir={tmp_path / 'TYPO'}")
    before_work(named, f"resume=true, but run_dir={tmp_path / 'TYPO'} holds no run")
    again = command("train", *TINY, "resume=true", f"run_dir={folder}")
    assert (again.code, digests(folder)) == (0, before)
    assert f"resume=true goes on with {folder}" in again.out


def test_a_run_without_draws_says_how_to_get_them(command: Command, tmp_path: Path, finished: Path) -> None:
    (tmp_path / "chains/0").mkdir(parents=True)
    for name in ("config.yaml", "chains/0/map.safetensors"):
        shutil.copy(finished / name, tmp_path / name)
        before_work(command("evaluate", f"run_dir={tmp_path}"), "holds no draws yet", f"run_dir={tmp_path}")


def test_a_spoilt_configuration_file_is_named(command: Command, tmp_path: Path, finished: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    for contents in (b"a: [", b"\xff\xfe\x00", b"just words"):
        file.write_bytes(contents)
        before_work(command("evaluate", f"run_dir={tmp_path / 'run'}"), str(file))


@each("spoil", ["changed", "gone"])
def test_a_spoilt_draw_is_named_and_the_advice_helps(
    command: Command, tmp_path: Path, finished: Path, spoil: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    file = folder / "chains/1/draws/000002.safetensors"
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents) if spoil == "changed" else file.unlink()
    state = "does not match its checksum" if spoil == "changed" else "is missing"
    advice = "repeat the training command with run_dir="
    before_work(command("evaluate", f"run_dir={folder}"), str(file), state, advice)
    assert command("train", *TINY, f"run_dir={folder}").code == 0
    assert digests(folder) == digests(finished)


# A run that diverges


def test_a_step_size_that_is_far_too_large_ends_with_3(command: Command, tmp_path: Path) -> None:
    result = command("train", *TINY, "sampler.lr=1e9", f"run_dir={tmp_path / 'run'}")
    words = ("chain 0 diverged in step ", ": potential_per_example ", "Make sampler.lr smaller or the warm-up longer")
    assert refused(result, *words, "chain 1 diverged in", "other settings need another run_dir", code=3)
    assert (tmp_path / "run" / "chains/0/map.safetensors").exists()


@each(("at", "kept", "where"), [(9, 3, "step 13"), (8, 3, "step 13"), (0, 0, "step 5")])
def test_draws_kept_before_a_divergence_stay_readable_and_are_evaluated(
    command: Command, tmp_path: Path, finished: Path, at: int, kept: int, where: str
) -> None:
    """The sampler's first step is step 4 of the plan; a draw is due after step 13."""
    folder = tmp_path / "run"
    sampler = (
        "sampler._target_=tests.run.tools.Exploding",
        f"sampler.at={at}",
        "chain.num_chains=1",
        "evaluate.report=true",
    )
    result = command("train", *TINY, *sampler, f"run_dir={folder}")
    advice = f"Draws kept: {kept}; python -m bayeslora.evaluate run_dir={folder}"
    refused(
        result,
        f"chain 0 diverged in {where} ({'sampling' if kept else 'burn-in'}): ",
        advice if kept else "No draw had been kept",
        code=3,
    )
    assert [record["step"] for record in manifest(folder, 0) if "index" in record] == STEPS[:kept]
    (event,) = [line for line in manifest(folder, 0) if "event" in line]
    assert (event["event"], event["step"]) == ("diverged", int(where.removeprefix("step ")))
    assert (folder / "metrics.json").exists() is (kept > 0)
    if not kept:
        before_work(command("evaluate", f"run_dir={folder}", "trust=[tests]"), "holds no draws yet")
        return
    for index in range(kept):
        assert same(draw(folder, 0, index), draw(finished, 0, index))
    assert len(list(Posterior.load(folder).draws())) == kept
    page = (folder / "report" / "index.html").read_text()
    assert f"Chain 0 has {kept} of 5 draws: it diverged in step 13." in page
    assert command("evaluate", f"run_dir={folder}", "trust=[tests]").code == 0


@each("parallel", ["sequential", "stacked", "processes"])
def test_a_chain_that_diverges_leaves_the_others(
    command: Command, tmp_path: Path, finished: Path, parallel: str
) -> None:
    """Chain 0 explodes after its first draw; chain 1 gets all of its draws, and both are evaluated."""
    folder = tmp_path / "run"
    sampler = (
        "sampler._target_=tests.run.tools.Exploding",
        "sampler.at=4",
        f"chain.parallel={parallel}",
        f"evaluate.report={str(parallel == 'sequential').lower()}",
    )
    result = command("train", *TINY, *sampler, f"run_dir={folder}")
    refused(result, "chain 0 diverged in step 9", "Draws kept: 6", code=3)
    assert [len(DrawStore(folder / "chains" / str(chain), chain)) for chain in (0, 1)] == [1, 5]
    for index in range(5):
        one, other = draw(folder, 1, index), draw(finished, 1, index)
        error = max(float((one[name] - other[name]).norm() / other[name].norm()) for name in one)
        assert same(one, other) if parallel != "stacked" else error < 1e-5
    if parallel == "sequential":
        assert "Chain 0 has 1 of 5 draws: it diverged in step 9." in (folder / "report" / "index.html").read_text()


@each("parallel", ["sequential", "stacked"])
def test_a_chain_that_diverges_may_be_tried_again_at_half_the_step(
    command: Command, tmp_path: Path, finished: Path, parallel: str
) -> None:
    """It explodes at the full step size only, after its second draw: two draws stay, three at half the step follow."""
    folder = tmp_path / "run"
    sampler = ("sampler._target_=tests.run.tools.Exploding", "sampler.at=7", "sampler.above=0.0075")
    settings = ("chain.on_divergence=retry", f"chain.parallel={parallel}")
    result = command("train", *TINY, *sampler, *settings, f"run_dir={folder}")
    assert result.code == 0, result.err
    assert "chain 1: chain 0 diverged in step 11" in result.out
    assert "Trying again from step 9 at 0.5 of the step size" in result.out
    records = manifest(folder, 0)
    assert [r["step"] for r in records if "index" in r] == STEPS
    assert [r["scalars"]["lr"] for r in records if "index" in r] == pytest.approx([0.01] * 2 + [0.005] * 3)
    assert [r for r in records if "event" in r] == [{"event": "retry", "from": 9, "lr_scale": 0.5, "step": 11}]
    again = command("train", *TINY, *sampler, *settings, f"run_dir={folder}")
    assert again.code == 0
    assert manifest(folder, 0) == records


def test_a_warm_up_that_ends_in_nonsense_leaves_no_baseline(command: Command, tmp_path: Path) -> None:
    warmup = ("chain.warmup.steps=1", "chain.warmup.optimizer.lr=1e30")
    result = command("train", *TINY, *warmup, f"run_dir={tmp_path / 'run'}")
    refused(
        result,
        "chain 0 diverged in step 1 (warm-up): potential nan",
        "Make chain.warmup.optimizer.lr smaller;",
        code=3,
    )
    assert not (tmp_path / "run" / "chains/0/map.safetensors").exists()


def test_a_terminal_gets_its_cursor_back(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    sampler = ("sampler._target_=tests.run.tools.Exploding", "sampler.at=4")
    out = command("train", *TINY, *sampler, f"run_dir={tmp_path / 'run'}").out
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert out.count(hide) == out.count(show) == 2
    assert out.rindex(show) > out.rindex(hide)
    assert "step" in out
    assert "draws" in out


def test_a_run_of_another_models_draws_is_refused(command: Command, tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("width: 4", "width: 5"))
    before_work(command("evaluate", f"run_dir={folder}"), "holds draws of another model")


def test_the_traceback_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bayeslora.errors import ConfigError
    from tests.run.tools import call

    monkeypatch.setenv("BAYESLORA_TRACEBACK", "1")
    with pytest.raises(ConfigError, match="lr=-1"):
        call("train", *TINY, "sampler.lr=-1")


def test_runs_are_repeatable_after_a_refusal(tmp_path: Path, command: Command, finished: Path) -> None:
    """A refused command leaves nothing that changes the next one in the same folder."""
    assert command("train", *TINY, f"run_dir={tmp_path / 'run'}", "sampler.lr=-1").code == 2
    run(tmp_path / "run")
    assert digests(tmp_path / "run") == digests(finished)
