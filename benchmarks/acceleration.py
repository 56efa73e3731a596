"""What bf16 autocast and compilation gain on a CPU: a forward and backward pass of the CIFAR networks, images a second.

    python benchmarks/acceleration.py [--threads 1] [--batch 64]

The candidates of `trainer.precision=auto trainer.compile=auto` take turns in one process, so that neighbours on
the machine hurt all alike; figures are medians over rounds of CPU time. Images are random: only shapes matter here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from peers.results import FOLDER, origin, table
from torch import Tensor, nn

from bayeslora.models.resnet import resnet18, resnet20

NETS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18-FRN": lambda: resnet18(num_classes=10, norm="frn"),
    "ResNet-20-FRN": lambda: resnet20(num_classes=10, norm="frn", activation="swish"),
}
CANDIDATES = {
    "fp32": (False, False),
    "bf16": (True, False),
    "fp32 compiled": (False, True),
    "bf16 compiled": (True, True),
}
"""Autocast, and compilation."""


def step(
    net: Callable[[Tensor], Tensor], params: list[nn.Parameter], batch: tuple[Tensor, Tensor], bf16: bool
) -> float:
    """CPU seconds of one forward and backward pass."""
    begin = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = net(batch[0])
    torch.autograd.grad(nn.functional.cross_entropy(logits.float(), batch[1]), params)
    return time.process_time() - begin


def main() -> None:
    """Measure, print the table, write results/acceleration.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began, measured, rows = time.perf_counter(), {}, []
    for name, make in NETS.items():
        torch.manual_seed(0)
        net = make()
        params, compiled = list(net.parameters()), torch.compile(net)
        batch = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
        for bf16, is_compiled in CANDIDATES.values():
            step(compiled if is_compiled else net, params, batch, bf16)
        seconds: dict[str, list[float]] = {candidate: [] for candidate in CANDIDATES}
        for _ in range(options.rounds):
            for candidate, (bf16, is_compiled) in CANDIDATES.items():
                seconds[candidate].append(step(compiled if is_compiled else net, params, batch, bf16))
        rates = {candidate: options.batch / statistics.median(times) for candidate, times in seconds.items()}
        measured[name] = rates
        rows.append([name, *(f"{rate:.0f} ({rate / rates['fp32']:.2f})" for rate in rates.values())])
    print(table(["images/s (times fp32)", *CANDIDATES], rows))
    settings = {"threads": options.threads, "batch": options.batch, "rounds": options.rounds}
    where = origin(("torch",), time.perf_counter() - began, **settings)
    (FOLDER / "acceleration.json").write_text(
        json.dumps({"images_per_second": measured, "origin": where}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
