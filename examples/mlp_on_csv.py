"""Regression on a table: an MLP of one's own, its noise sampled with the weights. python examples/mlp_on_csv.py [CSV]

The last column is predicted from the others, which must be numbers; without a file it makes a table up.
"""

import argparse
import csv
import random
import tempfile
from pathlib import Path

import torch
from torch import nn

import bayeslora


def made_up(rows: int = 300) -> Path:
    """A table in which price depends on size and age, with noise of sd 10."""
    rng, file = random.Random(0), Path(tempfile.mkdtemp()) / "houses.csv"
    houses = [(rng.uniform(30, 200), rng.uniform(0, 80)) for _ in range(rows)]
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["size", "age", "price"])
        writer.writerows([s, a, 100 + 2 * s - 0.01 * a * s + rng.gauss(0, 10)] for s, a in houses)
    return file


def main() -> bayeslora.Posterior:
    """Sample, evaluate, and show three predictions with their uncertainty."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--burn-in", type=int, default=1000)
    options = parser.parse_args()
    with (options.path or made_up()).open() as file:
        table = torch.tensor([[float(cell) for cell in row] for row in list(csv.reader(file))[1:]])
    x, y = table[:, :-1], table[:, -1:]
    held_out = torch.arange(len(table)) % 5 == 0
    mean, sd = y[~held_out].mean(), y[~held_out].std()
    x, y = (x - x[~held_out].mean(0)) / x[~held_out].std(0), (y - mean) / sd
    posterior = bayeslora.sample(
        lambda: nn.Sequential(nn.Linear(x.shape[1], 32), nn.Tanh(), nn.Linear(32, 1)),  # each chain its own start
        (x[~held_out], y[~held_out]), "sghmc", test_dataset=(x[held_out], y[held_out]), lr=0.003, batch_size=None,
        prior=1.0, parallel="stacked", draws=options.draws, burn_in=options.burn_in, warmup_lr=0.01,
    )  # fmt: skip
    said = posterior.predict(x[held_out][:3])
    for m, s, truth in zip(said.mean[:, 0], said.sd[:, 0], y[held_out][:3, 0], strict=True):
        print(f"predicted {m * sd + mean:.0f} ± {s * sd:.0f}, true {truth * sd + mean:.0f}")
    return posterior


if __name__ == "__main__":
    main()
