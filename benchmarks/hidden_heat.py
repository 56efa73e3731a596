"""Heat that block temperatures dilute: the NLL of training pairs of MRPC where samplers go on from draws of SGLRW.

    python benchmarks/reproduce.py mrpc-sglrw-short --data FOLDER --also chain.num_chains=2   # the draws they begin at
    python benchmarks/hidden_heat.py --data FOLDER --sampler sgld --lr 0.5  # one sampler, one step size
    python benchmarks/hidden_heat.py --data FOLDER --sampler sgld --lr 0.5 --batch 256 # with less noise
    python benchmarks/hidden_heat.py --data FOLDER --sampler sgld --lr 0.5 --noise # heat where minibatch noise lies
    python benchmarks/hidden_heat.py --table                                                 # into benchmarks/results

SGLRW is immune to minibatch noise, which heats SGLD and SGHMC in the few directions that the data constrain; these
relax within some tens of steps, so that short chains from SGLRW's draws show it. A block's temperature is the mean over
its 24,576 coordinates, nearly all of them the prior's.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peers.results import FOLDER, origin, pm, table, write
from torch import Tensor, nn

from bayeslora import samplers
from bayeslora.diagnostics.measured_temperature import block_sizes
from bayeslora.evaluation.hidden_heat import STATES, noise_heats
from bayeslora.experiment import Experiment
from bayeslora.posterior import Posterior
from bayeslora.posterior.store import load_into
from bayeslora.potential import last_match

MAKE: dict[str, Callable[..., samplers.Sampler]] = {
    "sgld": partial(samplers.SGLD, integrator="leimkuhler_matthews"),
    "sghmc": partial(samplers.SGHMC, momentum=0.9),
    "sglrw": samplers.SGLRW,
}
NAMES = {"draws": "SGLRW's draws", "sgld": "SGLD", "sghmc": "SGHMC", "sglrw": "SGLRW"}
BATCH = 32
"""Examples a step of the experiment."""
PAIRS, EVERY, SKIPPED = 768, 20, 80
"""Training pairs that are scored, steps between scores, steps before the first that counts."""
EARLIER = 4
"""Draws of SGLRW that are left out as burn-in."""
PARTS = Path("outputs/hidden_heat")
TITLE = f"""# Heat that block temperatures dilute

MiniLM with LoRA on MRPC, T = 1: the NLL of {PAIRS} training pairs in draws of SGLRW (`mrpc-sglrw-short`, two chains;
`mrpc-sglrw-single-short`, one of seed 1; without their first {EARLIER}), and where SGLD by the Leimkuhler–Matthews rule
goes on from the last of them, scored every {EVERY} steps after the first {SKIPPED}. ± is a standard error of the mean
over states, taken as independent, though states of one chain are not."""


NOISE = f"""What the report measures (`diagnostics.noise_heat`), for SGLD at these step sizes at the draws of a chain of
SGLRW (`mrpc-sglrw-single-short`), four batches of 32 at each of up to {STATES}: by what share of T minibatch noise
heats a block as a whole, and the directions in which it lies, to first order in ε. Where the data determine all of
these, the potential is higher by half the trace, summed over blocks 94 nats or .029 a training pair, beside .018 ± .005
above. The NLL from `mrpc-sglrw-short` were taken at commit 95f573bdb521 on an Intel Xeon."""


class Scored:
    """Mean NLL of the same training pairs at any state of a model."""

    def __init__(self, experiment: Experiment) -> None:
        data = experiment.data
        chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(3))[:PAIRS]
        assert data.lengths is not None
        self.experiment, self.order = experiment, chosen[data.lengths[chosen].argsort()]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        data, total = self.experiment.data, 0.0
        for rows in self.order.split(64):
            batch = data.train.take(rows)
            total += float(self.experiment.likelihood.nll(model(data.transform(batch.inputs)), batch.targets).sum())
        return total / PAIRS


def moved(posterior: Posterior, name: str, lr: float, batch: int, chain: int, steps: int) -> list[float]:
    """NLL after every `EVERY` steps of a sampler that goes on from a chain's last draw, at T = 1."""
    experiment = posterior.experiment.settled({"chain.batch_size": batch})
    score, model = Scored(experiment), experiment.model(chain).eval()
    load_into(model, list(posterior.draws(chain=chain))[-1].tensors, "draw")
    params = {key: p for key, p in model.named_parameters() if p.requires_grad}
    factors = {key: last_match(key, experiment.chain.lr_factors, 1.0) for key in params}
    groups = [
        {"params": [p for key, p in params.items() if factors[key] == factor], "lr": lr * factor}
        for factor in sorted(set(factors.values()))
    ]
    sampler = MAKE[name](groups, lr=lr, kT=experiment.potential.kT(1.0), seed=77, chain=chain)
    batches, found = experiment.batches(5 + chain), []
    for step in range(1, steps + 1):
        inputs, targets = batches(step)

        def closure(inputs: Any = inputs, targets: Tensor = targets) -> Tensor:
            sampler.zero_grad()
            value = experiment.potential(experiment.likelihood.nll(model(inputs), targets), params)
            value.backward()
            return value

        sampler.step(closure)
        if step % EVERY == 0:
            found.append(score(model))
            print(name, lr, batch, chain, step, f"{found[-1]:.4f}", flush=True)
    return found


def of_draws(posterior: Posterior, chain: int) -> list[float]:
    """NLL of SGLRW's own draws."""
    score, model = Scored(posterior.experiment), posterior.experiment.model(chain).eval()
    found = []
    for draw in posterior.draws(chain=chain):
        load_into(model, draw.tensors, "draw")
        found.append(score(model))
    return found


def noise(posterior: Posterior, name: str, lr: float, batch: int) -> dict[str, dict[str, float]]:
    """By block, how much a sampler would be heated where minibatch noise lies, from states of the run."""
    experiment = posterior.experiment.settled({"chain.batch_size": batch}).but(make_sampler=partial(MAKE[name], lr=lr))
    moving = experiment.new_chain(0)
    sizes = block_sizes(moving.padding.sizes(moving.params, 0))
    return {block: asdict(one) for block, one in noise_heats(posterior, experiment, sizes, STATES).items()}


def noise_rows(parts: list[Mapping[str, Any]]) -> list[list[str]]:
    """Cells by sampler, step size and block."""
    return [
        [
            NAMES[part["sampler"]], f"{part['lr']:g}", block, f"{one['mean']:.4f}", pm(one["share"], one["se"], 2),
            f"{one['directions']:.0f} of {one['size']:,}",
        ]
        for part in parts
        for block, one in part["noise"].items()
    ]  # fmt: skip


def summary(parts: list[Mapping[str, Any]]) -> list[list[str]]:
    """Cells by run, sampler, step size and batch: mean NLL of the chains, with the standard error of their mean."""
    rows: dict[tuple[str, str, float, int], list[float]] = {}
    for part in parts:
        kept = part["nll"][EARLIER:] if part["sampler"] == "draws" else part["nll"][SKIPPED // EVERY :]
        rows.setdefault((part["run"], part["sampler"], part["lr"], part["batch"]), []).extend(kept)
    return [
        [
            run, NAMES[name], f"{lr:g}", str(batch), str(len(nll)),
            pm(statistics.fmean(nll), statistics.stdev(nll) / len(nll) ** 0.5, 4),
        ]
        for (run, name, lr, batch), nll in rows.items()
    ]  # fmt: skip


def main() -> None:
    """Run one sampler, or write the table of those that were run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("outputs/results/mrpc-sglrw-short/0"))
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--sampler", choices=[*MAKE, "draws"])
    parser.add_argument("--lr", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=BATCH, help="examples a step")
    parser.add_argument("--chains", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not asked.table:
        if asked.data is None or asked.sampler is None:
            parser.error("give --data and --sampler, or --table")
        posterior = Posterior.load(asked.run, data_path=asked.data / "mrpc")
        PARTS.mkdir(parents=True, exist_ok=True)
        part = {"sampler": asked.sampler, "lr": asked.lr, "batch": asked.batch, "run": asked.run.parent.name}
        name = f"{part['run']}-{asked.sampler}-{asked.lr:g}-{asked.batch}"
        if asked.noise:
            found = noise(posterior, asked.sampler, asked.lr, asked.batch)
            (PARTS / f"noise-{name}.json").write_text(json.dumps(part | {"noise": found}))
            return
        for chain in asked.chains:
            score = partial(moved, posterior, asked.sampler, asked.lr, asked.batch, chain, asked.steps)
            nll = of_draws(posterior, chain) if asked.sampler == "draws" else score()
            (PARTS / f"{name}-{chain}.json").write_text(json.dumps(part | {"chain": chain, "nll": nll}))
        return
    known = json.loads((FOLDER / "hidden_heat.json").read_text())["rows"]
    found = [*known, *(json.loads(file.read_text()) for file in sorted(PARTS.glob("*.json")))]
    keys = ("run", "sampler", "lr", "batch", "chain")
    parts = [*{tuple(part.get(key) for key in keys): part for part in found}.values()]
    scored, noisy = ([part for part in parts if key in part] for key in ("nll", "noise"))
    text = table(["draws of", "", "ε", "batch", "states", "NLL of training pairs"], summary(scored))
    heads = ["", "ε", "block", "heat, mean over the block", "where noise lies", "directions"]
    text += f"\n\n{NOISE}\n\n{table(heads, noise_rows(noisy))}"
    source = origin(["peft"], 0, pairs=PAIRS) | {"command": "python benchmarks/hidden_heat.py"}
    del source["seconds"]  # of the table alone
    write("hidden_heat", f"{TITLE}\n\n{text}", parts, source)


if __name__ == "__main__":
    main()
