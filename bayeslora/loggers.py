"""Lightning's loggers, one a chain: csv by default, TensorBoard, or W&B (offline where there is no account)."""

from __future__ import annotations

import logging
import netrc
import os
import warnings

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from bayeslora.config import accepted, instantiate


def make_loggers(cfg: DictConfig, chain: int, step: int = 0) -> list[Logger]:
    """The configured loggers of one chain from a step on; each gets a name or version of its own for them."""
    os.environ.setdefault("WANDB_SILENT", "true")
    part = f"chain_{chain}" + (f"_from_{step}" if step else "")
    own = {"version": part, "name": f"{cfg.name}/{part}", "offline": not has_wandb_account()}
    return [instantiate(node, **accepted(node, **own)) for node in (cfg.logger or {}).values()]


def close(loggers: list[Logger]) -> None:
    """Write out what is pending and end W&B's run, so that the next chain or sweep job starts its own."""
    for logger in loggers:
        logger.save()
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def has_wandb_account() -> bool:
    """Whether W&B has a key to log in with: WANDB_API_KEY or an entry in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def quiet_lightning() -> None:
    """Silence Lightning's advice on data loaders and hardware, which does not apply to data held in memory."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
