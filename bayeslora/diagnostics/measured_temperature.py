"""The temperature at which a run really samples, block by block: readings of single states, and what many of them say.

Integration by parts: under exp(−Ũ/kT), for any c that does not depend on θ and any block b of D_b coordinates,

    E[⟨θ_b − c_b, ∇_b Ũ⟩] = D_b·kT,

so that ⟨θ_b − c_b, g_b⟩ / (D_b·kT), with g an unbiased gradient that is independent of the past of θ, reads the
temperature of the block in units of the one asked for. Heat from minibatches and discretisation, noise of a wrong size,
a dropped prior, an unfinished burn-in: all show, without a reference run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bayeslora.diagnostics.convergence import convergence
from bayeslora.diagnostics.projections import block_of
from bayeslora.diagnostics.values import ALL, POOLED, TOLERANCE, MeasuredTemperature

SURE = 3.0
"""Standard errors beyond which a difference is not chance."""

Series = Mapping[str, Sequence[np.ndarray]]
"""Readings by block, one array [draws] a chain."""


# -- single states -----------------------------------------------------------------------------------------------------


def blocks(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of parameters by block; a block that is called like one of this module's own entries gets an underscore."""
    names_of: dict[str, list[str]] = {}
    for name in names:
        block = block_of(name)
        names_of.setdefault(f"{block}_" if block in (ALL, POOLED) else block, []).append(name)
    return names_of


def block_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Coordinates of each block, and of `all`, from those of each parameter."""
    sizes_of = {block: sum(sizes[name] for name in names) for block, names in blocks(sizes).items()}
    return sizes_of | {ALL: sum(sizes.values())}


def readings(
    theta: Mapping[str, Tensor],
    force: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    kT: float,
    chain_axes: int = 0,
    center: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """⟨θ_b − c_b, g_b⟩ / (D_b·kT) of each block that has coordinates, and of `all`: fp64 scalars, or [K].

    Args:
        theta: the state by name, each with `chain_axes` leading chain axes.
        force: g, of the same shapes; 0 where θ is not sampled.
        sizes: coordinates of each parameter of one chain that are sampled.
        kT: thermal energy asked for, T/N.
        chain_axes: 0 (one chain) or 1 (K stacked chains).
        center: c, of the shapes of `theta`; None: 0.
    """
    products = {}
    for name, p in theta.items():
        away = p.detach() if center is None else p.detach() - center[name]
        products[name] = (away * force[name]).reshape(*p.shape[:chain_axes], -1).sum(-1).double()
    sums = {block: torch.stack([products[name] for name in names]).sum(0) for block, names in blocks(theta).items()}
    sums[ALL] = torch.stack([*products.values()]).sum(0)
    coordinates = block_sizes(sizes)
    return {block: total / (coordinates[block] * kT) for block, total in sums.items() if coordinates[block]}


# -- many states -------------------------------------------------------------------------------------------------------


def temperatures(
    series: Series,
    sizes: Mapping[str, int],
    tolerance: float = TOLERANCE,
    at_zero: Series | None = None,
) -> dict[str, MeasuredTemperature]:
    """The temperature of each block from its readings, and which of them decide whether a run samples at its own.

    A block is measured where its standard error is at most half the tolerance, or where it is further off than the
    tolerance by `SURE` standard errors. The others are pooled, weighted by their coordinates, and where that does not
    suffice together with the smallest of the measured ones; a pool that is not measurable either is not shown. Where
    readings about 0 differ from those given by more than `SURE` standard errors, θ has not mixed: not shown.

    Args:
        series: by block and for `ALL`, one array [draws] a chain of readings in units of the temperature asked for;
            chains are cut to the shortest.
        sizes: coordinates by block.
        tolerance: how far off a block may be, in the same unit.
        at_zero: readings at c = 0 of the same draws, where those of `series` are about the other chains' means.
    """
    center: Literal["0", "other chains"] = "0" if at_zero is None else "other chains"
    judged = {block: replace(_estimate(chains), c=center, size=sizes[block]) for block, chains in series.items()}
    small = []
    for block, one in judged.items():
        if one.ratio is None or one.se is None:
            continue
        unmixed = None if at_zero is None else _unmixed(one, _estimate(at_zero[block]))
        if unmixed is not None:
            judged[block] = replace(one, reason=unmixed)
        elif one.se <= tolerance / 2 or abs(one.ratio - 1) - tolerance > SURE * one.se:
            judged[block] = replace(one, status="measured")
        elif block == ALL:
            judged[block] = replace(one, reason=_too_noisy(one, tolerance))
        else:
            small.append(block)
            judged[block] = replace(one, status="pooled", reason=f"{_too_noisy(one, tolerance)}, or see {POOLED}")
    if small:
        measured = [block for block, one in judged.items() if one.status == "measured" and block != ALL]
        pool = _pool(series, sizes, small, sorted(measured, key=sizes.__getitem__), tolerance)
        judged[POOLED] = replace(pool, c=center)
    return judged


def _estimate(chains: Sequence[np.ndarray]) -> MeasuredTemperature:
    """Mean and standard error of readings."""
    shortest = min((len(chain) for chain in chains), default=0)
    cut = [chain[:shortest] for chain in chains]
    estimate = convergence(cut)
    if estimate.mcse_mean is None:
        return MeasuredTemperature(reason=estimate.reason or "the standard error is not known")
    return MeasuredTemperature(float(np.mean(cut)), estimate.mcse_mean)


def _unmixed(one: MeasuredTemperature, at_zero: MeasuredTemperature) -> str | None:
    """Why a block has not mixed, by its readings about two centers; None where they agree or are not known."""
    if one.ratio is None or one.se is None or at_zero.ratio is None or at_zero.se is None:
        return None
    if abs(one.ratio - at_zero.ratio) <= SURE * float(np.hypot(one.se, at_zero.se)):
        return None
    words = f"not mixed: {one.ratio:.3g} about the other chains, but {at_zero.ratio:.3g} ± {at_zero.se:.1g} about 0"
    return words.replace("-", "−")


def _pool(
    series: Series, sizes: Mapping[str, int], small: Sequence[str], measured: Sequence[str], tolerance: float
) -> MeasuredTemperature:
    """The small blocks together, with as many of the measured ones, in their order, as make them measurable."""
    for more in range(len(measured) + 1):
        members = [*small, *measured[:more]]
        weights = np.array([sizes[block] for block in members]) / sum(sizes[block] for block in members)
        rows = zip(*(series[block] for block in members), strict=True)
        one = replace(
            _estimate([weights @ np.stack(of_chain) for of_chain in rows]),
            size=sum(sizes[block] for block in members),
            reason=f"of {', '.join(members)}",
        )
        if one.se is not None and one.se <= tolerance / 2:
            return replace(one, status="measured")
    return replace(one, reason=f"{one.reason}: {_too_noisy(one, tolerance)}")


def _too_noisy(one: MeasuredTemperature, tolerance: float) -> str:
    return f"standard error {one.se or float('nan'):.2g}, above {tolerance / 2:g}: keep more draws"
