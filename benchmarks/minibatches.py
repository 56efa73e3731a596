"""What minibatches do to a posterior: temperature of the blocks, NLL of single draws, examples for a draw's worth.

An MLP of 50 hidden units on digits and on labels of a random teacher network: all the data at every step; step sizes as
curvature alone allows, recorded before `lr=auto` knew of gradient noise; and as `lr=auto` finds them now. Softmax
regression on 20,000 of the teacher's examples, which no step can hold: `lr=auto` chooses the batch.

    python benchmarks/minibatches.py                 all rows, written to benchmarks/results/minibatches.jsonl
    python benchmarks/minibatches.py --only 'digits, 256'
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn import datasets
from torch import Tensor, nn

import bayeslora
from bayeslora.runs.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "minibatches.jsonl"
Examples = tuple[Tensor, Tensor]


def given(lr: float, factors: dict[str, float], momentum: float, **lengths: int) -> dict[str, Any]:
    """Step sizes, momentum and lengths as numbers."""
    return {"lr": lr, "sampler_settings": {"momentum": momentum}, "chain_settings": {"lr_factors": factors}} | lengths


SHORT = {"chains": 2, "draws": 40}
ROWS: dict[str, dict[str, Any]] = {
    "digits, all": {},
    "digits, 128 by curvature": given(
        0.03477, {"0.bias": 65.6819, "2.bias": 125.661, "0.weight": 2.06486, "2.weight": 1.00011}, 0.9508,
        burn_in=407, thin=28, batch_size=128,
    ),
    "digits, 256 by curvature": given(
        0.02771, {"0.bias": 74.201, "2.bias": 147.621, "0.weight": 6.53035, "2.weight": 1.00006}, 0.9561,
        burn_in=456, thin=31, batch_size=256,
    ),
    "digits, 256": {"batch_size": 256, "draws": 60},
    "teacher, all": SHORT,
    "teacher, 128 by curvature": SHORT | given(
        0.05967, {"0.bias": 57.4549, "2.bias": 10.9798, "0.weight": 18.5119, "2.weight": 0.999984}, 0.98,
        burn_in=1222, thin=82, batch_size=128,
    ),
    "teacher, 128": SHORT | {"batch_size": 128},
    "digits, 256 by SGLRW": {"sampler": "sglrw", "lr": "auto", "batch_size": 256, "draws": 60},
    "softmax regression": {},
}  # fmt: skip
"""Arguments of `bayeslora.sample` by what the row is called."""


def digits() -> tuple[Examples, Examples]:
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1437], order[1437:]
    sd = x[train].std(0)
    x = torch.tensor((x - x[train].mean(0)) / np.where(sd > 0, sd, 1), dtype=torch.float32)
    return (x[train], torch.tensor(y[train])), (x[test], torch.tensor(y[test]))


def teacher(count: int = 4000) -> tuple[Examples, Examples]:
    """Inputs in 20 dimensions, five classes drawn from the softmax of a network of 30 hidden units."""
    source = torch.Generator().manual_seed(1)
    first, second = torch.randn(20, 30, generator=source) / 20**0.5, torch.randn(30, 5, generator=source) / 30**0.5 * 3
    x = torch.randn(count + 1000, 20, generator=source)
    logits = torch.relu(x @ first) @ second
    y = (logits - torch.log(-torch.log(torch.rand(logits.shape, generator=source)))).argmax(1)
    return (x[:count], y[:count]), (x[count:], y[count:])


def measured(name: str) -> dict[str, Any]:
    """One run, and what came of it."""
    linear = name == "softmax regression"
    train, test = digits() if name.startswith("digits") else teacher(20_000 if linear else 4000)
    inputs, classes = train[0].shape[1], int(train[1].max()) + 1
    torch.manual_seed(0)
    hidden = nn.Sequential(nn.Linear(inputs, 50), nn.ReLU(), nn.Linear(50, classes))
    model = nn.Linear(inputs, classes) if linear else hidden
    start = time.process_time()
    posterior = bayeslora.sample(model, train, test_dataset=test, progress=False, **ROWS[name])
    seconds, results = time.process_time() - start, posterior.metrics
    config = yaml.safe_load((posterior.root / "config.yaml").read_text())
    chain, potential = config["chain"], results.diagnostics.of("potential")
    size = chain["batch_size"] or len(train[0])
    steps = chain["num_chains"] * (chain["burn_in"] + chain["num_draws"] * chain["thin"])
    losses = []
    with torch.no_grad():
        for draw in posterior.draws():
            model.load_state_dict({key: draw.tensors[key] for key in model.state_dict()})
            losses.append(nn.functional.cross_entropy(model(train[0]), train[1]).item())
    return {
        "row": name,
        "N": len(train[0]),
        "batch": size,
        "temperature": {b: [one.ratio, one.se] for b, one in results.diagnostics.temperature.items()},
        "training NLL of draws": [float(np.mean(losses)), float(np.std(losses)) / (potential.ess_bulk or 1) ** 0.5],
        "NLL of MAP, ensemble": [results.map.nll, results.ensemble.nll],
        "rhat": [potential.rhat, results.diagnostics.function_space.rhat_q95],
        "ess": potential.ess_bulk,
        "epochs for ESS 100": steps * size / len(train[0]) / (potential.ess_bulk or 1) * 100,
        "cpu": seconds,
        **{key: chain[key] for key in ("num_chains", "num_draws", "burn_in", "thin")},
        "tuning": config.get("tuning"),
        "commit": provenance()["commit"],
        "hardware": provenance()["hardware"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(ROWS), nargs="+", default=list(ROWS))
    torch.set_num_threads(1)
    for name in parser.parse_args().only:
        row = measured(name)
        print(json.dumps(row))
        with RESULTS.open("a") as out:
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
