"""Loggers, each chain's apart: csv by default, TensorBoard, or W&B (offline where there is no account)."""

from bayeslora.loggers.others import ChainLoggers, comet, log_evaluation, make_loggers, mlflow, quiet_lightning
from bayeslora.loggers.wandb import WandbRun, has_wandb_account

__all__ = [
    "ChainLoggers", "WandbRun", "comet", "has_wandb_account", "log_evaluation", "make_loggers", "mlflow",
    "quiet_lightning",
]  # fmt: skip
