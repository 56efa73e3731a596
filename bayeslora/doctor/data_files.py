"""The datasets: which are here, where, and how to get the others. Nothing is downloaded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bayeslora.doctor.experiments import choice, options
from bayeslora.doctor.finding import Check, Finding, ok, warning
from bayeslora.factories import settings_of

Make = Callable[..., Any]
Look = Callable[[str, Make, "Path | None"], Finding]
"""The line of a dataset, from its name, its factory and the folder in which it may lie."""


def datasets(data: Path | None = None, *, quick: bool = False) -> Iterator[Finding]:
    """The state of every dataset of `conf/dataset`.

    Args:
        data: a folder with datasets under their names (`cifar10/`, `mrpc/`, …); None: only where downloads go.
        quick: leave out what takes long to import.
    """
    for name in options("dataset"):
        if quick and name == "hub":
            continue
        yield from Check(f"dataset {name}", partial(_dataset, name, data)).run()


def _dataset(name: str, data: Path | None) -> Iterator[Finding]:
    """The line of one dataset."""
    make = choice("dataset", name)
    if name in MADE_UP:
        yield _own(name, make)
    elif name in LOOKS:
        yield LOOKS[name](name, make, None if data is None or not (data / name).is_dir() else data / name)
    else:
        yield _installed(name, make)


def _own(name: str, make: Make) -> Finding:
    """A dataset that reads files of the user's: it reads a made-up one."""
    what, write = MADE_UP[name]
    with tempfile.TemporaryDirectory() as made:
        data = make(path=str(write(Path(made)))).load()
    return ok(
        f"dataset {name}",
        f"reads a made-up {what} ({len(data.train)} + {len(data.test)} examples); yours: dataset.path=…",
    )


def _installed(name: str, make: Make) -> Finding:
    """A dataset that needs no file."""
    data = make().load()
    return ok(f"dataset {name}", f"{len(data.train):,} + {len(data.test):,} examples; they come with the installation")


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


def _csv(folder: Path) -> Path:
    file = folder / "made_up.csv"
    file.write_text("x,y\n" + "".join(f"{row / 10},{'ab'[row % 2]}\n" for row in range(20)))
    return file


def _npz(folder: Path) -> Path:
    import numpy as np

    file = folder / "made_up.npz"
    np.savez(file, x=np.arange(40.0).reshape(20, 2), y=np.arange(20) % 2)
    return file


def _images(folder: Path) -> Path:
    from PIL import Image

    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in range(5):
            Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(folder / name / f"{number}.png")
    return folder


MADE_UP: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "csv": ("table", _csv),
    "npz": ("file of arrays", _npz),
    "imagefolder": ("folder of images", _images),
    "hub": ("folder of images", _images),
}
"""Datasets of the user's own files: what they read, and what writes such files in an empty folder."""

LOOKS: dict[str, Look] = {"cifar10": _cifar, "cifar100": _cifar, "glue": _glue, "mrpc": _glue}
"""Datasets that have to be fetched."""
