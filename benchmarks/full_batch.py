"""Up to which N all the data at every step are the better choice: what the slowest block's relaxation costs.

    python benchmarks/full_batch.py       a line for each N and batch, written to benchmarks/results/full_batch.jsonl

An MLP of 50 hidden units on N of the teacher's examples (benchmarks/minibatches.py). `lr=auto` finds the step sizes for
all the data, for the batch that it calls cheapest, and for 256; noise may heat a block by 5 %. A relaxation in steps is
the tuner's; a step's CPU time is that of the burn-in and of the draws of one chain, evaluation left out.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from minibatches import teacher
from torch import nn

import bayeslora

RESULTS = Path(__file__).parent / "results" / "full_batch.jsonl"
SIZES = (250, 500, 1000, 2000, 4000, 8000, 16000, 32000)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 5))


def step_seconds(model: nn.Module, data: Any, size: int) -> float:
    """CPU seconds of a full step of the sampler: those that 400 more steps cost."""

    def spent(steps: int) -> float:
        start = time.process_time()
        numbers = {"lr": 1e-3, "sampler_settings": {"momentum": 0.9}, "chain_settings": {"probe_size": 1}}
        bayeslora.sample(
            model, data, chains=1, draws=1, thin=1, burn_in=steps, warmup=0, batch_size=size, progress=False, **numbers
        )
        return time.process_time() - start

    return (spent(500) - spent(100)) / 400


def measured(count: int, size: int | None) -> dict[str, Any]:
    """The tuner's result for N examples and batches of so many; None: all of them."""
    data, _ = teacher(count)
    with tempfile.TemporaryDirectory() as folder:
        run = bayeslora.sample(
            network(), data, chains=1, draws=1, thin=1, burn_in=600, batch_size=size, progress=False,
            run_dir=Path(folder, "run"),
        )  # fmt: skip
        config = yaml.safe_load((run.root / "config.yaml").read_text())
    tuning, batch = config["tuning"], size or count
    seconds = step_seconds(network(), data, batch)
    tau = tuning["relaxation"]
    return {
        "N": count,
        "batch": batch,
        "cheapest batch": tuning["cheapest_batch"],
        "relaxation, steps": tau,
        "relaxation, examples": tau * batch,
        "ms a step": 1e3 * seconds,
        "relaxation, CPU s": tau * seconds,
        "momentum": tuning["momentum"],
    }


def main() -> None:
    torch.set_num_threads(1)
    with RESULTS.open("w") as out:
        for count in SIZES:
            rows = [measured(count, 256)] if count > 256 else []
            cheapest = rows[0]["cheapest batch"] if rows else None
            for row in (*rows, *(measured(count, size) for size in dict.fromkeys((cheapest, None)))):
                print(json.dumps(row), flush=True)
                out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
