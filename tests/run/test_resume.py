"""A run stopped anywhere goes on to the very same draws, manifest and metrics."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from bayeslora.app.config import CONF_DIR
from tests.cases import each
from tests.run.tools import OWN, TINY, Command, digests, ended, manifest, process, run
from tests.run.zygote import (
    CHAINS,
    EVALUATION,
    LINE,
    OPEN,
    RENAME,
    STEP,
    SYNC,
    WRITE,
    Reference,
    Stop,
    Zygote,
    killed,
    left,
)

SAMPLERS = sorted(path.stem for path in (Path(CONF_DIR) / "sampler").glob("*.yaml"))
EVERY_STEP = ("chain.resume_every=0", "logger=none", "chain.probe_size=4")
NORMED = ("model.norm=batch", "chain.scale_free=[stem.0.weight,*conv?.weight]")


# Killed


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_run_killed_amid_any_functions_of_its_chains_ends_with_the_same_draws(
    sampler: str, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    """Killed, gone on with, and killed again, at moments spread over the chains' work."""
    settings = (*OWN, f"sampler={sampler}", *EVERY_STEP)
    expected, calls = reference(*settings)
    source = random.Random(sampler)
    arguments = (*settings, f"run_dir={tmp_path / 'run'}")
    killed(zygote, *arguments, stop=Stop(CHAINS, source.randint(1, calls * 2 // 3), "within"))
    killed(zygote, *arguments, stop=Stop(CHAINS, source.randint(1, calls // 3), "within"))
    result = zygote("train", *arguments)
    assert result.code == 0, result.err
    assert left(tmp_path / "run") == expected


@pytest.mark.parametrize("sampler", ["map", "sam_sgld_r1"])
def test_stacked_chains_killed_amid_any_functions_end_with_the_same_draws(
    sampler: str, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    settings = (*OWN, f"sampler={sampler}", *EVERY_STEP, "chain.parallel=stacked", *NORMED)
    expected, calls = reference(*settings)
    source = random.Random(sampler)
    arguments = (*settings, f"run_dir={tmp_path / 'run'}")
    killed(zygote, *arguments, stop=Stop(CHAINS, source.randint(calls // 3, calls), "within"))
    result = zygote("train", *arguments)
    assert result.code == 0, result.err
    assert left(tmp_path / "run") == expected


def test_a_run_killed_at_any_time_by_another_process_ends_with_the_same_draws(
    zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    """From its first moments to the drawing of its report; what is killed before it began begins anew."""
    settings = (*TINY, *EVERY_STEP)
    expected, _ = reference(*settings)
    source = random.Random(0)
    kills = 0
    for attempt in range(6):
        arguments = (*settings, f"run_dir={tmp_path / str(attempt)}")
        kills += (
            zygote("train", *arguments, "evaluate.report=true", after=source.uniform(0.02, 2.5)).code == -signal.SIGKILL
        )
        assert zygote("train", *arguments).code == 0
        assert left(tmp_path / str(attempt)) == expected
    assert kills >= 3


@pytest.mark.parametrize("part", [0.05, 0.35, 0.65, 0.95])
def test_an_evaluation_that_is_killed_is_made_again(
    part: float, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    settings = (*TINY, *EVERY_STEP)
    expected, calls = reference(*settings, count=EVALUATION)
    arguments = (*settings, f"run_dir={tmp_path / 'run'}")
    killed(zygote, *arguments, stop=Stop(EVALUATION, int(part * calls), "within"))
    assert zygote("train", *arguments).code == 0
    assert left(tmp_path / "run") == expected


PLACES = {
    "a step": Stop("bayeslora.samplers:SGLD.update", 7),
    "a step of the warm-up": Stop("torch.optim:SGD.step", 2, "after"),
    "a draw half written": Stop(WRITE, 3, "half", "draws/"),
    "a draw before it has its name": Stop(RENAME, 3, "before", "draws/"),
    "a draw that is not listed": Stop(OPEN, 3, "before", LINE),
    "a draw half listed": Stop(OPEN, 3, "half", LINE),
    "a draw just listed": Stop(SYNC, 3, "before", "manifest.jsonl"),
    "the first line of a manifest": Stop("json:dumps", 1, "after", "{'index': 0"),
    "the first resume point": Stop(WRITE, 1, "half", "resume/"),
    "a resume point half written": Stop(WRITE, 9, "half", "resume/"),
    "a resume point before it has its name": Stop(RENAME, 9, "before", "resume/"),
    "older resume points not yet removed": Stop(RENAME, 9, "after", "resume/"),
    "the baseline half written": Stop(WRITE, 1, "half", "map.safetensors"),
    "the baseline written, its resume point not": Stop(RENAME, 1, "after", "map.safetensors"),
    "the lock of the configuration": Stop("bayeslora.runs.directory:provenance", 1),
    "the configuration half written": Stop(WRITE, 1, "half", "config.yaml"),
    "the configuration before it has its name": Stop(RENAME, 1, "before", "config.yaml"),
    "the configuration just written": Stop(RENAME, 1, "after", "config.yaml"),
    "between two chains": Stop("bayeslora.engine.runner:ChainRunner.run_group", 1, "after"),
    "the metrics half written": Stop(WRITE, 1, "half", "metrics.json"),
    "the metrics just written": Stop(RENAME, 1, "after", "metrics.json"),
    "the predictions": Stop("bayeslora.posterior.predictive:Posterior.model_of", 4),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_run_killed_at_a_named_place_ends_with_the_same_draws(
    place: str, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    settings = (*TINY, *EVERY_STEP)
    arguments = (*settings, f"run_dir={tmp_path / 'run'}")
    killed(zygote, *arguments, stop=PLACES[place])
    result = zygote("train", *arguments)
    assert result.code == 0, result.err
    assert left(tmp_path / "run") == reference(*settings)[0]


def test_a_kill_loses_only_the_steps_since_the_last_resume_point(zygote: Zygote, tmp_path: Path) -> None:
    arguments = (*TINY, *EVERY_STEP, f"run_dir={tmp_path / 'run'}", "chain.num_chains=1")
    killed(zygote, *arguments, stop=Stop(STEP, 12))
    newest = max(int(file.name[:12]) for file in (tmp_path / "run/chains/0/resume").glob("*.safetensors"))
    assert newest >= 8  # of 11, of which the last two may wait for the thread that writes them, and one be half written
    killed(zygote, *arguments, stop=Stop(STEP, 15 - newest))
    assert zygote("train", *arguments, stop=Stop(STEP, 4)).code == 0


def test_the_real_command_goes_on_with_resume_true(tmp_path: Path, zygote: Zygote, reference: Reference) -> None:
    """In the folder that the run chose itself: a process of `python -m bayeslora.train` killed amid its chains."""
    settings = (*TINY, *EVERY_STEP)
    slow = ("callbacks.slow._target_=tests.run.tools.Slow", "callbacks.slow.seconds=0.5", "callbacks.progress.every=0")
    started = process("train", *settings, *slow, cwd=tmp_path)
    assert started.stdout is not None
    for line in started.stdout:
        if "step 8/15" in line:
            break
    started.kill()
    assert ended(started, timeout=600).code == -signal.SIGKILL
    (folder,) = (tmp_path / "outputs" / "quickstart").iterdir()
    again = ended(process("train", *settings, "resume=true", cwd=tmp_path), timeout=600)
    assert again.code == 0, again.err
    assert [entry.name for entry in (tmp_path / "outputs" / "quickstart").iterdir()] == [folder.name]
    assert left(folder) == reference(*settings)[0]


# Asked to stop


@pytest.mark.parametrize(
    ("number", "parallel"),
    [
        (signal.SIGINT, "sequential"),
        (signal.SIGTERM, "sequential"),
        (signal.SIGTERM, "stacked"),
        (signal.SIGUSR1, "sequential"),
        (signal.SIGUSR2, "stacked"),
    ],
)
def test_a_signal_ends_the_step_and_writes_the_resume_point(
    number: int, parallel: str, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    settings = (*TINY, "logger=none", "chain.probe_size=4", f"chain.parallel={parallel}")
    arguments = (*settings, f"run_dir={tmp_path / 'run'}")
    result = zygote("train", *arguments, stop=Stop(STEP, 8, number=number))
    assert result.code == 130, result
    advice = f"nothing is lost. Repeat the command with run_dir={tmp_path / 'run'} to go on"
    assert result.err == f"bayeslora: stopped by {signal.Signals(number).name} after step 8; {advice}\n"
    points = [file.name for file in (tmp_path / "run" / "chains" / "0" / "resume").iterdir()]
    assert [int(point[:12]) for point in points] == [8]
    assert zygote("train", *arguments).code == 0
    assert left(tmp_path / "run") == reference(*settings)[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_a_chains_last_step_stops_the_run_before_the_next_chain(
    number: int, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    settings = (*TINY, *EVERY_STEP)
    arguments = (*settings, f"run_dir={tmp_path / 'run'}")
    result = zygote("train", *arguments, stop=Stop(STEP, 15, number=number))
    assert (result.code, "after step 15; nothing is lost" in result.err) == (130, True), result
    assert not list((tmp_path / "run" / "chains").glob("1/draws/*"))
    assert zygote("train", *arguments).code == 0
    assert left(tmp_path / "run") == reference(*settings)[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("at", ["bayeslora.engine.runner:ChainRunner.start", "bayeslora.evaluation.run:scalar_series"])
def test_a_signal_between_the_chains_or_in_the_evaluation_ends_with_130(
    number: int, at: str, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    settings = (*TINY, *EVERY_STEP)
    arguments = (*settings, f"run_dir={tmp_path / 'run'}")
    result = zygote("train", *arguments, stop=Stop(at, 1, number=number))
    assert result.code == 130, result
    assert "nothing is lost" in result.err
    assert zygote("train", *arguments).code == 0
    assert left(tmp_path / "run") == reference(*settings)[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", ["bayeslora.datasets.base:carve", "bayeslora.engine.auto_settings:pilot_settings"])
def test_a_signal_before_the_run_has_begun_says_that_nothing_was_kept(
    number: int, at: str, zygote: Zygote, tmp_path: Path
) -> None:
    """While the data are read, and in the pilot; what is repeated then is a new run."""
    arguments = (*TINY, "logger=none", "sampler.lr=auto", f"run_dir={tmp_path / 'run'}")
    result = zygote("train", *arguments, stop=Stop(at, 1, number=number))
    assert (result.code, (tmp_path / "run" / "config.yaml").exists()) == (130, False), result
    advice = "before the run had begun: nothing was kept yet. Repeat the command to start it"
    assert result.err.splitlines()[-1] == f"bayeslora: stopped by {signal.Signals(number).name} {advice}"


# More draws


@pytest.mark.parametrize("sampler", ["sghmc", "map"])
@pytest.mark.parametrize("parallel", ["sequential", "stacked"])
def test_a_finished_run_made_longer_equals_a_long_one(
    sampler: str, parallel: str, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    settings = (*OWN, "logger=none", "chain.probe_size=4", f"sampler={sampler}", f"chain.parallel={parallel}")
    expected, _ = reference(*settings, "chain.num_draws=7")
    arguments = (*settings, f"run_dir={tmp_path / 'run'}")
    assert zygote("train", *arguments).code == 0
    stop = Stop(STEP, 3)
    if parallel == "sequential":  # the first chain has 4 steps more to take
        killed(zygote, *arguments, "chain.num_draws=7", stop=stop)
    assert zygote("train", *arguments, "chain.num_draws=7").code == 0
    assert left(tmp_path / "run") == expected
    assert [record["step"] for record in manifest(tmp_path / "run", 1)][-2:] == [17, 19]


# More chains


@pytest.mark.parametrize("sampler", ["sghmc", "map"])
def test_a_finished_run_given_more_chains_equals_one_that_had_them(
    sampler: str, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    settings = (*OWN, "logger=none", "chain.probe_size=4", f"sampler={sampler}")
    expected, _ = reference(*settings, "chain.num_chains=4", chains=4)
    arguments = (*settings, f"run_dir={tmp_path / 'run'}")
    assert zygote("train", *arguments).code == 0
    killed(zygote, *arguments, "chain.num_chains=4", stop=Stop(STEP, 3))
    assert zygote("train", *arguments, "chain.num_chains=4").code == 0
    assert left(tmp_path / "run", 4) == expected
    again = zygote("train", *arguments)
    assert (again.code, left(tmp_path / "run", 4)) == (2, expected)
    assert "chain.num_chains=2, but the run in" in again.err
    assert "was to have 4: it can be given more chains, not fewer" in again.err


@pytest.mark.parametrize("at", [3, 12])
def test_a_stack_that_was_killed_goes_on_beside_a_stack_of_more_chains(
    at: int, zygote: Zygote, reference: Reference, tmp_path: Path
) -> None:
    """Those that had begun end first, bit for bit; the new ones are those of a run of four, up to rounding."""
    settings = (*TINY, *EVERY_STEP, "chain.parallel=stacked")
    begun, _ = reference(*settings)
    four, _ = reference(*settings, "chain.num_chains=4", chains=4)
    arguments = (*settings, f"run_dir={tmp_path / 'run'}")
    killed(zygote, *arguments, stop=Stop(STEP, at))
    killed(zygote, *arguments, "chain.num_chains=4", stop=Stop(STEP, 14))
    last = zygote("train", *arguments, "chain.num_chains=4")
    assert last.code == 0
    assert "chains 3–4/4 " in last.out
    assert digests(tmp_path / "run") == begun["draws"]
    assert left(tmp_path / "run", 4)["metrics"]["ensemble"] == pytest.approx(four["metrics"]["ensemble"], abs=1e-4)


# What may not change


@each(
    ("changed", "name"),
    [
        ("model.width=5", "model.width (here 5, there 4)"),
        ("model.norm=group", "model.norm (here 'group', there 'frn')"),
        ("dataset=cifar10", "dataset._target_ (here 'bayeslora.datasets.Cifar10', there 'bayeslora.datasets.Digits')"),
        ("dataset.limit_train=65", "dataset.limit_train (here 65, there 64)"),
        ("dataset.validation_size=3", "dataset.validation_size (here 3, there 0)"),
        (
            "sampler._target_=tests.run.tools.Exploding",
            "sampler._target_ (here 'tests.run.tools.Exploding', there 'bayeslora.",
        ),
        ("sampler.lr=0.02", "sampler.lr (here 0.02, there 0.01)"),
        ("prior.variance=2.0", "prior.variance (here 2.0, there 0.03)"),
        ("prior.overrides.head=1.0", "prior.overrides.head (here 1.0, there 4.0)"),
        ("temperature=0.5", "temperature (here 0.5, there 1.0)"),
        ("seed=1", "seed (here 1, there 0)"),
        ("chain.batch_size=8", "chain.batch_size (here 8, there 16)"),
        ("chain.num_chains=1", "chain.num_chains=1, but the run in"),
        ("chain.warmup.steps=4", "chain.warmup.steps (here 4, there 3)"),
        ("chain.lr_factors.head=2.0", "chain.lr_factors.head (here 2.0, there 40.0)"),
        ("chain.num_draws=4", "chain.num_draws=4, but the run in"),
    ],
)
def test_what_decides_the_draws_cannot_change_and_is_named(
    changed: str, name: str, finished: Path, command: Command
) -> None:
    before = digests(finished)
    result = command("train", *TINY, changed, f"run_dir={finished}")
    assert result.code == 2
    assert name in result.err
    assert digests(finished) == before


@each("plan", [("chain.cycles=1",), ("chain.schedule=cosine",)])
def test_a_plan_that_depends_on_the_number_of_draws_cannot_be_made_longer(
    plan: tuple[str, ...], tmp_path: Path, command: Command
) -> None:
    settings = (*plan, "chain.num_chains=1", "logger=none", "chain.probe_size=4")
    run(tmp_path / "run", *settings)
    result = command("train", *TINY, *settings, f"run_dir={tmp_path / 'run'}", "chain.num_draws=6")
    assert result.code == 2
    assert "was planned for 5 draws" in result.err
