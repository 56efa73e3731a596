"""A chain that moves while its step sizes are found, and the largest curvature of its potential."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bayeslora.chain.chain import Batch, Chain
from bayeslora.diagnostics.projections import block_of
from bayeslora.errors import DivergedError
from bayeslora.potential import last_match
from bayeslora.rng import generator


class Pilot(Chain):
    """A chain, or several stacked, whose step sizes are set by block while it moves."""

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.params[name] for name in names], "factor": 1.0} for names in self.blocks.values()]

    @cached_property
    def blocks(self) -> dict[str, list[str]]:
        """Names of the parameters by block, in the order of the groups.

        Vectors (biases, norm parameters) of a block that has matrices too stand apart, for their curvature is another;
        so do parameters whose `lr_factors` differ.
        """
        found: dict[str, list[str]] = {}
        axes = {name: p.ndim - self.chain_axes for name, p in self.params.items()}
        with_matrices = {block_of(name) for name in self.params if axes[name] > 1}
        for name in self.params:
            block, factor = block_of(name), last_match(name, self.lr_factors, 1.0)
            vectors = " vectors" if axes[name] <= 1 and block in with_matrices else ""
            found.setdefault(block + vectors + (f" × {factor:g}" if factor != 1 else ""), []).append(name)
        return found

    def set_step_sizes(self, sizes: Mapping[str, float]) -> None:
        """Step with ε of every block from here on."""
        self.optimizers  # noqa: B018  made at first use
        self._base_rates[1] = [sizes[block] for block in self.blocks]

    def displaced_forces(self, batches: Sequence[Batch], by: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """g(θ + d) − g(θ − d) for a displacement of some of the parameters, by name; θ stays as it is."""
        before = {name: self.params[name].detach().clone() for name in by}
        found: list[dict[str, Tensor]] = []
        try:
            for sign in (1, -1):
                with torch.no_grad():
                    for name, d in by.items():
                        self.params[name].copy_(before[name] + sign * d)
                force = self.force(self.sampler, batches, self.steps_taken, self.potential.num_data)
                found.append({name: force[name].clone() for name in by})
        finally:
            with torch.no_grad():
                for name, tensor in before.items():
                    self.params[name].copy_(tensor)
        return {name: found[0][name] - found[1][name] for name in by}


@dataclass
class Curvature:
    """Power iteration for the largest curvature of a pilot's potential in some of its parameters.

    Attributes:
        pilot: whose chains.
        names: of the parameters.
        products: at first, and from the last estimate's direction.
        direction: where the last estimate ended, by name; random at first.
        value: the last estimate, λmax by chain, [K] or [1].
    """

    pilot: Pilot
    names: Sequence[str]
    products: tuple[int, int]
    direction: dict[str, Tensor] = field(default_factory=dict)
    value: Tensor | None = None

    def __call__(self, batches: Sequence[Batch], roots: Mapping[str, float] | None = None) -> float:
        """λmax of E^½ H E^½ (of H without `roots`), the largest over chains.

        Args:
            batches: on which the gradient is taken.
            roots: √ε by name.

        Raises:
            DivergedError: a gradient is not finite.
        """
        pilot, scale = self.pilot, {name: 1.0 if roots is None else roots[name] for name in self.names}
        if not self.direction:
            self.direction = {name: self._random(name) for name in self.names}
        kT = pilot.potential.kT(pilot.temperature)
        v, count = self._normalised(self.direction)[0], self.products[self.value is not None]
        for _ in range(count):
            away = {name: scale[name] * tensor for name, tensor in v.items()}
            if self.value is None:
                size = self._norm({name: pilot.params[name].detach() for name in self.names})
                h = 1e-3 * size.clamp(min=self._prior_scale()) / self._norm(away)
            else:
                h = (kT / self.value).sqrt()
            change = pilot.displaced_forces(batches, {name: self._times(d, h) for name, d in away.items()})
            w = {name: self._times(scale[name] * g, 0.5 / h) for name, g in change.items()}
            v, self.value = self._normalised(w)
            if not self.value.isfinite().all():
                raise DivergedError("a gradient of the pilot is not finite", list(pilot.chains), pilot.steps_taken)
            self.value = self.value.clamp(min=1e-30)
        self.direction = v
        assert self.value is not None
        return float(self.value.max())

    def _random(self, name: str) -> Tensor:
        p = self.pilot.params[name]
        source = generator(self.pilot.seed, 0, 0, f"curvature of {name}")
        row = torch.randn(p.shape[self.pilot.chain_axes :], generator=source, dtype=torch.float32)
        return row.to(p).expand(p.shape).clone()

    def _prior_scale(self) -> float:
        """σ·√D of the parameters under the prior."""
        prior, axes = self.pilot.potential.prior, self.pilot.chain_axes
        shapes = {name: self.pilot.params[name].shape[axes:] for name in self.names}
        return math.sqrt(sum(shape.numel() / prior.precision(name, shape) for name, shape in shapes.items()))

    def _norm(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """‖·‖ by chain, [K] or [1], fp64."""
        rows = len(self.pilot.chains) if self.pilot.chain_axes else 1
        squares = [t.reshape(rows, -1).double().square().sum(-1) for t in tensors.values()]
        return torch.stack(squares).sum(0).sqrt()

    def _normalised(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Tensors of norm 1 by chain, and what their norms were; where there is nothing, the last direction."""
        norm = self._norm(tensors)
        if not norm.isfinite().all() or (norm == 0).any():
            return self.direction, norm
        return {name: self._times(t, 1 / norm) for name, t in tensors.items()}, norm

    def _times(self, tensor: Tensor, factor: Tensor) -> Tensor:
        """A tensor [K, …] times one number a chain."""
        shape = [-1, *[1] * (tensor.ndim - 1)] if self.pilot.chain_axes else []
        return tensor * factor.to(tensor).reshape(shape)
