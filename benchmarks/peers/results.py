"""Markdown tables, and result files that carry seeds, versions, hardware and command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bayeslora.runs.provenance import provenance

FOLDER = Path(__file__).parents[1] / "results"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, its columns padded so that it reads as text too."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def baselines_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `mrpc_baselines.py` in markdown, with standard errors over examples."""
    cells = []
    for row in rows:
        points = {key: [100 * row[key]["accuracy"][part] for part in ("value", "se")] for key in ("scores", "less_map")}
        of, less = row["scores"], row["less_map"]
        cells.append([
            row["method"], row.get("prior") or (f"p = {row['p']}" if "p" in row else ""), row["prediction"],
            pm(*points["scores"], 1), *(pm(*of[name].values()) for name in ("f1", "nll", "ece")),
            *(("–", "–") if not row["prediction"] else (pm(*points["less_map"], 1), pm(*less["nll"].values(), 4))),
            f"{row['cpu_seconds']:,.0f}" if row["cpu_seconds"] else "–",
        ])  # fmt: skip
    header = [
        "",
        "prior",
        "prediction",
        "accuracy",
        "F1",
        "NLL",
        "ECE",
        "accuracy less MAP's",
        "NLL less MAP's",
        "CPU s",
    ]
    return table(header, cells)


def pm(value: float, error: float, digits: int = 3) -> str:
    """`value ± error`."""
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def origin(packages: Sequence[str], seconds: float, **more: Any) -> dict[str, Any]:
    """Where numbers come from: command, commit, versions (of these packages too), hardware, time."""
    found = provenance()
    found["versions"] |= {name: installed(name) for name in packages}
    return found | {"seconds": round(seconds)} | more


def installed(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(name: str, text: str, rows: list[dict[str, Any]], source: dict[str, Any]) -> None:
    """Write results/<name>.md and .json, the text with its provenance at the end."""
    FOLDER.mkdir(exist_ok=True)
    versions = ", ".join(f"{k} {v}" for k, v in source["versions"].items() if v)
    rest = "; ".join(f"{k}: {v}" for k, v in source.items() if k not in ("versions", "command", "hardware"))
    foot = f"Made by `{source['command']}` on {source['hardware']}. {rest}. Versions: {versions}."
    (FOLDER / f"{name}.md").write_text(f"{text}\n\n{foot}\n", encoding="utf-8")
    record = json.dumps({"rows": rows, "provenance": source}, indent=1, ensure_ascii=False, default=float)
    (FOLDER / f"{name}.json").write_text(record + "\n", encoding="utf-8")
