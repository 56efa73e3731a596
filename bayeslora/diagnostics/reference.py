"""Fidelity: how close a run's predictive distribution is to a reference posterior's, on the same examples."""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from bayeslora.errors import DataError, DivergedError, Problems, require

KEYS = ("index", "probs", "labels", "targets")
WANTED = "an .npz file with index [M] and probs [M, C] (numpy.savez(FILE, index=index, probs=probs))"
UNREADABLE = (OSError, ValueError, TypeError, EOFError, KeyError, RuntimeError, MemoryError, BadZipFile, zlib.error)
"""What numpy raises for damaged archives and for files that are none."""

SUM_TOLERANCE = 1e-3
"""By how much a row of probabilities may miss 1 (half precision does by a little less); rows are then normalised."""

REMEDY = (
    "index must name, for each row of probs, the row of this split; a reference that is right as it is will be accepted"
    " with the true classes of its rows in labels [M]"
)

Z_LIMIT = 4.0
"""Standard errors beyond which an order is told from another: by chance, 3 in 100,000."""

PIECES, SMALLEST_PIECE = 10, 100
"""The order is checked in up to so many consecutive pieces of the file, of at least so many rows each."""

FEWEST_ROWS = 20
"""Rows without which an order of the classes is not looked for."""


@dataclass(frozen=True)
class Reference:
    """Predictive distribution of a reference posterior, on examples of one split.

    Attributes:
        index: rows of the split [M], int64, each once.
        probs: [M, C], float64; rows sum to 1.
        size: number of examples of the split, N.
        evidence: in words, how the rows were checked to be these examples.
    """

    index: Tensor
    probs: Tensor
    size: int
    evidence: str


@dataclass(frozen=True)
class Fidelity:
    """Agreement with a reference; standard errors are over examples, None where there is only one.

    Attributes:
        agreement, agreement_se: fraction of examples whose most probable class is the reference's.
        total_variation, total_variation_se: mean over examples of ½ Σ_c |p_c − q_c|, in [0, 1]; 0 is equality.
    """

    agreement: float
    agreement_se: float | None
    total_variation: float
    total_variation_se: float | None

    def to_json(self) -> dict[str, float | None]:
        """The fields as `metrics.json` holds them."""
        return asdict(self)


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

    The file holds `index` [M], rows of the split, and `probs` [M, C]. With `labels` (or `targets`) [M], the true
    classes of its rows, it belongs to the split if these are the split's. Without them it must show that it does:

    - *Other images, or all in another order.* Hits (top class = the split's label) are compared with their mean and
      standard deviation over all orders of the rows, given how often each class is predicted and true: they must lie
      more than 4 standard deviations above. No accuracy is asked for: 12 % of 5,000 examples of ten classes passes.
    - *Many rows wrong.* Hits must also come half way from chance to what the reference's own probabilities expect, or
      within 4 standard deviations of that. A weak reference expects little of itself, so it passes.
    - *Out of step from some row on.* None of up to ten consecutive pieces (of 100 rows or more, no class more than half
      of it) may have hits within 4 standard deviations of chance, where the piece's own probabilities, 4 of their
      standard deviations down, expect more.

    Fewer than half of the rows wrong, strewn among the right ones, are not noticed. A reference that is right but so
    weak, so short or so overconfident that it fails is told to bring its labels.

    With labels or without, classes in another order are refused: the relabelling that suits every other row best must
    not suit the remaining rows better than the identity does, by more than 4 standard errors.

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
    if problems.found:
        raise DataError(*(f"{file}: {problem}" for problem in problems.found))
    index = torch.from_numpy(arrays["index"].astype(np.int64))
    probs = torch.from_numpy(arrays["probs"].astype(np.float64))
    reference = Reference(index, probs / probs.sum(1, keepdim=True), len(targets), "")
    given = next((arrays[name] for name in ("labels", "targets") if name in arrays), None)
    try:
        evidence = _check_order(reference.probs, targets[index], given)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    return replace(reference, evidence=evidence)


def _read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that `KEYS` names; `index` and `probs` are among them."""
    if not file.is_file():
        raise DataError(f"{file} {'is a folder' if file.is_dir() else 'does not exist'}; a reference is {WANTED}")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            names = list(archive)
            arrays = {name: archive[name] for name in KEYS if name in names}
    except UNREADABLE as error:
        raise DataError(f"{file} cannot be read ({error}); a reference is {WANTED}") from error
    missing = [name for name in KEYS[:2] if name not in arrays]
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


def _check_order(probs: Tensor, targets: Tensor, labels: np.ndarray | None) -> str:
    """Say how the rows' probabilities [M, C] were found to belong to examples of these true classes [M], or raise."""
    if labels is not None:
        _compare_labels(labels, targets)
    _check_class_order(probs, targets)
    if labels is not None:
        return f"its labels are those of the split ({len(targets):,} examples)"
    hits = _Hits.of(probs, targets)
    if hits.by_chance:
        raise DataError(
            f"{hits}: it is of other images or in another order, or too weak or too short to tell. {REMEDY}"
        )
    _check_pieces(probs, targets)
    if hits.count < min((hits.chance + hits.expected) / 2, hits.least_expected):
        raise DataError(
            f"{hits}, where its probabilities expect {hits.rate(hits.expected)}: many rows are wrong. {REMEDY}"
        )
    return str(hits)


def _compare_labels(labels: np.ndarray, targets: Tensor) -> None:
    """Raise unless the reference's labels are the split's."""
    if labels.shape != tuple(targets.shape) or labels.dtype.kind not in "iu":
        raise DataError(f"labels must be whole numbers [{len(targets)}], not {labels.dtype} {list(labels.shape)}")
    wrong = int((labels.astype(np.int64) != targets.numpy()).sum())
    if wrong:
        raise DataError(
            f"its labels differ from the split's in {wrong:,} of {len(targets):,} rows: it is of other images or in"
            " another order; index must name, for each row of probs, the row of this split"
        )


@dataclass(frozen=True)
class _Hits:
    """How often the top class is the true one, in a number of rows, and how often it should be.

    Attributes:
        count, rows: hits, and rows in all.
        chance, chance_sd: mean and standard deviation of hits over all orders of the rows.
        expected, expected_sd: the same by the rows' own probabilities.
    """

    count: int
    rows: int
    chance: float
    chance_sd: float
    expected: float
    expected_sd: float

    @classmethod
    def of(cls, probs: Tensor, targets: Tensor) -> _Hits:
        """Hits of probabilities [M, C] at true classes [M]."""
        belief, top = probs.max(1)
        sd = (belief * (1 - belief)).sum().sqrt().item()
        chance = _hits_by_chance(top, targets, probs.shape[1])
        return cls(int((top == targets).sum()), len(targets), *chance, belief.sum().item(), sd)

    @property
    def by_chance(self) -> bool:
        """Whether the rows might be in any order."""
        return self.count <= self.chance + Z_LIMIT * self.chance_sd

    @property
    def least_expected(self) -> float:
        return self.expected - Z_LIMIT * self.expected_sd

    def rate(self, hits: float) -> str:
        return f"{hits / self.rows:.1%}"

    def __str__(self) -> str:
        rate, chance = self.rate(self.count), self.rate(self.chance)
        return f"its top class is the true one for {rate} of {self.rows:,} examples (chance {chance})"


def _hits_by_chance(top: Tensor, targets: Tensor, num_classes: int) -> tuple[float, float]:
    """Mean and standard deviation of Σᵢ 1[topᵢ = targetᵢ] over all orders of the rows, top and target [M].

    Source: Hoeffding (1951), "A combinatorial central limit theorem": with dᵢⱼ = 1[topᵢ = targetⱼ], the mean is
    Σᵢⱼ dᵢⱼ / M and the variance Σᵢⱼ (dᵢⱼ − d̄ᵢ. − d̄.ⱼ + d̄..)² / (M − 1).
    """
    rows = len(targets)
    predicted, true = (torch.bincount(values, minlength=num_classes).double() for values in (top, targets))
    pairs = (predicted * true).sum().item()
    squares = pairs - (predicted * true * (predicted + true)).sum().item() / rows + (pairs / rows) ** 2
    return pairs / rows, math.sqrt(max(squares, 0.0) / max(rows - 1, 1))


def _check_pieces(probs: Tensor, targets: Tensor) -> None:
    """Raise if a piece of the file is right by chance only, though its probabilities [M, C] expect far more."""
    count = max(1, min(PIECES, len(targets) // SMALLEST_PIECE))
    start = 0
    for piece, truth in zip(probs.tensor_split(count), targets.tensor_split(count), strict=True):
        hits = _Hits.of(piece, truth)
        mixed = truth.bincount().max().item() <= len(truth) / 2
        if mixed and hits.by_chance and hits.least_expected > hits.chance + Z_LIMIT * hits.chance_sd:
            raise DataError(
                f"in its rows {start:,} to {start + len(truth) - 1:,} the top class is the true one for"
                f" {hits.rate(hits.count)}, as by chance, where their probabilities expect {hits.rate(hits.expected)}:"
                f" they are out of step with index. {REMEDY}"
            )
        start += len(truth)


def _check_class_order(probs: Tensor, targets: Tensor) -> None:
    """Raise if other names for the classes, found on every other row, suit the remaining rows [M, C] clearly better."""
    from scipy.optimize import linear_sum_assignment

    if len(targets) < FEWEST_ROWS:
        return
    support = torch.zeros(probs.shape[1], probs.shape[1], dtype=probs.dtype)
    support.index_add_(0, targets[::2], probs[::2])
    renamed = torch.from_numpy(linear_sum_assignment(support.numpy(), maximize=True)[1])
    rest, truth = probs[1::2], targets[1::2]
    gain = (rest.gather(1, renamed[truth][:, None]) - rest.gather(1, truth[:, None])).squeeze(1)
    if gain.mean() > Z_LIMIT * gain.std() / math.sqrt(len(gain)):
        moved = [f"{old} where this run has {new}" for new, old in enumerate(renamed.tolist()) if old != new]
        raise DataError(
            f"its classes are in another order: it has class {', '.join(moved[:3])}{', …' * (len(moved) > 3)};"
            " put the columns of probs in the run's order of classes"
        )


def _per_example(log_probs: Tensor, reference: Reference) -> tuple[Tensor, Tensor]:
    """Whether the top class is the reference's, and the total variation, each [M], float64."""
    expected = [reference.size, reference.probs.shape[1]]
    given = list(log_probs.shape)
    require(given == expected, f"the reference is for predictions {expected} of the whole split, not {given}")
    probs = log_probs.cpu()[reference.index].double().exp()
    if probs.isnan().any():
        raise DivergedError("a log-probability is NaN: the parameters of this draw, or its logits, are not finite")
    agreement = (probs.argmax(1) == reference.probs.argmax(1)).double()
    return agreement, (probs - reference.probs).abs().sum(1) / 2


def _summary(agreement: Tensor, distance: Tensor) -> Fidelity:
    """Means of per-example values [M] and their standard errors."""

    def error(values: Tensor) -> float | None:
        return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None

    return Fidelity(agreement.mean().item(), error(agreement), distance.mean().item(), error(distance))
