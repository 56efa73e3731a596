"""Chains: a run of two draws from end to end, chains that share nothing, and a chain that repeats bit for bit."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.atomic import digest
from bayeslora.doctor.experiments import choice, composed, options
from bayeslora.doctor.finding import Check, Finding, failure, ok

if TYPE_CHECKING:
    from torch import Tensor

    from bayeslora.runs.directory import RunDirectory

SMALL = (
    "experiment=quickstart", "size=smoke", "trainer=cpu", "logger=none", "chain.parallel=sequential",
    "chain.num_chains=2", "chain.num_draws=2",
)  # fmt: skip
"""A run of seconds: two chains of two draws on handwritten digits."""
SIZE = 4096
"""Parameters of the made-up problem on which noise is looked at."""


def run_and_repeat(*overrides: str) -> Iterator[Finding]:
    """Two chains of two draws, evaluated; then the first chain once more.

    Args:
        overrides: settings beside those of `SMALL`.
    """
    with tempfile.TemporaryDirectory() as made:
        first, again = (_trained(Path(made, name), *more, *overrides) for name, more in RUNS.items())
        yield _whole(first)
        one, other, repeated = _draws(first, 0), _draws(first, 1), _draws(again, 0)
    if len({*one, *other}) == len(one) + len(other):
        yield ok("chains apart", "two chains of one run share no draw")
    else:
        yield failure("chains apart", "two chains of one run share draws", SHARED)
    if one == repeated:
        yield ok("chains repeat", "a chain run again gives the same draws, bit for bit")
    else:
        yield failure("chains repeat", "a chain run again gives other draws", REPEAT)


RUNS = {"whole": (), "again": ("chain.index=0",)}
SHARED = "report it: R-hat and ESS of such runs mean nothing; see `chains` in docs/troubleshooting.md"
REPEAT = "see `chains` in docs/troubleshooting.md: resumed runs would not be exact here"


def _trained(folder: Path, *overrides: str) -> RunDirectory:
    """A run in a folder, without what it prints."""
    from bayeslora.loggers import quiet_lightning
    from bayeslora.runs.directory import RunDirectory
    from bayeslora.train import train

    quiet_lightning()
    cfg = composed(*SMALL, *overrides, f"run_dir={folder}")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        train(cfg)
    return RunDirectory(folder)


def _draws(run: RunDirectory, chain: int) -> list[str]:
    """A digest of the tensors of each draw of a chain; the files also hold the chain's number."""
    return [digest(draw.tensors) for draw in run.store(chain)]


def _whole(run: RunDirectory) -> Finding:
    """Whether a finished run has left what it should, with finite numbers."""
    files = (run.config_file, run.map_file(), run.metrics_file, run.diagnostics_file, run.report / "index.html")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        return failure(
            "run", f"a run of two draws left no {', '.join(missing)}", "see `run` in docs/troubleshooting.md"
        )
    ensemble = json.loads(run.metrics_file.read_text())["ensemble"]
    if not all(math.isfinite(value) for value in ensemble.values()):
        return failure("run", f"its metrics are not finite: {ensemble}", "see `run` in docs/troubleshooting.md")
    return ok("run", "two chains of two draws, evaluated, with a report; nothing of it is kept")


def noise() -> Iterator[Finding]:
    """Of every sampler of `conf/sampler`: whether chains have noise of their own, and the same when repeated."""
    for name in options("sampler"):
        yield from Check(f"noise {name}", partial(_noise, name)).run()


def _noise(name: str) -> Iterator[Finding]:
    """The line of one sampler."""
    if name != "map":  # it has no noise
        yield noise_of(f"noise {name}", choice("sampler", name))


def noise_of(name: str, make: Callable[..., Any]) -> Finding:
    """How the noise of two chains goes together: their moves where no gradient pulls.

    The correlation of independent moves of n parameters is 0 with a standard error of 1/√n; 5 of them are the limit.

    Args:
        name: of the finding.
        make: the sampler's factory, as a configuration's `sampler` gives it.
    """
    import torch

    one, again, other = (_moves(make, chain) for chain in (0, 0, 1))
    if not torch.equal(one, again):
        return failure(name, "a chain repeated moves otherwise", REPEAT)
    correlation = torch.corrcoef(torch.stack([one, other]))[0, 1].item()
    if not abs(correlation) < 5 / math.sqrt(SIZE):
        return failure(name, f"chains 0 and 1 share noise: their moves correlate by {correlation:+.3f}", SHARED)
    return ok(
        name, f"two chains' moves correlate by {correlation:+.3f}, as independent ones do; one repeated is the same"
    )


def _moves(make: Callable[..., Any], chain: int) -> Tensor:
    """Where three steps without a gradient take the parameters of a chain, from 0 [SIZE]."""
    import torch

    weight = torch.nn.Parameter(torch.zeros(SIZE))
    sampler = make([weight], kT=1e-3, seed=0, chain=chain)

    def flat() -> Tensor:
        potential = (0.0 * weight).sum()
        potential.backward()
        return potential

    for _ in range(3):
        sampler.step(flat)
    return weight.detach()
