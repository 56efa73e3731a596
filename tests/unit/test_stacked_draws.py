"""Draws of an adapter asked several at a time say what they say one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bayeslora.models import lora_classifier
from bayeslora.posterior import Posterior, stacked
from bayeslora.posterior.stacked import Loader, raw_outputs
from bayeslora.posterior.store import DrawStore
from bayeslora.rng import seeded
from tests.cases import each
from tests.data.text_models import SHAPES, tiny_checkpoint


def posterior(model: nn.Module, folder: Path, draws: int) -> Posterior:
    """One of random draws of what is sampled of a model, in two chains."""
    sampled = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    stores = [DrawStore(folder / str(chain), chain) for chain in (0, 1)]
    for number in range(draws):
        state = {name: t + 0.1 * torch.randn(t.shape) for name, t in sampled.items()}
        stores[number % 2].append(state, step=number)
    return Posterior(stores, model)


ALONE = {"modernbert": "", "xlnet": "one at a time"}
"""Families of which draws are asked one by one, and what is said: more than linear layers is sampled of ModernBERT's
head, and XLNet has the batch on another axis."""


@each("family", ["bert", "deberta-v2", "gpt2", "t5", *ALONE])
def test_lora_draws_asked_together_are_those_asked_alone(family: str, tmp_path: Path, caplog):
    caplog.clear()
    base = tiny_checkpoint(tmp_path / "base", family)
    with seeded(0, 0, 0, "test"):
        model = lora_classifier(2, str(base), targets=SHAPES[family][1], rank=2)
        kept = posterior(model, tmp_path / "draws", 11)
    batches = [(tokens(1 + i), torch.zeros(5)) for i in (0, 3)]
    alone = torch.stack([kept.predict_draw(draw, lambda: batches) for draw in kept.draws()])
    assert [len(draws) for draws, _ in kept.groups()] == ([1] * 11 if family == "modernbert" else [8, 3])
    together = torch.stack([logits.log_softmax(-1) for logits in each_of(kept, lambda: batches)])
    assert ("one at a time" in caplog.text) == (ALONE.get(family, "") != "")
    assert alone.std(0).min() > 1e-3
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(kept.predict(batches), alone.logsumexp(0) - torch.tensor(11.0).log(), rtol=0, atol=1e-5)


def each_of(kept: Posterior, loader: Loader) -> Iterator[Tensor]:
    """Outputs of each draw, asked in groups."""
    return (one for _, ask in kept.groups() for one in ask(loader, raw_outputs))


def tokens(seed: int) -> Tensor:
    """Random tokens int64 [5, 1, F, 9], padded on the right."""
    random = torch.Generator().manual_seed(seed)
    ids, lengths = torch.randint(3, 99, (5, 9), generator=random), torch.randint(3, 10, (5, 1), generator=random)
    mask = (torch.arange(9) < lengths).long()
    ids = ids.scatter(1, lengths - 1, 2)  # T5 looks for the end of a text
    return torch.stack([ids * mask, mask, torch.zeros_like(ids)], dim=1)[:, None]


class Adapter(nn.Module):
    """A frozen layer and a sampled head; `uses_weight` reads its weight past calling the layer."""

    __module__ = "bayeslora.models"  # known to keep examples apart, as the package's own are

    def __init__(self, uses_weight: bool = False) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(4, 5).requires_grad_(False), nn.Linear(5, 3)
        self.uses_weight = uses_weight
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        hidden = self.base(x).tanh()
        return hidden @ self.head.weight.mT.reshape(5, 3) if self.uses_weight else self.head(hidden)


def test_a_forward_pass_takes_a_bounded_number_of_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(stacked.EXAMPLES, "cpu", 6)
    kept = posterior(Adapter(), tmp_path, 5)
    x = torch.randn(7, 4)
    list(each_of(kept, lambda: [(x[:2], x), (x[2:], x)]))
    compared, asked = kept.model.seen[: 5 + 5], kept.model.seen[-7:]
    assert max(kept.model.seen) <= 6
    assert asked == [6, 4, 5, 5, 5, 5, 5]  # draws 0–2 and 3–4 of two examples; five examples of each draw
    assert compared


def ways(kept: Posterior, x: Tensor) -> Iterator[Tensor]:
    yield torch.stack([kept.predict_draw(draw, lambda: [(x, x)]) for draw in kept.draws()])
    yield torch.stack([logits.log_softmax(-1) for logits in each_of(kept, lambda: [(x, x)])])


@each("model", [lambda: Adapter(uses_weight=True), lambda: nn.Linear(4, 3), lambda: nn.Sequential(nn.Linear(4, 3))])
def test_what_cannot_be_asked_together_is_asked_alone(model, tmp_path: Path):
    alone, each_ = ways(posterior(model(), tmp_path, 3), torch.randn(6, 4))
    torch.testing.assert_close(each_, alone, rtol=0, atol=1e-6)
