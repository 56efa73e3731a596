"""python -m bayeslora.train: compose the configuration, run the chains, evaluate the posterior.

Examples:
    python -m bayeslora.train experiment=quickstart
    python -m bayeslora.train experiment=cifar10_resnet18_sgld dataset.path=/data/cifar10 trainer=gpu
    python -m bayeslora.train -m experiment=quickstart temperature=0.1,1
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.cli import run_command
from bayeslora.errors import ConfigError, DataError, DivergedError, WorkerError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bayeslora.build import Setup
    from bayeslora.rundir import RunDirectory


def train(cfg: DictConfig) -> dict[str, Any] | None:
    """Run the chains of a configuration and evaluate them. Returns the metrics written to `metrics.json`.

    Chains whose draws are all on disk already are left as they are; others go on where they were left. Where
    `chain.index` names some chains only, the run is evaluated by whoever finishes last; None before that.

    Raises:
        ConfigError: anything wrong with the configuration or the data; nothing was started.
        DivergedError: a chain diverged; the others are finished and what there is is evaluated.
        InterruptedRunError: the run was asked to stop, and can be resumed.
        WorkerError: a process that ran a chain was killed; the others are finished and what there is is evaluated.
    """
    import torch

    from bayeslora.build import build, plain
    from bayeslora.chains.parallel import run_processes
    from bayeslora.chains.runner import ChainRunner
    from bayeslora.evaluate import evaluate
    from bayeslora.rundir import RunDirectory

    _set_run_dir(cfg)
    run = RunDirectory(cfg.run_dir)
    setup = build(cfg, run)
    if cfg.trainer.num_threads is not None:
        torch.set_num_threads(cfg.trainer.num_threads)
    run.open(plain(cfg))
    runner = ChainRunner(setup, run)
    run_all = run_processes if cfg.chain.parallel == "processes" else ChainRunner.run_all
    try:
        stopped = run_all(runner, setup.chains)
    except WorkerError:
        if any(len(run.store(chain)) for chain in range(cfg.chain.num_chains)):
            evaluate(run, setup)
        raise
    missing = [chain for chain in range(cfg.chain.num_chains) if len(run.store(chain)) < setup.plan.num_draws]
    if cfg.chain.index is not None and set(missing) - set(stopped):
        print(f"chains {missing} of {run.root} have not ended yet; whoever ends last evaluates the run", flush=True)  # noqa: T201
        return None
    metrics = evaluate(run, setup) if any(len(run.store(chain)) for chain in range(cfg.chain.num_chains)) else None
    if stopped:
        raise DivergedError(f"{'; '.join(stopped.values())}; other settings need another run_dir. {_kept(run, setup)}")
    return metrics


def _kept(run: RunDirectory, setup: Setup) -> str:
    """What is left of a run of which chains diverged, and what to do with it."""
    kept = sum(len(run.store(chain)) for chain in range(setup.cfg.chain.num_chains))
    if not kept:
        return "No draw had been kept"
    return f"Draws kept: {kept}; python -m bayeslora.evaluate run_dir={run.root} evaluates them again"


def _set_run_dir(cfg: DictConfig) -> None:
    """In a multirun each job gets Hydra's folder for it, unless `run_dir` was given; `resume` looks for the newest."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if cfg.resume:
        cfg.run_dir = str(_newest_run(cfg))
        return
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    given = any(override.lstrip("+").startswith("run_dir=") for override in hydra.overrides.task)
    if hydra.mode == RunMode.MULTIRUN and not given:  # jobs that run chains of one run share its folder
        cfg.run_dir = hydra.runtime.output_dir if cfg.chain.index is None else hydra.sweep.dir


def _newest_run(cfg: DictConfig) -> Path:
    """The run directory that was named, if it holds a run; else the newest beside it whose configuration is this one.

    Raises:
        ConfigError: there is none.
    """
    from bayeslora.build import plain
    from bayeslora.config import differences
    from bayeslora.rundir import RunDirectory, fixed

    here, beside = Path(cfg.run_dir), Path(cfg.run_dir).parent
    if RunDirectory(here).config_file.exists():
        return here
    wanted = fixed(plain(cfg))
    for file in sorted(beside.glob("*/config.yaml"), reverse=True):
        with suppress(DataError):  # a folder with a spoilt configuration is not the one
            there = RunDirectory(file.parent).config
            if isinstance(there.get("chain"), dict) and not any(differences(wanted, fixed(there))):
                return file.parent
    raise ConfigError(
        f"resume=true, but {beside} holds no run of this configuration; leave resume out to start one, or give"
        " run_dir=… of the run to go on with"
    )


def main() -> None:
    """Entry point."""
    run_command("train", lambda cfg: train(cfg) and None)


if __name__ == "__main__":
    main()
