"""Counts in sentences."""

from __future__ import annotations

from bayeslora.counts import counted


def test_what_is_counted_is_in_the_number_of_its_count() -> None:
    said = [counted(count, "step") for count in (0, 1, 2, 12_345)] + [counted(1, "class"), counted(3, "class")]
    assert said == ["0 steps", "1 step", "2 steps", "12,345 steps", "1 class", "3 classes"]
