"""Fidelity to a reference by hand, and every reference that must be refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from bayeslora.diagnostics.fidelity import Fidelity, MeanFidelity, Reference, fidelity, load_reference
from bayeslora.errors import ConfigError, DataError, DivergedError
from tests.cases import each

CLASSES, SIZE = 10, 3000


def _log(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows).log()


def _reference(*rows: tuple[float, ...], index: list[int] | None = None, size: int | None = None) -> Reference:
    probs = torch.tensor(rows, dtype=torch.float64)
    rows_of_split = list(range(len(rows))) if index is None else index
    return Reference(torch.tensor(rows_of_split), probs, size or len(rows))


def _calibrated(scale: float = 1.0, size: int = SIZE, seed: int = 0) -> tuple[np.ndarray, Tensor]:
    """Probabilities [size, 10] and classes drawn from them: a reference as good as it believes."""
    generator = torch.Generator().manual_seed(seed)
    probs = (scale * torch.randn(size, CLASSES, generator=generator, dtype=torch.float64)).softmax(1)
    return probs.numpy(), torch.multinomial(probs, 1, generator=generator).squeeze(1)


def _save(folder: Path, **arrays: Any) -> Path:
    file = folder / "reference.npz"
    np.savez(file, **arrays)
    return file


def _rejected(folder: Path, split: Tensor, /, **arrays: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_reference(_save(folder, **arrays), split, CLASSES)
    assert all(problem.startswith(str(folder / "reference.npz")) for problem in caught.value.problems)
    return str(caught.value).replace(str(folder / "reference.npz") + ": ", "")


def test_fidelity_by_hand() -> None:
    """Distances 0, 0.3 and 1; the top class agrees in the first two of three."""
    reference = _reference((0.7, 0.3, 0.0), (0.6, 0.4, 0.0), (0.0, 0.0, 1.0))
    found = fidelity(_log((0.7, 0.3, 0.0), (0.9, 0.1, 0.0), (1.0, 0.0, 0.0)), reference)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.agreement_se == pytest.approx(np.std([1, 1, 0], ddof=1) / math.sqrt(3))
    assert found.total_variation == pytest.approx((0 + 0.3 + 1) / 3)
    assert found.total_variation_se == pytest.approx(np.std([0, 0.3, 1], ddof=1) / math.sqrt(3))


def test_fidelity_of_equal_and_of_disjoint_predictions() -> None:
    reference = _reference((0.5, 0.5, 0.0), (0.1, 0.9, 0.0))
    assert fidelity(reference.probs.log(), reference) == Fidelity(1, 0, pytest.approx(0, abs=1e-15), pytest.approx(0))
    assert fidelity(_log((0.0, 0.0, 1.0), (0.0, 0.0, 1.0)), reference) == Fidelity(0, 0, 1, 0)


def test_total_variation_is_a_distance() -> None:
    probs = [torch.from_numpy(_calibrated(size=50, seed=seed)[0]) for seed in range(3)]
    reference = [Reference(torch.arange(50), p, 50) for p in probs]
    one, other, detour = (fidelity(probs[a].log(), reference[b]).total_variation for a, b in ((0, 1), (1, 0), (0, 2)))
    assert one == pytest.approx(other)
    assert 0 < one <= detour + fidelity(probs[2].log(), reference[1]).total_variation


def test_rows_are_found_by_their_index() -> None:
    reference = _reference((1.0, 0.0), (0.0, 1.0), index=[3, 1], size=4)
    log_probs = _log((0.5, 0.5), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0))
    assert fidelity(log_probs, reference) == Fidelity(1, 0, 0, 0)
    assert fidelity(log_probs.flip(0), reference).total_variation == pytest.approx(0.5)


def test_one_example_has_no_standard_error() -> None:
    found = fidelity(_log((0.6, 0.4)), _reference((0.9, 0.1)))
    assert vars(found) == {
        "agreement": 1.0,
        "agreement_se": None,
        "total_variation": pytest.approx(0.3),
        "total_variation_se": None,
    }


def test_mean_single_draw_by_hand() -> None:
    reference = _reference((1.0, 0.0), (0.0, 1.0))
    mean = MeanFidelity(reference)
    first = mean.add(_log((0.8, 0.2), (0.4, 0.6)))
    second = mean.add(_log((0.2, 0.8), (0.4, 0.6)))
    assert (first.agreement, second.agreement) == (1, 0.5)
    assert (first.total_variation, second.total_variation) == pytest.approx((0.3, 0.6))
    found = mean.fidelity
    assert mean.count == 2
    assert found.agreement == pytest.approx(0.75)
    assert found.agreement_se == pytest.approx(0.25)
    assert found.total_variation == pytest.approx(0.45)
    assert found.total_variation_se == pytest.approx(0.05)


def test_fidelity_refuses_what_is_not_of_the_split() -> None:
    reference = _reference((0.5, 0.5), index=[1], size=3)
    with pytest.raises(ConfigError, match=r"predictions \[3, 2\] of the whole split, not \[1, 2\]"):
        fidelity(_log((0.5, 0.5)), reference)
    with pytest.raises(DivergedError, match="NaN"):
        MeanFidelity(reference).add(torch.full((3, 2), math.nan))
    with pytest.raises(DataError, match="at least one draw"):
        _ = MeanFidelity(reference).fidelity


@each("dtype", [np.float64, np.float32, np.float16])
def test_a_reference_is_read_and_normalised(tmp_path: Path, dtype: type) -> None:
    probs, targets = _calibrated()
    index = np.random.default_rng(0).permutation(SIZE)[:2000].astype(np.int32)
    arrays = {"index": index, "probs": probs[index].astype(dtype), "labels": targets[index].numpy().astype(np.uint8)}
    found = load_reference(_save(tmp_path, **arrays), targets, CLASSES)
    assert found.index.tolist() == index.tolist()
    assert found.size == SIZE
    torch.testing.assert_close(found.probs, torch.from_numpy(probs[index]), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.probs.sum(1), torch.ones(2000, dtype=torch.float64), rtol=0, atol=1e-12)


@each("scale", [0.0, 0.3, 5.0])
@each("power", [0.3, 1.0, 10.0])
def test_weak_and_overconfident_references_are_accepted_by_their_labels(
    tmp_path: Path, scale: float, power: float
) -> None:
    """From chance to 80 % right, also sorted by class."""
    probs, targets = _calibrated(scale)
    probs = probs**power / (probs**power).sum(1, keepdims=True)
    for index in (np.arange(SIZE), targets.argsort(stable=True).numpy()):
        load_reference(_save(tmp_path, index=index, probs=probs[index], labels=targets[index]), targets, CLASSES)


def _right(scale: float = 5.0) -> tuple[dict[str, np.ndarray], Tensor]:
    """A reference for every row of a split, and the split's true classes."""
    probs, targets = _calibrated(scale)
    return {"index": np.arange(SIZE), "probs": probs, "labels": targets.numpy()}, targets


def test_one_row_out_of_place_is_refused(tmp_path: Path) -> None:
    arrays, targets = _right()
    labels = arrays["labels"].copy()
    labels[7] = (labels[7] + 1) % CLASSES
    message = _rejected(tmp_path, targets, **arrays | {"labels": labels})
    assert message.startswith("its labels differ from the split's in 1 of 3,000 rows: it is of other images or in an")
    moved = {name: np.roll(arrays[name], 1, axis=0) for name in ("probs", "labels")}
    assert "of 3,000 rows: it is of other images" in _rejected(tmp_path, targets, **arrays | moved)


def _two_classes_swapped(probs: np.ndarray) -> np.ndarray:
    return probs[:, [0, 1, 2, 5, 4, 3, 6, 7, 8, 9]]


@each("scale", [1.0, 5.0])
@each(
    ("spoil", "message"),
    [
        (_two_classes_swapped, "it has class 5 where this run has 3, 3 where this run has 5;"),
        (lambda probs: probs[:, ::-1], "it has class 9 where this run has 0, 8 where this run has 1, 7 where"),
    ],
)
def test_another_order_of_classes_is_refused(
    tmp_path: Path, scale: float, spoil: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    arrays, targets = _right(scale)
    assert message in _rejected(tmp_path, targets, **arrays | {"probs": spoil(arrays["probs"])})


@each(
    ("change", "message"),
    [
        ({"index": np.arange(SIZE) + 1}, "1 of 3000 rows in index are outside 0..2999, the first is 3000: it is a"),
        ({"index": np.arange(SIZE) - 2}, "2 of 3000 rows in index are outside 0..2999, the first is -2"),
        ({"index": np.arange(SIZE) // 2}, "index names 1500 rows more than once; keep each example once"),
        ({"index": np.arange(SIZE) * 1.0}, "index must be whole numbers [M], M at least 1, not float64 [3000]"),
        ({"index": np.arange(SIZE)[None]}, "index must be whole numbers [M], M at least 1, not int64 [1, 3000]"),
        ({"index": np.int64(3)}, "index must be whole numbers [M], M at least 1, not int64 []"),
        ({"index": np.arange(SIZE - 1)}, "index has 2999 rows and probs 3000; they must name the same examples"),
        ({"labels": np.zeros(SIZE - 1, int)}, "labels must be whole numbers [3000], not int64 [2999]"),
        ({"labels": np.zeros(SIZE)}, "labels must be whole numbers [3000], not float64 [3000]"),
        ({"probs": np.zeros(SIZE)}, "probs must be real numbers [M, C], not float64 [3000]"),
        ({"probs": np.zeros((SIZE, CLASSES), dtype=complex)}, "probs must be real numbers [M, C], not complex128"),
        ({"probs": np.full((SIZE, 100), 0.01)}, "probs has 100 classes and this run 10: it is for another dataset"),
        ({"probs": np.full((SIZE, CLASSES), np.nan)}, "probs holds NaN or infinite values"),
        ({"probs": np.full((SIZE, CLASSES), -2.3)}, "probabilities, not their logarithms and not logits"),
        ({"probs": np.full((SIZE, CLASSES), 0.11)}, "rows of probs must sum to 1, and one sums to 1.1; divide each"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    arrays, targets = _right()
    assert message in _rejected(tmp_path, targets, **arrays | change)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    file = _save(tmp_path, index=[0, 0, 9], probs=np.full((3, 2), 0.4), labels=[0, 0, 0])
    with pytest.raises(DataError) as caught:
        load_reference(file, torch.zeros(5), CLASSES)
    words = ["outside 0..4", "more than once", "2 classes and this run 10", "sums to 0.8"]
    assert len(caught.value.problems) == len(words)
    assert all(word in problem for word, problem in zip(words, caught.value.problems, strict=True))


def _pickled(file: Path) -> None:
    np.savez(file, index=np.array([{}], dtype=object), probs=np.zeros((1, 2)))


def _single_array(file: Path) -> None:
    with file.open("wb") as stream:
        np.save(stream, np.zeros(3))


def _cut_short(file: Path) -> None:
    np.savez(file, index=np.arange(50), probs=np.zeros((50, 2)))
    file.write_bytes(file.read_bytes()[:-300])


def _garbled(file: Path) -> None:
    np.savez_compressed(file, index=np.arange(50), probs=np.zeros((50, 2)))
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 3] ^= 255
    file.write_bytes(contents)


@each(
    ("write", "message"),
    [
        (lambda file: None, "does not exist; a reference is an .npz file with index"),
        (Path.mkdir, "is a folder; a reference is"),
        (Path.touch, "cannot be read"),
        (lambda file: file.write_text("index,probs\n"), "cannot be read"),
        (_pickled, "cannot be read .*allow_pickle"),
        (_single_array, "cannot be read"),
        (_cut_short, "cannot be read"),
        (_garbled, "cannot be read"),
        (
            lambda file: np.savez(file, p=1, index=np.arange(3)),
            "holds p, index but not probs and labels; a reference is",
        ),
        (lambda file: np.savez(file, index=np.arange(3), probs=np.ones((3, 2)) / 2), "but not labels; a reference is"),
        (np.savez, "holds nothing but not index and probs and labels; a reference is"),
    ],
)
def test_files_that_are_no_reference_are_refused(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    file = tmp_path / "reference.npz"
    write(file)
    with pytest.raises(DataError, match=rf"reference\.npz .*{message}"):
        load_reference(file, torch.zeros(50), 2)


@pytest.fixture(scope="module")
def hmc(real_data: Path) -> tuple[Path, Tensor]:
    """The file of the HMC posterior of CIFAR-10, and the labels of the test images."""
    table = pq.read_table(next((real_data / "cifar10").glob("test-*.parquet")), columns=["label"])
    return real_data / "cifar10_hmc" / "predictive.npz", torch.from_numpy(table["label"].to_numpy().copy())


@pytest.mark.realdata
def test_the_hmc_posterior_of_cifar10_is_accepted(hmc: tuple[Path, Tensor]) -> None:
    reference = load_reference(*hmc, CLASSES)
    assert (reference.size, tuple(reference.probs.shape)) == (10_000, (5000, CLASSES))
    log_probs = torch.full((10_000, CLASSES), -math.log(CLASSES))
    log_probs[reference.index] = reference.probs.log().float()
    same = fidelity(log_probs, reference)
    assert (same.agreement, same.total_variation) == (1, pytest.approx(0, abs=1e-6))
    truth = torch.nn.functional.one_hot(hmc[1], CLASSES).float().log()
    found = fidelity(truth, reference)
    assert found.agreement == pytest.approx(0.9152)
    assert found.agreement_se == pytest.approx(math.sqrt(0.9152 * 0.0848 / 4999))


@pytest.mark.realdata
@each(
    ("spoil", "message"),
    [
        (lambda index, probs: (index + 5000, probs), "its labels differ from the split's"),
        (lambda index, probs: (index[::-1], probs), "its labels differ from the split's"),
        (lambda index, probs: (np.where(index < 4500, index, index + 1), probs), "its labels differ from the split's"),
        (lambda index, probs: (index, _two_classes_swapped(probs)), "it has class 5 where this run has 3"),
    ],
)
def test_the_hmc_posterior_of_cifar10_spoilt_is_refused(
    hmc: tuple[Path, Tensor], tmp_path: Path, spoil: Callable[..., tuple[np.ndarray, np.ndarray]], message: str
) -> None:
    with np.load(hmc[0]) as archive:
        index, probs = spoil(archive["index"], archive["probs"])
        labels = archive["labels"]
    assert message in _rejected(tmp_path, hmc[1], index=index, probs=probs, labels=labels)
