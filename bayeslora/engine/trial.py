"""One trial step before a run starts: whether its model can be sampled, alone or stacked, and how a stack runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bayeslora.chain.batches import evaluation_batches
from bayeslora.chain.modes import (
    check_answers,
    evaluation_mode,
    frozen_statistics,
    normalise_by_batch,
    set_sampling_mode,
)
from bayeslora.chain.padding import PaddingRows
from bayeslora.chain.stack import Stack
from bayeslora.errors import ConfigError, require
from bayeslora.experiment import Experiment
from bayeslora.factories import first_line
from bayeslora.rng import generator
from bayeslora.settings import AUTO

EXAMPLES = 4
"""Of each chain."""
CROWD = 32
"""Examples beside which those of the first chain must give the same: experts of limited capacity drop some of many.
No more than the run's own batches hold."""
STACKED = 2
"""Chains that are compared: each row of a stack is treated like every other."""
STACKED_UP_TO = 2_000_000
"""Parameters up to which `chain.parallel=auto` stacks chains: beyond, arithmetic and memory are the limits."""
DOUBLE_UP_TO = 30_000_000
"""Parameters up to which models are compared in double precision: beyond, the copy takes too much time and memory."""
FAILURES = (RuntimeError, TypeError, IndexError, AttributeError, ValueError, KeyError, AssertionError)
"""What a model raises that cannot do what is asked of it."""


class _FailsError(ConfigError):
    """The model fails by itself, in the precision that was tried."""


def tried(experiment: Experiment) -> Experiment:
    """Take one trial step of a run's model, on a few training examples, and leave everything as it was.

    A step is a forward and backward pass through the potential, with the sampled tensors moved a little, so that
    chains differ. Of a stack, outputs, gradients and buffers are compared with those of each chain's own model; where
    one large batch (`StackedLinear`) gives others, `torch.func.vmap` is compared in its place.

    Returns:
        The experiment with `flat` as its stack runs.

    Raises:
        ConfigError: the model fails, answers at random, changes its own parameters, or couples the examples of a batch;
            or stacked it fails or differs.
    """
    if experiment.chain.parallel == AUTO:
        small = sum(p.numel() for p in experiment.structure().parameters()) <= STACKED_UP_TO
        if small and experiment.trainer.devices == 1:
            with suppress(ConfigError):
                return tried(experiment.settled({"chain.parallel": "stacked"}))
        return tried(experiment.settled({"chain.parallel": "sequential"}))
    stacked = experiment.chain.parallel == "stacked" and len(experiment.chain.chosen) > 1
    trial = _Trial(experiment.here, experiment.chain.chosen[: STACKED if stacked else 1])
    try:
        return experiment.but(flat=trial.run())
    except _FailsError:  # perhaps in double precision alone
        return experiment.but(flat=replace(trial, double=False).run())


@dataclass
class _Trial:
    """A trial step of the models of some chains.

    Attributes:
        experiment: the run's parts.
        chains: one to be tried alone, or several to be tried as a stack.
        double: compare in double precision.
    """

    experiment: Experiment
    chains: list[int]
    double: bool = True

    def run(self) -> bool | None:
        """Try the models. Returns whether their stack is flat; None of a single one."""
        if len(self.chains) == 1:
            for _ in self._models([]):
                pass
            return None
        cause = ""
        for flat in (None, False):  # None: wherever the structure allows it
            own: list[dict[str, Tensor]] = []
            with ExitStack() as scope:
                stack = Stack(self._models(own, scope), flat)
                try:
                    cause = self._difference(own, self._step(stack))
                except ConfigError:
                    raise
                except FAILURES as error:
                    cause = first_line(error)
            if not cause:
                return stack.flat
            if not stack.flat:
                break
        raise ConfigError(
            f"chain.parallel=stacked cannot run {type(stack.model).__name__}: {cause}; choose chain.parallel=sequential"
        )

    def _models(self, own: list[dict[str, Tensor]], scope: ExitStack | None = None) -> Iterator[nn.Module]:
        """The model of each chain, moved a little; what each gives by itself is added to `own`.

        The first stays so until `lent` ends, since it lends a stack its structure. All are made before one is moved:
        they may share what is frozen.
        """
        models = [self.experiment.model(chain) for chain in self.chains]
        for place, (chain, model) in enumerate(zip(self.chains, models, strict=True)):
            self._check_batch_size(model)
            with ExitStack() as here:
                (scope if scope is not None and place == 0 else here).enter_context(self._moved(model, chain))
                with _buffers_restored(model):
                    try:
                        if place == 0:
                            self._check_examples(model)
                        own.append(self._step(model, place))
                    except ConfigError:
                        raise
                    except FAILURES as error:
                        raise _FailsError(f"{_named(model)} fails in a trial step: {first_line(error)}") from error
                yield model

    @contextmanager
    def _moved(self, model: nn.Module, chain: int) -> Iterator[None]:
        """The model in the trial's precision with its sampled tensors moved, inside the block; then as it was.

        Parts of a model may be shared with others, so nothing of it is written in place.
        """
        modes = [(module, module.training) for module in model.modules()]
        tensors = [(p, p.data) for p in model.parameters()]
        buffers = [(m, name, b) for m in model.modules() for name, b in m._buffers.items()]
        random = generator(self.experiment.seed, chain, 0, "trial")
        for p, data in tensors:
            if p.requires_grad:
                noise = torch.randn(data.shape, generator=random, dtype=torch.float32).to(data)
                p.data = data + noise * (0.1 * data.square().mean().sqrt() + 0.01)
        for module, name, buffer in buffers:
            module._buffers[name] = buffer if buffer is None else buffer.clone()
        if self.double and sum(p.numel() for p in model.parameters()) <= DOUBLE_UP_TO:
            model.double()
        try:
            yield
        finally:
            for p, data in tensors:
                p.grad, p.data = None, data
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
            for module, training in modes:
                module.training = training

    def _check_batch_size(self, model: nn.Module) -> None:
        one = len(self.experiment.data.train) == 1
        cause = "the training data are a single example" if one else "chain.batch_size=1"
        require(
            not (one or self.experiment.chain.batch_size == 1) or not normalise_by_batch(model),
            f"{cause}: BatchNorm normalises by the other examples of a batch and there are none; choose a"
            " larger batch or another norm, or freeze the BatchNorm layers (no gradient, evaluation mode)",
        )

    def _check_examples(self, model: nn.Module) -> None:
        """Raise `ConfigError` where the outputs of an example are random, or depend on the other examples."""
        inputs, targets = self._batch(model, 0)
        set_sampling_mode(model)
        with torch.no_grad(), frozen_statistics(model):
            once, again = (self.experiment.likelihood.nll(model(inputs), targets) for _ in range(2))
            check_answers(model, self._agree(once, again))
        order = torch.tensor([2, 0, 3, 1], device=targets.device)
        with torch.no_grad(), evaluation_mode(model):
            whole, again = (model(inputs)[order] for _ in range(2))
            check_answers(model, self._agree(whole, again, share=0.1))
            halves = [model(tree_map(lambda t, half=half: t[half], inputs)) for half in order.chunk(2)]
            run = self.experiment
            most = max(EXAMPLES, run.evaluation.batch_size, run.chain.batch or len(run.data.train))
            crowd, _ = self._batch(model, 0, min(CROWD, most))
            behind = model(tree_map(lambda t: t.flip(0), crowd))[-1 - order]  # what is dropped comes last
        require(
            self._agree(torch.cat(halves), whole) and self._agree(behind, whole),
            f"{_named(model)} gives an example other outputs beside other examples: it couples the examples of a batch,"
            " so that they have no likelihood of their own. Make its forward pass treat every example by itself (norms"
            " over an example or with running statistics, the batch on the first axis)",
        )

    def _step(self, model: nn.Module | Stack, place: int | None = None) -> dict[str, Tensor]:
        """Outputs, gradients and buffers of a step, by name; with a leading axis K of a stack.

        Args:
            model: of one chain, or a stack.
            place: of the chain among those tried; None of a stack.
        """
        stack = model if isinstance(model, Stack) else None
        network = model if stack is None else stack.model
        batches = [self._batch(network, one) for one in (range(len(self.chains)) if place is None else [place])]
        shared, _ = self._batch(network, 0)
        inputs, targets = batches[0]
        if stack is not None:
            inputs = tree_map(lambda *rows: torch.stack(rows), *(x for x, _ in batches))
            targets = torch.stack([y for _, y in batches])
        own = {name: p for name, p in network.named_parameters() if p.requires_grad}
        params = own if stack is None else stack.sampled()
        padding = PaddingRows(network, params)
        versions = {name: p._version for name, p in params.items()}
        set_sampling_mode(network)
        outputs = model(inputs)
        changed = [name for name, p in params.items() if p._version != versions[name]]
        require(
            not changed,
            f"{_named(network)} changes its parameter {', '.join(changed)} in its forward pass, so that a chain would"
            " not follow the potential; leave that to the sampler (of an embedding, set max_norm=None)",
        )
        require(
            outputs.requires_grad,
            f"{_named(network)}: no gradient leads from its outputs to its sampled parameters; leave out torch.no_grad,"
            " detach and NumPy in its forward pass",
        )
        nll = self.experiment.likelihood.nll(outputs, targets)
        nll.mean(-1).sum().backward()
        padding.drop_gradient(params)
        results = {"the output": outputs.detach()}
        for name, p in params.items():
            gradient = torch.zeros_like(p) if p.grad is None else p.grad
            results[f"the gradient of {name}"] = gradient.to_dense() if gradient.is_sparse else gradient
            p.grad = None
        self.experiment.potential(nll.detach(), params).sum().backward()
        results |= {name: b.clone() for name, b in _buffers(model).items()}
        with torch.no_grad(), evaluation_mode(network):
            results["the output in evaluation mode"] = model(shared) if stack is None else stack(shared, True)
        return results

    def _batch(self, model: nn.Module, place: int, count: int = EXAMPLES) -> tuple[Any, Tensor]:
        """The examples of a chain, every chain's its own, in the precision of the model; the next ones after them."""
        experiment, train = self.experiment, self.experiment.data.train
        order = torch.randperm(len(train), generator=generator(experiment.seed, 0, 0, "trial"))
        chosen = order[torch.arange(max(count, EXAMPLES * len(self.chains))) % len(order)]
        ((inputs, targets),) = evaluation_batches(
            train.take(chosen),
            experiment.data.transform,
            len(chosen),
            experiment.device,
            experiment.trainer.channels_last,
        )
        rows = slice(place * EXAMPLES, place * EXAMPLES + count)
        wide = any(p.dtype == torch.float64 for p in model.parameters())
        return (
            tree_map(lambda t: t[rows].double() if wide and t.is_floating_point() else t[rows], inputs),
            targets[rows],
        )

    def _difference(self, own: list[dict[str, Tensor]], together: dict[str, Tensor]) -> str:
        """The first thing in which a stack differs from the models by themselves; nothing where all agree."""
        gradients = [t for one in own for name, t in one.items() if name.startswith("the gradient") and t.numel()]
        largest = max(float(gradient.abs().max()) for gradient in gradients)
        for name, (place, one) in product(own[0], enumerate(own)):
            floor = largest if name.startswith("the gradient") else 0.0
            if not self._agree(together[name][place], one[name], floor):
                return f"{name} is not that of each chain's own model"
        return ""

    def _agree(self, tensor: Tensor, own: Tensor, scale: float = 0.0, share: float = 1.0) -> bool:
        """Whether two tensors are equal up to rounding, which also depends on the `scale` of what they came from.

        Of what was computed in one way twice a `share` of that is allowed.
        """
        if tensor.shape != own.shape:
            return False
        tolerance = share * (1e-4 if own.dtype == torch.float64 else 1e-3)
        finite = own[own.isfinite()].abs()
        size = float(finite.max()) if finite.numel() else 0.0
        return torch.allclose(tensor, own, rtol=0.0, atol=tolerance * size + 1e-2 * tolerance * scale, equal_nan=True)


@contextmanager
def _buffers_restored(model: nn.Module) -> Iterator[None]:
    """Leave a model's buffers as they are inside the block as they were before it."""
    before = [(module, name, b) for module in model.modules() for name, b in module._buffers.items() if b is not None]
    values = [b.clone() for _, _, b in before]
    yield
    for (module, name, _), value in zip(before, values, strict=True):
        module._buffers[name] = value


def _buffers(model: nn.Module | Stack) -> Mapping[str, Tensor]:
    """The buffers that go with a draw, each [K, …] of a stack."""
    if isinstance(model, Stack):
        return {name: b for name, b in model.held().items() if name in model.buffer_names}
    saved = set(model.state_dict())
    return {name: b for name, b in model.named_buffers() if name in saved}


def _named(model: nn.Module) -> str:
    return f"model: {type(model).__name__}"
