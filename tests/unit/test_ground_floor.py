"""What a researcher would vendor: the parts under the application import neither Hydra, Lightning nor transformers."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("hydra", "omegaconf", "lightning", "transformers", "peft")
PARTS = (
    "samplers", "laws.checks", "laws.simulate", "laws.targets", "potential", "likelihood", "settings", "rng", "errors",
    "chain.chain", "chains.plan", "chains.stack", "chains.snapshot", "diagnostics.metrics", "diagnostics.calibration",
    "diagnostics.uncertainty", "diagnostics.convergence", "diagnostics.online", "diagnostics.reference", "posterior",
    "identity", "fit", "experiment",
)  # fmt: skip
CODE = """
import importlib, sys
for part in sys.argv[2].split():
    importlib.import_module(f"bayeslora.{part}")
    found = [name for name in sys.argv[1].split() if name in sys.modules]
    if found:
        sys.exit(f"bayeslora.{part} imports {', '.join(found)}")
"""


def test_no_part_of_the_ground_floor_imports_the_application() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CODE, " ".join(HEAVY), " ".join(PARTS)], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
