"""What a researcher would vendor: the parts under the application import neither Hydra, Lightning nor transformers."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("hydra", "omegaconf", "lightning", "transformers", "peft")
PARTS = (
    "settings", "potential", "likelihood", "rng", "errors", "atomic", "cache", "codec", "factories", "experiment",
    "compatibility", "runs.identity",
)  # fmt: skip
ROOMS = ("samplers", "laws", "chain", "posterior", "diagnostics")
CODE = """
import importlib, pkgutil, sys
parts = sys.argv[2].split()
for room in sys.argv[3].split():
    package = importlib.import_module(f"bayeslora.{room}")
    parts += [f"{room}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
for part in parts:
    importlib.import_module(f"bayeslora.{part}")
    found = [name for name in sys.argv[1].split() if name in sys.modules]
    if found:
        sys.exit(f"bayeslora.{part} imports {', '.join(found)}")
"""


def test_no_part_of_the_ground_floor_imports_the_application() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CODE, *map(" ".join, (HEAVY, PARTS, ROOMS))], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
