"""What a researcher would vendor imports no Hydra, Lightning or transformers; only `app/` knows configurations."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import bayeslora

HEAVY = ("hydra", "omegaconf", "lightning", "transformers", "peft")
PARTS = (
    "settings", "potential", "likelihood", "rng", "errors", "atomic", "cache", "codec", "factories", "experiment",
    "compatibility", "parts", "runs.identity",
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


def test_no_file_imports_itself_by_a_detour() -> None:
    """Also for types alone; imports within functions are no part of it."""
    package = Path(bayeslora.__file__).parent
    files = {
        ".".join(("bayeslora", *f.relative_to(package).with_suffix("").parts)).removesuffix(".__init__"): f
        for f in package.rglob("*.py")
    }
    graph = {name: set(needed(file, files)) - {name} for name, file in files.items()}
    assert sum(map(len, graph.values())) > 500
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_files_and_functions_are_of_a_size_to_read() -> None:
    package = Path(bayeslora.__file__).parent
    for file in package.rglob("*.py"):
        text = file.read_text()
        assert text.count("\n") <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, node.name


def needed(file: Path, files: Iterable[str]) -> list[str]:
    """The modules of this package that a file imports as it is imported itself, or for types."""
    tree = ast.parse(file.read_text())
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.If))]
    modules = [n for body in bodies for n in body if isinstance(n, ast.ImportFrom)]
    names = [(f"{node.module}.{one.name}", str(node.module)) for node in modules for one in node.names]
    return [name if name in files else module for name, module in names if name in files or module in files]


def imported(file: Path) -> set[str]:
    """The packages that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names}
