"""Draws on disk: whole or not at all, checked when read, never executed."""

from __future__ import annotations

import json

import pytest
import torch

from bayeslora.errors import DataError
from bayeslora.posterior import Draw, DrawStore, Mixture, Posterior
from bayeslora.posterior.store import load_into


def state(seed: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(3, 2, generator=source), "bias": torch.randn(3, generator=source)}


@pytest.fixture
def store(tmp_path) -> DrawStore:
    store = DrawStore(tmp_path / "chains" / "0", chain=0)
    for i in range(3):
        store.append(state(i), step=10 * (i + 1), scalars={"potential": 1.5 * i})
    return store


def test_draws_come_back_as_they_were_kept(store):
    draws = list(store)
    assert [(d.chain, d.index, d.step, d.scalars) for d in draws] == [
        (0, i, 10 * (i + 1), {"potential": 1.5 * i}) for i in range(3)
    ]
    for i, draw in enumerate(draws):
        assert all(torch.equal(draw.tensors[name], tensor) for name, tensor in state(i).items())


def test_no_temporary_files_stay_behind(store):
    assert sorted(p.name for p in store.folder.rglob("*") if p.is_file()) == [
        "000000.safetensors", "000001.safetensors", "000002.safetensors", "manifest.jsonl",
    ]  # fmt: skip


def test_putting_the_same_draw_again_changes_nothing(store):
    before = store.manifest.read_bytes()
    store.put(1, state(1), step=20, scalars={"potential": 1.5})
    assert store.manifest.read_bytes() == before


def test_a_later_line_for_the_same_index_wins(store):
    store.put(1, state(9), step=20, scalars={"potential": 9.0})
    assert [d.scalars["potential"] for d in store] == [0.0, 9.0, 3.0]
    assert torch.equal(list(store)[1].tensors["bias"], state(9)["bias"])


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_draw_is_named_and_the_others_stay_readable(store, damage):
    path = store.path(1)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-8])
    else:
        path.unlink()
    records = store.records()
    with pytest.raises(DataError, match=r"000001\.safetensors"):
        store.load(records[1])
    assert store.load(records[0]).index == 0
    assert store.load(records[2]).index == 2


def test_a_manifest_cut_in_mid_line_loses_only_that_line_and_takes_the_next(store):
    content = store.manifest.read_bytes()
    store.manifest.write_bytes(content[:-20])
    assert len(store) == 2
    store.append(state(2), step=30, scalars={"potential": 3.0})
    assert [d.index for d in store] == [0, 1, 2]


def test_lines_that_are_no_records_are_skipped(store):
    with store.manifest.open("a") as file:
        file.write('{"index": -1}\nnull\n[1]\n' + json.dumps({"index": "3", "step": 1}) + "\n\x00\xff\n")
    assert len(store) == 3


def test_a_draw_of_another_model_is_refused():
    with pytest.raises(DataError, match="another model"):
        load_into(torch.nn.Linear(2, 4), state(0), "draw 0")


def test_mixture_averages_probabilities_not_logits():
    source = torch.Generator().manual_seed(0)
    parts = [torch.randn(20, 4, generator=source).mul(5).log_softmax(1) for _ in range(7)]
    mixture = Mixture()
    for part in parts:
        mixture.add(part)
    expected = torch.stack([p.double().exp() for p in parts]).mean(0).log()
    torch.testing.assert_close(mixture.log_probs.double(), expected, rtol=1e-5, atol=1e-5)


def test_posterior_predicts_the_mean_of_its_draws(tmp_path):
    model, x = torch.nn.Linear(2, 3), torch.randn(11, 2)
    for chain in range(2):
        store = DrawStore(tmp_path / "chains" / str(chain), chain)
        for i in range(chain + 1):
            store.append(state(10 * chain + i), step=i)
    posterior = Posterior.load(tmp_path, model)
    targets = torch.zeros(11, dtype=torch.long)
    predicted = posterior.predict(lambda: zip(x.split(4), targets.split(4), strict=True))
    expected = torch.stack([(x @ s["weight"].T + s["bias"]).softmax(1) for s in (state(0), state(10), state(11))]).mean(
        0
    )
    torch.testing.assert_close(predicted.exp(), expected)
    assert [[(d.chain, d.index) for d in r] for r in posterior.rounds()] == [[(0, 0), (1, 0)], [(1, 1)]]
    assert isinstance(next(posterior.draws(chain=1)), Draw)


def test_a_folder_without_draws_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"bayeslora\.train"):
        Posterior.load(tmp_path)
