"""Names say what things are, and no two things of the package share one."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import bayeslora
from tests.cases import each

PACKAGE = Path(bayeslora.__file__).parent
TESTS = Path(__file__).parents[1]
VAGUE = {
    "build", "fit", "recorded", "files", "usage", "examples", "tables", "sources",
    "found", "said", "known", "told", "made",
}  # fmt: skip
"""Words that do not say of what, or what is done with it."""
OF_MANY = {"main": "what each command's module runs: `python -m bayeslora.train`"}
"""Public names that several modules define, with the reason."""
Defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@cache
def modules() -> dict[str, ast.Module]:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 150
    return {str(file.relative_to(PACKAGE)): ast.parse(file.read_text()) for file in files}


def definitions(tree: ast.AST) -> Iterator[str]:
    yield from (node.name for node in ast.iter_child_nodes(tree) if isinstance(node, Defined))


def several(places: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: files for name, files in places.items() if len(files) > 1}


@each(("files", "often"), [(PACKAGE, {"__init__"}), (TESTS, {"__init__", "conftest"})])
def test_no_two_modules_have_the_same_file_name(files: Path, often: set[str]) -> None:
    places = defaultdict(list)
    for file in files.rglob("*.py"):
        places[file.stem].append(str(file))
    assert len(places) > 70
    assert several(places).keys() == often


def test_no_two_modules_define_the_same_public_function_or_class() -> None:
    places = defaultdict(list)
    for file, tree in modules().items():
        for name in definitions(tree):
            if not name.startswith("_"):
                places[name].append(file)
    assert len(places) > 500
    assert {name: files for name, files in several(places).items() if name not in OF_MANY} == {}
    assert several(places).keys() >= OF_MANY.keys()  # an exception that is none any more goes


def test_no_module_function_or_class_has_a_vague_name() -> None:
    """Private ones and methods neither."""
    named = [(file, Path(file).stem) for file in modules()]
    named += [(file, name) for file, tree in modules().items() for node in ast.walk(tree) for name in definitions(node)]
    assert [(file, name) for file, name in named if name.strip("_") in VAGUE] == []
