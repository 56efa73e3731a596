"""The datasets: which are here, where, and how to get the others. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bayeslora.app.choices import choice
from bayeslora.doctor.finding import Check, Finding, Status, ok, warning
from bayeslora.factories import settings_of

Make = Callable[..., Any]
Look = Callable[[str, Make, "Path | None"], Finding]
"""The line of a dataset, from its name, its factory and the folder in which it may lie."""


def datasets(data: Path | None = None) -> Iterator[Finding]:
    """Which datasets of `conf/dataset` that have to be fetched are here: a line for those that are, one for each other.

    Args:
        data: a folder with datasets under their names (`cifar10/`, `mrpc/`, …); None: only where downloads go.
    """
    here = []
    for name, look in LOOKS.items():
        folder = None if data is None or not (data / name).is_dir() else data / name
        for finding in Check(f"dataset {name}", partial(_found, look, name, folder)).run():
            if finding.status is Status.OK:
                here.append(f"{name} {finding.message}")
            else:
                yield finding
    yield ok("dataset", "; ".join([*here, "digits comes with the installation; your own files: dataset.path=…"]))


def _found(look: Look, name: str, folder: Path | None) -> Iterator[Finding]:
    yield look(name, choice("dataset", name), folder)


def _cifar(name: str, make: Make, folder: Path | None) -> Finding:
    """Images in a folder, or where downloads go, packed or unpacked."""
    from bayeslora.cache import data_folder

    if folder is not None:
        make(path=str(folder))  # reads footers, raises on what does not belong there
        return ok(f"dataset {name}", f"in {folder}: dataset.path={folder}")
    dataset, home = make(), data_folder()
    if (home / dataset.folder).is_dir():
        make(path=str(home))
        return ok(f"dataset {name}", f"in {home / dataset.folder}, where it is found without dataset.path")
    if (home / dataset.archive).is_file():
        return ok(f"dataset {name}", f"packed in {home / dataset.archive}; the first run unpacks it")
    return warning(
        f"dataset {name}",
        "not here",
        f"dataset.path=FOLDER that holds {dataset.folder}/ or the hub's parquet files; or put {dataset.archive} into"
        f" {home}; without either the first run tries to download it",
    )


def _glue(name: str, make: Make, folder: Path | None) -> Finding:
    """Texts in a folder, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    from bayeslora.datasets.glue import find_files

    settings = settings_of(make)
    task, hub = settings["task"], settings["hub"]
    files = None if folder is None else find_files(folder, task)
    if files is not None:
        return ok(f"dataset {name}", f"{task} in {folder}: dataset.path={folder}")
    file = f"{task}/train-00000-of-00001.parquet"
    cached = try_to_load_from_cache(hub, file, repo_type="dataset")
    if isinstance(cached, str):
        return ok(f"dataset {name}", f"{task} in the hub's cache, {Path(cached).parent}")
    return warning(
        f"dataset {name}",
        f"{task} is not here",
        "dataset.path=FOLDER with train-*.parquet and validation-*.parquet, or train.tsv and dev.tsv; without it the"
        f" first run downloads {hub} from the Hugging Face hub",
    )


LOOKS: dict[str, Look] = {"cifar10": _cifar, "cifar100": _cifar, "glue": _glue, "mrpc": _glue}
"""Datasets that have to be fetched."""
