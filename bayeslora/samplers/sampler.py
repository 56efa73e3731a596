"""What all samplers share: the tensors of a step, the closure, the noise stream, the checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bayeslora import rng
from bayeslora.errors import DivergedError, Problems, require
from bayeslora.samplers.input_checks import BITS, bits, chains_not_finite, check_params, dense_gradients, replace_unless
from bayeslora.samplers.tunable import Tunable

Closure = Callable[[], Tensor]
Tensors = list[Tensor]
"""One tensor a parameter, in the order of the parameter groups; in a stack each [K, …]."""
Evaluate = Callable[[], tuple[Tensor, Tensors]]
"""`evaluate()` -> (Ũ, g) on the step's minibatch, at the parameters as they are now."""


class Sampler(Tunable, Optimizer):
    """Base of the samplers: a `torch.optim.Optimizer` whose `step(closure)` moves θ by one step.

    A subclass writes one method, `update(evaluate)`, which changes the parameters in place by `torch._foreach`
    operations. Beside parameters and gradients it uses buffers of D numbers (all parameters of a chain, flattened and
    joined; with K stacked chains [K, D]), which it sees tensor by tensor (`parts`) or as a whole. `functional` has
    every rule as a pure function of joined vectors, with the same numbers. The closure runs forward and backward on
    the step's minibatch and returns Ũ; it may be called more than once a step (SAM).

    Args:
        params: parameters or parameter groups (a group may have its own `lr`).
        lr: step size ε on Ũ.
        kT: thermal energy per example, `Potential.kT(temperature)`.
        seed: seed of the run.
        chain: number of this chain; or a sequence of K numbers when every parameter carries a leading axis K of
            stacked chains. Each chain's noise depends on (seed, chain, step) alone.

    Attributes:
        sampled: 1 of the coordinates that are sampled, 0 of those that `hold` named, [D] or [K, D]; None: all are.
        dim: number of those that are sampled, of one chain.
        noise_free: while true, steps are taken without noise and otherwise as at kT: how cycles explore.
        checks_late: look at what is not finite in `check_finite` only, not in every step (on a GPU).
        noise_ahead: draw the next step's noise on a second thread while this step's gradient is computed: the same
            numbers, at the price of one more buffer of D. Worth it where a core is free.

    Raises:
        ConfigError: an impossible setting (all of them in one message).

    Note:
        On a CPU every step checks that Ũ and its gradient are finite. On a GPU that would make the host wait, so a flag
        is kept there: from the first step that is not finite θ stays where it was, and `check_finite` says so.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        kT: float,
        seed: int,
        chain: int | Sequence[int] = 0,
    ) -> None:
        super().__init__(params, {"lr": lr})
        self.kT, self.seed = kT, seed
        self.theta: Tensors = [p for group in self.param_groups for p in group["params"]]
        self.noise_free = self.noise_ahead = False
        self.stacked = not isinstance(chain, int)
        self.chains = [chain] if isinstance(chain, int) else list(chain)
        self.state["chain"] = {"step": 0}  # type: ignore[index]  # torch keeps keys that are no tensors as they are
        problems = Problems()
        for group in self.param_groups:
            with problems.collect():
                self.check(group)
        with problems.collect():
            require(math.isfinite(kT) and kT >= 0, f"kT={kT} must be finite and at least 0: it is temperature / N")
        with problems.collect():
            check_params(self.theta, len(self.chains) if self.stacked else None)
        problems.raise_if_any()
        self._buffers: dict[str, Tensor] = {}
        self._parts: dict[int, tuple[Tensor, Tensors]] = {}
        self._origin: Tensors | None = None
        self._finite: Tensor | None = None
        self._norms: Tensor | None = None
        self.checks_late = self.theta[0].device.type != "cpu"
        self.sampled: Tensor | None = None
        self.dim = sum(map(self._size, self.theta))
        self._generators: dict[str, torch.Generator] = {}
        self._drawing: dict[int, Future[Tensor]] = {}
        self._thread: ThreadPoolExecutor | None = None

    # -- what a sampler writes ---------------------------------------------------------------------------------

    def update(self, evaluate: Evaluate) -> Tensor:
        """One step: moves the parameters in place and returns Ũ where they were.

        Args:
            evaluate: gives (Ũ, g) on the step's minibatch at the present parameters; g are the parameters' own `grad`.
        """
        raise NotImplementedError

    def check(self, group: dict[str, Any]) -> None:
        """Raise `ConfigError` for an impossible setting of a parameter group; subclasses add their own."""
        lr = group["lr"]
        require(
            isinstance(lr, int | float) and math.isfinite(lr) and lr > 0,
            f"sampler.lr={lr} must be a positive finite number (the step size on the mean loss)",
        )

    # -- what a sampler uses -----------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps taken so far (kept in `state_dict`)."""
        return self.memory["step"]

    @property
    def memory(self) -> dict[str, Any]:
        """What the sampler remembers from step to step, saved in `state_dict`: numbers, and vectors [D] or [K, D]."""
        return self.state["chain"]  # type: ignore[index]

    def by_group(self, *tensors: Tensors | None) -> Iterator[tuple[Any, ...]]:
        """(ε, θ, *tensors) of each parameter group: its step size and its part of each list; None stays None."""
        at = 0
        for group in self.param_groups:
            end = at + len(group["params"])
            yield (float(group["lr"]), group["params"], *(None if t is None else t[at:end] for t in tensors))
            at = end

    @property
    def lr(self) -> float | Tensor:
        """ε: a number when all groups share it, else [D]."""
        rates = [float(group["lr"]) for group in self.param_groups]
        if len(set(rates)) == 1:
            return rates[0]
        sizes = torch.tensor([sum(map(self._size, group["params"])) for group in self.param_groups])
        like = self.theta[0]
        return torch.tensor(rates, dtype=like.dtype).repeat_interleave(sizes).to(like.device)

    def remember(self, name: str, fill: float = 0.0) -> Tensor:
        """The vector of that name in `memory`, [D] or [K, D]; a new one filled with `fill` if there is none."""
        if name not in self.memory:
            self.memory[name] = self._new().fill_(fill)
        vector: Tensor = self.memory[name]
        return vector

    def buffer(self, name: str, dtype: torch.dtype | None = None, shape: tuple[int, ...] | None = None) -> Tensor:
        """A vector [D] or [K, D] (or of another type and shape) for use within a step."""
        if name not in self._buffers:
            self._buffers[name] = self._new(dtype, shape)
        return self._buffers[name]

    def parts(self, vector: Tensor) -> Tensors:
        """A vector [D] or [K, D] as views of the parameters' shapes."""
        kept = self._parts.get(id(vector))
        if kept is None or kept[0] is not vector:
            split = vector.split([self._size(p) for p in self.theta], dim=-1)
            if len(self._parts) > 16:
                self._parts.clear()
            kept = vector, [part.view(p.shape) for part, p in zip(split, self.theta, strict=True)]
            self._parts[id(vector)] = kept
        return kept[1]

    def per_chain(self, tensors: Tensors, other: Tensors | None = None) -> Tensor:
        """Σ x·y over all elements of each chain, [1] or [K, 1]; y is x itself where it is not given."""
        others = tensors if other is None else other
        if self.stacked:
            terms = [(x * y).flatten(1).sum(1, keepdim=True) for x, y in zip(tensors, others, strict=True)]
        elif other is None:
            terms = [norm.square().view(1) for norm in torch._foreach_norm(tensors)]
        else:
            terms = [torch.dot(x.reshape(-1), y.reshape(-1)).view(1) for x, y in zip(tensors, others, strict=True)]
        return torch.stack(terms).sum(0)

    @property
    def gradient_norm(self) -> Tensor | None:
        """‖g‖ of the gradient that `evaluate` gave last, [1], if the check of that step measured it; else None."""
        return None if self.stacked or self._norms is None else torch.linalg.vector_norm(self._norms).view(1)

    def scale(self, tensors: Tensors, factor: Tensor) -> None:
        """Multiply in place by one number a chain, [1] or [K, 1]."""
        if not self.stacked:
            torch._foreach_mul_(tensors, factor[0])
            return
        for x in tensors:
            x.mul_(factor.view(-1, *[1] * (x.ndim - 1)))

    def leave(self) -> None:
        """Remember θ before it is moved to where a gradient is wanted; `come_back`, or an exception, brings it back."""
        origin = self.parts(self.buffer("origin"))
        torch._foreach_copy_(origin, self.theta)
        self._origin = origin

    def come_back(self) -> None:
        """Put θ where it was at `leave`."""
        if self._origin is not None:
            torch._foreach_copy_(self.theta, self._origin)
            self._origin = None

    def draw(self, out: Tensor, method: str = "normal_", purpose: str = "noise", step: int | None = None) -> Tensor:
        """Fill a vector with random numbers: every chain's own, a function of (seed, chain, step, purpose).

        Args:
            out: [D] or [K, D].
            method: in-place method of a tensor that fills it: `"normal_"`, or `"random_"` for the bits of an integer.
            purpose: names the stream; streams are independent.
            step: of which step; default this one.
        """
        step = self.steps if step is None else step
        source = self._source(f"{purpose} of thread {get_ident()}", out.device)
        for row, chain in zip(out.view(len(self.chains), -1), self.chains, strict=True):
            rng.fill(row, method, rng.reseed(source, rng.derive_seed(self.seed, chain, step, purpose)))
        return out

    @property
    def noisy(self) -> bool:
        """Whether this step has noise."""
        return self.kT > 0 and not self.noise_free

    @property
    def learns_in_burn_in(self) -> bool:
        """Whether the sampler adapts in burn-in to what it needs after it, so that it cannot do without."""
        return False

    def noise(self) -> Tensor | None:
        """This step's Langevin noise ξ ~ N(0, I), [D] or [K, D], free to be changed; None where the step has none."""
        if not self.noisy:
            return None
        if not self.noise_ahead:
            return self.fill_noise(self.buffer("noise"), self.steps)
        ready = self._drawing.pop(self.steps, None)
        return self.fill_noise(self.buffer(f"noise {self.steps % 2}"), self.steps) if ready is None else ready.result()

    def fill_noise(self, out: Tensor, step: int) -> Tensor:
        """Fill a vector with the noise of a step; rules whose noise is not Gaussian write their own."""
        return self.draw(out, step=step)

    def _draw_ahead(self) -> None:
        """Begin to draw the next step's noise on another thread, into the buffer that this step does not use."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="noise")
        step = self.steps + 1
        self._drawing = {at: future for at, future in self._drawing.items() if at == self.steps}
        self._drawing[step] = self._thread.submit(self.fill_noise, self.buffer(f"noise {step % 2}"), step)

    def langevin(self, drift: Tensors) -> None:
        """θ ← θ − ε·drift + √(2ε·kT) ξ, the step of `functional.sgld`."""
        noise = self.noise()
        for lr, theta, g, xi in self.by_group(drift, None if noise is None else self.parts(noise)):
            torch._foreach_add_(theta, g, alpha=-lr)
            if xi is not None:
                torch._foreach_add_(theta, xi, alpha=(2 * lr * self.kT) ** 0.5)

    def freeze(self) -> None:
        """Stop adapting: called once, when burn-in ends and draws are kept. Samplers that adapt nothing ignore it."""
        self.memory["frozen"] = True

    def hold(self, sampled: Tensors) -> None:
        """Say which coordinates are held where they are: their gradient is 0, and no mean over coordinates counts them.

        Args:
            sampled: one tensor a parameter, in the order of `theta`: 1 of what is sampled, 0 of what is held.
        """
        self.sampled = self._new()
        torch._foreach_copy_(self.parts(self.sampled), sampled)
        self.dim = int(self.sampled.view(len(self.chains), -1)[0].count_nonzero())

    @property
    def frozen(self) -> bool:
        """Whether `freeze` was called."""
        return self.memory.get("frozen", False)

    def diagnostics(self) -> dict[str, Tensor]:
        """What the sampler can say of its own health, by name: scalars, or [K]; recorded with every draw."""
        return {}

    def force(self, evaluate: Evaluate, step: int) -> Tensors:  # noqa: ARG002
        """−kT·∇ log π at θ, of the law π that is sampled as ε → 0, estimated on a minibatch; not preconditioned.

        For a thermometer, so the minibatch must be independent of the past of θ. Leaves θ and `memory` as they are.

        Args:
            evaluate: gives (Ũ, g) on one minibatch at the present parameters; g is free to be changed.
            step: what is drawn at random is a function of (seed, chain, step, "thermometer").
        """
        return evaluate()[1]

    def standard_momentum(self) -> Tensors | None:
        """The momenta in the unit in which they are N(0, I) at kT, one tensor a parameter; None without momenta."""
        return None

    def check_finite(self) -> None:
        """Raise `DivergedError` if a step since the last call was not finite; on a GPU the host waits for it here."""
        if self._finite is not None and not self._finite.all():
            bad = [chain for chain, finite in zip(self.chains, self._finite.tolist(), strict=True) if not finite]
            self._finite = None
            raise self._diverged(bad)

    # -- the optimizer's side ----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Move θ by one step.

        Args:
            closure: runs forward and backward on one minibatch, returns Ũ (scalar, or [K]).

        Returns:
            Ũ at the state before the move, detached. (Of fSGLD: at the perturbed state, where its one gradient is; on
            average the smoothed potential that it samples.)

        Raises:
            DivergedError: on a CPU, Ũ or its gradient is not finite; θ is left where it was.
            RuntimeError: the closure left a parameter without a (dense) gradient.
        """
        if closure is None:
            raise TypeError(f"{type(self).__name__}.step needs a closure that runs forward and backward and returns Ũ")
        if self.noise_ahead and self.noisy:
            self._draw_ahead()

        def evaluate() -> tuple[Tensor, Tensors]:
            for p in self.theta:
                p.grad = None
            with torch.enable_grad():
                potential = closure()
            return potential.detach(), self._finite_gradients(potential.detach())

        before = self.parts(self.buffer("before")) if self.checks_late else []
        if before:
            torch._foreach_copy_(before, self.theta)
        try:
            potential = self.update(evaluate)
        except BaseException:
            self.come_back()
            raise
        if before and self._finite is not None:
            replace_unless(self.theta, before, self._finite.all())
        self.memory["step"] += 1
        return potential

    def _size(self, p: Tensor) -> int:
        return p[0].numel() if self.stacked else p.numel()

    def _new(self, dtype: torch.dtype | None = None, shape: tuple[int, ...] | None = None) -> Tensor:
        """A vector [D] or [K, D], or of another type and shape, of any content."""
        like, size = self.theta[0], sum(map(self._size, self.theta))
        own = (len(self.chains), size) if self.stacked else (size,)
        return torch.empty(shape or own, dtype=dtype or like.dtype, device=like.device)

    def _source(self, name: str, device: torch.device) -> torch.Generator:
        """A generator, to be seeded before use."""
        if name not in self._generators:
            self._generators[name] = torch.Generator(device=device)
        return self._generators[name]

    def _finite_gradients(self, potential: Tensor) -> Tensors:
        """The gradients where they and Ũ are finite; else raises on a CPU, and on a GPU keeps note and gives zeros."""
        gradients = dense_gradients(self.theta)
        self._norms = torch.stack(torch._foreach_norm(gradients))
        size = self._norms.sum() + potential.abs().sum()
        if not self.checks_late:
            if not math.isfinite(size):
                raise self._diverged(chains_not_finite(self.chains, gradients, potential), potential)
            return gradients
        finite = torch.isfinite(size).expand(len(self.chains))
        if self.stacked:
            norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
            finite = torch.isfinite(norms.sum(0)) & torch.isfinite(potential)
        self._finite = finite if self._finite is None else self._finite & finite
        torch._foreach_mul_(bits(gradients), self._finite.all().to(BITS[gradients[0].dtype]))
        return gradients

    def _diverged(self, chains: list[int], potential: Tensor | None = None) -> DivergedError:
        value = "" if potential is None else f" (potential {potential.tolist()})"
        return DivergedError(
            f"the potential or its gradient became NaN or infinite by sampler step {self.steps} of chain(s) "
            f"{chains}{value}; make sampler.lr smaller or warm up longer",
            chains,
            self.steps,
        )
