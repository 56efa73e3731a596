"""Whether `bayeslora.sample(model, data)`, with nothing else given, samples what it says on small tables.

An MLP of 50 hidden units on four tables of scikit-learn and two synthetic ones, 70 % of the examples for training and
15 % for the table below, several seeds. The other 15 % (`--validation`) are for choosing defaults: the prior's scale
was chosen on those of wine, and on the quickstart's own validation split of digits.
The limits: R-hat of the potential at most 1.02, every measured block within 5 % of T = 1, NLL of the ensemble at most
MAP's + 0.01 nats, 120 CPU-seconds.

    python benchmarks/defaults.py                         all, written to benchmarks/results/defaults.md
    python benchmarks/defaults.py --only wine --seeds 1
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn import datasets
from torch import Tensor, nn

import bayeslora
from bayeslora.runs.provenance import provenance

RESULTS = Path(__file__).parent / "results"
LIMITS = {"rhat": 1.02, "temperature": 0.05, "nll": 0.01, "cpu": 120.0}


def sets() -> dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]]:
    """Inputs and targets by name; real targets are a regression."""
    return {
        "breast cancer": lambda: datasets.load_breast_cancer(return_X_y=True),
        "wine": lambda: datasets.load_wine(return_X_y=True),
        "digits": lambda: datasets.load_digits(return_X_y=True),
        "diabetes": lambda: datasets.load_diabetes(return_X_y=True),
        "two moons": lambda: datasets.make_moons(300, noise=0.25, random_state=0),
        "friedman1": lambda: datasets.make_friedman1(300, noise=1.0, random_state=0),
    }


def split(name: str, seed: int, validation: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """Training and evaluation examples, standardised by the former, and the number of outputs."""
    x, y = sets()[name]()
    real = name in ("diabetes", "friedman1")
    order = np.random.default_rng(seed).permutation(len(x))
    train, held, test = np.split(order, [int(0.7 * len(x)), int(0.85 * len(x))])
    other = held if validation else test
    mean, sd = x[train].mean(0), x[train].std(0)
    x = ((x - mean) / np.where(sd > 0, sd, 1.0)).astype(np.float32)
    y = ((y - y[train].mean()) / y[train].std()).astype(np.float32) if real else y.astype(np.int64)
    pairs = [(torch.tensor(x[rows]), torch.tensor(y[rows])) for rows in (train, other)]
    return pairs[0], pairs[1], 1 if real else int(y.max()) + 1


def measured(name: str, seed: int, validation: bool, **settings: Any) -> dict[str, Any]:
    """One run with the defaults of `bayeslora.sample`, and what came of it."""
    train, other, outputs = split(name, seed, validation)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(train[0].shape[1], 50), nn.ReLU(), nn.Linear(50, outputs))
    start = time.process_time()
    posterior = bayeslora.sample(model, train, test_dataset=other, seed=seed, progress=False, **settings)
    seconds = time.process_time() - start
    results = posterior.metrics
    blocks = {b: one for b, one in results.diagnostics.temperature.items() if one.ratio is not None}
    config = yaml.safe_load((posterior.root / "config.yaml").read_text())
    return {
        "set": name,
        "seed": seed,
        "N": len(train[0]),
        "rhat": results.diagnostics.of("potential").rhat,
        "ess": results.diagnostics.of("potential").ess_bulk,
        "function": results.diagnostics.function_space.rhat_q95,
        "temperature": max(abs(one.ratio - 1) for one in blocks.values() if one.status == "measured"),
        "unshown": [block for block, one in blocks.items() if one.status == "not shown"],
        "map": results.map.nll,
        "ensemble": results.ensemble.nll,
        "cpu": seconds,
        **{key: config["chain"][key] for key in ("burn_in", "thin")},
        "momentum": config["sampler"]["momentum"],
    }


def met(row: dict[str, Any]) -> bool:
    """Whether a run meets all limits."""
    near = row["temperature"] <= LIMITS["temperature"] and not row["unshown"]
    good = row["rhat"] <= LIMITS["rhat"] and row["ensemble"] <= row["map"] + LIMITS["nll"]
    return near and good and row["cpu"] <= LIMITS["cpu"]


def table(rows: list[dict[str, Any]]) -> str:
    """The runs as Markdown, one line each."""
    head = (
        "| data | N | seed | R̂ potential | R̂ of 95 % of predictions | ESS | block furthest from T | NLL: MAP, ensemble"
    )
    lines = [f"{head} | burn-in, thin, μ | CPU s | met |", f"|{'---|' * 11}"]
    for row in sorted(rows, key=lambda row: (list(sets()).index(row["set"]), row["seed"])):
        cells = [
            row["set"], row["N"], row["seed"], f"{row['rhat']:.4f}", f"{row['function']:.4f}", f"{row['ess']:.0f}",
            ", ".join([f"{100 * row['temperature']:.1f} %", *(f"{block} not shown" for block in row["unshown"])]),
            f"{row['map']:.3f}, {row['ensemble']:.3f}", f"{row['burn_in']:,}, {row['thin']}, {row['momentum']:.3f}",
            f"{row['cpu']:.0f}", "yes" if met(row) else "no",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(sets()), nargs="+", default=list(sets()))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--validation", action="store_true", help="evaluate on the examples for choosing settings")
    parser.add_argument("--out", type=Path, default=RESULTS / "defaults.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines, rows = arguments.out.with_suffix(".jsonl"), []
    if lines.exists():  # an interrupted benchmark goes on
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
    done = {(row["set"], row["seed"]) for row in rows}
    for seed in range(arguments.seeds):
        for name in arguments.only:
            if (name, seed) not in done:
                rows.append(measured(name, seed, arguments.validation))
                with lines.open("a") as out:
                    out.write(json.dumps(rows[-1]) + "\n")
    about = provenance()
    where = f"{about['hardware']}; torch {about['versions']['torch']}; commit {about['commit']}; 1 thread"
    text = f"# The defaults of `bayeslora.sample`\n\n{table(rows)}\n\n`python benchmarks/defaults.py`. {where}.\n"
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
