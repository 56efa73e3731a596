"""Whether samplers mix on a real network, that of experiment=digits_resnet, at one prior, for as much CPU time each.

    python benchmarks/real_networks.py                # every row, resumable; about half an hour on one core
    python benchmarks/real_networks.py sgld sghmc     # some rows

Four stacked chains each, settings chosen on a validation split (`dataset.validation_size=300`), reported on the test
split. Writes results/real_networks.md and .json beside this file; runs go to outputs/real_networks/.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from bayeslora.evaluation.results import Results

RESULTS = Path(__file__).parent / "results"
OUTPUTS = Path("outputs/real_networks")

SMALL_BATCH = "chain.batch_size=128"
ROWS: dict[str, tuple[str, ...]] = {
    "sghmc": ("chain.num_draws=200",),
    "sgld": (
        "sampler=sgld", "sampler.integrator=leimkuhler_matthews", "sampler.lr=0.2", "chain.lr_factors={head:20}",
        SMALL_BATCH, "chain.burn_in=2000", "chain.num_draws=200", "chain.thin=100",
    ),
    "sglrw": (
        "sampler=sglrw", "sampler.lr=0.25", "chain.lr_factors={head:40}", SMALL_BATCH, "chain.burn_in=2000",
        "chain.num_draws=200", "chain.thin=85",
    ),
    "sam_sgld": (
        "sampler=sam_sgld", "sampler.lr=0.25", "sampler.rho=0.02", "chain.lr_factors={head:20}", SMALL_BATCH,
        "chain.num_draws=200", "chain.thin=70",
    ),
    "sam_sgld_r1": (
        "sampler=sam_sgld_r1", "sampler.lr=0.25", "sampler.rho=0.02", "sampler.sigma=0.2", "chain.lr_factors={head:20}",
        SMALL_BATCH, "chain.num_draws=200", "chain.thin=70",
    ),
    "sghmc_cold": ("temperature=0.1", "sampler.lr=0.02", "chain.num_draws=200"),
}  # fmt: skip
HEADINGS = ("sampler", "T", "CPU s", "potential R̂ / ESS", "norm R̂ / ESS", "function R̂ median, share < 1.05",
            "MAP acc. / NLL / ECE", "ensemble acc. / NLL / ECE")  # fmt: skip


def run(name: str) -> dict[str, Any]:
    """Run a row, or what is left of it; its metrics and the CPU time of this call."""
    folder = OUTPUTS / name
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "bayeslora.train", "experiment=digits_resnet", "name=real_networks", "logger=none"]
    subprocess.run([*command, f"run_dir={folder}", *ROWS[name]], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    times = folder / "cpu_seconds.json"
    spent = (json.loads(times.read_text()) if times.exists() else 0.0) + cpu
    times.write_text(json.dumps(spent))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    metrics = Results.read(folder / "metrics.json").to_json()
    kept = {key: metrics[key] for key in ("map", "draw", "ensemble", "criteria", "provenance")}
    kept["diagnostics"] = {key: metrics["diagnostics"][key] for key in ("potential", "l2_norm", "function_space")}
    return {"cpu_seconds": spent, "temperature": config["temperature"], "metrics": kept, "overrides": ROWS[name]}


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    metrics, found = row["metrics"], row["metrics"]["diagnostics"]
    scalars = [f"{found[k]['rhat']:.3f} / {found[k]['ess_bulk']:.0f}" for k in ("potential", "l2_norm")]
    function = f"{found['function_space']['rhat_median']:.3f}, {found['function_space']['fraction_below_1_05']:.1%}"
    scores = [f"{m['accuracy']:.3f} / {m['nll']:.3f} / {m['ece']:.3f}" for m in (metrics["map"], metrics["ensemble"])]
    cells = [name.removesuffix("_cold"), f"{row['temperature']:g}", f"{row['cpu_seconds']:.0f}", *scalars, function]
    return f"| {' | '.join([*cells, *scores])} |"


def main() -> None:
    """Run the rows that were asked for and write the table of all that have run."""
    store = RESULTS / "real_networks.json"
    rows: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    for name in sys.argv[1:] or ROWS:
        rows[name] = run(name)
        store.write_text(json.dumps(rows, indent=1) + "\n")
    made = next(iter(rows.values()))["metrics"]["provenance"]
    about = f"{made['hardware']}; torch {made['versions']['torch']}; commit {made['commit']}"
    head = [f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
    table = "\n".join([*head, *(line(name, rows[name]) for name in ROWS if name in rows)])
    text = f"# Samplers on a residual network\n\n{table}\n\n`python benchmarks/real_networks.py`. {about}\n"
    (RESULTS / "real_networks.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
