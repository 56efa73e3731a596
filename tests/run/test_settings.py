"""Settings of a run: what must not touch the draws, precision, augmentation, loggers and sweeps."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from bayeslora.app.compose import to_experiment
from bayeslora.engine.callbacks.draws import DrawCollector
from bayeslora.engine.module import SamplingModule
from bayeslora.engine.runner import Steps
from bayeslora.experiment import Experiment
from tests.run.tools import OWN, STEPS, TINY, Command, composed, digests, draw, manifest, run, same

# What must not touch the draws


def test_looking_at_a_chain_does_not_change_it(tmp_path: Path, finished: Path) -> None:
    run(tmp_path / "run", "chain.probe_size=7", "logger=none", "callbacks.progress.log_every=1")
    assert digests(tmp_path / "run") == digests(finished)
    assert not (tmp_path / "run" / "logs").exists()


BATCH_NORM = ("model.norm=batch", "chain.num_chains=1")


@pytest.mark.parametrize("sampler", ["sgld", "sam_sgld"])
def test_running_statistics_are_updated_once_a_step_and_kept_with_the_draw(tmp_path: Path, sampler: str) -> None:
    run(tmp_path / "run", *BATCH_NORM, f"sampler={sampler}", base=OWN)
    setup = to_experiment(composed(*OWN, *BATCH_NORM))
    for index, step in enumerate(STEPS):
        tensors = draw(tmp_path / "run", 0, index)
        setup.model().load_state_dict(tensors)  # strict: every buffer is there
        counts = [int(t) for name, t in tensors.items() if name.endswith("num_batches_tracked")]
        assert counts
        assert set(counts) == {step}
    states = [draw(tmp_path / "run", 0, index)["stem.1.running_mean"] for index in range(5)]
    assert not torch.equal(states[0], states[4])


def test_sams_ascent_leaves_the_running_statistics_as_sgld_would(tmp_path: Path) -> None:
    """At ρ = 0 SAM-SGLD is SGLD: its second pass must leave no trace in the statistics."""
    run(tmp_path / "sgld", *BATCH_NORM, "sampler=sgld", base=OWN)
    run(tmp_path / "sam", *BATCH_NORM, "sampler=sam_sgld", "sampler.rho=0", base=OWN)
    assert digests(tmp_path / "sam", 1) == digests(tmp_path / "sgld", 1)


OWN_NET = (
    *(f"~model.{key}" for key in ("norm", "activation", "width", "affine", "stem_stride")),
    "model._target_=tests.run.tools.DropoutNet",
    "~prior.overrides.head",
    "~chain.lr_factors.head",
)


def module_in_training(setup: Experiment) -> Any:
    """A chain's module in the midst of a run: its optimizers and trainer are Lightning's own."""
    from lightning import Callback, Trainer

    class Look(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            self.before = {name: b.clone() for name, b in module.model.named_buffers()}
            DrawCollector([None], setup.probe()).scalars(trainer, module)  # type: ignore[list-item]
            self.after = dict(module.model.named_buffers())
            self.modes = {type(m).__name__: m.training for m in module.model.modules()}

    look = Look()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[look], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(SamplingModule(setup.new_chain(0)), Steps(setup.batches(0), 1))
    return look


def test_the_probe_leaves_statistics_and_modes_as_they_were() -> None:
    look = module_in_training(to_experiment(composed(*TINY, *BATCH_NORM)))
    assert look.before
    assert same(look.before, look.after)
    assert look.modes["BatchNorm2d"]
    modes = module_in_training(to_experiment(composed(*TINY, *OWN_NET, "model.p=0.5"))).modes
    assert not any(modes.values())


def test_dropout_in_a_model_of_ones_own_is_off_while_sampling(tmp_path: Path) -> None:
    net = (*OWN_NET, "chain.num_chains=1")
    run(tmp_path / "with", *net, "model.p=0.9")
    run(tmp_path / "without", *net, "model.p=0.0")
    assert digests(tmp_path / "with", 1) == digests(tmp_path / "without", 1)


def test_augmentation_is_a_setting_that_the_report_states(tmp_path: Path, finished: Path) -> None:
    run(tmp_path / "one", "dataset.augment=true", "evaluate.report=true")
    run(tmp_path / "two", "dataset.augment=true")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert not set(digests(tmp_path / "one")[0]) & set(digests(finished)[0])
    page = (tmp_path / "one" / "report" / "index.html").read_text()
    assert "Training images were augmented, which softens the likelihood" in page
    assert to_experiment(composed(*TINY, "dataset.augment=true")).data.augmentation in page


def test_bf16_leaves_the_draws_in_fp32(tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "run"
    metrics = run(folder, "trainer.precision=bf16-mixed", "chain.num_chains=1")
    tensors = draw(folder, 0, 4)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    reference = draw(finished, 0, 4)
    for name, tensor in tensors.items():  # 15 steps in another arithmetic stay near, and bf16 is another one
        torch.testing.assert_close(tensor, reference[name], rtol=0, atol=0.1)
    assert not same(tensors, reference)
    assert all(np.isfinite(value) for value in metrics["ensemble"].values())


def test_noise_drawn_ahead_gives_the_same_draws(tmp_path: Path, finished: Path) -> None:
    run(tmp_path / "run", "trainer.noise_ahead=true")
    assert digests(tmp_path / "run") == digests(finished)


# Loggers and sweeps


def test_tensorboard_gets_each_chains_potential_and_draws(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    run(folder, "logger=tensorboard", "callbacks.progress.log_every=5")
    for chain in (0, 1):
        events = EventAccumulator(str(folder / "logs" / f"chain_{chain}"))
        events.Reload()
        assert [e.step for e in events.Scalars("train/potential_per_example")] == [5, 10, 15]
        logged = [e.value for e in events.Scalars("draw/potential")]
        assert logged == pytest.approx([r["scalars"]["potential"] for r in manifest(folder, chain)], rel=1e-6)


def test_a_sweep_gives_each_job_a_folder_and_goes_on_after_a_failure(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("train", "-m", *TINY, "chain.num_chains=1", "seed=0,1,oops")
    jobs = sorted((tmp_path / "outputs").glob("*/*/*/config.yaml"))
    assert [job.parent.name for job in jobs] == ["0", "1"], result.err
    assert len({job.parent.parent for job in jobs}) == 1
    assert jobs[0].parts[-4] == "quickstart"
    assert [yaml.safe_load(job.read_text())["seed"] for job in jobs] == [0, 1]
    assert all((job.parent / "metrics.json").exists() for job in jobs)
    assert digests(jobs[0].parent, 1) != digests(jobs[1].parent, 1)
    commands = [yaml.safe_load(job.read_text())["provenance"]["command"] for job in jobs]
    assert [shlex.split(text)[-1] for text in commands] == ["seed=0", "seed=1"]  # a job's own settings
    assert result.code == 2
    assert "bayeslora: seed: Value 'oops' of type 'str' could not be converted to Integer" in result.err
    assert "Traceback" not in result.err
