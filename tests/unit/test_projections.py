"""Norms by block and random projections."""

from __future__ import annotations

import pytest
import torch

from bayeslora.diagnostics import projections as module
from bayeslora.diagnostics.projections import block_norms, block_of, projections
from tests.cases import each


@each(
    ("name", "block"),
    [
        ("blocks.2.conv1.weight", "blocks.2"),
        ("stem.0.weight", "stem.0"),
        ("head.bias", "head"),
        ("weight", "weight"),
        ("peft.base_model.model.encoder.encoder.layer.5.attention.self.query.lora_A.default.weight", "layer.5"),
        ("peft.base_model.model.head.modules_to_save.default.weight", "head"),
        ("peft.base_model.model.model.layers.11.self_attn.q_proj.lora_B.default.weight", "layers.11"),
    ],
)
def test_a_block_is_a_numbered_layer_or_the_first_part_of_a_name(name: str, block: str):
    assert block_of(name) == block


def test_block_norms_add_up_to_the_norm_of_all():
    params = {"a.0.w": torch.tensor([[3.0, 4.0]]), "a.0.b": torch.tensor([12.0]), "head": torch.tensor([1.0])}
    norms = block_norms(params, 0)
    assert {name: norm.item() for name, norm in norms.items()} == {"a.0": 13.0, "head": 1.0}
    stacked = block_norms({name: torch.stack([p, 2 * p]) for name, p in params.items()}, 1)
    assert stacked["a.0"].tolist() == [13.0, 26.0]


@each("limit", [1000, 5])
def test_projections_are_linear_fixed_and_of_unit_scale(limit: int, monkeypatch: pytest.MonkeyPatch):
    """Of a standard normal θ each is standard normal, up to the norm of its direction."""
    monkeypatch.setattr(module, "COORDINATES", limit)
    module._directions.cache_clear()
    a, b = torch.randn(2, 40), torch.randn(2, 40)
    split = {"x": a[:, :10], "y": a[:, 10:].reshape(2, 5, 6)}
    pa, pb = projections({"t": a}, 1), projections({"t": b}, 1)
    assert pa.shape == (2, 10)
    torch.testing.assert_close(projections(split, 1), pa)
    torch.testing.assert_close(projections({"t": a + 2 * b}, 1), pa + 2 * pb, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(projections({"t": a[1]}, 0), pa[1])
    many = projections({"t": torch.randn(4000, 40, generator=torch.Generator().manual_seed(0))}, 1)
    index, weight = module._directions(40)
    for i in range(10):
        variance = torch.zeros(40).index_add_(0, index[i], weight[i]).square().sum()
        assert many[:, i].var().item() == pytest.approx(variance.item(), rel=4 * (2 / 4000) ** 0.5)
    module._directions.cache_clear()
