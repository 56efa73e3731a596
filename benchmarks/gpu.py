"""What runs on a CUDA device, and how fast, in one JSON file: `python benchmarks/gpu.py --json gpu.json` (8 minutes).

Each section is a process of its own with a time limit, so that one that fails leaves the others:

- `syncs`: a step of every sampler under `torch.cuda.set_sync_debug_mode("error")`: none may wait for the device.
- `exact`: chains on the device stopped half-way and resumed, and one chain beside the same one of a stack.
- `steps`: a step of every sampler beside `torch.optim.SGD(foreach=True)` (benchmarks/steps.py).
- `forward`: images a second of ResNet-20-FRN and ResNet-18, fp32 and bf16, eager and compiled.
- `stacks`: milliseconds a step of K stacked chains.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bayeslora
from bayeslora import samplers
from bayeslora.chain.stack import Stack
from bayeslora.engine.acceleration import compiled
from bayeslora.models.resnet import resnet18, resnet20
from bayeslora.potential import Potential, Prior, categorical_nll

LIMITS = {"syncs": 60, "exact": 90, "steps": 90, "forward": 150, "stacks": 60}
"""Seconds that each section may take."""


def seconds_a_step(step: Callable[[], Any], count: int = 30) -> float:
    """Mean wall time of a step on the device, after five that warm up."""
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def syncs() -> dict[str, str]:
    found = {}
    for name in ("SGLD", "SGHMC", "BAOAB", "SGNHT", "SGLRW", "PSGLD", "ASGLD", "FSGLD", "SAMSGLD", "SAMSGLDR1"):
        net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).cuda()
        x, y = torch.randn(64, 16, device="cuda"), torch.randint(4, (64,), device="cuda")
        sampler = getattr(samplers, name)(net.parameters(), lr=1e-3, kT=1e-4, seed=0)

        def closure(net: nn.Module = net, x: Tensor = x, y: Tensor = y) -> Tensor:
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            return loss

        for _ in range(3):
            sampler.step(closure)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                sampler.step(closure)
            found[name] = "none"
        except RuntimeError as error:
            found[name] = str(error)[:200]
        torch.cuda.set_sync_debug_mode("default")
    return found


def exact() -> dict[str, Any]:
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    data = (x, x[:, :3].argmax(1))

    def draws(folder: str, count: int, parallel: str = "sequential") -> dict[tuple[int, int], dict[str, Tensor]]:
        torch.manual_seed(0)
        posterior = bayeslora.sample(
            nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), data, "sghmc", lr=0.02, chains=2, draws=count,
            thin=5, burn_in=50, warmup=50, device="cuda", run_dir=folder, progress=False, parallel=parallel,
        )  # fmt: skip
        return {(d.chain, d.index): dict(d.tensors) for d in posterior.draws()}

    def farthest(a: dict[tuple[int, int], dict[str, Tensor]], b: dict[tuple[int, int], dict[str, Tensor]]) -> float:
        return max((a[at][n].cpu() - b[at][n].cpu()).abs().max().item() for at in a for n in a[at])

    with tempfile.TemporaryDirectory() as root:
        whole, again = draws(f"{root}/a", 10), draws(f"{root}/b", 10)
        draws(f"{root}/c", 4)
        resumed, stacked = draws(f"{root}/c", 10), draws(f"{root}/d", 10, "stacked")
    return {
        "repeated": farthest(whole, again),
        "resumed after 4 of 10 draws": farthest(whole, resumed),
        "stacked beside alone": farthest(whole, stacked),
    }


def steps() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as root:
        file = Path(root) / "steps.json"
        command = [sys.executable, "benchmarks/steps.py", "--device", "cuda", "--rounds", "5", "--scale", "0.5"]
        subprocess.run([*command, "--json", str(file)], check=True)
        found: dict[str, Any] = json.loads(file.read_text())["nets"]
        return found


def forward() -> dict[str, Any]:
    found = {}
    for name, make in (("ResNet-20-FRN", lambda: resnet20(10)), ("ResNet-18", lambda: resnet18(10))):
        for batch, precision, compile_it in ((128, "fp32", False), (128, "bf16", False), (128, "bf16", True),
                                             (512, "bf16", True)):  # fmt: skip
            net = make().cuda().to(memory_format=torch.channels_last)
            x = torch.randn(batch, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
            y = torch.randint(10, (batch,), device="cuda")
            run = compiled(net, x.device) if compile_it else net
            potential, params = Potential(Prior(0.2), 50_000), dict(net.named_parameters())
            sampler = samplers.SGHMC(net.parameters(), lr=1e-4, kT=2e-5, seed=0)

            def closure(run: Any = run, x: Tensor = x, y: Tensor = y, precision: str = precision,
                        potential: Potential = potential, params: Any = params) -> Tensor:  # fmt: skip
                with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                    logits = run(x)
                u = potential(categorical_nll(logits, y), params)
                u.backward()
                return u

            seconds = seconds_a_step(lambda sampler=sampler, closure=closure: sampler.step(closure))
            words = f"{name}, batch {batch}, {precision}, {'compiled' if compile_it else 'eager'}"
            found[words] = {"ms": seconds * 1e3, "images/s": batch / seconds}
            print(words, found[words], flush=True)
    return found


def stacks() -> dict[str, Any]:
    found = {}
    for chains in (1, 4, 16, 64):
        nets = [nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10)).cuda() for _ in range(chains)]
        stack = Stack(nets).cuda()
        x = torch.randn(chains, 32, 64, device="cuda")
        y = torch.randint(10, (chains, 32), device="cuda")
        potential, params = Potential(Prior(1.0), 10_000), stack.sampled()
        sampler = samplers.SGLD(list(params.values()), lr=1e-4, kT=1e-4, seed=0, chain=range(chains))

        def closure(stack: Stack = stack, x: Tensor = x, y: Tensor = y, potential: Potential = potential,
                    params: Any = params) -> Tensor:  # fmt: skip
            u = potential(categorical_nll(stack(x), y), params)
            u.sum().backward()
            return u.detach()

        found[str(chains)] = {
            "ms": seconds_a_step(lambda sampler=sampler, closure=closure: sampler.step(closure)) * 1e3
        }
    return found


SECTIONS = {"syncs": syncs, "exact": exact, "steps": steps, "forward": forward, "stacks": stacks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--sections", nargs="*", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--inside", choices=list(SECTIONS), help="run one section in this process")
    options = parser.parse_args()
    if options.inside:
        options.json.write_text(json.dumps(SECTIONS[options.inside]()))
        return
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "sections": {}}
    for name in options.sections:
        with tempfile.TemporaryDirectory() as root:
            file, log = Path(root) / "found.json", Path(root) / "log"
            command = [sys.executable, __file__, "--inside", name, "--json", str(file)]
            start = time.perf_counter()
            with log.open("w") as out:
                process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
                try:
                    process.wait(LIMITS[name])
                except subprocess.TimeoutExpired:
                    process.kill()
            ended = json.loads(file.read_text()) if file.exists() else {"failed": log.read_text()[-1500:]}
        results["sections"][name] = {"seconds": round(time.perf_counter() - start, 1), "found": ended}
        print(name, json.dumps(results["sections"][name], indent=1), flush=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
