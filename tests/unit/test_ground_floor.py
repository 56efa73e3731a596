"""What a researcher would vendor imports no Hydra, Lightning or transformers; only `app/` knows configurations."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import bayeslora

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


def test_only_the_door_imports_omegaconf_and_hydra() -> None:
    """Also in functions, and for types alone: no other file can name a configuration object."""
    package = Path(bayeslora.__file__).parent
    outside = [file for file in package.rglob("*.py") if (package / "app") not in file.parents]
    assert len(outside) > 100
    assert [str(file.relative_to(package)) for file in outside if {"omegaconf", "hydra"} & imported(file)] == []


def imported(file: Path) -> set[str]:
    """The packages that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names}
