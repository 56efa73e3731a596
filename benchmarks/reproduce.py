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
import re
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import result_figures
import yaml
from peers.results import baselines_table, table

from bayeslora.evaluation.results import Results

ROOT = Path(__file__).resolve().parents[1]
RUNS = Path("outputs/results")
NUMBERS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
THREE = (0, 1, 2)
MEMBERS = {"map": "MAP", "map_ensemble": "MAP × K", "ensemble": "draws"}
"""Rows of `metrics.json`, and what the tables call them."""
PLAN = ("burn_in", "num_draws", "thin", "num_chains", "batch_size", "cycles", "exploration")
KEPT = (*MEMBERS, "criteria", "reference", "provenance")
KNOWN = 0.1
"""Standard error of T_b/T up to which tables show it."""
BASELINES = ("dropout", "last-layer", "lora")
"""Parts of `mrpc_baselines.py`."""
SCALARS = ("potential", "l2_norm", "function_space", "efficiency", "temperature", "kinetic")


@dataclass(frozen=True)
class Row:
    """A row: an experiment of `conf/` with settings of its own.

    Attributes:
        experiment: its name.
        settings: overrides of the command line.
        seeds: those that are run.
    """

    experiment: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)

    def command(self, name: str, seed: int, folder: Path | None = None) -> list[str]:
        """What runs one seed, as a command line; data lie in DATA."""
        where = folder or RUNS / name / str(seed)
        settings = [f"experiment={self.experiment}", f"name={name}", f"seed={seed}", f"run_dir={where}", "logger=none"]
        return ["python", "-m", "bayeslora.train", *settings, *self.settings]


def digits() -> Iterator[tuple[str, Row]]:
    """Handwritten digits, full batches, step sizes found by `auto`: every sampler at T = 1, and what cooling buys."""
    for sampler in ("baoab", "sghmc", "sgld", "sgnht", "sglrw", "asgld", "sam_sgld", "sam_sgld_r1", "fsgld"):
        chosen = () if sampler == "baoab" else (f"sampler={sampler}", "sampler.lr=auto", "chain.thin=150")
        yield f"digits-{sampler}", Row("quickstart", chosen, THREE)
    numbers = ("sampler.lr=1e-4", "chain.burn_in=8000", "chain.thin=150")  # its steps by coordinate leave auto no room
    yield "digits-psgld", Row("quickstart", ("sampler=psgld", *numbers), THREE)
    for cold in ("0.3", "0.1", "0.03"):
        yield f"digits-baoab-T{cold}", Row("quickstart", (f"temperature={cold}",), THREE)


def mrpc() -> Iterator[tuple[str, Row]]:
    """Paraphrases, LoRA on MiniLM, N = 3,302: samplers at T = 1, SGLD colder, the earlier rank-one rule.

    `-short`: a third of the draws.
    """
    own: dict[str, tuple[str, ...]] = {
        "map": (),
        "map-single": ("chain.num_chains=1",),  # what mrpc_baselines.py is around
        "sgld": (),
        "sglrw": ("sampler=sglrw", "~sampler.integrator", "sampler.lr=0.5"),
        "sghmc": ("sampler=sghmc", "~sampler.integrator", "sampler.lr=0.05"),
        "samsgld_r1": (),
        "samsgld_r1-rule": ("sampler.direction=adaptive", "sampler.drift=plain"),
        "sgld-online": ("chain.num_chains=1", "chain.num_draws=240", "callbacks.online.milestones=[1000,3000,9600]"),
        "sgld-T0.3": ("temperature=0.3",),
        "sgld-T0.1": ("temperature=0.1",),
    }
    for name, settings in own.items():
        base = next((e for e in ("map", "samsgld_r1") if name.startswith(e)), "sgld")
        row = (f"mrpc_minilm_{base}", ("dataset.path=DATA/mrpc", *settings))
        yield f"mrpc-{name}", Row(*row)
        if name not in ("map", "map-single", "sgld-online"):
            yield f"mrpc-{name}-short", Row(row[0], (*row[1], "chain.num_draws=20"))


EPOCH = 195
"""Steps of 256 of 50,000 images."""


def fidelity() -> Iterator[tuple[str, Row]]:
    """CIFAR-10, ResNet-20-FRN at T = 1 against the HMC reference: 30 epochs of gradients a chain, four chains.

    Convolutions begin at the prior's norm, where the posterior has them. `sghmc-short`: what two cores do in an hour.
    """
    data = (
        "dataset.path=DATA/cifar10", "evaluate.reference=DATA/cifar10_hmc/predictive.npz",
        "chain.batch_size=256", "trainer.precision=bf16-mixed", "trainer.compile=true",
    )  # fmt: skip
    adam = ("optimizer@chain.warmup.optimizer=adamw", "chain.warmup.optimizer.lr=0.01", "chain.warmup.schedule=linear",
            "chain.warmup.schedule_settings={rise: 0.1}")  # fmt: skip
    prior = "chain.from_prior=[stem.0.weight,*conv?.weight,*shortcut.0.weight]"
    wide = (  # by SGD: AdamW would shrink them again, by the prior's gradient alone
        prior, "chain.warmup.optimizer.lr=0.5", "chain.warmup.schedule=linear",
        "chain.warmup.schedule_settings={rise: 0.1}",
    )  # fmt: skip
    start = (*wide, f"chain.warmup.steps={12 * EPOCH}")
    factors = "chain.lr_factors={head: 0.1, stem: 0.4}"  # of what noise would heat most (docs/step-size.md)
    draws = (factors, "chain.num_draws=14", f"chain.burn_in={4 * EPOCH}", f"chain.thin={EPOCH}")
    own: dict[str, tuple[str, ...]] = {
        "map": (
            *adam, f"chain.warmup.steps={30 * EPOCH - 1}", "sampler=map", "sampler.lr=1e-4", "temperature=0",
            "chain.burn_in=0", "chain.num_draws=1", "chain.thin=1",
        ),
        "sgld": (*start, *draws, "sampler.lr=2.0"),
        "sglrw": (*start, *draws, "sampler=sglrw", "sampler.lr=2.0"),
        "sghmc": (*start, *draws, "sampler=sghmc", "sampler.lr=0.2"),
        "cyclical": (
            prior, factors, "chain.warmup.steps=0", "chain.burn_in=0", "sampler=sghmc", "sampler.lr=0.5",
            "chain.schedule=cyclical", "chain.cycles=5", "chain.exploration=0.6", "chain.num_draws=15",
            "chain.thin=156",
        ),
        "sam_sgld": (  # two gradients a step
            *start, factors, "sampler=sam_sgld", "sampler.lr=2.0", "chain.num_draws=14", f"chain.burn_in={2 * EPOCH}",
            f"chain.thin={EPOCH // 2}",
        ),
        "sghmc-short": (
            *wide, f"chain.warmup.steps={9 * EPOCH}", f"chain.burn_in={3 * EPOCH}", "chain.num_draws=10",
            f"chain.thin={EPOCH}", "sampler=sghmc", "sampler.lr=0.2", "chain.num_chains=2", "chain.parallel=processes",
        ),
    }  # fmt: skip
    for name, settings in own.items():
        yield f"fidelity-{name}", Row("cifar10_resnet20frn_sgld", (*data, *settings))
    yield "tuned-resnet20frn", Row("cifar10_resnet20frn_sgld", (  # what the tuner finds, and the temperature there
        *data, *wide, f"chain.warmup.steps={3 * EPOCH}", "chain.batch_size=64", "sampler=baoab", "sampler.lr=auto",
        "sampler.momentum=auto", "chain.burn_in=200", "chain.num_draws=20", "chain.thin=10", "chain.num_chains=1",
        "trainer.precision=32-true", "trainer.compile=false",
    ))  # fmt: skip


def resnet18() -> Iterator[tuple[str, Row]]:
    """CIFAR-10, ResNet-18 of full size with augmentation: 15 epochs to MAP, then 12 draws of each of two chains."""
    epoch = 195  # steps of 256 of 50,000 images
    data = (
        "dataset.path=DATA/cifar10", "dataset.augment=true", "evaluate.ood=cifar100", "evaluate.ood_path=DATA/cifar100",
        "evaluate.corruptions=true", "trainer.precision=bf16-mixed", "trainer.compile=true", "chain.num_chains=2",
        "chain.batch_size=256", f"chain.warmup.steps={15 * epoch}", "chain.warmup.optimizer.lr=0.005",
        "chain.warmup.schedule=linear", "chain.warmup.schedule_settings={rise: 0.2}",
    )  # fmt: skip
    draws = (f"chain.burn_in={2 * epoch}", "chain.num_draws=12", f"chain.thin={epoch // 2}")
    cycles = (
        "chain.burn_in=0", "chain.cycles=3", "chain.exploration=0.7", "chain.schedule=cyclical", "chain.num_draws=12",
        "chain.thin=60", "sampler.lr=0.005",
    )  # fmt: skip
    yield "resnet18-sgld", Row("cifar10_resnet18_sgld", (*data, *draws))
    yield "resnet18-sgld-T0.01", Row("cifar10_resnet18_sgld", (*data, *draws, "temperature=0.01"))
    yield "resnet18-cyclical-T0.01", Row("cifar10_resnet18_csghmc", (*data, *cycles, "temperature=0.01"))


def wide_resnet() -> Iterator[tuple[str, Row]]:
    """CIFAR-100, WideResNet-16-2 in place of 28-10, T = 1, four chains: 30 epochs to MAP, then 12 draws.

    Step sizes are the experiments' by fan-in: of 128 channels it is a fifth of that of 640. None is tuned or run yet.
    """
    data = (
        "dataset.path=DATA/cifar100", "model._target_=bayeslora.models.wide_resnet", "+model.depth=16",
        "+model.width=2", "trainer.precision=bf16-mixed", "trainer.compile=true", "chain.num_chains=4",
        "chain.batch_size=256", f"chain.warmup.steps={30 * EPOCH}", "chain.warmup.optimizer.lr=0.01",
        "chain.warmup.schedule=linear", "chain.warmup.schedule_settings={rise: 0.2}", "chain.num_draws=12",
    )  # fmt: skip
    single = (f"chain.burn_in={6 * EPOCH}", f"chain.thin={EPOCH}")
    double = (f"chain.burn_in={3 * EPOCH}", f"chain.thin={EPOCH // 2}")  # two gradients a step
    own = {
        "sgld": (*single, "sampler.lr=0.075"),
        "asgld": (*single, "sampler.lr=0.075"),
        "samsgld": (*double, "sampler.lr=0.075", "sampler.rho=0.035"),  # ρ: the experiment's share of the prior's norm
        "samsgld_r1": (*double, "sampler.lr=0.02", "sampler.rho=0.035"),
    }
    for name, settings in own.items():
        yield f"cifar100-{name}", Row(f"cifar100_wrn_{name}", (*data, *settings))


ROWS: dict[str, Row] = {name: row for group in (digits, mrpc, fidelity, resnet18, wide_resnet) for name, row in group()}


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
    before = _cpu_seconds()
    here = [part.replace("=DATA/", f"={data}/") if data else part for part in command[1:]]
    subprocess.run([sys.executable, *here], check=True)
    times = where / "cpu_seconds.json"
    spent = (json.loads(times.read_text()) if times.exists() else 0.0) + _cpu_seconds() - before
    times.write_text(json.dumps(spent))
    written = shlex.join([*ROWS[name].command(name, seed), *also])
    found = numbers_of(where)
    found["provenance"].pop("command")  # it says where the data lie on this machine
    return {"row": name, "seed": seed, "command": written, "cpu_seconds": round(spent, 1), **found}


def numbers_of(folder: Path) -> dict[str, Any]:
    """Of a run directory what tables and figures show."""
    metrics = Results.read(folder / "metrics.json").to_json()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    chain = config["chain"]
    plan = {"warmup": chain["warmup"]["steps"], **{key: chain[key] for key in PLAN}}
    kept = {key: metrics[key] for key in KEPT if metrics.get(key) is not None}
    found = {"tuning": config["tuning"]} if "tuning" in config else {}
    return {"temperature": config["temperature"], "plan": plan, **found, **kept,
            "diagnostics": {key: metrics["diagnostics"].get(key) for key in SCALARS}}  # fmt: skip


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def numbers(name: str) -> list[dict[str, Any]]:
    """What is written of a row, by seed."""
    return [json.loads(file.read_text()) for file in sorted(NUMBERS.glob(f"{name}.[0-9]*.json"))]


def differences(ours: Any, written: Any, path: str = "") -> Iterator[str]:
    """Where numbers differ from what is written: all but what depends on the machine's speed, on time and place."""
    if isinstance(ours, Mapping) and isinstance(written, Mapping):
        for key in sorted(set(written) - {"provenance", "cpu_seconds", "command", "title"}):
            yield from differences(ours.get(key), written.get(key), f"{path}.{key}")
    elif ours != written:
        yield f"{path[1:]}: {ours} here, {written} written"


def again(name: str, seed: int, data: Path | None = None, also: Sequence[str] = ()) -> list[str]:
    """Run a row's seed anew, elsewhere; returns the numbers that differ from what is written."""
    written = json.loads((NUMBERS / f"{name}.{seed}.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        return list(differences(run(name, seed, Path(folder, "run"), data, also), written))


def over_seeds(values: Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation where there are several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def scores(runs: Sequence[Mapping[str, Any]], member: str) -> str:
    """Accuracy in per cent, NLL and ECE of one of the members."""
    there = [one[member] for one in runs if "accuracy" in (one.get(member) or {})]
    if not there:
        return "–"
    parts = [over_seeds([100 * m["accuracy"] for m in there], 1)]
    return " / ".join(parts + [over_seeds([m[key] for m in there], 3) for key in ("nll", "ece")])


def temperatures(one: Mapping[str, Any]) -> tuple[float, float] | None:
    """Measured T_b/T of the blocks that are known to `KNOWN`, the farthest from 1 and the median; None without any."""
    blocks = one["diagnostics"].get("temperature") or {}
    own = [b for name, b in blocks.items() if name not in ("all", "pooled") and b["ratio"] is not None]
    found = [b["ratio"] for b in own if b["se"] is not None and b["se"] <= KNOWN]
    return (max(found, key=lambda r: abs(r - 1)), statistics.median(found)) if found else None


def cells(name: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row's cells."""
    of = [one["diagnostics"] for one in runs]
    measured = [found for found in map(temperatures, runs) if found]
    worst = max((w for w, _ in measured), key=lambda r: abs(r - 1)) if measured else None
    heat = f"{worst:.2f} / {statistics.median(m for _, m in measured):.2f}" if measured else "–"
    values = [
        max(d["potential"]["rhat"] or float("nan") for d in of),
        min(d["potential"]["ess_bulk"] or 0.0 for d in of),
        max((d["function_space"] or {}).get("rhat_q95") or float("nan") for d in of),
    ]
    spent = statistics.fmean(one["cpu_seconds"] for one in runs)
    gradients = (of[0].get("efficiency") or {}).get("gradients")
    mixing = f"{values[0]:.3f} / {values[1]:.0f} / {values[2]:.3f}" if values[1] else "–"
    effort = f"{gradients:,.0f} / {spent:,.0f}" if gradients else f"– / {spent:,.0f}"
    return [name, f"{runs[0]['temperature']:g}", heat, *(scores(runs, member) for member in MEMBERS), mixing, effort]


def fidelity_table() -> str:
    """Agreement with the reference and total variation from it, in markdown, with standard errors over its images."""
    rows = []
    for name, found in ((name, numbers(name)) for name in ROWS):
        for one in found:
            of = one.get("reference") or {}
            for key, member in {**MEMBERS, "draw": "single draw"}.items():
                if values := of.get(key):
                    agreement, distance = (
                        f"{values[k]:.3f} ± {values[f'{k}_se']:.3f}" for k in ("agreement", "total_variation")
                    )
                    rows.append([name, member, agreement, distance])
    return table(["row", "", "agreement with HMC", "total variation from HMC"], rows)


def group_table(group: str) -> str:
    """The table of all rows of a group that have numbers, in markdown."""
    if group == "reference":
        return fidelity_table()
    if group == "baselines":
        found = [one["rows"] for part in BASELINES for one in numbers(f"mrpc-{part}")]
        shared = max(([row for row in rows if row["method"] == "MAP"] for rows in found), key=len)
        return baselines_table(shared + [row for rows in found for row in rows if row["method"] != "MAP"])
    header = ["row", "T", "measured T, worst / median block", *MEMBERS.values(), "R̂ / ESS / predictions' R̂ q95",
              "gradients of all chains after warm-up / CPU s"]  # fmt: skip
    rows = [cells(name, found) for name in ROWS if name.partition("-")[0] == group and (found := numbers(name))]
    return table(header, rows)


def write_tables() -> None:
    """Write every group's table between its marks in docs/results.md, and the figures."""
    text = PAGE.read_text()
    for group in re.findall(r"<!-- table: (\w+) -->", text):
        marks = f"<!-- table: {group} -->", "<!-- end -->"
        pattern = re.compile(rf"{marks[0]}.*?{marks[1]}", re.DOTALL)
        text = pattern.sub(lambda _, g=group, m=marks: f"{m[0]}\n{group_table(g)}\n{m[1]}", text)
    PAGE.write_text(text)
    result_figures.draw({name: numbers(name) for name in ROWS}, ROOT / "docs" / "images")


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
            f"{n} {d}"
            for n, row in chosen.items()
            for s in asked.seeds or row.seeds[:1]
            for d in again(n, s, asked.data, asked.also)
        ]
        print("\n".join(found) or "the same numbers, to the last digit")
        return bool(found)
    if not asked.tables:
        NUMBERS.mkdir(exist_ok=True)
        for name, row in chosen.items():
            for seed in asked.seeds or row.seeds:
                text = json.dumps(run(name, seed, None, asked.data, asked.also), indent=1, ensure_ascii=False)
                (NUMBERS / f"{name}.{seed}.json").write_text(text + "\n")
    if PAGE.exists():
        write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main())
