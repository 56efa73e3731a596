"""Four chains as SLURM jobs that share one run directory, beside the same four one after the other.

    benchmarks/slurm/slurm.sh start                                        (Debian, as root; or a cluster that is there)
    SLURM_CONF=… python benchmarks/slurm/check.py --out FOLDER
    benchmarks/slurm/slurm.sh stop

Then one chain whose steps take so long that its job meets its time limit, once or more: submitit puts it back into the
queue, where it goes on from its resume point. Both have to end with the draws of the runs that SLURM had no part in.
Writes benchmarks/results/slurm.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning import Callback

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peers.results import table

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "slurm.md"
TINY = (
    "experiment=quickstart", "sampler=sgld", "sampler.lr=0.01", "size=smoke", "logger=none", "chain.num_draws=10",
    "chain.parallel=sequential", "chain.resume_every=1e9", "trainer.num_threads=1",
)  # fmt: skip
"""14 steps a chain; a resume point is written only when the time limit comes near."""
SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=3")
LIMITED = ("hydra.launcher.timeout_min=5", "hydra.launcher.signal_delay_s=30", "hydra.launcher.max_num_timeout=10")
SECONDS_A_STEP = 25.0
"""14 of them, and the start of a process, take longer than the limit."""
TEXT = """# Chains as SLURM jobs

`benchmarks/slurm/check.py` on {slurm} (one node, {cpus} CPUs, started by `benchmarks/slurm/slurm.sh`), {versions},
Python {python}; all jobs with `hydra/launcher=submitit_slurm`.

TABLE

The second job gets SIGUSR2 before its limit, ends the step it is in, writes its resume point and hands the signal to
submitit, which puts it back into the queue; `chain.resume_every` is too long for any other resume point to be written.
A node without accounting has no `sacct`, of which submitit warns; it then watches for the files with the results.
"""


class Slow(Callback):
    """Sleeps after every step."""

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(SECONDS_A_STEP)


def train(*arguments: str) -> None:
    """Run the training command."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-m", "bayeslora.train", *arguments], check=True, env=environment)


def digest(run: Path, chain: int) -> str:
    """SHA-256 of a chain's draws, one after the other."""
    files = sorted((run / "chains" / str(chain) / "draws").glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def jobs(run: Path) -> list[str]:
    """What the jobs of a run wrote to their standard error, in which submitit notes requeueing."""
    return [log.read_text() for log in sorted((run / ".submitit").glob("*/*_log.err"))]


def slurm_version() -> str:
    return subprocess.run(["sinfo", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs")
    out = parser.parse_args().out.resolve()
    alone, together, limited = out / "sequential", out / "slurm", out / "limited"
    chains = ("chain.num_chains=4",)
    train(*TINY, *chains, f"run_dir={alone}")  # chains that are there already are kept
    train("-m", *TINY, *chains, *SLURM, "chain.index=0,1,2,3", f"run_dir={together}")
    slow = ("callbacks.slow._target_=check.Slow", "chain.index=0", f"run_dir={limited}")
    train("-m", *TINY, *chains, *SLURM, *LIMITED, *slow)
    requeued = sum(log.count("Requeued job") for log in jobs(limited))
    equal = [digest(alone, chain) == digest(together, chain) for chain in range(4)]
    same = int(digest(alone, 0) == digest(limited, 0))
    draws = len(list((alone / "chains" / "0" / "draws").glob("*.safetensors")))
    versions = ", ".join(f"{name} {version(name)}" for name in ("submitit", "hydra-submitit-launcher", "torch"))
    rows = [
        ["four jobs, `chain.index=0,1,2,3`, one run directory", "4", f"{draws}", "0", f"{sum(equal)} of 4"],
        ["a job with a limit of five minutes", "1", f"{draws}", f"{requeued}", f"{same} of 1"],
    ]
    heading = ["what", "chains", "draws each", "jobs put back", "equal to chains run in a row, bit for bit"]
    text = TEXT.format(slurm=slurm_version(), cpus=os.cpu_count(), python=platform.python_version(), versions=versions)
    RESULTS.write_text(text.replace("TABLE", table(heading, rows)))
    print(RESULTS.read_text())
    sys.exit(0 if all(equal) and same and requeued else 1)


if __name__ == "__main__":
    main()
