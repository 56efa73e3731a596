"""What a run's draws answer to a few made-up examples: it tells a model from another that has the same fingerprint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bayeslora.atomic import write_atomically
from bayeslora.errors import ConfigError, DataError
from bayeslora.factories import FAILURES, first_line
from bayeslora.likelihood import NOISE, Likelihood
from bayeslora.posterior.stacked import outputs
from bayeslora.posterior.store import Draw, DrawStore, load_into, read_tensors, serialise
from bayeslora.rng import generator

ANSWERS_FILE = "answers.safetensors"
MIXED, EXAMPLES = 16, 4
"""Training examples of which so many are made."""
TOLERANCE = 1e-2
"""Of the largest output: other devices and types of number round otherwise."""
INPUTS, OUTPUTS = "inputs", "outputs/"


def keep_answers(root: Path, model: nn.Module, likelihood: Likelihood, stores: Sequence[DrawStore], batch: Any) -> None:
    """Write what the first draw of every chain gives for a few examples, unless it is written already.

    The examples are none of anyone's: each entry is that of another example of the batch, drawn at random.

    Args:
        root: the run directory.
        model: into which draws are loaded.
        likelihood: of the run.
        stores: of its chains.
        batch: inputs of some training examples, [B, …], or several by name.
    """
    file, draws = root / ANSWERS_FILE, list(_first(stores))
    if not draws or (file.is_file() and {f"{OUTPUTS}{d.chain}" for d in draws} <= read_tensors(file).keys()):
        return
    inputs = tree_map(_mixed, batch)
    named = {f"{INPUTS}/{name}": x for name, x in inputs.items()} if isinstance(inputs, Mapping) else {INPUTS: inputs}
    try:
        given = {f"{OUTPUTS}{draw.chain}": _outputs(model, likelihood, draw, inputs) for draw in draws}
    except FAILURES:  # what is mixed need not be an example
        return
    if all(bool(answer.isfinite().all()) for answer in given.values()):
        write_atomically(file, serialise(named | given, {}))


def check_answers_of(root: Path, model: nn.Module, likelihood: Likelihood, stores: Sequence[DrawStore]) -> None:
    """Compare what a model gives with the first draw of every chain with what the run's model gave.

    Raises:
        DataError: it gives something else: a plain attribute of it, or its code, is another one.
    """
    file = root / ANSWERS_FILE
    kept = read_tensors(file) if file.is_file() else {}
    named = {name.removeprefix(f"{INPUTS}/"): x for name, x in kept.items() if name.startswith(INPUTS)}
    inputs = named.get(INPUTS, named)
    for draw in _first(stores):
        wanted = kept.get(f"{OUTPUTS}{draw.chain}")
        if wanted is None:
            continue
        try:
            given = _outputs(model, likelihood, draw, inputs)
        except ConfigError:
            raise
        except FAILURES as error:
            raise DataError(f"the model cannot take the inputs of the run in {root}: {first_line(error)}") from error
        off = float((given.double() - wanted.double()).abs().max()) if given.shape == wanted.shape else float("inf")
        if not off <= TOLERANCE * float(wanted.abs().max()) + 1e-6:
            raise DataError(
                f"{root} holds draws of another model: with draw {draw.index} of chain {draw.chain} this one has other"
                " outputs than the run's. Its parameters and buffers fit, so what differs is its code, or an attribute"
                " that is neither (a number, a tensor that is not registered). Give the model that was sampled"
            )


def _first(stores: Sequence[DrawStore]) -> Iterator[Draw]:
    """The first draw of every chain that has one, unless its file is damaged: whoever needs it says so."""
    for store in stores:
        records = store.records()
        if records and store.intact(records[0]):
            yield store.load(records[0])


def _outputs(model: nn.Module, likelihood: Likelihood, draw: Draw, inputs: Any) -> Tensor:
    """Outputs of a draw, [N, …], on the CPU."""
    if NOISE in draw.tensors:
        likelihood.attach(model, len(draw.tensors[NOISE]))
    if isinstance(inputs, Mapping):
        from bayeslora.models.keywords import take_keywords  # with the models

        take_keywords(model, inputs)
    load_into(model, draw.tensors, f"draw {draw.index} of chain {draw.chain}")
    own = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    moved = tree_map(lambda x: x.to(own.device, own.dtype if x.is_floating_point() else x.dtype), inputs)
    return outputs(model, [(moved, torch.empty(0))])


def _mixed(held: Tensor) -> Tensor:
    """A few rows [N, …] of [B, …], every entry of which is that of a row drawn at random."""
    held = held[:MIXED].cpu()
    order = torch.rand(held.shape, generator=generator(0, 0, 0, "answers")).argsort(0)
    return held.gather(0, order)[:EXAMPLES]
