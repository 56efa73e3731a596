"""Every key of `conf/` says what it means: on its line, or in the file that it inherits from."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from bayeslora.app.config import CONF_DIR
from tests.cases import each

CONF = Path(CONF_DIR)
FILES = sorted(file for file in CONF.rglob("*.yaml") if file.parent.name != "experiment")
LINE = re.compile(r"^( *)([\w.]+):(.*)$")


def leaves(file: Path) -> dict[str, bool]:
    """The dotted keys of a file that have a value, and whether their line has a comment."""
    found, parents = {}, []
    for line in file.read_text().splitlines():
        if not (match := LINE.match(line)):
            continue
        indent, key, rest = len(match[1]), match[2], match[3]
        parents = [(depth, name) for depth, name in parents if depth < indent]
        value, hash_sign, _ = f" {rest}".partition(" #")
        path = ".".join([*(name for _, name in parents), key])
        if not value.strip():
            parents.append((indent, key))
        elif not key.startswith("_") and path.split(".")[0] != "defaults":
            found[path] = bool(hash_sign)
    return found


def bases(file: Path) -> list[tuple[Path, str]]:
    """The files that a file of a group inherits from, and where in it they are put."""
    found = []
    for entry in (yaml.safe_load(file.read_text()) or {}).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            found.append((file.parent / f"{entry}.yaml", ""))
        elif isinstance(entry, dict) and "@" in (place := next(iter(entry))):
            group, _, package = place.removeprefix("override ").partition("@")
            found.append((CONF / group.strip("/") / f"{entry[place]}.yaml", f"{package}."))
    return found


def explained(file: Path) -> set[str]:
    """The keys whose meaning is said in a file or in those that it inherits from."""
    inherited = {prefix + key for base, prefix in bases(file) for key in explained(base)}
    return inherited | {key for key, commented in leaves(file).items() if commented}


@each("file", FILES)
def test_every_key_has_a_comment(file: Path) -> None:
    assert sorted(leaves(file).keys() - explained(file)) == []


@each("file", FILES)
def test_every_file_says_first_what_it_is(file: Path) -> None:
    text = file.read_text().removeprefix("# @package _global_\n")
    assert re.match(r"# \S", text)


def test_a_key_without_a_comment_is_found(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("# a base\na: 1   # metres\ndeep:\n  b: 2   # seconds\n  c: 3\n")
    (tmp_path / "file.yaml").write_text('# a file\ndefaults:\n  - base\na: 2\ndeep:\n  b: 3\n  c: 4\nd: "#"\n')
    assert leaves(tmp_path / "file.yaml").keys() - explained(tmp_path / "file.yaml") == {"deep.c", "d"}
    assert len(FILES) > 50


def test_the_chains_file_inherits_what_its_optimizer_says() -> None:
    assert {"warmup.optimizer.lr", "warmup.optimizer.momentum", "num_draws"} <= explained(CONF / "chain" / "cifar.yaml")
