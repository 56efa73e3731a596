"""What a step costs, beside `torch.optim.SGD(foreach=True)` and other libraries: same nets, batches and loss.

Run from the repository's root: `python benchmarks/steps.py` (extra `bench`), on a GPU with `--device cuda`. All methods
of a net take turns, step by step in rounds, so that neighbours on the machine hurt all alike; figures are medians over
rounds, of CPU time and of wall time, as ratios to SGD's. "ahead" draws noise on a second thread. The process keeps
freed memory, as a run does, or the price of new pages would fall on one method or another by chance.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora import samplers
from bayeslora.engine.acceleration import keep_freed_memory
from bayeslora.models.resnet import resnet18

N = 50_000
LR = 1e-4
Step = Callable[[], Any]


def mlp(inputs: int, width: int, outputs: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "ResNet-18, batch 8": (lambda: resnet18(10), (8, 3, 32, 32), 6),
    "MLP of 1M, batch 32": (lambda: mlp(256, 880), (32, 256), 60),
    "MLP of 4k, batch 32": (lambda: mlp(16, 48), (32, 16), 1000),
}
"""By name: net, shape of a batch, steps a round."""
OURS = {
    "SGLD": (samplers.SGLD, {}),
    "SGLD, ahead": (samplers.SGLD, {}),
    "SGHMC": (samplers.SGHMC, {}),
    "BAOAB": (samplers.BAOAB, {}),
    "SGNHT": (samplers.SGNHT, {}),
    "SGLRW": (samplers.SGLRW, {}),
    "pSGLD": (samplers.PSGLD, {}),
    "SAM-SGLD": (samplers.SAMSGLD, {}),
    "SAM-SGLD rank-one": (samplers.SAMSGLDR1, {}),
}


class Problem:
    """A net on the device with one batch, and its mean loss."""

    def __init__(self, name: str, device: str) -> None:
        make, shape, self.steps = NETS[name]
        torch.manual_seed(0)
        self.net = make().to(device)
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):  # posteriors' transforms cannot update running statistics in place
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        self.x = torch.randn(shape, device=device)
        self.y = torch.randint(10, shape[:1], device=device)
        self.params = list(self.net.parameters())

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.net(self.x), self.y)

    def closure(self) -> Tensor:
        loss = self.loss()
        loss.backward()
        return loss

    def optimizer_step(self, optimizer: torch.optim.Optimizer) -> Step:
        """A step of an optimizer of the usual form; one that asks for a closure gets it."""
        asks = inspect.signature(optimizer.step).parameters
        takes_closure = "closure" in asks and asks["closure"].default is inspect.Parameter.empty

        def closure() -> Tensor:
            optimizer.zero_grad()
            return self.closure()

        def step() -> None:
            closure()
            optimizer.step()

        return partial(optimizer.step, closure) if takes_closure else step


def ours(problem: Problem, name: str) -> Step:
    make, settings = OURS[name]
    sampler = make(problem.params, lr=LR, kT=1 / N, seed=0, **settings)
    sampler.noise_ahead = name.endswith("ahead")
    sampler.step(problem.closure)
    sampler.freeze()  # as while draws are kept
    return lambda: sampler.step(problem.closure)


def peers(make_problem: Callable[[], Problem]) -> Iterator[tuple[str, Step]]:
    """Steps of the libraries that are installed, by name."""
    for label, module, settings in (
        ("SGLD, lightning-uq-box", "lightning_uq_box.uq_methods.sgld:SGLD", {"noise_factor": 1.0}),
        ("SGLD, torch-uncertainty", "torch_uncertainty.optim.sgld:SGLD", {"noise_factor": 1.0}),
        ("SGHMC, torch-uncertainty", "torch_uncertainty.optim.sghmc:SGHMC", {}),
    ):
        try:
            path, _, name = module.partition(":")
            problem = make_problem()
            yield label, problem.optimizer_step(getattr(import_module(path), name)(problem.params, lr=LR, **settings))
        except ImportError as error:
            print(f"{label} left out: {error}")
    try:
        sgmcmc = import_module("posteriors").sgmcmc
    except ImportError as error:
        print(f"posteriors left out: {error}")
        return
    for name, settings in (("sgld", {}), ("sghmc", {}), ("baoa", {}), ("sglrw", {})):
        if hasattr(sgmcmc, name):
            yield f"{name.upper()}, posteriors", posteriors_step(make_problem(), getattr(sgmcmc, name), settings)


def posteriors_step(problem: Problem, rule: Any, settings: dict[str, Any]) -> Step:
    def log_posterior(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = torch.func.functional_call(problem.net, params, (batch[0],))
        return -nn.functional.cross_entropy(outputs, batch[1]), torch.zeros(())

    transform = rule.build(log_posterior, lr=LR, temperature=1 / N, **settings)
    state = transform.init({name: p.detach() for name, p in problem.net.named_parameters()})

    def step() -> None:
        nonlocal state
        state, _ = transform.update(state, (problem.x, problem.y), inplace=True)

    return step


def measured(steps: dict[str, Step], count: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Median milliseconds of CPU and of wall time a step, by method."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    wall: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            wait()
            began = time.process_time(), time.perf_counter()
            for _ in range(count):
                step()
            wait()
            if turn:  # the first round warms up
                cpu[name].append((time.process_time() - began[0]) / count * 1e3)
                wall[name].append((time.perf_counter() - began[1]) / count * 1e3)
    return {name: {"cpu": statistics.median(cpu[name]), "wall": statistics.median(wall[name])} for name in steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--nets", nargs="*", default=list(NETS), help="parts of their names")
    parser.add_argument("--methods", nargs="*", default=[""], help="parts of their names")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps a round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    results: dict[str, Any] = {"device": options.device, "torch": torch.__version__, "nets": {}}
    for net in NETS:
        if not any(part in net for part in options.nets):
            continue

        def make_problem(net: str = net) -> Problem:
            return Problem(net, options.device)

        sgd = make_problem()
        steps = {"SGD": sgd.optimizer_step(torch.optim.SGD(sgd.params, lr=LR, foreach=True))}
        steps |= {name: ours(make_problem(), name) for name in OURS} | dict(peers(make_problem))
        steps = {n: step for n, step in steps.items() if n == "SGD" or any(part in n for part in options.methods)}
        times = measured(steps, max(1, round(NETS[net][2] * options.scale)), options.rounds, options.device)
        results["nets"][net] = times
        print(f"\n{net}: SGD {times['SGD']['cpu']:.3f} ms of CPU, {times['SGD']['wall']:.3f} ms wall; ratios to it")
        for name, found in times.items():
            ratios = [found[kind] / times["SGD"][kind] for kind in ("cpu", "wall")]
            print(f"  {name:28s} {ratios[0]:6.2f} {ratios[1]:6.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
