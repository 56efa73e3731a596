"""What all samplers share: the flat view of the parameters, the closure, the noise stream, the checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bayeslora.errors import DivergedError, Problems, require
from bayeslora.rng import generator
from bayeslora.samplers.functional import StepSize

Closure = Callable[[], Tensor]
Evaluate = Callable[..., tuple[Tensor, Tensor]]
"""`evaluate(θ=None)` -> (Ũ, g) on the step's minibatch, both at θ (None: where the parameters are now)."""


def require_non_negative(name: str, value: float, at_zero: str) -> None:
    """Raise `ConfigError` unless a setting is finite and at least 0, where the sampler is `at_zero`."""
    require(
        math.isfinite(value) and value >= 0,
        f"sampler.{name}={value} must be finite and at least 0 (0 is {at_zero})",
    )


class Sampler(Optimizer):
    """Base of the samplers: a `torch.optim.Optimizer` whose `step(closure)` moves θ by one step.

    A subclass writes one method, `update(theta, evaluate)`, on all parameters joined to one vector [D]; with
    stacked chains on [K, D], each row a chain of its own. The closure runs forward and backward on the step's
    minibatch and returns Ũ; it may be called more than once a step (SAM).

    Args:
        params: parameters or parameter groups (a group may have its own `lr`).
        lr: step size ε on Ũ.
        kT: thermal energy per example, `Potential.kT(temperature)`.
        seed: seed of the run.
        chain: number of this chain; or a sequence of K numbers when every parameter carries a leading axis K of
            stacked chains. Each chain's noise depends on (seed, chain, step) alone.

    Attributes:
        noise_free: while true, steps are taken without noise and otherwise as at kT: how cycles explore.

    Raises:
        ConfigError: an impossible setting (all of them in one message).
    """

    gradients_per_step = 1

    @property
    def speed(self) -> float:
        """How far a weak, lasting force moves θ in a step, in units of ε × the force."""
        return 1.0

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
        self.noise_free = False
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
            self._check_params()
        problems.raise_if_any()

    # -- what a sampler writes ---------------------------------------------------------------------------------

    def update(self, theta: Tensor, evaluate: Evaluate) -> tuple[Tensor, Tensor]:
        """One step. Returns (Ũ at θ, the new θ).

        Args:
            theta: the parameters, [D] or [K, D]; not to be changed in place.
            evaluate: gives (Ũ, g) at a θ on the step's minibatch; `evaluate()` without argument at `theta`.
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
        """What the sampler remembers from step to step (vectors like θ, by name); saved in `state_dict`."""
        return self.state["chain"]  # type: ignore[index]

    @property
    def lr(self) -> StepSize:
        """ε: a number when all groups share it, else [D]."""
        rates = [group["lr"] for group in self.param_groups]
        if len(set(rates)) == 1:
            return float(rates[0])
        return torch.cat(
            [
                torch.full((self._size(p),), group["lr"], dtype=p.dtype, device=p.device)
                for group in self.param_groups
                for p in group["params"]
            ]
        )

    def draw(self, like: Tensor, method: str = "normal_", purpose: str = "noise", step: int | None = None) -> Tensor:
        """Fresh random numbers shaped like θ: every chain's own, a function of (seed, chain, step, purpose).

        Args:
            like: [D] or [K, D].
            method: in-place method of a tensor that fills it, `"normal_"` or `"uniform_"`.
            purpose: names the stream; streams are independent.
            step: of which step; default this one.
        """
        out = torch.empty_like(like)
        step = self.steps if step is None else step
        for row, chain in zip(out.view(len(self.chains), -1), self.chains, strict=True):
            getattr(row, method)(generator=generator(self.seed, chain, step, purpose, like.device))
        return out

    @property
    def noisy(self) -> bool:
        """Whether this step has noise."""
        return self.kT > 0 and not self.noise_free

    @property
    def learns_in_burn_in(self) -> bool:
        """Whether the sampler adapts in burn-in to what it needs after it, so that it cannot do without."""
        return False

    def noise(self, like: Tensor) -> Tensor | None:
        """This step's Langevin noise ξ ~ N(0, I), shaped like θ; None where the step has none."""
        return self.draw(like) if self.noisy else None

    def freeze(self) -> None:
        """Stop adapting: called once, when burn-in ends and draws are kept. Samplers that adapt nothing ignore it."""
        self.memory["frozen"] = True

    @property
    def frozen(self) -> bool:
        """Whether `freeze` was called."""
        return self.memory.get("frozen", False)

    def diagnostics(self) -> dict[str, Tensor]:
        """What the sampler can say of its own health, by name: scalars, or [K]; recorded with every draw."""
        return {}

    # -- the optimizer's side ----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Move θ by one step.

        Args:
            closure: zeroes the gradients, runs forward and backward on one minibatch, returns Ũ (scalar, or [K]).

        Returns:
            Ũ at the state before the move, detached. (Of fSGLD: at the perturbed state, where its one gradient is; on
            average the smoothed potential that it samples.)

        Raises:
            DivergedError: Ũ or its gradient is not finite; θ is left where it was.
            RuntimeError: the closure left a parameter without a (dense) gradient.
        """
        if closure is None:
            raise TypeError(f"{type(self).__name__}.step needs a closure that runs forward and backward and returns Ũ")
        theta = self._join([p.detach() for p in self._params])

        def evaluate(at: Tensor | None = None) -> tuple[Tensor, Tensor]:
            if at is not None:
                self._write(at)
            self.zero_grad(set_to_none=True)
            with torch.enable_grad():
                potential = closure()
            return potential.detach(), self._gradient(potential)

        try:
            potential, moved = self.update(theta, evaluate)
        except BaseException:
            self._write(theta)
            raise
        self._write(moved)
        self.memory["step"] += 1
        return potential

    @property
    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _size(self, p: Tensor) -> int:
        return p[0].numel() if self.stacked else p.numel()

    def _join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Flatten and join per-parameter tensors to [D] (or [K, D])."""
        lead = (len(self.chains),) if self.stacked else ()
        return torch.cat([t.reshape(*lead, -1) for t in tensors], dim=-1)

    def _write(self, theta: Tensor) -> None:
        parts = theta.split([self._size(p) for p in self._params], dim=-1)
        torch._foreach_copy_(self._params, [part.view(p.shape) for part, p in zip(parts, self._params, strict=True)])

    def _gradient(self, potential: Tensor) -> Tensor:
        missing = [i for i, p in enumerate(self._params) if p.grad is None]
        if missing:
            raise RuntimeError(
                f"{len(missing)} of {len(self._params)} parameters got no gradient (first: number {missing[0]}, shape "
                f"{tuple(self._params[missing[0]].shape)}). Does the closure call backward()? Does the potential hold "
                "every sampled parameter (its prior term does)?"
            )
        if any(p.grad.is_sparse for p in self._params):  # type: ignore[union-attr]
            raise RuntimeError(
                "a gradient is sparse; samplers need dense gradients (set sparse=False on the embedding)"
            )
        gradient = self._join([p.grad for p in self._params])  # type: ignore[misc]
        if not (torch.isfinite(potential).all() and torch.isfinite(gradient).all()):
            raise DivergedError(
                f"the potential or its gradient is not finite at sampler step {self.steps} of chain(s) "
                f"{self.chains} (potential {potential.tolist()}); make sampler.lr smaller or warm up longer"
            )
        return gradient

    def _check_params(self) -> None:
        shapes = {p.shape[:1] for p in self._params}
        require(
            len({(p.dtype, p.device) for p in self._params}) == 1, "sampled parameters must share one dtype and device"
        )
        require(
            self._params[0].dtype in (torch.float32, torch.float64),
            f"sampled parameters are {self._params[0].dtype}: a Langevin step is lost in half precision. Keep the "
            "parameters in float32 and run the forward pass under bf16 autocast (trainer.precision=bf16-mixed)",
        )
        require(
            not self.stacked or shapes == {torch.Size([len(self.chains)])},
            f"chain names {len(self.chains)} stacked chains, so every parameter must have a leading axis of that size",
        )
