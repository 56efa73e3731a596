"""The digits that come with scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from bayeslora.datasets.digits import Digits
from bayeslora.errors import ConfigError


def test_the_split_is_of_the_stated_size_and_by_class() -> None:
    data = Digits().load()
    assert (len(data.train), len(data.validation), len(data.test)) == (1437, 0, 360)
    assert (data.num_classes, data.in_channels, data.augment, data.augmentation) == (10, 1, None, "none")
    total = data.train.targets.bincount() + data.test.targets.bincount()
    assert total.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (data.test.targets.bincount() - total * 360 / 1797).abs().max() < 1


def test_every_image_of_the_source_is_there_once() -> None:
    data = Digits().load()
    images = torch.cat([data.train.inputs, data.test.inputs])
    assert images.dtype == torch.uint8
    assert images.shape == (1797, 1, 8, 8)
    restored = (images.flatten(1).float() * 16 / 255).round()
    original = torch.from_numpy(load_digits().data).float()
    assert sorted(restored.tolist()) == sorted(original.tolist())


def test_model_inputs_have_mean_zero_and_sd_one_on_the_training_set() -> None:
    data = Digits().load()
    inputs = data.transform(data.train.inputs)
    assert inputs.mean().item() == pytest.approx(0, abs=2e-3)
    assert inputs.std().item() == pytest.approx(1, abs=2e-3)


def test_the_split_is_always_alike() -> None:
    one, other = Digits().load(), Digits().load()
    assert torch.equal(one.test.inputs, other.test.inputs)
    assert one.test.targets[:12].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]


def test_validation_and_limits() -> None:
    data = Digits(validation_size=100, limit_train=50, limit_test=20).load()
    assert (len(data.train), len(data.validation), len(data.test)) == (50, 20, 20)


def test_augmentation_shifts_by_up_to_one_pixel() -> None:
    data = Digits(augment=True).load()
    assert data.augmentation == "random crop (padding 1)"
    assert data.augment is not None
    lone = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
    lone[:, :, 3, 5] = 7
    moved = data.augment(lone, torch.Generator().manual_seed(0))
    assert {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()} == {
        (y, x) for y in (2, 3, 4) for x in (4, 5, 6)
    }


def test_impossible_sizes_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Digits(validation_size=-1, limit_train=0, limit_test=1.5)  # type: ignore[arg-type]
    assert caught.value.problems == [
        "dataset.validation_size must be a whole number of at least 0, not -1",
        "dataset.limit_train must be a whole number of at least 1, not 0",
        "dataset.limit_test must be a whole number of at least 1, not 1.5",
    ]
    with pytest.raises(ConfigError, match="validation_size=1437 leaves nothing"):
        Digits(validation_size=1437).load()
