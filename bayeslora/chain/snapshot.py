"""The whole state of a chain at a step: what it takes to go on to the very same draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bayeslora.chain.chain import Chain
from bayeslora.chain.stack import Stack
from bayeslora.errors import DataError

MODEL, WARMUP, SAMPLER, EXTRA = "model/", "warm-up/", "sampler/", "extra/"
"""First parts of the names of a snapshot's tensors."""


class Extra:
    """Something beside the module whose state goes with the chains': a callback that keeps running estimates."""

    def rows(self) -> list[dict[str, Tensor]]:
        """The state of each chain, in their order."""
        raise NotImplementedError

    def load_rows(self, rows: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from what `rows` gave."""
        raise NotImplementedError


@dataclass(frozen=True)
class Snapshot:
    """One chain after `step` steps of its plan. Random numbers are functions of the step, so there are none to keep.

    Attributes:
        step: steps taken.
        tensors: sampled parameters and buffers, the warm-up's and the sampler's memory, by name.
        values: the sampler's numbers and marks, and `lr_scale`, the factor that retries have put on the step size.
    """

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def capture(chain: Chain, extras: Sequence[Extra] = ()) -> list[Snapshot]:
    """The present state of each of the chains that move together, the same as of one that moves alone."""
    chain.check_finite()
    warmup, sampler = chain.optimizers
    stacked = isinstance(chain.model, Stack)
    step = chain.steps_taken
    shared = dict(_warmup_tensors(warmup)) if step < chain.plan.warmup else {}
    shared |= {SAMPLER + name: value for name, value in sampler.memory.items() if isinstance(value, Tensor)}
    values = {name: value for name, value in sampler.memory.items() if not isinstance(value, Tensor)}
    values["lr_scale"] = chain.lr_scale
    snapshots = []
    for place, state in enumerate(chain.states()):
        memory = {name: t[place] if stacked and t.ndim else t for name, t in shared.items()}
        tensors = {MODEL + name: tensor for name, tensor in state.items()} | memory
        tensors |= {f"{EXTRA}{i}/{n}": t for i, extra in enumerate(extras) for n, t in extra.rows()[place].items()}
        snapshots.append(Snapshot(step, {name: t.detach().cpu() for name, t in tensors.items()}, dict(values)))
    return snapshots


@torch.no_grad()
def restore(chain: Chain, snapshots: Sequence[Snapshot], extras: Sequence[Extra] = ()) -> None:
    """Put chains where their snapshots were taken, all after the same number of steps.

    Raises:
        DataError: a snapshot lacks a tensor of the model, or has it in another shape.
    """
    warmup, sampler = chain.optimizers
    stacked = isinstance(chain.model, Stack)

    def joined(name: str) -> Tensor:
        if any(name not in snapshot.tensors for snapshot in snapshots):
            raise DataError(f"resume points do not fit one another: one of them lacks {name}")
        rows = [snapshot.tensors[name] for snapshot in snapshots]
        return (torch.stack(rows) if stacked else rows[0]).to(chain.device)

    held = chain.held()
    for snapshot in snapshots:
        _check_fits(snapshot, {n: t[0] if stacked else t for n, t in held.items()}, _params(warmup), stacked)
    for name, tensor in held.items():
        tensor.copy_(joined(MODEL + name))
    names = snapshots[0].tensors
    sampler.memory.clear()
    sampler.memory.update({k: v for k, v in snapshots[0].values.items() if k != "lr_scale"})
    sampler.memory.update({n.removeprefix(SAMPLER): joined(n) for n in names if n.startswith(SAMPLER)})
    has_axes = any(p.ndim > stacked for p in _params(warmup))
    for name in names:
        if name.startswith(WARMUP):
            place, _, key = name.removeprefix(WARMUP).partition("/")
            # a count of steps is one for all chains; of a parameter of no axes, each chain has a number of its own
            numbers = all(snapshots[0].tensors[other].ndim == 0 for other in names if other.endswith(f"/{key}"))
            shared = numbers and (has_axes or key == "step")
            value = snapshots[0].tensors[name].clone() if shared else joined(name)
            warmup.state[_params(warmup)[int(place)]][key] = value
    for i, extra in enumerate(extras):
        extra.load_rows([_under(f"{EXTRA}{i}/", snapshot.tensors) for snapshot in snapshots])
    chain.steps_taken, chain.lr_scale = snapshots[0].step, snapshots[0].values["lr_scale"]


def _check_fits(snapshot: Snapshot, held: Mapping[str, Tensor], params: Sequence[Tensor], stacked: bool) -> None:
    """Raise `DataError` unless a snapshot has what the model of one chain holds, and memory of its size.

    Args:
        snapshot: of one chain.
        held: what a draw of the model holds.
        params: what the warm-up's optimizer moves; each [K, …] in a stack.
        stacked: whether it is one.
    """
    size = sum(p[0].numel() if stacked else p.numel() for p in params)
    for name, tensor in held.items():
        saved = snapshot.tensors.get(MODEL + name)
        if saved is None or saved.shape != tensor.shape:
            raise DataError(f"a resume point does not fit the model: {name} is missing or has another shape")
    for name, tensor in snapshot.tensors.items():
        kind, _, rest = name.partition("/")
        place, _, key = rest.partition("/")
        if kind + "/" == SAMPLER:
            fits = tensor.numel() == 1 or tensor.shape == (size,)
        elif kind + "/" == WARMUP:
            is_place = place.isdecimal() and int(place) < len(params) and bool(key)
            fits = is_place and tensor.shape in (torch.Size(()), params[int(place)].shape[stacked:])
        else:
            fits = name.removeprefix(MODEL) in held if name.startswith(MODEL) else name.startswith(EXTRA)
        if not fits:
            raise DataError(f"a resume point does not fit the model: {name} is not of it, or has another shape")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _params(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _warmup_tensors(warmup: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The memory of the warm-up's optimizer, by number of the parameter and its own name."""
    for place, p in enumerate(_params(warmup)):
        for key, value in warmup.state[p].items():
            if isinstance(value, Tensor):
                yield f"{WARMUP}{place}/{key}", value
            elif value is not None:
                raise DataError(
                    f"the warm-up's optimizer {type(warmup).__name__} keeps {key}, which is no tensor: its state cannot"
                    " be saved; choose another one"
                )
