"""Errors a user can act on. Each message says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


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
    """The potential left the finite numbers; the draws kept so far stay readable.

    Args:
        message: what happened, and the fix.
        chains: numbers of the chains that diverged, where that is known.
        step: of the plan, counted from 1, where that is known.
    """

    exit_code = 3

    def __init__(self, message: str, chains: Sequence[int] = (), step: int = 0) -> None:
        super().__init__(message)
        self.chains, self.step = list(chains), step


class CriteriaError(BayesloraError):
    """A run does not meet its criteria, and was to meet them (`--strict`). Holds one sentence each."""

    exit_code = 4

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__(f"the run does not meet its criteria: {'; '.join(problems)}")


class StorageError(BayesloraError):
    """A file cannot be written; what was there before is as it was.

    Args:
        path: the file.
        cause: what the system said.
    """

    exit_code = 1

    def __init__(self, path: Path, cause: OSError) -> None:
        super().__init__(
            f"cannot write {path}: {cause.strerror or cause}. Nothing kept so far is lost: make room, or mend the"
            " folder's permissions, and repeat the command with run_dir=… of this run to go on"
        )


class WorkerError(BayesloraError):
    """A process that ran a chain ended without finishing it; the others have finished theirs.

    Args:
        message: how it ended.
        chains: numbers of the unfinished chains.
    """

    def __init__(self, message: str, chains: Sequence[int]) -> None:
        super().__init__(message)
        self.chains = list(chains)


class InterruptedRunError(BayesloraError):
    """The run was asked to stop (Ctrl-C, SIGTERM, a time limit) and has written its resume point."""

    exit_code = 130


class Problems:
    """Gathers the problems of several checks so that they are reported together.

    Examples:
        >>> problems = Problems()
        >>> with problems.collect():
        ...     raise ConfigError("lr must be positive")
        >>> problems.messages
        ['lr must be positive']
    """

    def __init__(self) -> None:
        self.messages: list[str] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Run a check; a `ConfigError` in it is noted instead of raised."""
        try:
            yield
        except ConfigError as error:
            self.messages.extend(problem for problem in error.problems if problem not in self.messages)

    def add(self, *problems: str) -> None:
        """Note problems found without an exception."""
        self.messages.extend(problems)

    def raise_if_any(self, kind: type[ConfigError] = ConfigError) -> None:
        """Raise one error holding all that was gathered; do nothing if there is none."""
        if self.messages:
            raise kind(*self.messages)


def require(condition: bool, problem: str) -> None:
    """Raise `ConfigError(problem)` unless `condition` holds."""
    if not condition:
        raise ConfigError(problem)
