"""python -m bayeslora.train: compose the configuration, run the chains, evaluate the posterior.

Examples:
    python -m bayeslora.train experiment=quickstart
    python -m bayeslora.train experiment=cifar10_resnet18_sgld dataset.path=/data/cifar10 trainer=gpu
    python -m bayeslora.train -m experiment=quickstart temperature=0.1,1
    python -m bayeslora.train -m hydra/launcher=joblib experiment=quickstart chain.index=0,1,2,3
    python -m bayeslora.train -m search=step_prior_temperature experiment=quickstart dataset.validation_size=300
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora.cli import run_command
from bayeslora.errors import ConfigError, DataError, DivergedError, WorkerError, require

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bayeslora.build import Setup
    from bayeslora.evaluation.results import Results
    from bayeslora.rundir import RunDirectory


def train(cfg: DictConfig) -> Results | None:
    """Run the chains of a configuration and evaluate them. Returns the results written to `metrics.json`.

    Chains whose draws are all on disk already are left as they are; others go on where they were left. Where
    `chain.index` names some chains only, the run is evaluated by whoever finishes last; None before that.

    Raises:
        ConfigError: anything wrong with the configuration or the data; nothing was started.
        DivergedError: a chain diverged; the others are finished and what there is is evaluated.
        InterruptedRunError: the run was asked to stop, and can be resumed.
        WorkerError: a process that ran a chain was killed; the others are finished and what there is is evaluated.
    """
    from hydra.core.hydra_config import HydraConfig

    from bayeslora.config import check_keys

    check_keys(cfg, HydraConfig.get().overrides.task if HydraConfig.initialized() else ())
    import torch

    from bayeslora.build import build, plain
    from bayeslora.rundir import RunDirectory

    _set_paths(cfg)
    _set_run_dir(cfg)
    run = RunDirectory(cfg.run_dir)
    setup = build(cfg, run)
    from bayeslora.chains.parallel import run_processes  # they import Lightning, which takes seconds
    from bayeslora.chains.runner import ChainRunner
    from bayeslora.chains.trial import try_step
    from bayeslora.evaluate import evaluate
    from bayeslora.evaluation.rechecks import check_draws

    if cfg.trainer.num_threads is not None:
        torch.set_num_threads(cfg.trainer.num_threads)
    setup.identify(run)
    try_step(setup)
    _accelerate(setup, run)
    run.open(plain(cfg), setup.fingerprint, setup.fixed)
    if (short := setup.short_burn_in()) is not None:
        print(f"warning: {short}", flush=True)  # noqa: T201
    check_draws(run, setup)
    runner = ChainRunner(setup, run)
    run_all = run_processes if cfg.chain.parallel == "processes" else ChainRunner.run_all
    try:
        stopped = run_all(runner, setup.chains)
    except WorkerError:
        if any(len(run.store(chain)) for chain in range(cfg.chain.num_chains)):
            evaluate(run, setup)
        raise
    running = _running(run, setup)
    if cfg.chain.index is not None and running:
        print(f"chains {running} of {run.root} have not ended yet; whoever ends last evaluates the run", flush=True)  # noqa: T201
        return None
    results = evaluate(run, setup) if any(len(run.store(chain)) for chain in range(cfg.chain.num_chains)) else None
    if stopped:
        raise DivergedError(f"{'; '.join(stopped.values())}; other settings need another run_dir. {_kept(run, setup)}")
    return results


def _accelerate(setup: Setup, run: RunDirectory) -> None:
    """Put what a measurement chooses in the place of `auto`; a run that is there keeps what it has recorded."""
    from bayeslora.engine.acceleration import AUTO, accelerate

    trainer = setup.cfg.trainer
    keys = [key for key in ("precision", "channels_last", "compile") if trainer[key] == AUTO]
    if not keys:
        return
    recorded = run.config.get("trainer", {}) if run.config_file.exists() else {}
    if any(key not in recorded or recorded[key] == AUTO for key in keys):
        choice, words = accelerate(setup)
        recorded = asdict(choice)
        print(words, flush=True)  # noqa: T201
    for key in keys:
        trainer[key] = recorded[key]


def _running(run: RunDirectory, setup: Setup) -> list[int]:
    """Chains that have neither their draws nor diverged: other jobs' to finish."""
    stores = [run.store(chain) for chain in range(setup.cfg.chain.num_chains)]
    missing = [store for store in stores if len(store) < setup.plan.num_draws]
    return [store.chain for store in missing if not any(event["event"] == "diverged" for event in store.events())]


def _kept(run: RunDirectory, setup: Setup) -> str:
    """What is left of a run of which chains diverged, and what to do with it."""
    kept = sum(len(run.store(chain)) for chain in range(setup.cfg.chain.num_chains))
    if not kept:
        return "No draw had been kept"
    return f"Draws kept: {kept}; python -m bayeslora.evaluate run_dir={run.root} evaluates them again"


def _set_run_dir(cfg: DictConfig) -> None:
    """In a multirun each job gets a folder of its own, unless `run_dir` was given; `resume` looks for the newest."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    given = hydra is not None and any(one.lstrip("+").startswith("run_dir=") for one in hydra.overrides.task)
    if cfg.resume:
        cfg.run_dir = str(_resumed(cfg, named=given))
        print(f"resume=true goes on with {cfg.run_dir}", flush=True)  # noqa: T201
        return
    if hydra is None:
        return
    if hydra.mode == RunMode.MULTIRUN and not given:  # jobs that run chains of one run share its folder
        cfg.run_dir = hydra.sweep.dir if cfg.chain.index is not None else f"{hydra.sweep.dir}/{hydra.job.num}"


def _set_paths(cfg: DictConfig) -> None:
    """Make `~` the home, and a dataset's path that is there absolute: the run is evaluated from anywhere."""
    from omegaconf import OmegaConf

    from bayeslora.files import user_path

    cfg.run_dir = str(user_path(str(cfg.run_dir)))
    for key in ("dataset.path", "evaluate.reference", "evaluate.ood_path"):
        if isinstance(path := OmegaConf.select(cfg, key, throw_on_missing=False), str):
            there = user_path(path)
            OmegaConf.update(cfg, key, str(there.absolute()) if there.exists() else str(there))


def _resumed(cfg: DictConfig, named: bool) -> Path:
    """The run directory that was named; else the newest beside the one to be whose configuration is this one.

    Raises:
        ConfigError: there is none.
    """
    from bayeslora.build import plain
    from bayeslora.config import differences
    from bayeslora.files import user_path
    from bayeslora.rundir import RunDirectory, fixed

    here = user_path(str(cfg.run_dir))
    if RunDirectory(here).config_file.exists():
        return here
    require(
        not named,
        f"resume=true, but run_dir={here} holds no run; leave run_dir out to go on with the newest run of this"
        " configuration, or leave resume out to start one there",
    )
    beside = here.parent
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


def searched(cfg: DictConfig) -> float | None:
    """Train; in a search, give what it minimises: the ensemble's NLL on the validation set, ∞ if a chain diverged.

    Raises:
        ConfigError: the search would look at another split. Else as `train`.
    """
    from hydra.core.hydra_config import HydraConfig

    from bayeslora.evaluation.results import score

    hydra = HydraConfig.get()
    if "direction" not in hydra.sweeper:  # what Hydra's sweepers that search have
        train(cfg)
        return None
    require(
        cfg.evaluate.split == "validation",
        f"evaluate.split={cfg.evaluate.split}: a search would fit its settings to it; leave it to search=…, which looks"
        " at the validation set",
    )
    keys = Counter(override.lstrip("+").partition("=")[0] for override in hydra.overrides.task)
    twice = [key for key, count in keys.items() if count > 1]
    require(not twice, f"{', '.join(twice)}: given and searched for; leave it out, or write a search without it")
    try:
        results = train(cfg)
    except DivergedError as error:
        print(f"the worst a trial can be: {error}", flush=True)  # noqa: T201
        return float("inf")
    return None if results is None else score(results.ensemble, "nll")


def main() -> None:
    """Entry point."""
    run_command("train", searched)


if __name__ == "__main__":
    main()
