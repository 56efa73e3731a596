"""One test of many cases: every case is a subtest, so that all that fail are reported."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from itertools import product
from typing import Any

import pytest


def each(names: str | tuple[str, ...], values: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `pytest.mark.parametrize`, but one test that goes through all cases; several in a row give their product.

    A case has a `tmp_path` and a `monkeypatch` of its own; other fixtures are shared by all.
    """
    names = (names,) if isinstance(names, str) else names
    cases = [dict(zip(names, value if len(names) > 1 else (value,), strict=True)) for value in values]
    assert cases

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        inner, others = getattr(test, "each", (test, [{}]))
        both = [one | other for one, other in product(cases, others)]

        @wraps(test)
        def through(subtests: pytest.Subtests, **fixtures: Any) -> None:
            for number, case in enumerate(both):
                with subtests.test(**case), pytest.MonkeyPatch.context() as patch:
                    own = dict(fixtures)
                    if "tmp_path" in fixtures:
                        own["tmp_path"] = fixtures["tmp_path"] / f"case{number}"
                        own["tmp_path"].mkdir()
                    if "monkeypatch" in fixtures:
                        own["monkeypatch"] = patch
                    inner(**own, **case)

        taken = inspect.signature(inner).parameters.values()
        kept = [p.replace(kind=p.KEYWORD_ONLY) for p in taken if p.name not in both[0]]
        subtests = inspect.Parameter("subtests", inspect.Parameter.KEYWORD_ONLY)
        through.__signature__ = inspect.Signature([subtests, *kept])  # type: ignore[attr-defined]
        through.each = inner, both  # type: ignore[attr-defined]
        return through

    return decorate
