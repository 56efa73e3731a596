"""Counts in sentences."""

from __future__ import annotations


def counted(count: int, thing: str) -> str:
    """A count and what is counted, in its number: "1 step", "1,200 steps", "0 classes"."""
    if count == 1:
        return f"1 {thing}"
    return f"{count:,} {thing}{'es' if thing.endswith('s') else 's'}"
