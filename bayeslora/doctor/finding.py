"""What a check finds: a line with a status, and the fix; and the check itself, after which the next one comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from bayeslora.errors import BayesloraError

BROKEN = (
    BayesloraError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What missing, old or half-installed parts of a machine raise; all else is the doctor's own mistake, and ends it."""


class Status(StrEnum):
    """How a line ends; only a failure changes the exit code."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        status: ok, warning (something is left out, nothing is wrong) or failure.
        name: what was looked at, e.g. `"dataset cifar10"`.
        message: what was found.
        fix: what to do; empty where nothing is to be done.
    """

    status: Status
    name: str
    message: str
    fix: str = ""


def ok(name: str, message: str) -> Finding:
    """A line on what works."""
    return Finding(Status.OK, name, message)


def warning(name: str, message: str, fix: str) -> Finding:
    """A line on what is left out."""
    return Finding(Status.WARNING, name, message, fix)


def failure(name: str, message: str, fix: str) -> Finding:
    """A line on what is wrong."""
    return Finding(Status.FAILURE, name, message, fix)


@dataclass(frozen=True)
class Check:
    """A check by name; its findings come one by one.

    Attributes:
        name: of the check, as in docs/troubleshooting.md.
        look: finds.
    """

    name: str
    look: Callable[[], Iterable[Finding]]

    def run(self) -> Iterator[Finding]:
        """The findings; what a check raises is its last finding."""
        try:
            yield from self.look()
        except BROKEN as error:  # the other checks are still to come
            yield broken(self.name, error)


def broken(name: str, error: Exception) -> Finding:
    """The failure that an exception is."""
    from bayeslora.factories import first_line

    if isinstance(error, BayesloraError):
        return failure(name, str(error).replace("\n", "; "), "do what the message says")
    message = f"{type(error).__name__}: {first_line(error)}"
    return failure(name, message, f"see `{name.partition(' ')[0]}` in docs/troubleshooting.md")
