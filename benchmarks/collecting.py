"""What diagnostics cost: collecting a draw beside the steps between draws, memory of an evaluation, a large report.

    python benchmarks/collecting.py                              # all; about 10 minutes on one core
    python benchmarks/collecting.py memory report                # some sections; the others stay as they are
    python benchmarks/collecting.py costs --cifar DATA/cifar10   # ResNet-18 on real images too, 10 minutes more

Each number is of a process of its own, on one thread, in CPU time, which other work on the machine hardly changes.
Writes results/collecting.md and .json beside this file; runs go to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers.results import FOLDER, origin, table, write

THIN, DRAWS = 50, 3
REPEATS = 2
DIAGNOSTICS = ("DrawCollector", "Online")
"""Callbacks whose work is diagnostics: the draw with its scalars, and the estimates at every step."""
SHORT = ("chain.thin=50", "chain.warmup.steps=2", "chain.burn_in=2", "chain.index=0")
QUICKSTART, RESNET = (
    ("experiment=digits_resnet", "chain.index=null"),
    ("experiment=cifar10_resnet18_sgld", "dataset=digits"),
)
CASES: dict[str, tuple[tuple[str, ...], int]] = {
    "quickstart: 4 stacked chains, 8×8 images": (QUICKSTART, DRAWS),
    "the same with 300 validation images": ((*QUICKSTART, "dataset.validation_size=300"), DRAWS),
    "ResNet-18-FRN, 11.2 M parameters, 8×8 images": (RESNET, 1),
    "the same with 400 validation images": ((*RESNET, "dataset.validation_size=400"), 1),
}
WIDE = ("experiment=digits_resnet", "model.width=64", "chain.warmup.steps=2", "chain.burn_in=2", "chain.thin=1",
        "chain.num_chains=1", "chain.parallel=sequential", "dataset.limit_test=100", "chain.num_draws=100",
        "chain.probe_size=20")  # fmt: skip
"""A net of 0.6 million parameters, 2.4 MB a draw."""
Rows = list[dict[str, Any]]


def sample(overrides: Sequence[str], folder: str, watch: Callable[[Any], None] = lambda _: None) -> dict[str, float]:
    """Draws of a run without their evaluation; `watch` sees the callbacks. Its length in seconds."""
    import torch
    from hydra import compose, initialize_config_dir

    from bayeslora.app.cli import forced
    from bayeslora.app.compose import to_experiment
    from bayeslora.app.config import CONF_DIR
    from bayeslora.engine.runner import ChainRunner
    from bayeslora.runs.directory import RunDirectory

    class Watched(ChainRunner):
        def _callbacks(self, *arguments: Any) -> Any:
            callbacks = super()._callbacks(*arguments)
            for callback in callbacks:
                watch(callback)
            return callbacks

    begun = time.perf_counter()
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        settings = [*overrides, "trainer.num_threads=1", "logger=none", f"run_dir={folder}"]
        cfg = compose("train", overrides=[forced(override) for override in settings])
    run = RunDirectory(cfg.run_dir)
    setup = to_experiment(cfg, run).identified(run)
    run.open(dict(setup.record), setup.fingerprint, setup.fixed)
    torch.set_num_threads(1)
    Watched(setup, run).run_all(setup.chain.chosen)
    return {"seconds": time.perf_counter() - begun}


def collect(overrides: Sequence[str], draws: int) -> dict[str, float]:
    """What diagnostics cost from the end of burn-in to the last draw, of one chain or stack: seconds and shares."""
    spent: Counter[str] = Counter()
    marks: list[dict[str, float]] = []

    def timed(name: str, hook: Callable[..., None]) -> Callable[..., None]:
        def run(trainer: Any, module: Any, *arguments: Any) -> None:
            cpu, wall = time.process_time(), time.perf_counter()
            hook(trainer, module, *arguments)
            spent[f"{name} cpu"] += time.process_time() - cpu  # type: ignore[assignment]
            spent[f"{name} wall"] += time.perf_counter() - wall  # type: ignore[assignment]
            if name == "Timing" and module.steps_taken in (module.plan.burnt_in, module.plan.total):
                marks.append(dict(spent) | {"cpu": time.process_time(), "wall": time.perf_counter()})

        return run

    def watch(callback: Any) -> None:
        callback.on_train_batch_end = timed(type(callback).__name__, callback.on_train_batch_end)

    with tempfile.TemporaryDirectory() as folder:
        sample([*overrides, f"chain.num_draws={draws}"], f"{folder}/run", watch)
    found = {key: marks[1][key] - marks[0][key] for key in marks[0]}
    diagnostics = {kind: sum(found[f"{name} {kind}"] for name in DIAGNOSTICS) for kind in ("cpu", "wall")}
    return {f"{kind} share": diagnostics[kind] / (found[kind] - diagnostics[kind]) for kind in diagnostics} | {
        "seconds between draws": (found["cpu"] - diagnostics["cpu"]) / draws,
        "seconds a draw": found["DrawCollector cpu"] / draws,
        "seconds online": found["Online cpu"] / draws,
    }


def evaluated(folder: str) -> dict[str, float]:
    """Evaluate a run: peak memory in MB, and CPU seconds in all and but for the predictions."""
    from bayeslora import evaluate
    from bayeslora.evaluation import predictions

    asked: list[float] = []

    def timed(*arguments: Any, predict: Any = predictions.predict) -> Any:
        before = time.process_time()
        found = predict(*arguments)
        asked.append(time.process_time() - before)
        return found

    predictions.predict = timed
    sys.argv = ["evaluate.py", f"run_dir={folder}"]
    begun = time.process_time()
    try:
        evaluate.main()
    except SystemExit as end:
        if end.code:
            raise
    taken = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak": peak, "seconds": taken, "report": taken - sum(asked)}


def apart(part: str, *arguments: Any) -> dict[str, float]:
    """Call `collect` or `evaluated` in a process of its own, on one thread."""
    command = [sys.executable, __file__, "--part", part, json.dumps(arguments)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads(ended.stdout.splitlines()[-1])


def cut(run: Path, copy: Path, draws: int) -> Path:
    """A copy of a run with the first so many draws of each chain."""
    shutil.copytree(run, copy)
    for manifest in copy.glob("chains/*/manifest.jsonl"):
        manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:draws]))
    return copy


def costs(cifar: Path | None) -> Rows:
    """What a draw costs beside the steps before it."""
    cases = dict(CASES)
    if cifar is not None:
        cases["ResNet-18-FRN, CIFAR-10, 32×32 images"] = ((RESNET[0], f"dataset.path={cifar}"), 1)
    return [{"case": name} | apart("collect", [*SHORT, *own], draws) for name, (own, draws) in cases.items()]


def memory(_: Path | None) -> Rows:
    """Peak memory of evaluations of the same run with 10 and with 100 draws."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        apart("sample", WIDE, str(run))
        size = sum(file.stat().st_size for file in run.glob("chains/0/draws/*")) / 2**20
        return [
            {"draws": draws, "size": size * draws / 100}
            | apart("evaluated", str(cut(run, Path(folder) / f"{draws}-{repeat}", draws)))
            for repeat in range(REPEATS)
            for draws in (10, 100)
        ]


def report(_: Path | None) -> Rows:
    """Time and size of the report of many draws."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        apart(
            "sample", ("experiment=digits_resnet", "chain.num_draws=100", "chain.thin=2", "chain.burn_in=2"), str(run)
        )
        found = apart("evaluated", str(run))
        return [found | {"draws": 400, "html": (run / "report" / "index.html").stat().st_size / 2**20}]


def costs_table(rows: Rows) -> str:
    keys = ("seconds between draws", "seconds a draw", "seconds online")
    lines = [
        [row["case"], *(f"{row[key]:.2f}" for key in keys), f"{row['cpu share']:.1%}", f"{row['wall share']:.1%}"]
        for row in rows
    ]
    return table(["run", "50 steps (s)", "a draw (s)", "online (s)", "diagnostics / steps, CPU", "wall"], lines)


def memory_table(rows: Rows) -> str:
    sizes = {row["draws"]: row["size"] for row in rows}
    peaks = {draws: " / ".join(f"{row['peak']:.0f}" for row in rows if row["draws"] == draws) for draws in sizes}
    lines = [[f"{draws}", f"{sizes[draws]:.0f}", peaks[draws]] for draws in sizes]
    return table(["draws", "MB on disk", f"peak MB of {REPEATS} processes"], lines)


def report_table(rows: Rows) -> str:
    lines = [[str(r["draws"]), f"{r['seconds']:.1f}", f"{r['report']:.1f}", f"{r['html']:.2f}"] for r in rows]
    return table(["draws", "evaluate, whole (s)", "of it all but predictions (s)", "index.html (MB)"], lines)


SECTIONS: dict[str, tuple[str, Callable[[Path | None], Rows], Callable[[Rows], str]]] = {
    "costs": (
        f"""A draw every {THIN} steps. "A draw" is all that keeping one costs: its scalars on the probe set (and on the
validation set), norms, projections, and the file; "online" the running estimates at each of the {THIN} steps. CPU
seconds of one thread; {DRAWS} draws of the quickstart, the first one of ResNet-18 with all that it sets up. On 8×8
images a step of ResNet-18 costs a sixteenth of one on CIFAR, so that what does not depend on images (norms,
projections, 45 MB to write) weighs sixteen times as much.""",
        costs,
        costs_table,
    ),
    "memory": ("Evaluating a run of one chain, its draws read one at a time.", memory, memory_table),
    "report": ("Evaluating four chains of 100 draws, on one thread; the imports are in it.", report, report_table),
}


def main() -> None:
    """Measure the sections asked for, or one part in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    parser.add_argument("--part", nargs=2)
    parser.add_argument("--cifar", type=Path)
    arguments = parser.parse_args()
    if arguments.part:
        part, values = arguments.part
        parts = {"sample": sample, "collect": collect, "evaluated": evaluated}
        print("\n" + json.dumps(parts[part](*json.loads(values))))
        return
    begun = time.perf_counter()
    kept = FOLDER / "collecting.json"
    for name in arguments.sections or SECTIONS:
        found = [{"section": name} | row for row in SECTIONS[name][1](arguments.cifar)]
        others: Rows = json.loads(kept.read_text())["rows"] if kept.exists() else []
        rows = [row for row in others if row["section"] != name] + found
        text = ["# What diagnostics cost"]
        for section, (words, _, _) in SECTIONS.items():
            text += [words, tabled(section, rows)] if any(row["section"] == section for row in rows) else []
        write("collecting", "\n\n".join(text), rows, origin((), time.perf_counter() - begun))
        print(tabled(name, rows))


def tabled(name: str, rows: Rows) -> str:
    return SECTIONS[name][2]([row for row in rows if row["section"] == name])


if __name__ == "__main__":
    main()
