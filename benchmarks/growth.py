"""How cost grows with parameters, with chains and with draws; each should grow linearly or better.

Run from the repository's root: `python benchmarks/growth.py` (5 minutes, one thread). CPU time, medians over rounds in
which the sizes of a table take turns:

- parameters: an update of SGLD and of SGHMC, without the gradient, on 10⁴ to 10⁸ parameters;
- chains: a step of 1 to 64 chains stacked over an MLP of 4,000 parameters, batch 32;
- the application: a step through `bayeslora.sample`, whatever it does beside the gradient, of 1 to 16 stacked chains;
- draws: predictions of 300 examples and the diagnostics of 10 to 1,000 draws of that MLP.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peers.results import origin, table, write
from torch import Tensor, nn

import bayeslora
from bayeslora import samplers
from bayeslora.chain.stack import Stack
from bayeslora.engine.acceleration import keep_freed_memory
from bayeslora.potential import Potential, Prior, categorical_nll

ROUNDS = 5
Work = Callable[[], Any]


def medians(works: Mapping[Any, Work], least: float = 0.05) -> dict[Any, float]:
    """CPU seconds of each, which take turns; quick ones are repeated until `least` seconds of a round have passed."""
    seconds: dict[Any, list[float]] = {size: [] for size in works}
    for at in range(ROUNDS + 1):
        for size, work in works.items():
            begin, times = time.process_time(), 0
            while times == 0 or time.process_time() - begin < least:
                work()
                times += 1
            if at:
                seconds[size].append((time.process_time() - begin) / times)
    return {size: statistics.median(values) for size, values in seconds.items()}


def mlp() -> nn.Module:
    """3,760 parameters."""
    return nn.Sequential(nn.Linear(64, 50), nn.Tanh(), nn.Linear(50, 10))


def update(name: str, count: int) -> Work:
    """An update on so many parameters in matrices of at most 1,000 rows, with a gradient that is there already."""
    rows = min(1000, count // 100)
    params = [nn.Parameter(torch.randn(rows, min(1000, count // rows))) for _ in range(max(1, count // 1_000_000))]
    gradients = [torch.randn_like(p) for p in params]
    sampler = getattr(samplers, name)(params, lr=1e-4, kT=1e-4, seed=0)

    def closure() -> Tensor:
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        return torch.zeros(())

    return lambda: sampler.step(closure)


def stacked_step(chains: int) -> Work:
    """A step of SGLD of so many stacked chains."""
    nets = [mlp() for _ in range(chains)]
    stack = Stack(nets)
    x, y = torch.randn(chains, 32, 64), torch.randint(10, (chains, 32))
    potential, params = Potential(Prior(1.0), 10_000), stack.sampled()
    sampler = samplers.SGLD(list(params.values()), lr=1e-4, kT=1e-4, seed=0, chain=range(chains))

    def closure() -> Tensor:
        u = potential(categorical_nll(stack(x), y), params)
        u.sum().backward()
        return u.detach()

    return lambda: sampler.step(closure)


def application_seconds(steps: int, chains: int) -> float:
    """CPU seconds of a run of so many steps."""
    source = torch.Generator().manual_seed(0)
    data = torch.randn(1000, 64, generator=source), torch.randint(10, (1000,), generator=source)
    begin = time.process_time()
    bayeslora.sample(
        mlp(), data, "sgld", lr=1e-3, chains=chains, draws=2, thin=1, burn_in=steps, warmup=0, batch_size=32,
        prior=0.01, parallel="stacked" if chains > 1 else "sequential", progress=False,
    )  # fmt: skip
    return time.process_time() - begin


def application_step(chains: int) -> float:
    """CPU seconds a step of all chains: what 5,000 more steps cost, the median of three."""
    application_seconds(100, chains)
    extra = [application_seconds(6000, chains) - application_seconds(1000, chains) for _ in range(3)]
    return statistics.median(extra) / 5000


def prediction(draws: int, folder: str) -> Work:
    """Prediction and diagnostics of two chains that have so many draws together."""
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 64, generator=source), torch.randint(10, (300,), generator=source)
    run_dir = f"{folder}/{draws}"
    bayeslora.sample(
        mlp(), (x, y), "sgld", lr=1e-3, chains=2,
        draws=draws // 2, thin=1, burn_in=2, warmup=2, batch_size=32, prior=0.01, run_dir=run_dir, progress=False,
    )  # fmt: skip
    posterior = bayeslora.Posterior.load(run_dir, mlp())

    def work() -> None:
        posterior.predict(x)
        posterior.diagnostics()

    return work


def main() -> None:
    """Measure, print the tables, write results/growth.md and .json."""
    torch.set_num_threads(1)
    keep_freed_memory()
    began, rows, text = time.perf_counter(), list[dict[str, Any]](), list[str]()

    def add(title: str, unit: str, per: str, scale: float, measured: Mapping[int, float], each: float) -> None:
        rows.extend({"table": title, "size": size, "cpu_seconds": seconds} for size, seconds in measured.items())
        cells = [
            [f"{size:,}", f"{seconds * scale:.3g}", f"{seconds / size * each:.3g}"]
            for size, seconds in measured.items()
        ]
        text.append(f"**{title}**\n\n" + table([title.partition(",")[0], unit, per], cells))

    for name in ("SGLD", "SGHMC"):
        measured = medians({count: update(name, count) for count in (10**4, 10**5, 10**6, 10**7)})
        add(
            f"parameters, {name}",
            "ms an update",
            "ns a parameter",
            1e3,
            measured | medians({10**8: update(name, 10**8)}),
            1e9,
        )
    add("chains, stacked", "ms a step", "ms a chain", 1e3, medians({k: stacked_step(k) for k in (1, 4, 16, 64)}), 1e3)
    add("chains, through the application", "ms a step", "ms a chain", 1e3,
        {chains: application_step(chains) for chains in (1, 4, 16)}, 1e3)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        works = {draws: prediction(draws, folder) for draws in (10, 100, 1000)}
        add("draws, predicted and diagnosed", "s", "ms a draw", 1.0, medians(works), 1e3)
    print("\n\n".join(text))
    write("growth", "# How cost grows\n\n" + "\n\n".join(text), rows, origin((), time.perf_counter() - began))


if __name__ == "__main__":
    main()
