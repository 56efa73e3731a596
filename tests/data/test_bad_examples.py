"""Examples that no model can be trained on are named where they are read, whoever made them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import bayeslora
from bayeslora.datasets import Npz, from_examples
from bayeslora.datasets.base import Data, Split
from bayeslora.datasets.in_memory import Identity, load_data
from bayeslora.errors import DataError, DivergedError
from tests.cases import each

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 3


def at(values: Tensor, place: tuple[int, ...], value: float) -> Tensor:
    changed = values.clone()
    changed[place] = value
    return changed


BAD: dict[str, tuple[Any, Any]] = {
    r"train: 1 of the numbers in its inputs are NaN or infinite, the first in example 5;": (at(X, (5, 2), np.nan), Y),
    r"2 of the numbers in its inputs": (at(at(X, (5, 2), np.inf), (9, 0), -np.inf), Y),
    r"example 7": (at(X.view(60, 1, 2, 2), (7, 0, 1, 1), np.nan), Y),
    r"1 targets are NaN or infinite": (X, at(X[:, 0], (3,), np.nan)),
    r"numbered from 1 to 3, not from 0; subtract 1, or give class_names": (X, Y + 1),
    r"numbered from 0 on, and there is a class -1": (X, Y - 1),
    r"one-hot.*targets\.argmax\(1\)": (X, torch.eye(3)[Y]),
    r"targets \[60, 3\] are one-hot": (X, torch.eye(3)[Y].long()),
    r"train: an array of <U1 holds something else than numbers": (X, np.array(list("abc"))[Y]),
    r"train: an array of object holds something else": (np.array([[1.0, None]] * 60, dtype=object), Y),
    r"there is a number 1\.0e\+300, too large for torch\.float32": (torch.full((60, 4), 1e300, dtype=torch.float64), Y),
    r"there is a number 2\.0e\+300, too large": (X, X[:, 0].double().sign() * 2e300),
}


@each("message", BAD)
def test_examples_that_cannot_be_learnt_are_refused_with_the_fix(message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_examples(BAD[message])


def test_what_is_wrong_anywhere_is_said_at_once() -> None:
    """Also of data that somebody's own dataset makes without `from_examples`."""
    whole, broken = Split(X, Y), Split(at(X, (0, 0), np.nan), Y)
    with pytest.raises(DataError) as caught:
        Data("mine", broken, whole, Split(X, Y + 1), ("a", "b", "c"), transform=Identity())
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["mine, train", "mine, test"]
    assert "an example of class 3; the 3 classes are numbered from 0 to 2" in caught.value.problems[1]


def test_one_hot_targets_of_arrays_are_told_what_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=X.numpy(), y=np.eye(3)[Y])
    with pytest.raises(DataError, match="one-hot"):
        Npz(tmp_path / "own.npz").load()


def test_classes_at_positions_and_one_hot_classes_of_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.zeros((60, 8, 8, 3), np.uint8), y=np.zeros((60, 8, 8), int))
    with pytest.raises(DataError, match=r"targets are \[48, 8, 8\]; .* at each position"):
        Npz(tmp_path / "own.npz").load()
    np.savez(tmp_path / "own.npz", x=X.numpy(), y=np.eye(3, dtype=int)[Y])
    with pytest.raises(DataError, match="one-hot"):
        Npz(tmp_path / "own.npz", task="classification").load()


CLASSES = {
    "-1,0,1": ["class '-1' (20 in training) may stand for no label; if so, leave them out"],
    "-1,1,1": [],
    "a,NA,b": ["class 'NA' (20 in training) may stand for no label; if so, leave them out"],
    "Yes,yes,no": ["the classes 'Yes' and 'yes' are called alike, but for case or spaces"],
    "+,-,0": [],
    "a,A,b": [],
}


@each("names", CLASSES)
def test_classes_that_may_be_none_or_one_are_noted(names: str, tmp_path: Path) -> None:
    values = np.array(names.split(","))[Y]
    targets = values.astype(int) if "1" in names else values
    np.savez(tmp_path / "own.npz", x_train=X.numpy(), y_train=targets, x_test=X.numpy() + 9, y_test=targets)
    assert [*load_data(Npz(tmp_path / "own.npz")).notes] == CLASSES[names]


def test_tables_of_pandas_are_arrays() -> None:
    data = from_examples((pd.DataFrame(X.numpy()), pd.Series(Y.numpy())))
    assert torch.equal(data.train.inputs, X)
    assert torch.equal(data.train.targets, Y)


@each(
    "targets",
    [torch.where(Y == 0, 1, 7), (Y > 0).long(), X[:, :2], (X[:, :1] > 0).float(), torch.zeros(60, 2)],
)
def test_what_only_looks_like_it_is_taken(targets: Tensor) -> None:
    data = from_examples((X, targets))
    assert torch.equal(data.train.targets.flatten(), targets.flatten())
    two = targets.is_floating_point() and len(targets.unique()) == 2
    assert len(data.notes) == two
    assert two == ("hold two values alone" in str(data.notes))


def test_real_targets_that_sum_to_1_are_noted() -> None:
    (note,) = from_examples((X, torch.eye(3)[Y] * 0.85 + 0.05)).notes
    assert "as probabilities of classes do" in note


def test_classes_from_1_are_taken_where_class_0_has_a_name() -> None:
    assert from_examples((X, Y + 1), class_names="abcd").num_classes == 4


@pytest.mark.parametrize(
    ("inputs", "targets", "note"),
    [
        (X * 1e4, Y, r"The inputs are large: .* is [\d.]+e\+04 .*standardise each column"),
        (X * 1e-4, Y, "The inputs are small"),
        (X, X[:, 0] * 1e5 + 3e5, r"The targets are large: .* is 3e\+05 .*\(y − mean\) / sd"),
        (X * 20, X[:, 0] * 20, None),
        (torch.randint(0, 256, (60, 3, 4, 4), dtype=torch.uint8), Y, None),
        (torch.randint(0, 256, (60, 3, 4, 4)).float(), Y, "The inputs are large.*scale images"),
    ],
)
def test_absurd_scales_are_noted_and_warned_of(
    inputs: Tensor, targets: Tensor, note: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        notes = from_examples((inputs, targets)).notes
    assert len(notes) == (note is not None) == len(caplog.records)
    if note is not None:
        assert re.search(note, notes[0])
        assert notes[0] in caplog.text


def test_a_potential_too_large_before_any_step_is_not_blamed_on_the_step_size() -> None:
    settings = {"chains": 1, "draws": 1, "thin": 1, "burn_in": 1, "warmup": 2, "progress": False}
    with pytest.raises(DivergedError, match=r"step 1 .*not the step size: standardise the inputs and.*targets"):
        bayeslora.sample(nn.Linear(4, 1), (X, X[:, :1] * 1e5 + 3e5), **settings)
