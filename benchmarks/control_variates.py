"""What control variates would save on minibatches: the variance of ∇ℓₙ(θ) − ∇ℓₙ(θ̃) beside that of ∇ℓₙ(θ).

A chain at T = 1 moves away from its anchor θ̃, where the gradient of all N examples is known. k steps later, a batch of
B examples has a gradient of variance S²_k (1/B − 1/N) in place of S² (1/B − 1/N), for two gradients an example, and N
more for each anchor. For an anchor that is kept for m steps: the plain batch B' of the same noise, 1/B' − 1/N the mean
over k < m of S²_k/S² (1/B − 1/N), beside the N/m + 2B examples a step that the anchor costs.

    python benchmarks/control_variates.py     # a line a data set, written to benchmarks/results/control_variates.jsonl

An MLP of 50 hidden units on digits and on the teacher's labels of benchmarks/minibatches.py, full-batch BAOAB at the
step sizes that `lr=auto` finds. Ratios are medians over anchors, of the whole net and of the worse block.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from minibatches import digits, teacher
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import bayeslora

RESULTS = Path(__file__).parent / "results" / "control_variates.jsonl"
LAGS = (1, 2, 4, 8, 16, 32, 64, 128)
ANCHORS = (0, 40, 80, 120)
BATCH = 128


def network(inputs: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 50), nn.ReLU(), nn.Linear(50, classes))


def gradients(model: nn.Module, state: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Each example's gradient of its NLL, [N, …] by parameter."""

    def nll(params: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, params, (one[None],)), label[None])

    found: dict[str, Tensor] = vmap(grad(nll), in_dims=(None, 0, 0))(state, x, y)
    return found


def variances(rows: dict[str, Tensor]) -> dict[str, float]:
    """Variance over examples, summed over coordinates, by layer."""
    found: dict[str, float] = {}
    for name, one in rows.items():
        layer = name.partition(".")[0]
        found[layer] = found.get(layer, 0.0) + float(one.var(0).sum())
    return found


def measured(name: str) -> dict[str, Any]:
    (x, y), _ = digits() if name == "digits" else teacher()
    net = network(x.shape[1], int(y.max()) + 1)
    with tempfile.TemporaryDirectory() as folder:
        pilot = bayeslora.sample(net, (x, y), chains=1, draws=4, progress=False, run_dir=Path(folder, "pilot"))
        config = yaml.safe_load((pilot.root / "config.yaml").read_text())
        settings = {
            "lr": config["sampler"]["lr"],
            "sampler_settings": {"momentum": config["sampler"]["momentum"]},
            "chain_settings": {"lr_factors": config["chain"]["lr_factors"]},
            "burn_in": config["chain"]["burn_in"],
        }
        path = bayeslora.sample(net, (x, y), chains=1, draws=300, thin=1, progress=False, **settings)
    states = [{key: value.float() for key, value in draw.tensors.items()} for draw in path.draws()]
    plain: dict[int, dict[str, float]] = {}
    ratios: dict[int, list[tuple[float, float]]] = {lag: [] for lag in LAGS}
    for anchor in ANCHORS:
        reference = gradients(net, states[anchor], x, y)
        for lag in LAGS:
            there = gradients(net, states[anchor + lag], x, y)
            plain = variances(there)
            left = variances({key: there[key] - reference[key] for key in there})
            by_layer = [left[layer] / plain[layer] for layer in plain]
            ratios[lag].append((sum(left.values()) / sum(plain.values()), max(by_layer)))
    ratio = {lag: [statistics.median(one[at] for one in found) for at in (0, 1)] for lag, found in ratios.items()}
    size, costs = len(x), {}
    for kept in LAGS:  # steps between the measured ones count as the next measured
        share = statistics.fmean(ratio[min(lag for lag in LAGS if lag >= k)][0] for k in range(1, kept + 1))
        plain_batch = 1 / (share * (1 / BATCH - 1 / size) + 1 / size)
        costs[kept] = [round(plain_batch), round(size / kept + 2 * BATCH)]
    return {
        "data": name,
        "N": size,
        "batch": BATCH,
        "S²_k / S², net and worse layer": ratio,
        "plain batch, examples a step": costs,
        "burn_in": settings["burn_in"],
        "momentum": settings["sampler_settings"]["momentum"],
    }


def main() -> None:
    torch.set_num_threads(1)
    with RESULTS.open("w") as out:
        for name in ("digits", "teacher"):
            line = json.dumps(measured(name), ensure_ascii=False)
            print(line)
            out.write(line + "\n")


if __name__ == "__main__":
    main()
