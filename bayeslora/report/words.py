"""Numbers and lists in words, for all parts of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Metrics = Mapping[str, Any]
"""The content of `metrics.json`, or a part of it."""
MISSING = "–"


def known(value: Any) -> float | None:
    """A number, or None for what is none: None, NaN, infinities, text."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def number(value: Any, spec: str, unit: str = "") -> str:
    """A number by its format with its unit, or a dash; what rounds to 0 has no sign."""
    found = known(value)
    if found is None:
        return MISSING
    shown = format(found, spec)
    return (shown if float(shown.strip("%").replace(",", "")) else shown.removeprefix("-")) + unit


def percent(share: Any, digits: int = 1) -> str:
    """A share as a percentage that does not break across lines, or a dash."""
    found = known(share)
    return number(None if found is None else 100 * found, f".{digits}f", "\N{NO-BREAK SPACE}%")


def listed(items: Sequence[str]) -> str:
    """Items as "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return text and f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
