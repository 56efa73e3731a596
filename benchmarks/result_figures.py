"""The figures of docs/results.md, drawn from docs/results/*.json: `benchmarks/reproduce.py --tables` calls this."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from result_rows import ROWS

from bayeslora.counts import counted
from bayeslora.report.style import PALETTE, QUIET, STYLE

Runs = Sequence[Mapping[str, Any]]
"""The numbers of a row, one a seed."""
SCORES = {"nll": "NLL (nats)", "accuracy": "accuracy", "ece": "ECE"}


def draw(rows: Mapping[str, Runs], folder: Path) -> list[Path]:
    """Draw every figure that the rows have numbers for; returns the files.

    Args:
        rows: numbers by row.
        folder: where the SVG files go.
    """
    cold = {name: runs for name, runs in rows.items() if runs and name.startswith("digits-baoab")}
    made = {"cooling": cooling(cold) if len(cold) > 1 else None, "fidelity": fidelity(rows)}
    folder.mkdir(exist_ok=True)
    with rc_context({"svg.hashsalt": "results", "svg.fonttype": "none"}):
        for name, figure in made.items():
            if figure is not None:
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")
    return [folder / f"{name}.svg" for name, figure in made.items() if figure is not None]


def cooling(rows: Mapping[str, Runs]) -> Figure:
    """What cooling buys: scores of MAP, MAP × K and the ensemble by the temperature asked for, and the one measured."""
    by_temperature = sorted(rows.values(), key=lambda runs: float(runs[0]["temperature"]))
    asked = [float(runs[0]["temperature"]) for runs in by_temperature]
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        panels = figure.subplots(1, 4)
        for panel, (score, label) in zip(panels, SCORES.items(), strict=False):
            for color, (member, name) in zip(PALETTE, MEMBERS.items(), strict=False):
                _points(panel, asked, [[run[member][score] for run in runs] for runs in by_temperature], color, name)
            panel.set_title(label)
        ratios = [[_block_ratio(run) for run in runs] for runs in by_temperature]
        _points(panels[3], asked, ratios, PALETTE[0], "farthest block")
        panels[3].axhline(1.0, color=QUIET, linewidth=1)
        panels[3].set_title("measured / asked T")
        for panel in panels:
            panel.set_xscale("log")
            panel.set_xticks(asked, [f"{temperature:g}" for temperature in asked])
            panel.minorticks_off()
            panel.set_xlabel("temperature T")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


MEMBERS = {"ensemble": "draws of 4 chains", "map_ensemble": "MAP × 4", "map": "MAP"}


def _block_ratio(run: Mapping[str, Any]) -> float:
    """T_b/T of the block farthest from 1; NaN where none was measured."""
    blocks = (run["diagnostics"].get("temperature") or {}).items()
    ratios = [b["ratio"] for name, b in blocks if name not in ("all", "pooled") and b["ratio"] is not None]
    return max(ratios, key=lambda ratio: abs(ratio - 1), default=float("nan"))


def _points(panel: Axes, x: Sequence[float], seeds: Sequence[Sequence[float]], color: str, label: str) -> None:
    """Mean over seeds, with their standard deviation."""
    means = [statistics.fmean(values) for values in seeds]
    errors = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in seeds]
    panel.errorbar(x, means, errors, color=color, label=label, marker="o", markersize=4, linewidth=1.2, capsize=2)


PUBLISHED = {"agreement": 0.855, "total_variation": 0.190}
"""One net trained by SGD, in Izmailov et al. 2021 (as remembered, unchecked)."""
CIFAR = 50_000
"""Training images of CIFAR-10."""


def _epochs(name: str, plan: Mapping[str, Any], draws: float) -> float:
    """Epochs of gradients at which a chain of a row has kept so many draws."""
    steps = ROWS[name].before + plan["warmup"] + plan["burn_in"] + plan["thin"] * draws
    if plan.get("cycles"):  # each explores before it samples
        sampled = plan["thin"] * plan["num_draws"] / plan["cycles"]
        begun = -(-draws * plan["thin"] // sampled)
        steps += begun * sampled * plan["exploration"] / (1 - plan["exploration"])
    return steps * plan["batch_size"] / CIFAR


def fidelity(rows: Mapping[str, Runs]) -> Figure | None:
    """Agreement with the HMC posterior and total variation from it, by epochs of gradients a chain.

    Of samplers the draws so far; of MAP a line for one chain's and one for all, the deep ensemble at equal cost.
    """
    first = {name: runs[0] for name, runs in rows.items() if runs and (runs[0].get("reference") or {}).get("curve")}
    if not first:
        return None
    titles = {"agreement": "agreement with HMC", "total_variation": "total variation from HMC"}
    with rc_context(STYLE):
        figure = Figure(figsize=(8.5, 3.8), layout="constrained")
        for panel, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
            for color, (name, one) in zip(PALETTE, first.items(), strict=False):
                plan, reference, label = one["plan"], one["reference"], name.partition("-")[2]
                chains = plan["num_chains"]
                if one["temperature"] == 0:
                    for member, style, words in (("map", ":", "one"), ("map_ensemble", "--", f"ensemble of {chains}")):
                        at = f"MAP of {plan['warmup'] * plan['batch_size'] / CIFAR:.0f} epochs, {words}"
                        panel.axhline(reference[member][key], color=color, linestyle=style, linewidth=1.2, label=at)
                    continue
                curve = reference["curve"]
                epochs = [_epochs(name, plan, draws / chains) for draws in curve["draws"]]
                label += f", {counted(chains, 'chain')}"
                panel.plot(epochs, curve[key], color=color, marker="o", markersize=3, linewidth=1.2, label=label)
            panel.axhline(PUBLISHED[key], color=QUIET, linewidth=1, label="one net by SGD (Izmailov et al.)")
            panel.set_title(title)
            panel.set_xlabel("epochs of gradients a chain")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
