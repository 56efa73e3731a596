"""What a report tells to do next: the cure of what failed, by how much it failed, as a command that composes."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bayeslora.app.compose import to_experiment
from bayeslora.diagnostics.values import NoiseHeat, Steepness
from bayeslora.evaluation.criteria import judge
from bayeslora.evaluation.results import Provenance, Results
from bayeslora.experiment import Experiment
from bayeslora.report.next_step import Step, next_step
from bayeslora.runs.directory import RunDirectory
from bayeslora.settings import Criteria
from tests.cases import each
from tests.run.tools import composed
from tests.unit.test_criteria import content

OWN = (
    "dataset=digits", "model=mlp", "sampler=sghmc", "chain=default", "chain.num_chains=2", "chain.num_draws=50",
    "chain.thin=10", "chain.burn_in=100",
)  # fmt: skip
COMMAND = "python -m bayeslora.train experiment=template sampler.lr=0.05 run_dir=there"


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return to_experiment(composed(*OWN))


def step(
    experiment: Experiment,
    root: Path,
    command: str | None = COMMAND,
    draws: int = 50,
    noise_heat: dict[str, NoiseHeat] | None = None,
    steepness: Steepness | None = None,
    **values: Any,
) -> Step:
    """What to do next with a run of so many draws a chain, this heat and steepness, and these criteria."""
    results = Results.from_json(content(**values))
    measured = replace(results.diagnostics, noise_heat=noise_heat or {}, steepness=steepness)
    results = replace(results, diagnostics=measured)
    results = replace(results, criteria=judge(results, Criteria()), provenance=Provenance(command))
    run = RunDirectory(root)

    class Stores(RunDirectory):
        def store(self, chain: int) -> Any:
            found = run.store(chain)
            return type("Store", (), {"chain": chain, "events": found.events, "__len__": lambda _: draws})()

    return next_step(results, experiment, Stores(root))


@each(
    ("values", "why", "added"),
    [
        ({"potential_ess": 100.0}, "2.4 times the draws", ["chain.num_draws=120"]),
        ({"function_space_rhat": 1.02}, "predictions wants about 2.4 times the draws", ["chain.num_draws=120"]),
        ({"potential_ess": 100.0, "function_space_rhat": 1.02}, "potential want about 2.4", ["chain.num_draws=120"]),
    ],
)
def test_chains_that_are_a_little_short_go_on(
    experiment: Experiment, tmp_path: Path, values: dict[str, float], why: str, added: list[str]
) -> None:
    found = step(experiment, tmp_path, **values)
    assert why in found.why
    assert shlex.split(found.command)[3:] == ["experiment=template", "sampler.lr=0.05", *added, f"run_dir={tmp_path}"]


def test_a_cold_block_has_the_burn_in_that_its_slowest_block_calls_for_or_four_times_its_own(
    experiment: Experiment, tmp_path: Path
) -> None:
    slowest = max(one.steps for one in experiment.relaxations())
    assert 3 * slowest == pytest.approx(18000, rel=0.05)  # rounded up to two digits
    assert "With the burn-in that its slowest block calls for" in step(experiment, tmp_path, temperature=-0.2).why
    longer = to_experiment(composed(*OWN, "chain.burn_in=5000"))
    found = step(longer, tmp_path, temperature=-0.2)
    assert "With four times the burn-in" in found.why
    assert "chain.burn_in=20000" in found.command


@each(
    ("values", "why", "added"),
    [
        ({"potential_rhat": 1.3}, "R-hat of the potential is 1.3", ["chain.burn_in=400", "chain.thin=40"]),
        ({"temperature": 0.15}, "15\N{NO-BREAK SPACE}% too hot", ["chain.burn_in=300", "chain.thin=30"]),
        ({"temperature": 4.0}, "With ε / 8 and 8 times", ["chain.burn_in=800", "chain.thin=80"]),
        ({"temperature": -0.2}, "too cold", ["chain.burn_in=18000"]),
        ({"temperature": -5.0}, "A block reads a temperature below 0", ["chain.burn_in=18000"]),
    ],
)
def test_chains_that_are_far_off_begin_anew_with_other_settings(
    experiment: Experiment, tmp_path: Path, values: dict[str, float], why: str, added: list[str]
) -> None:
    found = step(experiment, tmp_path, **values)
    assert why in found.why
    tokens = shlex.split(found.command)
    assert not any(token.startswith("run_dir=") for token in tokens)
    assert set(added) <= set(tokens)
    composed(*tokens[3:])  # no setting twice, none unknown
    if (hot := values.get("temperature", 0)) > 0:
        assert f"sampler.lr={0.05 / min(8, hot / 0.05):.2g}" in tokens


def test_lengths_shorter_than_the_pilots_are_left_to_it(experiment: Experiment, tmp_path: Path) -> None:
    """Full batches, at whose step sizes nothing is heated: a chain that reads too hot is on its way from its start."""
    tuned = experiment.settled({"chain.batch_size": None}, {"relaxation": 100.0})
    for off in (1.5, -0.2):
        found = step(tuned, tmp_path, temperature=off)
        assert "it has not forgotten its start. With the burn-in that its slowest block calls for" in found.why
        assert shlex.split(found.command)[-1] == "chain.burn_in=auto"
        composed(*shlex.split(found.command)[3:])
    found = step(tuned, tmp_path, potential_rhat=1.3)
    assert "With as many steps as the slowest block calls for" in found.why
    assert shlex.split(found.command)[-2:] == ["chain.burn_in=auto", "chain.thin=auto"]
    long = tuned.settled({"chain.burn_in": 20000, "chain.thin": 34}, {"relaxation": 100.0})
    assert "With four times the burn-in and the steps" in step(long, tmp_path, potential_rhat=1.3).why
    found = step(long, tmp_path, temperature=1.5)
    assert "too hot: it has not forgotten its start. With four times the burn-in" in found.why
    assert shlex.split(found.command)[-1] == "chain.burn_in=80000"


@each("name", ["mrpc_minilm_map", "cifar10_resnet18_map"])
def test_map_is_told_how_the_posterior_around_it_is_sampled(tmp_path: Path, name: str) -> None:
    at_zero = ("sampler=map", "temperature=0", "chain.num_draws=1", "chain.schedule=cosine")
    experiment = to_experiment(composed(*OWN, *at_zero))
    found = step(experiment, tmp_path, f"python -m bayeslora.train experiment={name} sampler.lr=0.01", draws=1)
    assert found.why.startswith("This is MAP.")
    sampled = composed(*shlex.split(found.command)[3:])  # the experiment's own settings do not stay in the way
    assert sampled.sampler._target_ == "bayeslora.samplers.BAOAB"
    assert {sampled.sampler.lr, sampled.sampler.momentum, sampled.chain.burn_in, sampled.chain.thin} == {"auto"}
    assert (sampled.temperature, sampled.chain.num_draws, sampled.chain.schedule) == (1.0, 50, "constant")
    assert sampled.chain.warmup.steps == experiment.plan.total == 500 + 100 + 10


def test_step_sizes_that_were_found_ask_for_a_larger_batch_where_minibatches_heat(
    experiment: Experiment, tmp_path: Path
) -> None:
    found = step(experiment.settled({"chain.batch_size": 128}, {"blocks": []}), tmp_path, temperature=0.15)
    assert "minibatch noise brings more than the pilot saw. On batches of 3 times" in found.why
    assert "chain.batch_size=390" in shlex.split(found.command)


def test_scores_below_map_ask_for_a_sweep_on_held_out_examples(experiment: Experiment, tmp_path: Path) -> None:
    found = step(experiment, tmp_path, nll_above_map=0.1)
    assert "predicts worse than MAP" in found.why
    assert shlex.split(found.command)[3:] == [
        "-m", "experiment=template", "sampler.lr=0.05", "temperature=0.1,0.3,1", "dataset.validation_size=143",
        "evaluate.split=validation",
    ]  # fmt: skip


def test_scores_below_map_under_noise_that_heats_ask_for_larger_batches(experiment: Experiment, tmp_path: Path) -> None:
    for share, batch in ((0.4, "chain.batch_size=1100"), (0.02, None), (9.0, "chain.batch_size=1100")):
        heat = {"0": NoiseHeat(share, 0.1, 0.01, 3.0, 100)}
        found = step(experiment, tmp_path, nll_above_map=0.1, noise_heat=heat)
        assert ("noise heats what the data determine" in found.why) == (batch is not None)
        assert batch is None or batch in shlex.split(found.command)


def test_scores_below_map_of_steps_too_long_ask_for_those_of_a_pilot(experiment: Experiment, tmp_path: Path) -> None:
    found = step(experiment, tmp_path, nll_above_map=0.1, steepness=Steepness(12.7, 0.5))
    assert "too long for the steepest directions (ε·λ = 13, accurate up to 0.5)" in found.why
    assert shlex.split(found.command)[-3:] == ["sampler.lr=auto", "chain.burn_in=auto", "chain.thin=auto"]
    assert "steepest" not in step(experiment, tmp_path, nll_above_map=0.1, steepness=Steepness(0.9, 0.5)).why


def test_where_all_is_met_the_step_size_is_checked(experiment: Experiment, tmp_path: Path) -> None:
    assert step(experiment, tmp_path).command == f"python -m bayeslora.bias_check run_dir={tmp_path}"


@each(
    ("command", "draws", "why", "ends"),
    [
        (COMMAND, 20, "not finished", "experiment=template sampler.lr=0.05 run_dir="),
        (COMMAND + " size=smoke", 50, "a trial", "experiment=template sampler.lr=0.05"),
        ("python -m bayeslora.train -m experiment=template temperature=1", 20, "", "template temperature=1 run_dir="),
        (COMMAND + " search=mine chain.index=1 size=smoke", 50, "a trial", "experiment=template sampler.lr=0.05"),
        (None, 20, "not finished", "python -m bayeslora.train … run_dir="),
    ],
)
def test_runs_that_are_not_finished_trials_and_jobs_of_sweeps(
    experiment: Experiment, tmp_path: Path, command: str | None, draws: int, why: str, ends: str
) -> None:
    found = step(experiment, tmp_path, command, draws)
    assert why in found.why
    assert found.command.replace("'", "").removesuffix(str(tmp_path)).endswith(ends)


def test_a_run_of_a_program_is_told_the_call_or_the_settings(experiment: Experiment, tmp_path: Path) -> None:
    sampled = experiment.but(record={**experiment.record, "dataset": {"in_memory": {"examples": 3}}})
    call, settings = (step(one, tmp_path, None, potential_ess=100.0).command for one in (sampled, experiment))
    assert call == f"bayeslora.sample(…, draws=120, run_dir={str(tmp_path)!r})"
    assert step(sampled, tmp_path, None).command == "bayeslora.sample(…, lr=0.025, burn_in=200, thin=20)"
    piloted = sampled.but(record={**sampled.record, "tuning": {}})
    assert step(piloted, tmp_path, None).command == "bayeslora.sample(…, seed=1)"
    sweep = step(sampled, tmp_path, None, nll_above_map=0.1).command
    assert sweep == "for temperature in (0.1, 0.3, 1): bayeslora.sample(…, temperature=temperature)"
    assert settings.startswith("python -m bayeslora.train … chain.num_draws=120 ")


def test_a_run_that_goes_with_its_posterior_is_told_no_folder(experiment: Experiment, tmp_path: Path) -> None:
    record = {**experiment.record, "dataset": {"in_memory": {"examples": 3}}, "run_dir": None}
    for values in ({}, {"potential_ess": 100.0}, {"temperature": 0.15}, {"nll_above_map": 0.1}):
        found = step(experiment.but(record=record), tmp_path, None, **values)
        assert "run_dir" not in found.command
        assert "goes on" not in found.why


def test_the_run_of_a_bias_check_is_compared_with_the_one_it_repeats(experiment: Experiment, tmp_path: Path) -> None:
    command = "python -m bayeslora.bias_check run_dir=outputs/first"
    found = step(experiment, tmp_path / "half", command, draws=20, potential_ess=100.0)
    assert shlex.split(found.command)[2:] == ["bayeslora.compare", f"run_dirs=[outputs/first,{tmp_path / 'half'}]"]
