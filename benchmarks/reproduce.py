"""Every row of docs/results.md: its command, its run, its numbers.

    python benchmarks/reproduce.py --list                 # names and commands
    python benchmarks/reproduce.py digits-sghmc           # run a row, all its seeds; again: go on where it stopped
    python benchmarks/reproduce.py 'digits-*' --seeds 0   # rows by pattern, some seeds
    python benchmarks/reproduce.py --again digits-sghmc   # run it anew and compare with what is written, digit by digit
    python benchmarks/reproduce.py --tables               # write the tables of docs/results.md from docs/results/*.json
    python benchmarks/reproduce.py 'mrpc-*' --data FOLDER # CIFAR-10, its HMC reference, MRPC: FOLDER/cifar10, …
    python benchmarks/reproduce.py 'fidelity-*' --data FOLDER --also trainer=gpu # further settings are recorded too

Runs go to outputs/results/ROW/SEED, their numbers to docs/results/ROW.SEED.json. No row without such a file.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from result_rows import ROWS, RUNS
from result_tables import MEMBERS, NUMBERS, write_tables

from bayeslora.evaluation.results import Results

PLAN = ("burn_in", "num_draws", "thin", "num_chains", "batch_size", "cycles", "exploration")
KEPT = (*MEMBERS, "criteria", "reference", "provenance")
SCALARS = ("potential", "l2_norm", "function_space", "efficiency", "temperature", "kinetic")


def run(
    name: str, seed: int, folder: Path | None = None, data: Path | None = None, also: Sequence[str] = ()
) -> dict[str, Any]:
    """Run a row's seed, or what is left of it.

    Args:
        name, seed: which.
        folder: of the run; None: the row's own.
        data: folder of the data sets that rows call DATA.
        also: further settings, which stand in the command that is written down.

    Returns:
        Its numbers: of `metrics.json` what tables show, command, temperature asked for, CPU time (of all calls).
    """
    command = [*ROWS[name].command(name, seed, folder), *also]
    where = folder or RUNS / name / str(seed)
    before, begun = _cpu_seconds(), time.time()
    here = [part.replace("=DATA/", f"={data}/") if data else part for part in command[1:]]
    times = where / "cpu_seconds.json"
    try:
        subprocess.run([sys.executable, *here], check=True)
    finally:  # a call that was stopped counts too
        spent = (json.loads(times.read_text()) if times.exists() else 0.0) + _cpu_seconds() - before
        if where.exists():
            times.write_text(json.dumps(spent))
    metrics = where / "metrics.json"
    if not metrics.exists() or metrics.stat().st_mtime < begun:  # chain.index named some of its chains
        sys.exit(f"{name}: these chains are done; the row is evaluated when all of them are")
    written = shlex.join([*ROWS[name].command(name, seed), *also])
    found = numbers_of(where)
    found["provenance"].pop("command")  # it says where the data lie on this machine
    return {"row": name, "seed": seed, "command": written, "cpu_seconds": round(spent, 1), **found}


def numbers_of(folder: Path) -> dict[str, Any]:
    """Of a run directory what tables and figures show."""
    metrics = Results.read(folder / "metrics.json").to_json()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    kept = {key: metrics[key] for key in KEPT if metrics.get(key) is not None}
    found = {"tuning": config["tuning"]} if "tuning" in config else {}
    milestones = folder / "chains" / "0" / "online.jsonl"
    if config["callbacks"].get("online", {}).get("milestones") and milestones.exists():
        found["milestones"] = [json.loads(line) for line in milestones.read_text().splitlines()]
    return {**settings_of(config), **found, **kept,
            "diagnostics": {key: metrics["diagnostics"].get(key) for key in SCALARS}}  # fmt: skip


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's configuration what tables show."""
    chain, prior = config["chain"], config["prior"]
    return {
        "temperature": config["temperature"],
        "prior": {key: prior[key] for key in ("variance", "scaling", "vectors", "overrides")},
        "augment": config["dataset"].get("augment", False),
        "precision": config["trainer"]["precision"],
        "plan": {"warmup": chain["warmup"]["steps"], **{key: chain[key] for key in PLAN}},
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class Difference:
    """A number of a row that is run anew, and what is written of it."""

    path: str
    here: Any
    written: Any

    @property
    def size(self) -> float:
        """Relative to the larger of the two; infinite where one of them is not a number."""
        both = self.here, self.written
        if not all(isinstance(value, int | float) for value in both):
            return math.inf
        return abs(self.here - self.written) / max(map(abs, both))

    def __str__(self) -> str:
        return f"{self.path}: {self.here} here, {self.written} written"


def differences(ours: Any, written: Any, path: str = "") -> Iterator[Difference]:
    """Where numbers differ from what is written: all but what depends on the machine's speed, on time and place."""
    if isinstance(ours, Mapping) and isinstance(written, Mapping):
        for key in sorted(set(written) - {"provenance", "cpu_seconds", "command", "title"}):
            yield from differences(ours.get(key), written.get(key), f"{path}.{key}" if path else key)
    elif ours != written:
        yield Difference(path, ours, written)


def again(name: str, seed: int, data: Path | None = None, also: Sequence[str] = ()) -> Iterator[str]:
    """Run a row's seed anew, elsewhere; gives the numbers that differ from what is written, and by how much at most."""
    written = json.loads((NUMBERS / f"{name}.{seed}.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        here = run(name, seed, Path(folder, "run"), data, also)
    found = list(differences(here, written))
    yield from (f"{name}.{seed} {difference}" for difference in found)
    if found:
        places = " and ".join(
            f"{row['provenance']['commit']} on {row['provenance']['hardware']}" for row in (here, written)
        )
        largest = max(difference.size for difference in found)
        yield f"{name}.{seed}: up to {largest:.1g} apart, relative; {places} (processors round differently)"


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="names, or patterns with *")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--also", nargs="+", default=[], help="further settings of the runs")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--tables", action="store_true")
    asked = parser.parse_args()
    chosen = {n: r for n, r in ROWS.items() if not asked.rows or any(fnmatch(n, pattern) for pattern in asked.rows)}
    if asked.rows and not chosen:
        parser.error(f"no row is called {' or '.join(asked.rows)}; --list names them")
    if asked.list:
        for name, row in chosen.items():
            for seed in asked.seeds or row.seeds:
                print(f"{name}\t{shlex.join(row.command(name, seed))}")
        return 0
    if asked.again:
        found = [
            line
            for name, row in chosen.items()
            for seed in asked.seeds or row.seeds[:1]
            for line in again(name, seed, asked.data, asked.also)
        ]
        print("\n".join(found) or "the same numbers, to the last digit")
        return bool(found)
    if not asked.tables:
        NUMBERS.mkdir(exist_ok=True)
        for name, row in chosen.items():
            for seed in asked.seeds or row.seeds:
                text = json.dumps(run(name, seed, None, asked.data, asked.also), indent=1, ensure_ascii=False)
                (NUMBERS / f"{name}.{seed}.json").write_text(text + "\n")
    write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main())
