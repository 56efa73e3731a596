"""Batches depend on (seed, chain, step) only; augmentation moves images and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from bayeslora.chain.batches import Batches, bucketed, evaluation_batches
from bayeslora.datasets.base import Data, Split, carve
from bayeslora.datasets.images import Normalise, RandomShift
from bayeslora.errors import ConfigError
from bayeslora.rng import generator
from tests.cases import each

N = 23


def toy(augment: RandomShift | None = None) -> Data:
    """23 images of 2x6x6 random pixels (never 0, which is the padding), whose targets are their own numbers."""
    pixels = torch.randint(1, 256, (N, 2, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    split = Split(pixels, torch.arange(N))
    return Data(
        "toy",
        split,
        split.take(slice(0)),
        split,
        tuple(map(str, range(N))),
        Normalise((0.5, 0.4), (0.25, 0.2)),
        augment,
    )


def moved_slowly(image: np.ndarray, padding: int, flip: bool) -> Iterator[np.ndarray]:
    """Every crop of the zero-padded image, pixel by pixel, and its mirror images if `flip`."""
    height, width = image.shape[1:]
    for top in range(-padding, padding + 1):
        for left in range(-padding, padding + 1):
            crop = np.zeros_like(image)
            for y in range(height):
                for x in range(width):
                    if 0 <= y + top < height and 0 <= x + left < width:
                        crop[:, y, x] = image[:, y + top, x + left]
            yield crop
            if flip:
                yield crop[:, :, ::-1]


def test_normalise_equals_its_equation() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    normalised = Normalise((0.0, 0.1, 0.5), (1.0, 0.2, 0.25))(images)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.flatten(), torch.tensor([0.0, 0.5, 2.0]))


@each("flip", [True, False])
@each("padding", [0, 1, 2])
def test_an_augmented_image_is_a_moved_original(padding: int, flip: bool) -> None:
    images = toy().train.inputs
    moved = RandomShift(padding, flip)(images, torch.Generator().manual_seed(0))
    assert moved.dtype == torch.uint8
    for original, image in zip(images.numpy(), moved.numpy(), strict=True):
        assert any(np.array_equal(image, candidate) for candidate in moved_slowly(original, padding, flip))


def test_every_shift_and_flip_occurs_about_equally_often() -> None:
    image = toy().train.inputs[:1]
    draws = 3600
    moved = RandomShift(1, flip=True)(image.expand(draws, -1, -1, -1), torch.Generator().manual_seed(0))
    candidates = torch.from_numpy(np.stack(list(moved_slowly(image[0].numpy(), 1, flip=True))))
    counts = torch.tensor([(moved == candidate).flatten(1).all(1).sum() for candidate in candidates])
    assert counts.sum() == draws
    expected = draws / 18
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert chi2 < 17 + 5 * (2 * 17) ** 0.5  # 17 degrees of freedom, five standard errors


def test_images_that_are_not_square_keep_their_shape() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 9), dtype=torch.uint8)
    shift = RandomShift(2, flip=True)
    for original, image in zip(images.numpy(), shift(images, torch.Generator().manual_seed(1)).numpy(), strict=True):
        assert any(np.array_equal(image, candidate) for candidate in moved_slowly(original, 2, flip=True))


def test_augmentation_is_a_function_of_its_generator() -> None:
    images, shift = toy().train.inputs, RandomShift(2, flip=True)
    again = [shift(images, generator(0, 0, step, "augment")) for step in (5, 5, 6)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_random_access_equals_sequential_access() -> None:
    walked = [Batches(toy(RandomShift(1, flip=True)), 5, seed=1, chain=2)(step) for step in range(12)]
    jumping = Batches(toy(RandomShift(1, flip=True)), 5, seed=1, chain=2)
    for step in (11, 3, 4, 0, 9, 9, 2):
        for got, wanted in zip(jumping(step), walked[step], strict=True):
            assert torch.equal(got, wanted)


def test_an_epoch_repeats_no_example_and_leaves_out_the_remainder() -> None:
    batches = Batches(toy(), 5, seed=0, chain=0)
    assert batches.steps_per_epoch == 4
    for epoch in range(3):
        seen = torch.cat([batches(epoch * 4 + step)[1] for step in range(4)])
        assert len(seen.unique()) == 20


def test_an_epoch_covers_all_examples_when_the_batch_size_divides_them() -> None:
    batches = Batches(toy(), 1, seed=0, chain=0)
    assert torch.cat([batches(step)[1] for step in range(N)]).sort().values.equal(torch.arange(N))


def test_every_example_is_equally_likely_at_any_place_of_an_epoch() -> None:
    epochs, place = 2000, 3
    batches = Batches(toy(), 5, seed=0, chain=0)
    counts = torch.cat([batches.indices(epoch * 4 + place) for epoch in range(epochs)]).bincount(minlength=N)
    share = 5 / N
    assert ((counts - epochs * share).abs() < 5 * (epochs * share * (1 - share)) ** 0.5).all()


@each(("seed", "chain"), [(0, 1), (1, 0)])
def test_chains_and_seeds_have_their_own_batches_and_augmentation(seed: int, chain: int) -> None:
    one, other = Batches(toy(), 5, seed=0, chain=0), Batches(toy(), 5, seed=seed, chain=chain)
    assert not torch.equal(one(0)[1], other(0)[1])
    augmented = [Batches(toy(RandomShift(2, flip=True)), None, s, c)(0)[0] for s, c in ((0, 0), (seed, chain))]
    assert not torch.equal(*augmented)


def test_epochs_differ() -> None:
    batches = Batches(toy(), 5, seed=0, chain=0)
    assert not torch.equal(batches(0)[1], batches(4)[1])


def test_a_batch_is_the_normalised_examples_with_their_targets() -> None:
    data = toy()
    inputs, targets = Batches(data, 7, seed=0, chain=0)(2)
    assert inputs.dtype == torch.float32
    assert targets.dtype == torch.int64
    assert torch.equal(inputs, data.transform(data.train.inputs[targets]))


def test_no_batch_size_gives_all_examples_in_order_at_every_step() -> None:
    data = toy()
    batches = Batches(data, None, seed=0, chain=0)
    assert batches.steps_per_epoch == 1
    for step in (0, 7):
        inputs, targets = batches(step)
        assert targets.equal(torch.arange(N))
        assert inputs.equal(data.transform(data.train.inputs))
    assert batches.indices(3).equal(torch.arange(N))


def test_full_batches_are_augmented_anew_at_every_step() -> None:
    batches = Batches(toy(RandomShift(1, flip=True)), None, seed=0, chain=0)
    assert not torch.equal(batches(0)[0], batches(1)[0])


@each("batch_size", [0, -1, N + 1])
def test_impossible_batch_sizes_are_refused_with_the_fix(batch_size: int) -> None:
    with pytest.raises(ConfigError, match=rf"batch_size={batch_size} must be from 1 to {N}.*or null"):
        Batches(toy(), batch_size, seed=0, chain=0)


def test_channels_last_changes_the_layout_and_not_the_values() -> None:
    plain = Batches(toy(), 5, seed=0, chain=0)(0)[0]
    last = Batches(toy(), 5, seed=0, chain=0, channels_last=True)(0)[0]
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_channels_last_leaves_inputs_that_are_no_images_alone() -> None:
    split = Split(torch.randn(6, 3), torch.arange(6))
    data = Data("points", split, split, split, tuple("abcdef"), lambda inputs: inputs)
    assert Batches(data, 2, seed=0, chain=0, channels_last=True)(0)[0].shape == (2, 3)


def test_the_training_split_is_not_copied_where_it_is_already_on_the_device() -> None:
    data = toy()
    assert Batches(data, 5, seed=0, chain=0).train.inputs.data_ptr() == data.train.inputs.data_ptr()


@each("batch_size", [5, None])
def test_nothing_of_a_batch_stays_on_the_cpu(batch_size: int | None) -> None:
    batches = Batches(toy(RandomShift(1, flip=True)), batch_size, 0, 0, "meta")  # mixed devices would raise
    assert {tensor.device.type for tensor in batches(0)} == {"meta"}


@each("batch_size", [1, 5, N, 100])
def test_evaluation_goes_through_a_split_once_in_order(batch_size: int) -> None:
    data = toy()
    batches: list[tuple[Tensor, Tensor]] = list(evaluation_batches(data.test, data.transform, batch_size))
    assert torch.cat([targets for _, targets in batches]).equal(torch.arange(N))
    torch.testing.assert_close(torch.cat([inputs for inputs, _ in batches]), data.transform(data.test.inputs))
    assert all(len(targets) == batch_size for _, targets in batches[:-1])


def test_evaluation_gives_channels_last_on_request_and_refuses_empty_batches() -> None:
    data = toy()
    inputs, _ = next(evaluation_batches(data.test, data.transform, 5, channels_last=True))
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        next(evaluation_batches(data.test, data.transform, 0))


# Batches of like length


def texts() -> Data:
    """The 23 examples with lengths: 0 to 22 in another order, so that a length tells the example."""
    return replace(toy(), lengths=torch.randperm(N, generator=torch.Generator().manual_seed(4)))


def spread(batches: Batches, epochs: int = 20) -> float:
    """Mean over steps of (longest - mean length) of a batch: the places that are padding, for each example."""
    assert batches.lengths is not None
    drawn = [batches.lengths[batches.indices(step)].float() for step in range(epochs * batches.steps_per_epoch)]
    return torch.stack([lengths.max() - lengths.mean() for lengths in drawn]).mean().item()


def test_a_bucket_of_one_batch_changes_nothing() -> None:
    batches = Batches(texts(), 5, seed=1, chain=2, bucket=1)
    for epoch in range(3):
        order = torch.randperm(N, generator=generator(1, 2, epoch, "batches"))
        for step in range(4):
            assert batches.indices(4 * epoch + step).equal(order[5 * step : 5 * step + 5])


def test_data_without_lengths_have_no_buckets() -> None:
    plain, bucketed_ = Batches(toy(), 5, seed=0, chain=0), Batches(toy(), 5, seed=0, chain=0, bucket=4)
    assert all(plain.indices(step).equal(bucketed_.indices(step)) for step in range(9))


@each("bucket", [2, 3, 4, 9])
def test_a_group_of_batches_visits_the_examples_it_would_visit_unsorted(bucket: int) -> None:
    plain, sorted_ = (Batches(texts(), 5, seed=0, chain=0, bucket=size) for size in (1, bucket))
    for epoch in range(3):
        for start in range(0, 4, bucket):
            steps = [4 * epoch + step for step in range(start, min(start + bucket, 4))]
            seen = [torch.cat([batches.indices(step) for step in steps]) for batches in (plain, sorted_)]
            assert seen[0].sort().values.equal(seen[1].sort().values)


def test_the_batches_of_a_group_do_not_overlap_in_length() -> None:
    data = texts()
    assert data.lengths is not None
    batches = Batches(data, 5, seed=0, chain=0, bucket=4)
    for epoch in range(5):
        drawn = [data.lengths[batches.indices(4 * epoch + step)] for step in range(4)]
        ranges = sorted((int(lengths.min()), int(lengths.max())) for lengths in drawn)
        assert all(before[1] < after[0] for before, after in pairwise(ranges))


@each("bucket", [2, 3, 4])
def test_buckets_leave_every_example_equally_likely_at_any_place(bucket: int) -> None:
    epochs = 3000
    batches = Batches(texts(), 5, seed=0, chain=0, bucket=bucket)
    expected = epochs * 5 / N
    for place in range(4):
        counts = torch.cat([batches.indices(4 * epoch + place) for epoch in range(epochs)]).bincount(minlength=N)
        scores = (counts - expected) / (expected * (1 - 5 / N)) ** 0.5  # an example's count is binomial, on its own
        assert scores.abs().max() < 4.5


def test_equal_lengths_are_shared_out_at_random() -> None:
    """Ties are broken by the permutation, not by the examples' order."""
    data = replace(toy(), lengths=torch.ones(N, dtype=torch.int64))
    batches = Batches(data, 5, seed=0, chain=0, bucket=4)
    together = sum(bool({0, 1} <= {*batches.indices(step).tolist()}) for step in range(4 * 2000))
    expected = 2000 * 4 * (5 * 4) / (N * (N - 1))
    assert abs(together - expected) < 5 * expected**0.5


def test_larger_buckets_hold_less_padding() -> None:
    padding = [spread(Batches(texts(), 5, seed=0, chain=0, bucket=bucket)) for bucket in (1, 2, 4)]
    assert padding[0] > 1.3 * padding[1] > 1.3 * 1.3 * padding[2]


def test_buckets_depend_on_seed_chain_and_step_only() -> None:
    walked = [Batches(texts(), 5, seed=1, chain=2, bucket=3).indices(step) for step in range(12)]
    jumping = Batches(texts(), 5, seed=1, chain=2, bucket=3)
    assert all(jumping.indices(step).equal(walked[step]) for step in (11, 3, 4, 0, 9, 9, 2))
    for seed, chain in ((1, 3), (2, 2)):
        assert not Batches(texts(), 5, seed, chain, bucket=3).indices(0).equal(walked[0])
    assert not walked[0].equal(walked[4])


def test_the_order_of_a_groups_batches_has_its_own_randomness() -> None:
    order, lengths = torch.arange(8), torch.arange(8)
    orders = {tuple(bucketed(order, lengths, 2, 4, generator(0, 0, epoch, "buckets")).tolist()) for epoch in range(200)}
    assert len(orders) == 24


def test_a_bucket_below_one_is_refused_with_the_fix() -> None:
    with pytest.raises(ConfigError, match="bucket=0 must be at least 1"):
        Batches(texts(), 5, seed=0, chain=0, bucket=0)


def test_stored_batches_are_those_before_the_transform() -> None:
    data = toy(RandomShift(1, flip=True))
    batches = Batches(data, 5, seed=0, chain=0)
    stored, targets = batches.stored(3)
    assert stored.dtype == torch.uint8
    assert data.transform(stored).equal(batches(3)[0])
    assert targets.equal(batches(3)[1])


def test_carving_takes_lengths_and_texts_along() -> None:
    data = texts()
    assert data.lengths is not None
    names = [(f"train {row}",) for row in range(N)]
    data = replace(data, texts={"train": names, "test": [(f"test {row}",) for row in range(N)]})
    carved = carve(data, validation_size=6, limit_train=10, limit_test=4)
    assert carved.lengths is not None
    assert carved.lengths.equal(data.lengths[carved.train.targets])
    for split, source in (("train", "train"), ("validation", "train"), ("test", "test")):
        assert carved.texts[split] == [(f"{source} {row}",) for row in getattr(carved, split).targets.tolist()]
    assert [len(carved.texts[split]) for split in ("train", "validation", "test")] == [10, 4, 4]
    assert carve(data).texts["train"] == names
    assert carve(toy(), validation_size=6).lengths is None
    assert carve(toy(), validation_size=6).texts == {}


def test_a_shortened_validation_set_leaves_the_rest_of_few_examples_to_train_on() -> None:
    """A trial of an experiment whose validation set is larger than the data at hand."""
    carved = carve(toy(), validation_size=N + 1, limit_train=N, limit_test=4)
    assert [len(split) for split in (carved.train, carved.validation, carved.test)] == [N - 4, 4, 4]
    assert sorted(carved.train.targets.tolist() + carved.validation.targets.tolist()) == [*range(N)]
    enough = carve(toy(), validation_size=6, limit_train=N - 6, limit_test=4)
    whole = carve(toy(), validation_size=6)
    assert enough.train.targets.equal(whole.train.targets)
    for limits in ({"limit_test": 4}, {"limit_train": N}, {"limit_train": N, "limit_test": N}):
        with pytest.raises(ConfigError, match=f"validation_size={N} leaves nothing of the {N} training examples"):
            carve(toy(), validation_size=N, **limits)
