"""The tables of docs/results.md, from docs/results/*.json: `benchmarks/reproduce.py --tables` writes them."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import result_figures
from peers.results import baselines_table, pm, table
from result_rows import ROWS

DOCS = Path(__file__).resolve().parents[1] / "docs"
NUMBERS = DOCS / "results"
PAGE = DOCS / "results.md"
MEMBERS = {"map": "MAP", "map_ensemble": "MAP × K", "ensemble": "draws"}
"""Rows of `metrics.json`, and what the tables call them."""
KNOWN = 0.1
"""Standard error of T_b/T up to which tables show it."""
BASELINES = ("dropout", "last-layer", "lora")
"""Parts of `mrpc_baselines.py`."""
Runs = Sequence[Mapping[str, Any]]
"""The numbers of a row, one a seed."""


def numbers(name: str) -> list[dict[str, Any]]:
    """What is written of a row, by seed."""
    return [json.loads(file.read_text()) for file in sorted(NUMBERS.glob(f"{name}.[0-9]*.json"))]


def over_seeds(values: Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation where there are several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def scores(runs: Runs, member: str) -> str:
    """Accuracy in per cent, NLL and ECE of one of the members."""
    there = [one[member] for one in runs if "accuracy" in (one.get(member) or {})]
    if not there:
        return "–"
    parts = [over_seeds([100 * m["accuracy"] for m in there], 1)]
    return " / ".join(parts + [over_seeds([m[key] for m in there], 3) for key in ("nll", "ece")])


def nll_less_map(runs: Runs) -> str:
    """NLL of the draws less MAP's: over seeds, or of one seed with its paired standard error over examples."""
    found = [one["criteria"]["nll_above_map"] for one in runs if one["temperature"]]
    found = [difference for difference in found if difference["value"] is not None]
    if len(found) != 1:
        return over_seeds([f["value"] for f in found], 4) if found else "–"
    return pm(found[0]["value"], found[0]["se"], 4)


def temperatures(one: Mapping[str, Any]) -> tuple[float, float] | None:
    """Measured T_b/T of the blocks that are known to `KNOWN`, the farthest from 1 and the median; None without any."""
    blocks = one["diagnostics"].get("temperature") or {}
    own = [b for name, b in blocks.items() if name not in ("all", "pooled") and b["ratio"] is not None]
    found = [b["ratio"] for b in own if b["se"] is not None and b["se"] <= KNOWN]
    return (max(found, key=lambda r: abs(r - 1)), statistics.median(found)) if found else None


def cells(name: str, runs: Runs) -> list[str]:
    """A row's cells."""
    of = [one["diagnostics"] for one in runs]
    measured = [found for found in map(temperatures, runs) if found]
    worst = max((w for w, _ in measured), key=lambda r: abs(r - 1)) if measured else None
    heat = f"{worst:.2f} / {statistics.median(m for _, m in measured):.2f}" if measured else "–"
    values = [
        max(d["potential"]["rhat"] or float("nan") for d in of),
        min(d["potential"]["ess_bulk"] or 0.0 for d in of),
        max((d["function_space"] or {}).get("rhat_q95") or float("nan") for d in of),
    ]
    spent = statistics.fmean(one["cpu_seconds"] for one in runs)
    gradients = (of[0].get("efficiency") or {}).get("gradients")
    shown = f"{values[0]:.3f} / {values[1]:.0f} / {values[2]:.3f}" if values[1] else "–"
    mixing = shown.replace("nan", "–")  # one chain
    effort = f"{gradients:,.0f} / {spent:,.0f}" if gradients else f"– / {spent:,.0f}"
    of_members = [scores(runs, member) for member in MEMBERS]
    return [name, f"{runs[0]['temperature']:g}", heat, *of_members, nll_less_map(runs), mixing, effort]


def fidelity_table() -> str:
    """Agreement with the reference and total variation from it, in markdown, with standard errors over its images."""
    rows = []
    for name, found in ((name, numbers(name)) for name in ROWS):
        for one in found:
            of = one.get("reference") or {}
            for key, member in {**MEMBERS, "draw": "single draw"}.items():
                if values := of.get(key):
                    agreement, distance = (
                        f"{values[k]:.3f} ± {values[f'{k}_se']:.3f}" for k in ("agreement", "total_variation")
                    )
                    rows.append([name, member, agreement, distance])
    return table(["row", "", "agreement with HMC", "total variation from HMC"], rows)


def prior_in_words(prior: Mapping[str, Any]) -> str:
    """Variances of a Gaussian prior: of all parameters, or by part of their names."""
    if named := prior["overrides"]:
        return ", ".join(f"{part} {variance:g}" for part, variance in named.items())
    return f"{prior['variance']:g}" + (" / fan-in" if prior["scaling"] == "fan_in" else "")


def plan_in_words(plan: Mapping[str, Any]) -> str:
    """Chains, the steps of each phase, and the batch; `auto` where the number that was found was not kept."""
    warmup, burn_in, draws, thin, batch = (
        plan.get(key, "auto") for key in ("warmup", "burn_in", "num_draws", "thin", "batch_size")
    )
    return f"{plan['num_chains']} × ({warmup} + {burn_in} + {draws} × {thin}), {batch or 'all data'}"


def sources_table() -> str:
    """How each row was made, in markdown; the links lead to the numbers of its seeds."""
    lines = []
    for name, found in ((name, numbers(name)) for name in ROWS):
        if not found:
            continue
        last, source = found[-1], [one["provenance"] for one in found]
        links = ", ".join(f"[{one['seed']}](results/{name}.{one['seed']}.json)" for one in found)
        wall = statistics.median(sum(one["seconds"].values()) for one in source)
        hardware = sorted({one["hardware"].replace("1 threads", "1 thread") for one in source})
        commits = ", ".join(sorted({one["commit"] for one in source}))
        versions = ", ".join(sorted({one["versions"]["torch"] for one in source}))
        lines.append([
            name, links, prior_in_words(last["prior"]), "flips and crops" if last["augment"] else "none",
            plan_in_words(last["plan"]), f"{wall:,.0f}", f"{last['precision']}: {' or '.join(hardware)}",
            f"{commits}; torch {versions}",
        ])  # fmt: skip
    steps = "chains × (warm-up + burn-in + draws × thin), batch"
    header = ["row", "seeds", "variance of the prior", "augmentation", steps, "wall s", "precision: hardware", "commit"]
    return table(header, lines)


def group_table(group: str) -> str:
    """The table of all rows of a group that have numbers, in markdown."""
    if group == "reference":
        return fidelity_table()
    if group == "sources":
        return sources_table()
    if group == "baselines":
        found = [one["rows"] for part in BASELINES for one in numbers(f"mrpc-{part}")]
        shared = max(([row for row in rows if row["method"] == "MAP"] for rows in found), key=len)
        return baselines_table(shared + [row for rows in found for row in rows if row["method"] != "MAP"])
    header = ["row", "T", "measured T, worst / median block", *MEMBERS.values(), "NLL, draws less MAP",
              "R̂ / ESS / predictions' R̂ q95", "gradients of all chains after warm-up / CPU s"]  # fmt: skip
    rows = [cells(name, found) for name in ROWS if name.partition("-")[0] == group and (found := numbers(name))]
    return table(header, rows)


def write_tables() -> None:
    """Write every group's table between its marks in docs/results.md, and the figures."""
    text = PAGE.read_text()
    for group in re.findall(r"<!-- table: (\w+) -->", text):
        marks = f"<!-- table: {group} -->", "<!-- end -->"
        pattern = re.compile(rf"{marks[0]}.*?{marks[1]}", re.DOTALL)
        text = pattern.sub(lambda _, g=group, m=marks: f"{m[0]}\n{group_table(g)}\n{m[1]}", text)
    PAGE.write_text(text)
    result_figures.draw({name: numbers(name) for name in ROWS}, DOCS / "images")
