"""Runs whose settings say `auto`, and runs that go on until they have converged: recorded, repeated, resumed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import bayeslora
from bayeslora.app import training
from bayeslora.errors import ConfigError, InterruptedRunError
from bayeslora.evaluation.results import Results
from tests.cases import each
from tests.run.tools import Exploding, call, composed, digests, manifest, run

SMALL = (
    "name=auto", "logger=none", "trainer.num_threads=1", "dataset.limit_train=48", "dataset.limit_test=20",
    "model.hidden=[6]", "chain.num_chains=2", "chain.warmup.steps=10", "chain.num_draws=4", "chain.thin=2",
    "chain.probe_size=20", "callbacks.online=null", "callbacks.progress=null", "evaluate.report=false",
)  # fmt: skip
"""The bare command's sampler and chain, made small; its burn-in and step sizes are still to be found."""
TRIAL = (*SMALL, "chain.burn_in=6")


def recorded(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())


def test_what_is_found_is_recorded_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "auto", base=(*SMALL, "chain.thin=auto", "chain.num_draws=3", "evaluate.report=true"))
    config = recorded(tmp_path / "auto")
    assert "curvature  step size" in capsys.readouterr().out
    asked = {"sampler.lr", "sampler.momentum", "chain.burn_in", "chain.thin", "chain.batch_size"}
    assert asked <= {*config["asked"]}
    assert {config["asked"][key] for key in asked} == {"auto"}
    sampler, chain, tuning = config["sampler"], config["chain"], config["tuning"]
    assert chain["batch_size"] is None
    assert 300 <= chain["burn_in"] <= 8000
    assert 1 <= chain["thin"] <= 150
    assert 0.7 <= sampler["momentum"] <= 0.995
    for block, names in {"body.0": "body.0.weight", "head vectors": "head.bias"}.items():
        assert sampler["lr"] * chain["lr_factors"][names] == pytest.approx(
            tuning["blocks"][block]["step_size"], rel=1e-3
        )
    page = (tmp_path / "auto" / "report" / "index.html").read_text()
    assert f"from a pilot of {tuning['steps']:,} steps" in page
    first = digests(tmp_path / "auto")
    run(tmp_path / "auto", base=(*SMALL, "chain.thin=auto", "chain.num_draws=3"))  # nothing is left to do
    assert "pilot" not in capsys.readouterr().out
    assert call("evaluate", f"run_dir={tmp_path / 'auto'}") == 0
    assert (tmp_path / "auto" / "report" / "index.html").read_text().count("from a pilot") == page.count("from a pilot")
    assert digests(tmp_path / "auto") == first
    with pytest.raises(ConfigError, match=r"another configuration: sampler\.lr"):
        run(tmp_path / "auto", base=(*SMALL, "chain.thin=auto", "chain.num_draws=3", "sampler.lr=0.01"))


@each("parallel", ["sequential", "stacked"])
def test_the_same_numbers_given_make_the_same_draws(parallel: str, tmp_path: Path) -> None:
    base = (*TRIAL, f"chain.parallel={parallel}")
    run(tmp_path / "auto", base=base)
    config = recorded(tmp_path / "auto")
    factors = ",".join(f"{name}:{value!r}" for name, value in config["chain"]["lr_factors"].items())
    sizes = (f"sampler.lr={config['sampler']['lr']!r}", f"sampler.momentum={config['sampler']['momentum']!r}")
    run(tmp_path / "given", *sizes, f"chain.lr_factors={{{factors}}}", "chain.batch_size=null", base=base)
    assert "tuning" not in recorded(tmp_path / "given")
    assert digests(tmp_path / "auto") == digests(tmp_path / "given")


def test_chains_of_other_processes_take_what_the_first_has_found(tmp_path: Path) -> None:
    base = (*TRIAL, "chain.parallel=sequential")
    run(tmp_path / "whole", base=base)
    run(tmp_path / "parts", "chain.index=1", base=base)
    run(tmp_path / "parts", "chain.index=0", base=base)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    run(tmp_path / "processes", "chain.parallel=processes", base=base)
    assert digests(tmp_path / "processes") == digests(tmp_path / "whole")


def test_a_batch_that_is_found_is_recorded_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bayeslora.experiment.FULL_BATCH_UP_TO", 10)
    monkeypatch.setattr("bayeslora.experiment.MINIBATCH", 12)
    monkeypatch.setattr("bayeslora.chain.noise_limit.SMALLEST", 3)
    base = (*SMALL, "chain.burn_in=40", "chain.parallel=stacked")
    run(tmp_path / "auto", base=base)
    assert "heat at most" in capsys.readouterr().out
    config = recorded(tmp_path / "auto")
    size, tuning = config["chain"]["batch_size"], config["tuning"]
    assert config["asked"]["chain.batch_size"] == "auto"
    assert size != 12
    assert size == tuning["batch_size"] == tuning["cheapest_batch"]
    draws = digests(tmp_path / "auto")
    given = (f"sampler.lr={config['sampler']['lr']!r}", f"sampler.momentum={config['sampler']['momentum']!r}")
    factors = ",".join(f"{name}:{value!r}" for name, value in config["chain"]["lr_factors"].items())
    run(tmp_path / "given", *given, f"chain.lr_factors={{{factors}}}", f"chain.batch_size={size}", base=base)
    assert digests(tmp_path / "given") == draws


def test_a_batch_of_all_the_data_has_no_noise(tmp_path: Path) -> None:
    run(tmp_path, "chain.batch_size=48", base=(*SMALL, "chain.burn_in=40"))
    assert {one["heat"] for one in recorded(tmp_path)["tuning"]["blocks"].values()} == {None}


def test_a_killed_run_goes_on_with_what_it_has_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole", base=TRIAL)
    from bayeslora.engine.callbacks.resume import KeepResumePoints

    end = KeepResumePoints.on_train_batch_end

    def stop(self, trainer, module, *rest) -> None:
        if module.steps_taken == 19:
            self.asked = 15
        end(self, trainer, module, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(KeepResumePoints, "on_train_batch_end", stop)
        with pytest.raises(InterruptedRunError):
            run(tmp_path / "killed", base=TRIAL)
    assert len(manifest(tmp_path / "killed", 0)) == 1
    run(tmp_path / "killed", base=TRIAL)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


GIVEN = (*TRIAL, "sampler.lr=0.02", "sampler.momentum=0.8")


def test_draws_are_added_until_the_criteria_are_met_or_the_steps_are_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    until = (*GIVEN, "chain.until=converged", "chain.max_steps=40")
    run(tmp_path / "spent", base=until)
    out = capsys.readouterr().out
    assert "not enough with 4 draws a chain: " in out
    assert "Bulk ESS of the potential is" in out
    assert "Going on to 6" in out
    assert "chain.max_steps=40 ends the run here" in out
    assert recorded(tmp_path / "spent")["chain"]["num_draws"] == 12  # 10 + 6 + 12 × 2 steps
    run(tmp_path / "planned", "chain.num_draws=12", base=GIVEN)
    assert digests(tmp_path / "spent") == digests(tmp_path / "planned")
    run(tmp_path / "spent", base=until)  # a repeated command goes on from 12
    assert digests(tmp_path / "spent") == digests(tmp_path / "planned")
    lax = [f"evaluate.criteria.{name}=null" for name in ("potential_ess", "l2_norm_ess", "temperature", "l2_norm_rhat")]
    lax += [f"evaluate.criteria.{name}=100.0" for name in ("potential_rhat", "function_space_rhat")]
    run(tmp_path / "met", *lax, base=until)
    assert "converged after 4 draws a chain" in capsys.readouterr().out
    assert not all(
        c.passed for c in Results.read(tmp_path / "met" / "metrics.json").criteria.values()
    )  # NLL's is no part


def test_a_run_killed_while_it_adds_draws_ends_with_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    until = (*GIVEN, "chain.until=converged", "chain.max_steps=40")
    run(tmp_path / "whole", base=until)
    from bayeslora.engine.callbacks.resume import KeepResumePoints

    end = KeepResumePoints.on_train_batch_end

    def stop(self, trainer, module, *rest) -> None:
        if module.steps_taken == 27:
            self.asked = 15
        end(self, trainer, module, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(KeepResumePoints, "on_train_batch_end", stop)
        with pytest.raises(InterruptedRunError):
            run(tmp_path / "killed", base=until)
    run(tmp_path / "killed", base=until)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@each(
    ("settings", "words"),
    [
        (("sampler=map", "sampler.lr=auto"), "samples nothing, so no curvature tells its step size"),
        (("sampler=psgld", "sampler.lr=auto"), "has a step size of its own for every coordinate"),
        (("temperature=0",), "auto has no meaning at T = 0"),
        (("chain.until=converged", "chain.num_chains=1"), "R-hat compares chains"),
        (("chain.until=converged", "temperature=0", "sampler=map", "chain.burn_in=1"), "no law to converge to"),
        (("chain.until=converged", "callbacks.thermometer=null"), "no temperature is measured"),
        (("chain.until=converged", "chain.index=0"), "judges all chains together"),
        (("chain.until=soon",), "choose planned or converged"),
        (("chain.burn_in=long",), "chain.burn_in=long must be a whole number, or auto"),
        (("sampler=sghmc", "sampler.lr=fast"), "sampler.lr=fast must be a number"),
    ],
)
def test_what_cannot_be_found_is_refused_before_work_starts(
    settings: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "run", *settings, base=SMALL)
    assert words in str(caught.value)
    assert not (tmp_path / "run" / "chains").exists()


def test_a_sampler_that_always_diverges_ends_in_one_clear_error() -> None:
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 2, generator=source), torch.randint(2, (20,), generator=source)
    from bayeslora.errors import DivergedError

    with pytest.raises(DivergedError, match="the pilot diverged 4 times"):
        bayeslora.sample(
            nn.Linear(2, 2), (x, y), partial(Exploding, at=3), lr="auto", chains=2, draws=2, warmup=2, progress=False
        )


def test_a_new_run_of_an_experiment_with_steps_of_its_own_may_ask_for_them(tmp_path: Path) -> None:
    cfg = composed(
        "experiment=digits_resnet",
        "size=smoke",
        "sampler.lr=auto",
        f"run_dir={tmp_path / 'run'}",
        "logger=none",
        "evaluate.report=false",
    )
    training.train(cfg)
    assert recorded(tmp_path / "run")["tuning"]["blocks"]


CYCLES = ("sampler=sghmc", "sampler.momentum=0.9", "chain.cycles=2", "chain.burn_in=0", "chain.schedule=cyclical")


@each("settings", [CYCLES, ("sampler=sam_sgld_r1",), ("sampler=asgld",), ("sampler=sglrw", "chain.batch_size=12")])
def test_any_sampler_with_a_step_size_may_ask_for_it(settings: tuple[str, ...], tmp_path: Path) -> None:
    run(tmp_path / "run", *settings, "sampler.lr=auto", base=(*TRIAL, "chain.num_chains=1"))
    config = recorded(tmp_path / "run")
    assert config["sampler"]["lr"] > 0
    assert config["tuning"]["blocks"]
