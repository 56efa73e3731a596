"""The report's table by class and its galleries: the right examples, with the right words."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bayeslora.diagnostics.uncertainty import Entropy
from bayeslora.report.classes import class_rows, worst_and_best
from bayeslora.report.gallery import LONGEST, Shown, confident_errors, data_address, most_uncertain
from tests.cases import each

PROBS = torch.tensor(
    [
        [0.7, 0.2, 0.1],  # right
        [0.1, 0.8, 0.1],  # wrong, and sure of it
        [0.3, 0.3, 0.4],  # right
        [0.5, 0.3, 0.2],  # wrong
    ]
)
TARGETS = torch.tensor([0, 0, 2, 1])
NAMES = ("cat", "dog", "emu")


def shown(probs: Tensor = PROBS, targets: Tensor = TARGETS, **more: Any) -> Shown:
    information = torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=torch.float64)[: len(targets)]
    parts: dict[str, Any] = {
        "inputs": torch.arange(len(targets) * 3 * 4 * 4).reshape(-1, 3, 4, 4).to(torch.uint8),
        "texts": (),
        "names": NAMES,
        "targets": targets,
        "ensemble": probs.log(),
        "map": probs.log(),
        "entropy": Entropy(information + 1, torch.ones(len(targets)), information),
    }
    return Shown(**(parts | more))


def picture(address: str) -> np.ndarray:
    head, content = address.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


# Classes


def test_classes_are_counted_by_hand() -> None:
    cat, dog, emu = class_rows(PROBS.log(), TARGETS, NAMES)
    assert (cat.name, cat.examples, cat.accuracy, cat.confused) == ("cat", 2, 0.5, ("dog", 1))
    assert cat.confidence == pytest.approx(0.75)
    assert cat.nll == pytest.approx(-(np.log(0.7) + np.log(0.1)) / 2)
    assert (dog.accuracy, dog.confused) == (0.0, ("cat", 1))
    assert (emu.accuracy, emu.confused) == (1.0, None)


def test_a_class_without_examples_says_so() -> None:
    *_, none = class_rows(PROBS.log(), TARGETS, (*NAMES, "fox"))
    assert none.cells == ["0", "–", "–", "–", "no example to judge by"]


def test_of_many_classes_the_worst_and_the_best_are_shown_first() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(3_000, 100, generator=generator).log_softmax(1)
    targets = torch.where(torch.rand(3_000, generator=generator) < 0.5, log_probs.argmax(1), torch.arange(3_000) % 99)
    rows = class_rows(log_probs, targets, [str(at) for at in range(100)])
    worst, best = worst_and_best(rows)
    assert (len(worst), len(best)) == (10, 10)
    others = [row for row in rows if row.examples and row not in worst and row not in best]
    assert max(row.accuracy for row in worst) <= min(row.accuracy for row in others)
    assert min(row.accuracy for row in best) >= max(row.accuracy for row in others)


def test_few_classes_are_shown_in_their_order() -> None:
    rows = class_rows(PROBS.log(), TARGETS, NAMES)
    assert worst_and_best(rows) == (rows, [])


# Examples


def test_the_examples_of_highest_mutual_information_come_first() -> None:
    found = most_uncertain(shown(), draws=10, count=3).items
    assert [example.facts[-1][1] for example in found] == ["0.400 nats", "0.300 nats", "0.200 nats"]
    assert [(example.truth, example.right) for example in found] == [("dog", False), ("cat", False), ("emu", True)]
    assert found[0].facts[0] == ("Ensemble", "cat (50.0\N{NO-BREAK SPACE}%), dog (30.0\N{NO-BREAK SPACE}%)")
    assert found[0].facts[1] == ("MAP", "cat (50.0\N{NO-BREAK SPACE}%)")


def test_errors_come_by_their_confidence_and_only_errors() -> None:
    found = confident_errors(shown()).items
    assert [example.facts[0][1].split()[0] for example in found] == ["dog", "cat"]
    assert not any(example.right for example in found)


def test_without_errors_there_is_a_reason() -> None:
    assert confident_errors(shown(targets=PROBS.argmax(1))).missing == "no example was predicted wrong"


def test_one_draw_has_no_disagreement_to_show() -> None:
    assert "there is only one" in most_uncertain(shown(), draws=1).missing


def test_without_map_its_prediction_is_not_shown() -> None:
    labels = [label for label, _ in most_uncertain(shown(map=None), draws=2).items[0].facts]
    assert labels == ["Ensemble", "Mutual information"]


def test_an_image_is_the_stored_one_enlarged_without_smoothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 6), dtype=np.uint8)
    pixels = picture(data_address(image))
    assert pixels.shape == (128, 96, 3)
    np.testing.assert_array_equal(pixels[7::16, 7::16], image.transpose(1, 2, 0))
    grey = picture(data_address(image[:1]))
    np.testing.assert_array_equal(grey[::16, ::16], image[0])


def test_a_large_image_keeps_its_size() -> None:
    assert picture(data_address(np.zeros((1, 224, 224), dtype=np.uint8))).shape == (224, 224)


def test_texts_are_shown_with_their_sentences_cut_where_they_are_long() -> None:
    texts = [(f"first {at}", "word " * 200) for at in range(4)]
    example = most_uncertain(shown(texts=texts, inputs=torch.zeros(4, 1, 3, 9)), draws=2).items[0]
    assert example.image == ""
    assert example.texts[0] == "first 3"
    assert example.texts[1].endswith("word …")
    assert len(example.texts[1]) <= LONGEST + 2


@each(
    ("more", "words"),
    [
        ({"inputs": torch.zeros(4, 7)}, "neither grey or colour images nor texts"),
        ({"inputs": torch.zeros(4, 2, 5, 5, dtype=torch.uint8)}, "neither grey or colour images"),
        ({"inputs": torch.zeros(9, 3, 5, 5, dtype=torch.uint8)}, "neither grey or colour images"),
        ({"texts": [("only one",)]}, "not those evaluated"),
    ],
)
def test_what_cannot_be_shown_has_a_reason(more: dict[str, Any], words: str) -> None:
    assert words in most_uncertain(shown(**more), draws=2).missing
    assert words in confident_errors(shown(**more)).missing
