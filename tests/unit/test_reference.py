"""Fidelity to a reference by hand, and every reference that must be refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from bayeslora.diagnostics.reference import Fidelity, MeanFidelity, Reference, _hits_by_chance, fidelity, load_reference
from bayeslora.errors import ConfigError, DataError, DivergedError

CLASSES, SIZE = 10, 3000


def _log(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows).log()


def _reference(*rows: tuple[float, ...], index: list[int] | None = None, size: int | None = None) -> Reference:
    probs = torch.tensor(rows, dtype=torch.float64)
    rows_of_split = list(range(len(rows))) if index is None else index
    return Reference(torch.tensor(rows_of_split), probs, size or len(rows), "")


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
    reference = [Reference(torch.arange(50), p, 50, "") for p in probs]
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
    assert found.to_json() == {
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


def test_hits_by_chance_are_those_of_all_orders() -> None:
    top, targets = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0])
    orders = torch.tensor(list(itertools.permutations(range(6))))
    hits = (top == targets[orders]).sum(1).double()
    mean, sd = _hits_by_chance(top, targets, 4)
    assert mean == pytest.approx(hits.mean().item())
    assert sd == pytest.approx(hits.std(correction=0).item())


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_reference_is_read_and_normalised(tmp_path: Path, dtype: type) -> None:
    probs, targets = _calibrated()
    index = np.random.default_rng(0).permutation(SIZE)[:2000].astype(np.int32)
    found = load_reference(_save(tmp_path, index=index, probs=probs[index].astype(dtype)), targets, CLASSES)
    assert found.index.tolist() == index.tolist()
    assert found.size == SIZE
    torch.testing.assert_close(found.probs, torch.from_numpy(probs[index]), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.probs.sum(1), torch.ones(2000, dtype=torch.float64), rtol=0, atol=1e-12)
    accuracy = (probs[index].argmax(1) == targets[index].numpy()).mean()
    assert f"{accuracy:.1%} of 2,000 examples (chance 10" in found.evidence


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(5))
def test_weak_references_are_accepted(tmp_path: Path, scale: float, seed: int) -> None:
    """From 15 % right to 80 % right; also sorted by class, so that the pieces of the file hold one class or two."""
    probs, targets = _calibrated(scale, seed=seed)
    order = targets.argsort(stable=True).numpy()
    for index in (np.arange(SIZE), order):
        load_reference(_save(tmp_path, index=index, probs=probs[index]), targets, CLASSES)


@pytest.mark.parametrize("power", [0.05, 0.3, 2.0])
def test_references_that_believe_too_little_or_somewhat_too_much_are_accepted(tmp_path: Path, power: float) -> None:
    probs, targets = _calibrated(5.0)
    distorted = probs**power
    distorted /= distorted.sum(1, keepdims=True)
    load_reference(_save(tmp_path, index=np.arange(SIZE), probs=distorted), targets, CLASSES)


def test_a_class_that_is_always_mistaken_is_no_wrong_order(tmp_path: Path) -> None:
    """Sorted by class, the first piece holds only class 0, of which none is right, though 0.55 is expected."""
    targets = torch.arange(CLASSES).repeat_interleave(SIZE // CLASSES)
    probs = torch.nn.functional.one_hot(targets, CLASSES).double() * 0.8 + 0.02
    probs[targets == 0] = torch.tensor([0.45, 0.55] + [0.0] * 8, dtype=torch.float64)
    found = load_reference(_save(tmp_path, index=np.arange(SIZE), probs=probs.numpy()), targets, CLASSES)
    assert "for 90.0% of" in found.evidence


def _shuffled(probs: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).permutation(probs)


def _out_of_step(probs: np.ndarray) -> np.ndarray:
    """One row lost at 60 %, so that all after it are one too early."""
    return np.concatenate([probs[: SIZE * 6 // 10], probs[SIZE * 6 // 10 + 1 :], probs[:1]])


def _two_classes_swapped(probs: np.ndarray) -> np.ndarray:
    return probs[:, [0, 1, 2, 5, 4, 3, 6, 7, 8, 9]]


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_shuffled, "of other images or in another order"),
        (lambda probs: probs[::-1], "of other images or in another order"),
        (lambda probs: np.roll(probs, 1, axis=0), "of other images or in another order"),
        (lambda probs: np.full_like(probs, 0.1), "too weak or too short to tell"),
        (_out_of_step, "in its rows 1,800 to 2,099 the top class is the true one for"),
        (_two_classes_swapped, "it has class 5 where this run has 3, 3 where this run has 5;"),
        (lambda probs: probs[:, ::-1], "it has class 9 where this run has 0, 8 where this run has 1, 7 where"),
    ],
)
def test_other_images_orders_and_classes_are_refused(
    tmp_path: Path, scale: float, spoil: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    probs, targets = _calibrated(scale)
    assert message in _rejected(tmp_path, targets, index=np.arange(SIZE), probs=spoil(probs))


def test_wrong_rows_strewn_over_the_file_are_refused_where_they_are_most(tmp_path: Path) -> None:
    probs, targets = _calibrated(5.0)
    rows = np.random.default_rng(2).permutation(SIZE)
    for part, refused in ((0.4, False), (0.6, True)):
        wrong, changed = rows[: int(part * SIZE)], probs.copy()
        changed[wrong] = probs[np.roll(wrong, 1)]
        if refused:
            assert "many rows are wrong" in _rejected(tmp_path, targets, index=np.arange(SIZE), probs=changed)
        else:
            load_reference(_save(tmp_path, index=np.arange(SIZE), probs=changed), targets, CLASSES)


def test_a_weak_and_overconfident_reference_must_bring_labels(tmp_path: Path) -> None:
    """31 % right, believed to be 89 %."""
    probs, targets = _calibrated(1.0)
    arrays = {"index": np.arange(SIZE), "probs": probs**10 / (probs**10).sum(1, keepdims=True)}
    message = _rejected(tmp_path, targets, **arrays)
    assert message.endswith("will be accepted with the true classes of its rows in labels [M]")
    load_reference(_save(tmp_path, **arrays, labels=targets.numpy()), targets, CLASSES)


@pytest.mark.parametrize("key", ["labels", "targets"])
def test_labels_decide_where_they_are_given(tmp_path: Path, key: str) -> None:
    """Probabilities at chance are accepted with the right labels, and good ones refused with one wrong label."""
    probs, targets = _calibrated(5.0)
    index, labels = np.arange(SIZE), targets.numpy().copy()
    blind = np.full_like(probs, 0.1)
    found = load_reference(_save(tmp_path, index=index, probs=blind, **{key: labels}), targets, CLASSES)
    assert found.evidence == "its labels are those of the split (3,000 examples)"
    labels[7] = (labels[7] + 1) % CLASSES
    message = _rejected(tmp_path, targets, index=index, probs=probs, **{key: labels})
    assert message.startswith("its labels differ from the split's in 1 of 3,000 rows: it is of other images")
    message = _rejected(tmp_path, targets, index=index, probs=probs, **{key: labels[1:]})
    assert message == f"labels must be whole numbers [{SIZE}], not int64 [{SIZE - 1}]"


def test_labels_do_not_excuse_another_order_of_classes(tmp_path: Path) -> None:
    probs, targets = _calibrated(5.0)
    message = _rejected(tmp_path, targets, index=np.arange(SIZE), probs=probs[:, ::-1], labels=targets.numpy())
    assert "its classes are in another order" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": np.arange(SIZE) + 1}, "1 of 3000 rows in index are outside 0..2999, the first is 3000: it is a"),
        ({"index": np.arange(SIZE) - 2}, "2 of 3000 rows in index are outside 0..2999, the first is -2"),
        ({"index": np.arange(SIZE) // 2}, "index names 1500 rows more than once; keep each example once"),
        ({"index": np.arange(SIZE) * 1.0}, "index must be whole numbers [M], M at least 1, not float64 [3000]"),
        ({"index": np.arange(SIZE)[None]}, "index must be whole numbers [M], M at least 1, not int64 [1, 3000]"),
        ({"index": np.int64(3)}, "index must be whole numbers [M], M at least 1, not int64 []"),
        ({"index": np.arange(SIZE - 1)}, "index has 2999 rows and probs 3000; they must name the same examples"),
        ({"probs": np.zeros(SIZE)}, "probs must be real numbers [M, C], not float64 [3000]"),
        ({"probs": np.zeros((SIZE, CLASSES), dtype=complex)}, "probs must be real numbers [M, C], not complex128"),
        ({"probs": np.full((SIZE, 100), 0.01)}, "probs has 100 classes and this run 10: it is for another dataset"),
        ({"probs": np.full((SIZE, CLASSES), np.nan)}, "probs holds NaN or infinite values"),
        ({"probs": np.full((SIZE, CLASSES), -2.3)}, "probabilities, not their logarithms and not logits"),
        ({"probs": np.full((SIZE, CLASSES), 0.11)}, "rows of probs must sum to 1, and one sums to 1.1; divide each"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    probs, targets = _calibrated(5.0)
    assert message in _rejected(tmp_path, targets, **({"index": np.arange(SIZE), "probs": probs} | change))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_reference(_save(tmp_path, index=[0, 0, 9], probs=np.full((3, 2), 0.4)), torch.zeros(5), CLASSES)
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


@pytest.mark.parametrize(
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
        (lambda file: np.savez(file, p=1, index=np.arange(3)), "holds p, index but not probs; a reference is"),
        (np.savez, "holds nothing but not index and probs; a reference is"),
    ],
)
def test_files_that_are_no_reference_are_refused(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    file = tmp_path / "reference.npz"
    write(file)
    with pytest.raises(DataError, match=f"reference.npz {message}"):
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
    assert reference.evidence == "its top class is the true one for 91.5% of 5,000 examples (chance 10.0%)"
    log_probs = torch.full((10_000, CLASSES), -math.log(CLASSES))
    log_probs[reference.index] = reference.probs.log().float()
    same = fidelity(log_probs, reference)
    assert (same.agreement, same.total_variation) == (1, pytest.approx(0, abs=1e-6))
    truth = torch.nn.functional.one_hot(hmc[1], CLASSES).float().log()
    found = fidelity(truth, reference)
    assert found.agreement == pytest.approx(0.9152)
    assert found.agreement_se == pytest.approx(math.sqrt(0.9152 * 0.0848 / 4999))


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda index, probs: (index + 5000, probs), "of other images or in another order"),
        (lambda index, probs: (index[::-1], probs), "of other images or in another order"),
        (lambda index, probs: (np.where(index < 4500, index, index + 1), probs), "in its rows 4,500 to 4,999"),
        (lambda index, probs: (index, _two_classes_swapped(probs)), "it has class 5 where this run has 3"),
    ],
)
def test_the_hmc_posterior_of_cifar10_spoilt_is_refused(
    hmc: tuple[Path, Tensor], tmp_path: Path, spoil: Callable[..., tuple[np.ndarray, np.ndarray]], message: str
) -> None:
    with np.load(hmc[0]) as archive:
        index, probs = spoil(archive["index"], archive["probs"])
    assert message in _rejected(tmp_path, hmc[1], index=index, probs=probs)
