"""python -m bayeslora.train: compose the configuration, run the chains, evaluate the posterior.

Examples:
    python -m bayeslora.train experiment=quickstart
    python -m bayeslora.train experiment=cifar10_resnet18_sgld dataset.path=/data/cifar10 trainer=gpu
    python -m bayeslora.train -m experiment=quickstart temperature=0.1,1
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bayeslora.cli import run_command
from bayeslora.errors import DivergedError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bayeslora.build import Setup
    from bayeslora.rundir import RunDirectory


def train(cfg: DictConfig) -> dict[str, Any]:
    """Run all chains of a configuration and evaluate them. Returns the metrics written to `metrics.json`.

    Chains whose draws are all on disk already are left as they are.

    Raises:
        ConfigError: anything wrong with the configuration or the data; nothing was started.
        DivergedError: a potential became non-finite; draws kept before stay readable.
    """
    import torch

    from bayeslora.build import build, plain
    from bayeslora.evaluate import evaluate
    from bayeslora.rundir import RunDirectory

    _set_run_dir(cfg)
    run = RunDirectory(cfg.run_dir)
    setup = build(cfg, run)
    if cfg.trainer.num_threads is not None:
        torch.set_num_threads(cfg.trainer.num_threads)
    run.open(plain(cfg))
    chains = [chain for chain in range(cfg.chain.num_chains) if not _finished(setup, run, chain)]
    for group in [chains] if cfg.chain.parallel == "stacked" and len(chains) > 1 else [[chain] for chain in chains]:
        run_chains(setup, run, group)
    return evaluate(run, setup)


def _finished(setup: Setup, run: RunDirectory, chain: int) -> bool:
    """Whether all that a chain has to leave is on disk; says so."""
    plan = setup.plan
    if len(run.store(chain)) < plan.num_draws or (chain == 0 and plan.warmup > 0 and not run.map_file.exists()):
        return False
    print(f"chain {chain + 1}/{setup.cfg.chain.num_chains}: all {plan.num_draws} draws are on disk", flush=True)  # noqa: T201
    return True


def run_chains(setup: Setup, run: RunDirectory, chains: list[int]) -> None:
    """Run one chain, or several stacked, from the initial weights to the last draw."""
    from lightning import Trainer

    from bayeslora.build import Steps
    from bayeslora.chains.collector import DrawCollector
    from bayeslora.config import accepted, instantiate
    from bayeslora.loggers import close, make_loggers, quiet_lightning

    cfg, plan = setup.cfg, setup.plan
    which = chains[0] if len(chains) == 1 else chains
    quiet_lightning()
    loggers = make_loggers(cfg, chains[0])
    stores = [run.store(chain) for chain in chains]
    collector = DrawCollector(stores, setup.probe(), run.map_file if chains[0] == 0 else None)
    callbacks = [
        instantiate(node, **accepted(node, num_chains=cfg.chain.num_chains)) for node in (cfg.callbacks or {}).values()
    ]
    trainer = Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        precision=cfg.trainer.precision,
        max_epochs=1,
        logger=loggers,
        callbacks=[collector, *callbacks],
        default_root_dir=run.root,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    try:
        trainer.fit(setup.module(which), train_dataloaders=Steps(setup.batches(which), plan.total))
    except SystemExit:  # what Lightning makes of Ctrl-C and SIGTERM
        raise KeyboardInterrupt from None
    except DivergedError as error:
        raise DivergedError(f"{error}; other settings need another run_dir. {_kept(run, chains[-1])}") from error
    finally:
        close(loggers)


def _kept(run: RunDirectory, last: int) -> str:
    """What is left of a run that ended early in chain `last`, and what to do with it."""
    kept = sum(len(run.store(chain)) for chain in range(last + 1))
    if not kept:
        return "No draw had been kept"
    return f"Draws kept before this: {kept}; python -m bayeslora.evaluate run_dir={run.root} evaluates them"


def _set_run_dir(cfg: DictConfig) -> None:
    """In a multirun each job gets Hydra's folder for it, unless `run_dir` was given."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    given = any(override.lstrip("+").startswith("run_dir=") for override in hydra.overrides.task)
    if hydra.mode == RunMode.MULTIRUN and not given:
        cfg.run_dir = hydra.runtime.output_dir


def main() -> None:
    """Entry point."""
    run_command("train", lambda cfg: train(cfg) and None)


if __name__ == "__main__":
    main()
