"""One runner a library: each takes a problem and returns the draws after burn-in [K, S, D], one gradient a draw.

How our ε, μ and kT = 1/N appear in each library (U the negative log posterior, Ũ = U/N):

    posteriors  log posterior −Ũ at temperature kT; SGLD, SGLRW: lr = ε; momentum: lr = √ε, alpha = (1 − μ)/√ε,
                BAOA: alpha = −ln μ/√ε; momenta start at 0 as ours do
    blackjax    log posterior −U at temperature 1; SGLD: step = ε/N; momentum: step = √(ε/N), alpha = (1 − μ)/step
    uq-box      its SGLD optimizer on the loss Ũ; lr = ε, noise_factor = √kT
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeslora import samplers
from bayeslora.laws import one_stream

from .problem import Problem

Run = Callable[[Problem], np.ndarray]
Batch = tuple[Tensor, ...] | None


def ours(name: str, **settings: Any) -> Run:
    """A sampler of bayeslora; control variates take two gradients a step, so half the steps."""

    def run(problem: Problem) -> np.ndarray:
        target = problem.target()
        heavy = issubclass(getattr(samplers, name), samplers.sghmc.Underdamped)
        scale = 1 - problem.momentum if heavy else 1.0
        more = {"momentum": problem.momentum} | settings if heavy else settings
        make = one_stream(getattr(samplers, name))
        sampler = make(
            target.tensors, lr=problem.lr * scale, kT=target.kT, seed=problem.seed, chain=range(problem.chains), **more
        )
        if settings.get("control_variates"):
            put(target, torch.from_numpy(problem.moments[0]))
            sampler.anchor(target.full)
        put(target, problem.start)
        cost, draws = sampler.gradients_per_step, []
        for step in range(problem.gradients // cost):
            sampler.step(target.minibatch())
            if step >= problem.burn_in // cost:
                draws.append(target.state.clone())
        return torch.stack(draws, 1).numpy()

    return run


def put(target: Any, theta: Tensor) -> None:
    with torch.no_grad():
        target.tensors[0].copy_(theta)


def uq_box() -> Run:
    """lightning-uq-box's SGLD optimizer, the chains as the rows of one parameter (its noise is elementwise)."""

    def run(problem: Problem) -> np.ndarray:
        from lightning_uq_box.uq_methods.sgld import SGLD

        torch.manual_seed(problem.seed)
        theta = torch.nn.Parameter(problem.start.clone())
        optimizer = SGLD([theta], lr=problem.lr, noise_factor=problem.reference.kT**0.5)
        draws = []
        for step, batch in enumerate(problem.batches()):

            def closure(batch: Batch = batch) -> Tensor:
                optimizer.zero_grad()
                loss = problem.potential(theta, batch).sum()
                loss.backward()
                return loss

            optimizer.step(closure)
            if step >= problem.burn_in:
                draws.append(theta.detach().clone())
        return torch.stack(draws, 1).numpy()

    return run


def posteriors(name: str, unit: str = "") -> Run:
    """posteriors.sgmcmc.<name>. SGNHT has one thermostat for all it is given, so its chains go through vmap.

    Args:
        name: of the module.
        unit: `"sd"` samples θ·√N in place of θ, which changes nothing but the mass of SGNHT's thermostat.
    """

    def run(problem: Problem) -> np.ndarray:
        import posteriors.sgmcmc as library

        torch.manual_seed(problem.seed)
        factor = problem.shape["num_data"] ** 0.5 if unit == "sd" else 1.0

        def log_posterior(theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
            return -(factor**2) * problem.potential(theta / factor, batch).sum(), torch.zeros(())

        transform = getattr(library, name).build(
            log_posterior, temperature=problem.reference.kT * factor**2, **_settings(name, problem, factor)
        )
        start = problem.start * factor
        step = _each_chain(transform, start) if name == "sgnht" else _all_chains(transform, start)
        draws = []
        for number, batch in enumerate(problem.batches()):
            theta = step(batch)
            if number >= problem.burn_in:
                draws.append(theta / factor)
        return torch.stack(draws, 1).numpy()

    return run


def _settings(name: str, problem: Problem, factor: float) -> dict[str, float | None]:
    if name in ("sgld", "sglrw"):
        return {"lr": problem.lr}
    h, mu = (problem.lr * (1 - problem.momentum)) ** 0.5, problem.momentum
    return {
        "lr": h,
        "alpha": -math.log(mu) / h if name == "baoa" else (1 - mu) / h,
        "momenta": 0.0 if factor == 1 else None,
    }


def _all_chains(transform: Any, start: Tensor) -> Callable[[Batch], Tensor]:
    state = transform.init(start)

    def step(batch: Batch) -> Tensor:
        nonlocal state
        state, _ = transform.update(state, batch)
        return state.params

    return step


def _each_chain(transform: Any, start: Tensor) -> Callable[[Batch], Tensor]:
    """SGNHT's update, mapped over chains that each have their own momenta and thermostat."""
    first = transform.init(start)
    parts = (first.params, first.momenta, first.xi.to(start.dtype).expand(len(start)))

    def one(theta: Tensor, momenta: Tensor, xi: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        state, _ = transform.update(type(first)(theta, momenta, xi), batch)
        return state.params, state.momenta, state.xi

    def step(batch: Batch) -> Tensor:
        nonlocal parts
        axes = (0, 0, 0, None if batch is None else 0)
        parts = torch.func.vmap(one, in_dims=axes, randomness="different")(*parts, batch)
        return parts[0]

    return step


def blackjax(name: str, leaps: int = 1, control_variates: bool = False, unit: str = "") -> Run:
    """blackjax.<name>, vmapped over chains and scanned over steps.

    Args:
        name: sgld, sghmc or sgnht.
        leaps: gradients that SGHMC takes on one minibatch before it draws new momenta (10 is blackjax's default).
        control_variates: blackjax's own estimator, two gradients a step.
        unit: as for `posteriors`.
    """

    def run(problem: Problem) -> np.ndarray:
        import jax

        jax.config.update("jax_enable_x64", True)
        cost = leaps * (1 + control_variates)
        rows = problem.rows()[: problem.gradients // cost].numpy()
        factor = problem.shape["num_data"] ** 0.5 if unit == "sd" else 1.0
        start, step = _kernel(problem, name, leaps, control_variates, factor)

        def body(states: Any, now: tuple[Any, Any]) -> tuple[Any, Any]:
            key, batch = now
            states = jax.vmap(step)(jax.random.split(key, problem.chains), states, batch)
            return states, getattr(states, "position", states)

        keys = jax.random.split(jax.random.PRNGKey(problem.seed), len(rows) + 1)
        states = jax.vmap(start)(problem.start.numpy() * factor, jax.random.split(keys[-1], problem.chains))
        _, draws = jax.jit(lambda *a: jax.lax.scan(body, *a))(states, (keys[:-1], rows))
        return np.asarray(draws[problem.burn_in // cost :]).swapaxes(0, 1) / factor

    return run


def _kernel(problem: Problem, name: str, leaps: int, control_variates: bool, factor: float) -> tuple[Any, Any]:
    """(init of a chain from (θ, key), step of a chain from (key, state, row))."""
    import blackjax as library
    from blackjax.sgmcmc import gradients

    size = problem.shape["num_data"]
    everything, cut = _data(problem)
    estimator = gradients.grad_estimator(*_densities(problem, factor), size)
    if control_variates:
        estimator = gradients.control_variates(estimator, problem.moments[0] * factor, everything)
    width = problem.lr * factor**2 / size
    if name != "sgld":
        width = (width * (1 - problem.momentum)) ** 0.5
    alpha = (1 - problem.momentum) / width
    if name == "sgnht":
        sampler = library.sgnht(estimator, alpha=alpha)
        start = sampler.init
    else:
        sampler = library.sgld(estimator) if name == "sgld" else library.sghmc(estimator, leaps, alpha=alpha)
        start = lambda theta, _key: theta  # noqa: E731
    return start, lambda key, state, row: sampler.step(key, state, cut(row), width)


def _densities(problem: Problem, factor: float) -> tuple[Any, Any]:
    """Log prior of θ, and log likelihood of one datum (of the mean statistic of a minibatch in linear regression)."""
    import jax.numpy as jnp
    from jax.nn import softplus

    def prior(theta: Any) -> Any:
        return -0.5 * jnp.sum((theta / factor) ** 2) / problem.reference.prior_variance

    def gaussian(theta: Any, datum: Any) -> Any:
        w = jnp.append(-theta / factor, 1.0)
        return -0.5 * w @ datum[0] @ w

    def binomial(theta: Any, datum: Any) -> Any:
        score = datum[0] @ (theta / factor)
        return datum[1] * score - softplus(score)

    return prior, gaussian if len(problem.everything) == 1 else binomial


def _data(problem: Problem) -> tuple[tuple[Any, ...], Callable[[Any], tuple[Any, ...]]]:
    """All the data as one minibatch, and what cuts the minibatch at a row; a statistic counts as one datum."""
    import jax.numpy as jnp

    def arrays(parts: tuple[Tensor, ...]) -> tuple[Any, ...]:
        return tuple(jnp.asarray(part.numpy()) for part in parts)

    statistic = len(problem.everything) == 1
    everything = arrays(problem.everything)
    everything = (everything[0][None],) if statistic else everything
    if problem.table is None:
        return everything, lambda _row: everything
    table = arrays(problem.table)
    return everything, lambda row: (table[0][row][None],) if statistic else tuple(part[row] for part in table)
