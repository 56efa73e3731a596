"""Runs that several tests look at, and commands in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig

from tests.run.tools import Command, Ended, call, run
from tests.run.zygote import Reference, Zygote


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs a command's entry point in this process and gives its exit code and what it wrote."""

    def run_command(name: str, *arguments: str) -> Ended:
        capfd.readouterr()
        code = call(name, *arguments)
        return Ended(code, *capfd.readouterr())

    yield run_command
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny quickstart, finished; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(folder, "evaluate.report=true")
    return folder


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A run sets the number of threads; the next test has its own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Runs commands in processes that may be stopped anywhere."""
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def reference(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """What uninterrupted runs leave."""
    return Reference(zygote, tmp_path_factory.mktemp("references"))
