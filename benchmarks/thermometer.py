"""What the thermometer costs: CPU time in it over that of all sampling, at a draw every 40 steps.

python benchmarks/thermometer.py            writes benchmarks/results/thermometer.md
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from bayeslora.app.compose import to_experiment
from bayeslora.app.config import CONF_DIR
from bayeslora.engine.callbacks.thermometer import Thermometer
from bayeslora.engine.pipeline import prepared
from bayeslora.engine.runner import ChainRunner
from bayeslora.runs.directory import RunDirectory
from bayeslora.runs.provenance import provenance

LIMIT = 0.03
RUNS = {
    "residual network, 4 stacked chains, batch 256": ("experiment=digits_resnet",),
    "the same, chains one by one": ("experiment=digits_resnet", "chain.parallel=sequential", "chain.num_chains=1"),
    "MLP, 4 stacked chains, full batch": ("experiment=quickstart", "sampler.lr=0.01", "sampler.momentum=0.9"),
}
SHORT = (
    "logger=none", "chain.warmup.steps=5", "chain.burn_in=5", "chain.num_draws=20", "chain.thin=40",
    "trainer.num_threads=1", "callbacks.progress=null",
)  # fmt: skip


def share(*overrides: str) -> float:
    """Share of a run's CPU time that goes into the thermometer's readings."""
    spent, read = [0.0], Thermometer.draw_scalars

    def timed(self: Thermometer, *arguments: Any) -> Any:
        start = time.process_time()
        found = read(self, *arguments)
        spent[0] += time.process_time() - start
        return found

    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(CONF_DIR, version_base="1.3"):
        cfg = compose("train", overrides=[*overrides, *SHORT, f"run_dir={folder}/run"])
        run = RunDirectory(cfg.run_dir)
        experiment = prepared(to_experiment(cfg, run), run)
        Thermometer.draw_scalars = timed  # type: ignore[method-assign]
        try:
            start = time.process_time()
            ChainRunner(experiment, run).run_all(experiment.chain.chosen)
            return spent[0] / (time.process_time() - start)
        finally:
            Thermometer.draw_scalars = read  # type: ignore[method-assign]


def main() -> None:
    found = {name: share(*overrides) for name, overrides in RUNS.items()}
    lines = ["| run | share of CPU time | at most 3 % |", "|---|---|---|"]
    lines += [f"| {name} | {value:.1%} | {'yes' if value <= LIMIT else 'no'} |" for name, value in found.items()]
    about = provenance()
    where = f"{about['hardware']}; torch {about['versions']['torch']}; commit {about['commit']}"
    text = "# The thermometer's cost\n\n" + "\n".join(lines) + f"\n\n`python benchmarks/thermometer.py`. {where}.\n"
    (Path(__file__).parent / "results" / "thermometer.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
