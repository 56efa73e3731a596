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
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peers.results import table

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "slurm.md"
TINY = (
    "experiment=digits_resnet", "sampler=sgld", "sampler.lr=0.01", "size=smoke", "logger=none", "chain.num_draws=10",
    "chain.parallel=sequential", "chain.resume_every=1e9", "trainer.num_threads=1",
)  # fmt: skip
"""14 steps a chain; a resume point is written only when the time limit comes near."""
SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=3")
LIMITED = ("hydra.launcher.timeout_min=5", "hydra.launcher.signal_delay_s=30", "hydra.launcher.max_num_timeout=10")
TEXT = """# Chains as SLURM jobs

`benchmarks/slurm/check.py` on {slurm} (one node, {cpus} CPUs, started by `benchmarks/slurm/slurm.sh`),
{versions}, Python {python}; all jobs with `hydra/launcher=submitit_slurm`.

TABLE

The second job gets SIGUSR2 before its limit, ends the step it is in, writes its resume point and hands the signal to
submitit, which puts it back into the queue; `chain.resume_every` is too long for any other resume point to be written.
A node without accounting has no `sacct`, of which submitit warns; it then watches for the files with the results.
"""


def train(*arguments: str) -> None:
    """Run the training command."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-m", "bayeslora.train", *arguments], check=True, env=environment)


def digest(run: Path, chain: int) -> str:
    """SHA-256 of a chain's draws, one after the other."""
    files = sorted((run / "chains" / str(chain) / "draws").glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def requeues(run: Path) -> int:
    """How often submitit put the jobs of a run back into the queue, by what they wrote."""
    logs = [log.read_text() for log in (run / ".submitit").glob("*/*_log.out")]
    return sum(len(re.findall(r"^submitit INFO .* Requeued job", log, re.MULTILINE)) for log in logs)


def slurm_version() -> str:
    return subprocess.run(["sinfo", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def run_all(out: Path) -> None:
    """The runs themselves; chains that are there already are kept."""
    chains = ("chain.num_chains=4",)
    train(*TINY, *chains, f"run_dir={out / 'sequential'}")
    train("-m", *TINY, *chains, *SLURM, "chain.index=0,1,2,3", f"run_dir={out / 'slurm'}")
    slow = ("callbacks.slow._target_=slow.Slow", "chain.index=0", f"run_dir={out / 'limited'}")
    train("-m", *TINY, *chains, *SLURM, *LIMITED, *slow)


def report(out: Path) -> bool:
    """Compare the runs and write down what was found; whether all is as it should be."""
    alone, together, limited = out / "sequential", out / "slurm", out / "limited"
    equal = sum(digest(alone, chain) == digest(together, chain) for chain in range(4))
    same, requeued = int(digest(alone, 0) == digest(limited, 0)), requeues(limited)
    draws = len(list((alone / "chains" / "0" / "draws").glob("*.safetensors")))
    versions = ", ".join(f"{name} {version(name)}" for name in ("submitit", "hydra-submitit-launcher", "torch"))
    rows = [
        ["four jobs, `chain.index=0,1,2,3`, one run directory", "4", f"{draws}", "0", f"{equal} of 4"],
        ["a job with a limit of five minutes", "1", f"{draws}", f"{requeued}", f"{same} of 1"],
    ]
    heading = ["what", "chains", "draws each", "jobs put back", "equal to chains run in a row, bit for bit"]
    text = TEXT.format(slurm=slurm_version(), cpus=os.cpu_count(), python=platform.python_version(), versions=versions)
    RESULTS.write_text(text.replace("TABLE", table(heading, rows)))
    print(RESULTS.read_text())
    return equal == 4 and same == 1 and requeued > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs")
    out = parser.parse_args().out.resolve()
    run_all(out)
    sys.exit(0 if report(out) else 1)


if __name__ == "__main__":
    main()
