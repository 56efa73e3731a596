"""Commands in forked processes that may be stopped anywhere: imports are paid once, each command is a real process.

Run as `python -m tests.run.zygote`: reads a line of JSON for each command and answers it with another at its end.
"""

from __future__ import annotations

import io
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from tests.run.tools import ENVIRONMENT, TINY, Ended, call, digests

WRITE = "pathlib:Path.write_bytes"
"""Where `bayeslora.atomic.write_atomically` writes to its temporary file."""
RENAME = "pathlib:Path.replace"
"""Where it gives the file its name."""
OPEN = "pathlib:Path.open"
LINE = "manifest.jsonl ab"
"""What `OPEN` is told of a manifest that gets another line."""
SYNC = "os:fsync"
"""Where that line is on its way to the disk, whole."""
CHAINS = "bayeslora.engine.runner:ChainRunner.run_all"
STEP = "bayeslora.engine.module:SamplingModule.training_step"
EVALUATION = "bayeslora.engine.pipeline:evaluate"


@dataclass(frozen=True)
class Stop:
    """Where a command is sent a signal.

    Attributes:
        at: `module:function`, at a call of which it is sent.
        nth: which of the calls; in the middle of `at` (see `when`), which Python or C function called within.
        when: `before` or `after` the call; `half`, when half of what it writes is written; `within`, amid its work;
            `full`: no signal is sent, but the disk is full.
        about: only calls whose path and mode, file or first argument, as text, hold this are counted.
        number: of the signal.
    """

    at: str
    nth: int = 1
    when: str = "before"
    about: str = ""
    number: int = signal.SIGKILL


class Zygote:
    """The process that forks. `zygote("train", *arguments, stop=…)` gives how the command ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.run.zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT, cwd=folder,
        )  # fmt: skip
        self.calls = 0

    def __call__(
        self,
        command: str,
        *arguments: str,
        stop: Stop | None = None,
        after: float | None = None,
        count: str | None = None,
    ) -> Ended:
        """Run a command to its end, or until it is stopped.

        Args:
            command: `train`, `evaluate`, …
            arguments: of the command.
            stop: where it is sent a signal.
            after: seconds after which it is killed.
            count: count the functions called within this one, as `calls`.
        """
        order = {
            "command": command, "arguments": arguments, "after": after, "count": count,
            "stop": stop and asdict(stop), "folder": os.fspath(self.folder),
        }  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        counted = self.folder / "calls"
        self.calls = int(counted.read_text()) if counted.exists() else 0
        return Ended(code, (self.folder / "out").read_text(), (self.folder / "err").read_text())

    def close(self) -> None:
        """End it."""
        self.process.communicate(timeout=600)


def left(folder: Path, chains: int = 2) -> dict[str, Any]:
    """What must be the same, bit for bit: draws, manifests, MAP baseline, metrics (but where and how fast)."""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert not list(folder.rglob("*.tmp"))
    return {
        "draws": digests(folder, chains),
        "manifests": [(folder / "chains" / str(chain) / "manifest.jsonl").read_bytes() for chain in range(chains)],
        "map": {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("map.safetensors")},
        "metrics": {key: value for key, value in metrics.items() if key != "provenance"},
    }


class Reference:
    """What uninterrupted runs leave, one a choice of settings, and how many functions their parts call."""

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self.zygote, self.folder = zygote, folder
        self.found: dict[tuple[str, ...], tuple[dict[str, Any], int, Path]] = {}

    def __call__(self, *settings: str, count: str = CHAINS, chains: int = 2) -> tuple[dict[str, Any], int]:
        if (*settings, count) not in self.found:
            folder = self.folder / str(len(self.found))
            assert self.zygote("train", *settings, f"run_dir={folder}", count=count).code == 0
            self.found[*settings, count] = left(folder, chains), self.zygote.calls, folder
        return self.found[*settings, count][:2]

    def place(self, *settings: str, count: str = CHAINS) -> Path:
        """The folder of such a run, which is not to be changed."""
        self(*settings, count=count)
        return self.found[*settings, count][2]


def killed(zygote: Zygote, *arguments: str, stop: Stop) -> None:
    result = zygote("train", *arguments, stop=stop)
    assert result.code == -signal.SIGKILL, result


def serve() -> None:
    """Fork for every order, and say how the child ended."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    call("train", *TINY, "run_dir=warm")  # whatever is imported on the way is so for all of them
    HydraConfig.instance().cfg = None
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            _obey(order)
        if order["after"] is not None:
            time.sleep(order["after"])
            os.kill(child, signal.SIGKILL)  # or what is left of it
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _obey(order: dict[str, Any]) -> None:
    """Run a command in this process, and end it."""
    folder = Path(order["folder"])
    (folder / "calls").unlink(missing_ok=True)
    for number, name in ((0, os.devnull), (1, folder / "out"), (2, folder / "err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if order["stop"]:
            _plant(Stop(**order["stop"]))
        if order["count"]:
            _replace(order["count"], lambda original: _counting(original, 0, folder / "calls"))
        code = call(order["command"], *order["arguments"])
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _replace(at: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put `make(function)` in the place of the function that `at` names."""
    module, _, path = at.partition(":")
    owner, _, name = path.rpartition(".")
    holder = pkgutil.resolve_name(f"{module}:{owner}" if owner else module)
    setattr(holder, name, make(getattr(holder, name)))


def _plant(stop: Stop) -> None:
    """See to it that this process gets its signal."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        if stop.when == "within":
            return _counting(original, stop.nth)
        left = stop.nth

        def stopped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            counts = stop.about in _described(*args)
            left -= counts
            if left != 0 or not counts:
                return original(*args, **kwargs)
            left = -1
            if stop.when == "full":
                return original(*_on_a_full_disk(*args), **kwargs)
            if stop.when == "half" and stop.at == OPEN:
                return HalfWriter(*args)
            if stop.when == "half":
                args[0].write_bytes(args[1][: len(args[1]) // 2])
            result = original(*args, **kwargs) if stop.when == "after" else None
            os.kill(os.getpid(), stop.number)
            return result if stop.when == "after" else original(*args, **kwargs)

        return stopped

    _replace(stop.at, make)


def _described(first: Any = "", *more: Any) -> str:
    """The text in which `about` is looked for."""
    if isinstance(first, int):
        return str(Path(f"/proc/self/fd/{first}").readlink())
    return f"{first} {more[0]}" if isinstance(first, Path) and more and isinstance(more[0], str) else str(first)


class HalfWriter(io.FileIO):
    """A file of which the process is killed when half of what it writes is written."""

    def write(self, content: Any) -> int:
        super().write(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


def _on_a_full_disk(target: Path, *more: Any) -> tuple[Any, ...]:
    """The same call on the device on which there is never room."""
    return Path("/dev/full"), *more


def _counting(original: Callable[..., Any], nth: int, note: Path | None = None) -> Callable[..., Any]:
    """A function amid whose work, at the nth function that is called within, this process is killed."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal seen
            seen += event in ("call", "c_call")
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        try:
            return original(*args, **kwargs)
        finally:
            sys.setprofile(None)
            if note is not None:
                note.write_text(str(seen))

    return counted


if __name__ == "__main__":
    serve()
