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
