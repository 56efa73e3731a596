"""python -m bayeslora.train: compose the configuration, run the chains, evaluate the posterior.

Examples:
    python -m bayeslora.train experiment=quickstart
    python -m bayeslora.train experiment=cifar10_resnet18_sgld dataset.path=/data/cifar10 trainer=gpu
    python -m bayeslora.train -m experiment=quickstart temperature=0.1,1
    python -m bayeslora.train -m hydra/launcher=joblib experiment=quickstart chain.index=0,1,2,3
    python -m bayeslora.train -m search=step_prior_temperature experiment=quickstart dataset.validation_size=300
"""

from __future__ import annotations

from bayeslora.app.cli import run_command
from bayeslora.app.training import train_or_search


def main() -> None:
    """Entry point."""
    run_command("train", __doc__, train_or_search)


if __name__ == "__main__":
    main()
