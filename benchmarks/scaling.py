"""What a chain costs: seconds and arithmetic of a step, memory, bytes of a draw, by model. Feeds docs/scaling.md.

Run from the repository's root: `python benchmarks/scaling.py`. Each measurement runs in a process of its own, on one
thread; time is the process's own (CPU seconds), so that neighbours on the machine count little. RoBERTa's weights are
random ones of roberta-base's shape: neither cost nor size depends on their values.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from peers.results import origin, table, write
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bayeslora.app.config import CONF_DIR, factory, instantiate
from bayeslora.factories import offer
from bayeslora.posterior.store import DrawStore
from bayeslora.potential import Potential, Prior, categorical_nll

TOKENS = 64
"""A text's length here; MRPC's pairs have 53 on average."""
MODELS = {
    "ResNet-18, CIFAR-10": ("cifar10_resnet18_sgld", (4, 16), 10),
    "WRN-28-10, CIFAR-100": ("cifar100_wrn_sgld", (1, 3), 100),
    "RoBERTa-base, LoRA r = 8": ("mrpc_roberta_sgld", (1, 4), 2),
    "MiniLM-L6, LoRA r = 8, all layers": ("mrpc_minilm_sgld", (4, 16), 2),
}
"""By model: its experiment, two batch sizes, classes."""


def megabytes() -> float:
    """The most memory this process has had, in 10⁶ bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def roberta(folder: Path) -> str:
    """A folder with random weights of roberta-base's shape."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    if not (folder / "config.json").exists():
        shape = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
        RobertaForSequenceClassification(shape).save_pretrained(folder)
    return str(folder)


def make(experiment: str, classes: int, folder: Path) -> tuple[nn.Module, Any, bool]:
    """A model, the factory of its sampler, and whether it takes texts."""
    texts = experiment.startswith("mrpc")
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        cfg = compose("train", overrides=[f"experiment={experiment}"])
    if "roberta" in experiment:
        cfg.model.name_or_path = roberta(folder)
    if texts:
        cfg.model.cache_prefix, cfg.model.top_layers = False, None  # every layer at every step
    torch.manual_seed(0)
    return (
        offer(factory(cfg.model), num_classes=classes, in_channels=3),
        instantiate(cfg.sampler),
        texts,
    )


def inputs(model: nn.Module, texts: bool, batch: int) -> Tensor:
    """Random images, or texts of full length."""
    if not texts:
        return torch.randn(batch, 3, 32, 32)
    from bayeslora.models.bi_encoder import BiEncoder

    sequences = 2 if isinstance(model.base, BiEncoder) else 1
    tokens = torch.ones(batch, sequences, 3, TOKENS, dtype=torch.int64)
    tokens[:, :, 0] = torch.randint(5, 1000, (batch, sequences, TOKENS))
    tokens[:, :, 2] = 0
    return tokens


def measure(name: str, batch: int, steps: int, folder: Path) -> dict[str, Any]:
    """One model at one batch size, in this process."""
    experiment, _, classes = MODELS[name]
    torch.set_num_threads(1)
    model, make_sampler, texts = make(experiment, classes, folder)
    x, y = inputs(model, texts, batch), torch.randint(classes, (batch,))
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    frozen = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in params.values())
    potential = Potential(Prior(), 50_000)
    sampler = make_sampler(list(params.values()), kT=potential.kT(1.0), seed=0, chain=0)
    model.train(not texts)
    before = megabytes()

    def closure() -> Tensor:
        value = potential(categorical_nll(model(x), y), params)
        value.backward()
        return value

    sampler.step(closure)
    began = time.process_time()
    for _ in range(steps):
        sampler.step(closure)
    seconds = (time.process_time() - began) / steps
    peak = megabytes()
    with FlopCounterMode(display=False) as flops:
        sampler.step(closure)
    store = DrawStore(folder / f"draws-{batch}-{experiment}", 0)
    saved = {n: b for n, b in model.named_buffers() if n in model.state_dict()}
    state = {n: t.detach() for n, t in params.items()} | saved
    file = store.put(0, state, step=1, scalars={})
    size = (file if isinstance(file, Path) else store.path(0)).stat().st_size
    return {
        "model": name, "batch": batch, "sampled": sum(p.numel() for p in params.values()), "frozen": frozen,
        "seconds": seconds, "flop": flops.get_total_flops(), "step_megabytes": peak - before, "draw_bytes": size,
    }  # fmt: skip


def in_process(name: str, batch: int, folder: Path) -> dict[str, Any]:
    """The same in a process of its own, or what one wrote before."""
    file = folder / f"{MODELS[name][0]}-{batch}.json"
    if not file.exists():
        command = [sys.executable, __file__, "--one", name, "--batch", str(batch), "--folder", str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        file.write_text(done.stdout.splitlines()[-1])
    return json.loads(file.read_text())


def derived(small: dict[str, Any], large: dict[str, Any]) -> dict[str, Any]:
    """What two batch sizes say: costs an example, and what does not grow with the batch."""
    more = large["batch"] - small["batch"]
    example = (large["step_megabytes"] - small["step_megabytes"]) / more
    seconds = (large["seconds"] - small["seconds"]) / more
    return {
        **large,
        "example_seconds": seconds,
        "step_seconds": max(0.0, small["seconds"] - seconds * small["batch"]),
        "example_flop": large["flop"] / large["batch"],
        "example_megabytes": example,
        "state_megabytes": small["step_megabytes"] - example * small["batch"],
    }


@dataclass(frozen=True)
class Scaled:
    """A plan past this machine: what one chain of it costs, by what was measured."""

    name: str
    steps: int
    batch: int
    draws: int
    sampled: float
    draw_bytes: float
    example_flop: float
    example_seconds: float
    step_seconds: float
    state_bytes: float
    example_bytes: float
    shared_bytes: float = 0.0

    @property
    def chain_seconds(self) -> float:
        """Steps × (batch × an example + an update), core seconds."""
        return self.steps * (self.batch * self.example_seconds + self.step_seconds)

    @property
    def chain_flop(self) -> float:
        return self.steps * self.batch * self.example_flop

    @property
    def written(self) -> float:
        """Draws, two resume points and the MAP baseline, bytes."""
        return (self.draws + 3) * self.draw_bytes

    @property
    def memory(self) -> float:
        """What a chain adds, bytes."""
        return self.state_bytes + self.batch * self.example_bytes


def wide_resnet(row: dict[str, Any]) -> Scaled:
    """The plan of `cifar100_wrn_sgld`: 10,000 + 2,000 + 100 × 200 steps of 128 images."""
    state, example = row["state_megabytes"] * 1e6, row["example_megabytes"] * 1e6
    costs = row["example_flop"], row["example_seconds"], row["step_seconds"], state, example
    return Scaled("WRN-28-10", 32_000, 128, 100, row["sampled"], row["draw_bytes"], *costs)


LAYERS, WIDTH, INNER, RANK = 32, 4096, 11008, 8
"""A decoder of 7 billion parameters: layers, hidden size, size between, and the adapters' rank."""
ROBERTA_LINEAR = 12 * (4 * 768**2 + 2 * 768 * 3072)
"""Weights of roberta-base's linear layers, its embeddings left out."""


def lora_7b(row: dict[str, Any], sampled_whole: dict[str, Any]) -> Scaled:
    """The plan of `mrpc_roberta_sgld` (1,150 + 8,000 + 60 × 50 steps of 32 texts) on a decoder of 7 B parameters.

    Adapters on query, key, value and output: r (d_in + d_out) each. Arithmetic, and what a step takes whatever its
    batch, go with the linear weights; what is kept for the backward pass with layers × width; the state with the
    sampled parameters, as it does in the network that is sampled as a whole.

    Args:
        row: RoBERTa's measurements.
        sampled_whole: those of a network of which every parameter is sampled.
    """
    sampled = LAYERS * 4 * RANK * 2 * WIDTH + 2 * WIDTH
    linear = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * INNER)
    larger, wider = linear / ROBERTA_LINEAR, LAYERS * WIDTH / (12 * 768)
    grown, state = sampled / row["sampled"], sampled_whole["state_megabytes"] * 1e6 / sampled_whole["sampled"]
    return Scaled(
        "LoRA on 7 B", 12_150, 32, 60, sampled, row["draw_bytes"] * grown, row["example_flop"] * larger,
        row["example_seconds"] * larger, row["step_seconds"] * larger, state * sampled,
        row["example_megabytes"] * 1e6 * wider, shared_bytes=4.0 * (linear + 2 * 32_000 * WIDTH),
    )  # fmt: skip


def plans(scaled: list[Scaled]) -> str:
    """A thousand chains of each, in a table."""
    rows = [
        ["a draw", *(f"{s.draw_bytes / 1e6:,.1f} MB" for s in scaled)],
        ["a chain writes", *(f"{s.written / 1e9:,.1f} GB" for s in scaled)],
        ["1,000 chains write", *(f"{s.written / 1e9:,.1f} TB" for s in scaled)],
        ["FLOP a step", *(f"{s.batch * s.example_flop / 1e12:,.1f}e12" for s in scaled)],
        ["FLOP a chain", *(f"{s.chain_flop / 1e15:,.0f}e15" for s in scaled)],
        ["a step on a core here", *(f"{s.chain_seconds / s.steps:,.0f} s" for s in scaled)],
        ["a chain on a core here", *(f"{s.chain_seconds / 86400:,.0f} days" for s in scaled)],
        ["sustained rate for 1,000 chains in a week", *(f"{s.chain_flop / 604.8 / 1e12:,.0f} TFLOP/s" for s in scaled)],
        ["memory shared by a stack", *(f"{s.shared_bytes / 1e9:,.1f} GB" for s in scaled)],
        ["memory a chain adds", *(f"{s.memory / 1e9:,.1f} GB" for s in scaled)],
        ["written per second in that week", *(f"{s.written / 604.8 / 1e6:,.1f} MB" for s in scaled)],
    ]
    return table(["", *(s.name for s in scaled)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=MODELS, help="measure this model alone, in this process")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the random RoBERTa, draws, and what was measured")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked.batch, asked.steps, asked.folder)))
        return
    began = time.monotonic()
    folder = asked.folder or Path(tempfile.mkdtemp())
    found = [[in_process(name, batch, folder) for batch in batches] for name, (_, batches, _) in MODELS.items()]
    rows = [derived(*pair) for pair in found]
    heading = ["model", "sampled D", "frozen", "a draw", "bytes/D", "example", "update", "GFLOP/example", "GFLOP/s",
               "memory: state", "state/4D", "memory/example"]  # fmt: skip
    cells = [
        [r["model"], f"{r['sampled']:,}", f"{r['frozen']:,}", f"{r['draw_bytes']:,} B",
         f"{r['draw_bytes'] / r['sampled']:.3f}", f"{r['example_seconds']:.4f} s", f"{r['step_seconds']:.3f} s",
         f"{r['example_flop'] / 1e9:.2f}", f"{r['example_flop'] / r['example_seconds'] / 1e9:.0f}",
         f"{r['state_megabytes']:.0f} MB", f"{r['state_megabytes'] * 1e6 / 4 / r['sampled']:.1f}",
         f"{r['example_megabytes']:.1f} MB"]
        for r in rows
    ]  # fmt: skip
    text = f"# What a chain costs\n\nSGLD, fp32, one thread; texts of {TOKENS} tokens. See `docs/scaling.md`.\n\n"
    by_name = {row["model"].split(",")[0]: row for row in rows}
    whole, adapter = by_name["WRN-28-10"], by_name["RoBERTa-base"]
    text += f"{table(heading, cells)}\n\n{plans([wide_resnet(whole), lora_7b(adapter, whole)])}"
    write("scaling", text, rows, origin([], time.monotonic() - began))
    print(text)


if __name__ == "__main__":
    main()
