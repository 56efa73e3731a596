"""Fidelity: how close a run's predictive distribution is to a reference posterior's, on the same examples."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from bayeslora.diagnostics.metrics import refuse_nan
from bayeslora.diagnostics.values import Fidelity
from bayeslora.errors import DataError, Problems, require

KEYS = ("index", "probs", "labels")
WANTED = (
    "an .npz file with index [M], the rows of the split, probs [M, C] and labels [M], the true classes of these rows"
    " (numpy.savez(FILE, index=index, probs=probs, labels=labels))"
)
UNREADABLE = (OSError, ValueError, TypeError, EOFError, KeyError, RuntimeError, MemoryError, BadZipFile, zlib.error)
"""What numpy raises for damaged archives and for files that are none."""

SUM_TOLERANCE = 1e-3
"""By how much a row of probabilities may miss 1 (half precision does by a little less); rows are then normalised."""

Z_LIMIT = 4.0
"""Standard errors beyond which another order of the classes fits better: by chance, 3 in 100,000."""

FEWEST_ROWS = 20
"""Rows without which an order of the classes is not looked for."""


@dataclass(frozen=True)
class Reference:
    """Predictive distribution of a reference posterior, on examples of one split.

    Attributes:
        index: rows of the split [M], int64, each once.
        probs: [M, C], float64; rows sum to 1.
        size: number of examples of the split, N.
    """

    index: Tensor
    probs: Tensor
    size: int


def fidelity(log_probs: Tensor, reference: Reference) -> Fidelity:
    """Fidelity of one predictive distribution: MAP's, a chain's, the ensemble's of so many draws.

    Args:
        log_probs: normalised log-probabilities of the whole split [N, C].
        reference: a reference for that split.

    Raises:
        ConfigError: the shapes do not fit each other.
        DivergedError: a log-probability is NaN.

    Source: Izmailov, Vikram, Hoffman, Wilson (2021), "What are Bayesian neural network posteriors really like?".
    """
    return _summary(*_per_example(log_probs, reference))


class MeanFidelity:
    """Fidelity of the mean single draw, draw by draw; memory does not grow with the number of draws.

    Agreement and total variation are averaged over draws for each example, then over examples; the standard errors are
    over examples, for these draws.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference, self.count = reference, 0
        self._agreement = self._distance = torch.zeros(len(reference.index), dtype=torch.float64)

    def add(self, log_probs: Tensor) -> Fidelity:
        """Take in one draw's log p [N, C] of the whole split; returns this draw's own fidelity."""
        agreement, distance = _per_example(log_probs, self.reference)
        self._agreement, self._distance = self._agreement + agreement, self._distance + distance
        self.count += 1
        return _summary(agreement, distance)

    @property
    def fidelity(self) -> Fidelity:
        """The mean over the draws so far.

        Raises:
            DataError: no draw was added.
        """
        if not self.count:
            raise DataError("the fidelity of single draws needs at least one draw")
        return _summary(self._agreement / self.count, self._distance / self.count)


def load_reference(file: Path | str, targets: Tensor, num_classes: int) -> Reference:
    """Read a reference for a split; one for other images, classes or another order is refused.

    The file holds `index` [M], rows of the split, `probs` [M, C], and `labels` [M], the true classes of its rows, which
    must be the split's: they show that the rows are of these examples, in this order. Classes in another order are
    refused as well: the relabelling that suits every other row best must not suit the remaining rows better than the
    identity does, by more than 4 standard errors.

    Args:
        file: the .npz file; nothing in it is executed.
        targets: true classes of the whole split [N].
        num_classes: number of classes of the run, C.

    Raises:
        DataError: the file is missing or corrupt, or is no reference for this split; the message says what to do.
    """
    file = Path(file)
    arrays, targets = _read(file), targets.cpu().long()
    problems = Problems()
    problems.add(*_index_problems(arrays["index"], len(targets)), *_probs_problems(arrays, num_classes))
    if not problems.messages:
        index = torch.from_numpy(arrays["index"].astype(np.int64))
        probs = torch.from_numpy(arrays["probs"].astype(np.float64))
        reference = Reference(index, probs / probs.sum(1, keepdim=True), len(targets))
        problems.add(*_label_problems(arrays["labels"], targets[index]))
    if not problems.messages:
        problems.add(*_class_order_problems(reference.probs, targets[index]))
    if problems.messages:
        raise DataError(*(f"{file}: {problem}" for problem in problems.messages))
    return reference


def _read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that `KEYS` names."""
    if not file.is_file():
        raise DataError(f"{file} {'is a folder' if file.is_dir() else 'does not exist'}; a reference is {WANTED}")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            names = list(archive)
            arrays = {name: archive[name] for name in KEYS if name in names}
    except UNREADABLE as error:
        raise DataError(f"{file} cannot be read ({error}); a reference is {WANTED}") from error
    missing = [name for name in KEYS if name not in arrays]
    if missing:
        held = ", ".join(names) or "nothing"
        raise DataError(f"{file} holds {held} but not {' and '.join(missing)}; a reference is {WANTED}")
    return {name: np.asarray(array) for name, array in arrays.items()}


def _index_problems(index: np.ndarray, size: int) -> list[str]:
    """What is wrong with the rows a reference names, of a split of `size` examples."""
    if index.ndim != 1 or not len(index) or index.dtype.kind not in "iu":
        return [f"index must be whole numbers [M], M at least 1, not {index.dtype} {list(index.shape)}"]
    problems = []
    outside = (index < 0) | (index >= size)
    if outside.any():
        problems.append(
            f"{outside.sum()} of {len(index)} rows in index are outside 0..{size - 1}, the first is"
            f" {index[outside][0]}: it is a reference for another split, or the split was shortened"
        )
    doubles = len(index) - len(np.unique(index))
    if doubles:
        problems.append(f"index names {doubles} rows more than once; keep each example once")
    return problems


def _probs_problems(arrays: dict[str, np.ndarray], num_classes: int) -> list[str]:
    """What is wrong with a reference's probabilities."""
    probs, rows = arrays["probs"], len(arrays["index"]) if arrays["index"].ndim else 0
    if probs.ndim != 2 or probs.dtype.kind not in "fiu":
        return [f"probs must be real numbers [M, C], not {probs.dtype} {list(probs.shape)}"]
    problems = []
    if len(probs) != rows:
        problems.append(f"index has {rows} rows and probs {len(probs)}; they must name the same examples")
    if probs.shape[1] != num_classes:
        problems.append(f"probs has {probs.shape[1]} classes and this run {num_classes}: it is for another dataset")
    values = probs.astype(np.float64)
    if not np.isfinite(values).all():
        problems.append("probs holds NaN or infinite values; write the reference again")
    elif values.size and values.min() < 0:
        problems.append("probs holds negative values; it must be probabilities, not their logarithms and not logits")
    elif values.size and np.abs(values.sum(1) - 1).max() > SUM_TOLERANCE:
        worst = values.sum(1)[np.abs(values.sum(1) - 1).argmax()]
        problems.append(f"rows of probs must sum to 1, and one sums to {worst:.6g}; divide each by its sum")
    return problems


def _label_problems(labels: np.ndarray, targets: Tensor) -> list[str]:
    """What is wrong with the labels of a reference's rows, whose true classes are these [M]."""
    if labels.shape != tuple(targets.shape) or labels.dtype.kind not in "iu":
        return [f"labels must be whole numbers [{len(targets)}], not {labels.dtype} {list(labels.shape)}"]
    wrong = int((labels.astype(np.int64) != targets.numpy()).sum())
    if not wrong:
        return []
    return [
        f"its labels differ from the split's in {wrong:,} of {len(targets):,} rows: it is of other images or in another"
        " order; index must name, for each row of probs, the row of this split"
    ]


def _class_order_problems(probs: Tensor, targets: Tensor) -> list[str]:
    """Whether other names for the classes, found on every other row, suit the remaining rows [M, C] clearly better."""
    from scipy.optimize import linear_sum_assignment

    if len(targets) < FEWEST_ROWS:
        return []
    support = torch.zeros(probs.shape[1], probs.shape[1], dtype=probs.dtype)
    support.index_add_(0, targets[::2], probs[::2])
    renamed = torch.from_numpy(linear_sum_assignment(support.numpy(), maximize=True)[1])
    rest, truth = probs[1::2], targets[1::2]
    gain = (rest.gather(1, renamed[truth][:, None]) - rest.gather(1, truth[:, None])).squeeze(1)
    if gain.mean() <= Z_LIMIT * gain.std() / math.sqrt(len(gain)):
        return []
    moved = [f"{old} where this run has {new}" for new, old in enumerate(renamed.tolist()) if old != new]
    return [
        f"its classes are in another order: it has class {', '.join(moved[:3])}{', …' * (len(moved) > 3)};"
        " put the columns of probs in the run's order of classes"
    ]


def _per_example(log_probs: Tensor, reference: Reference) -> tuple[Tensor, Tensor]:
    """Whether the top class is the reference's, and the total variation, each [M], float64."""
    expected = [reference.size, reference.probs.shape[1]]
    given = list(log_probs.shape)
    require(given == expected, f"the reference is for predictions {expected} of the whole split, not {given}")
    probs = log_probs.cpu()[reference.index].double().exp()
    refuse_nan(probs)
    agreement = (probs.argmax(1) == reference.probs.argmax(1)).double()
    return agreement, (probs - reference.probs).abs().sum(1) / 2


def _summary(agreement: Tensor, distance: Tensor) -> Fidelity:
    """Means of per-example values [M] and their standard errors."""

    def error(values: Tensor) -> float | None:
        return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None

    return Fidelity(agreement.mean().item(), error(agreement), distance.mean().item(), error(distance))
