"""Errors a user can act on. Each message says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class BayesloraError(Exception):
    """Base of all errors this package raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(BayesloraError, ValueError):
    """A setting or a piece of data is wrong. Holds every problem found, one message each.

    Args:
        problems: one or more messages, each naming the setting, the value and the fix.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class DataError(ConfigError):
    """A dataset, draw or run directory is missing, corrupt or not what it should be."""


class DivergedError(BayesloraError):
    """The potential left the finite numbers; the draws kept so far stay readable."""

    exit_code = 3


class Problems:
    """Gathers the problems of several checks so that they are reported together.

    Example:
        >>> problems = Problems()
        >>> with problems.collect():
        ...     raise ConfigError("lr must be positive")
        >>> problems.found
        ['lr must be positive']
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Run a check; a `ConfigError` in it is noted instead of raised."""
        try:
            yield
        except ConfigError as error:
            self.found.extend(problem for problem in error.problems if problem not in self.found)

    def add(self, *problems: str) -> None:
        """Note problems found without an exception."""
        self.found.extend(problems)

    def raise_if_any(self) -> None:
        """Raise one `ConfigError` holding all that was gathered; do nothing if there is none."""
        if self.found:
            raise ConfigError(*self.found)


def require(condition: bool, problem: str) -> None:
    """Raise `ConfigError(problem)` unless `condition` holds."""
    if not condition:
        raise ConfigError(problem)
