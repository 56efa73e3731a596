"""The samplers as optimizers: they equal their pure functions, chains do not depend on each other, misuse is named."""

from __future__ import annotations

import pickle

import pytest
import torch

from bayeslora.errors import ConfigError, DivergedError
from bayeslora.rng import generator, reseed
from bayeslora.samplers import (
    ASGLD,
    BAOAB,
    FSGLD,
    MAP,
    PSGLD,
    SAMSGLD,
    SAMSGLDR1,
    SGHMC,
    SGLD,
    SGLRW,
    SGNHT,
    EntropyMCMC,
    functional,
)
from tests.cases import each

SAMPLERS = [
    (SGLD, {}),
    (SGLD, {"integrator": "leimkuhler_matthews"}),
    (ASGLD, {"a": 0.5}),
    (SAMSGLD, {"rho": 0.1}),
    (SAMSGLDR1, {"rho": 0.1, "sigma": 0.5}),
    (PSGLD, {"floor": 1.0}),
    (SGHMC, {"momentum": 0.8}),
    (SGNHT, {"momentum": 0.8}),
    (BAOAB, {"momentum": 0.8}),
    (FSGLD, {"sigma": 0.05}),
    (SGLRW, {}),
    (EntropyMCMC, {"eta": 0.5}),
    (MAP, {"momentum": 0.9}),
]


def tensors(seed: int = 0) -> list[torch.nn.Parameter]:
    source = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=source)) for shape in ((4, 3), (4,), (2, 2, 2))]


def closure_on(params, optimizer, curvature=3.0):
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum((curvature * p.square() + p.sin()).sum() for p in params)
        loss.backward()
        return loss

    return closure


def flat(params) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in params])


def test_sgld_step_is_the_pure_function_on_the_joined_parameters():
    params = tensors()
    sampler = SGLD(params, lr=0.1, kT=0.5, seed=3, chain=2)
    theta = flat(params)
    gradient = 6 * theta + theta.cos()
    noise = torch.empty_like(theta).normal_(generator=generator(3, 2, 0, "noise"))
    sampler.step(closure_on(params, sampler))
    torch.testing.assert_close(flat(params), theta - 0.1 * gradient + (2 * 0.1 * 0.5) ** 0.5 * noise)


def test_sam_takes_its_gradient_uphill_and_moves_from_the_original_point():
    params = tensors()
    sampler = SAMSGLD(params, lr=0.1, kT=0.0, seed=0, rho=0.3)
    theta = flat(params)
    gradient = 6 * theta + theta.cos()
    uphill = theta + 0.3 * gradient / gradient.norm()
    sampler.step(closure_on(params, sampler))
    torch.testing.assert_close(flat(params), theta - 0.1 * (6 * uphill + uphill.cos()))


def test_map_is_torch_sgd_with_nesterov_momentum_bit_for_bit():
    ours, theirs = tensors(), tensors()
    mine = MAP(ours, lr=0.05, momentum=0.9, nesterov=True)
    reference = torch.optim.SGD(theirs, lr=0.05, momentum=0.9, nesterov=True)
    for _ in range(20):
        mine.step(closure_on(ours, mine))
        reference.step(closure_on(theirs, reference))
    assert torch.equal(flat(ours), flat(theirs))


@each(("sampler_class", "settings"), SAMPLERS)
def test_stacked_chains_equal_the_same_chains_run_alone(sampler_class, settings):
    starts = [tensors(seed) for seed in range(3)]
    stacked = [torch.nn.Parameter(torch.stack([s[i].detach() for s in starts])) for i in range(3)]
    together = sampler_class(stacked, lr=0.05, kT=0.1, seed=7, chain=[0, 5, 2], **settings)
    for _ in range(5):
        together.step(closure_on(stacked, together))
    for k, (chain, alone) in enumerate(zip([0, 5, 2], starts, strict=True)):
        sampler = sampler_class(alone, lr=0.05, kT=0.1, seed=7, chain=chain, **settings)
        for _ in range(5):
            sampler.step(closure_on(alone, sampler))
        torch.testing.assert_close(torch.cat([p[k].detach().flatten() for p in stacked]), flat(alone))


@each(("sampler_class", "settings"), SAMPLERS)
def test_parameter_groups_have_their_own_step_size(sampler_class, settings):
    params = tensors()
    before = flat(params)
    groups = [{"params": params[:1], "lr": 1e-6}, {"params": params[1:], "lr": 0.05}]
    sampler = sampler_class(groups, lr=0.1, kT=0.0, seed=0, **settings)
    sampler.step(closure_on(params, sampler))
    moved = (flat(params) - before).abs()
    assert 0 < moved[:12].max() < 5e-3 < moved[12:].max()  # rank-one couples groups: by the root of both step sizes


@each(("sampler_class", "settings"), SAMPLERS)
def test_state_dict_continues_to_the_same_states(sampler_class, settings):
    params = tensors()
    sampler = sampler_class(params, lr=0.05, kT=0.1, seed=7, chain=1, **settings)
    for _ in range(3):
        sampler.step(closure_on(params, sampler))
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = sampler_class(copies, lr=0.05, kT=0.1, seed=7, chain=1, **settings)
    resumed.load_state_dict(pickle.loads(pickle.dumps(sampler.state_dict())))  # noqa: S301 - our own bytes
    for _ in range(3):
        sampler.step(closure_on(params, sampler))
        resumed.step(closure_on(copies, resumed))
    assert resumed.steps == 6
    assert torch.equal(flat(params), flat(copies))


def test_noise_differs_between_chains_steps_and_seeds_and_repeats_for_the_same():
    def first_states(seed: int, chain: int) -> torch.Tensor:
        params = tensors()
        sampler = SGLD(params, lr=0.1, kT=1.0, seed=seed, chain=chain)
        states = []
        for _ in range(2):
            sampler.step(closure_on(params, sampler))
            states.append(flat(params))
        return torch.stack(states)

    assert torch.equal(first_states(0, 0), first_states(0, 0))
    assert not torch.equal(first_states(0, 0), first_states(0, 1))
    assert not torch.equal(first_states(0, 0), first_states(1, 0))


def test_zero_gradient_skips_the_ascent():
    assert torch.equal(functional.sam_ascent(torch.zeros(2, 5), 0.5), torch.zeros(2, 5))


@each(
    ("sampler_class", "settings"),
    [
        (SGLD, {"lr": -0.1}),
        (SGLD, {"lr": float("nan")}),
        (SGLD, {"lr": 0.0}),
        (SGLD, {"kT": -1.0}),
        (SGLD, {"chain": [0, 1]}),
        (SAMSGLD, {"rho": -0.1}),
        (SAMSGLD, {"rho": float("inf")}),
        (MAP, {"momentum": 1.0}),
        (MAP, {"momentum": -0.1}),
        (SGLD, {"integrator": "verlet"}),
        (ASGLD, {"a": -1.0}),
        (ASGLD, {"beta1": 1.0}),
        (ASGLD, {"floor": 0.0}),
        (SAMSGLDR1, {"sigma": -1.0}),
        (SAMSGLDR1, {"direction": "sideways"}),
        (SAMSGLDR1, {"drift": "none"}),
        (PSGLD, {"alpha": 1.0}),
        (PSGLD, {"floor": 0.0}),
        (PSGLD, {"preconditioner": "thawed"}),
        (SGHMC, {"momentum": 1.0}),
        (SGNHT, {"momentum": -0.1}),
        (BAOAB, {"momentum": float("nan")}),
        (FSGLD, {"sigma": -0.1}),
        (EntropyMCMC, {"eta": 0.0}),
        (SGLRW, {"kT": float("nan")}),
    ],
)
def test_impossible_settings_are_refused(sampler_class, settings):
    with pytest.raises(ConfigError):
        sampler_class(tensors(), **({"lr": 0.1, "kT": 1.0, "seed": 0} | settings))


def test_half_precision_parameters_are_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="bf16-mixed"):
        SGLD([torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))], lr=0.1, kT=1.0, seed=0)


@each("bad", [float("nan"), float("inf")])
@each(("sampler_class", "settings"), SAMPLERS)
def test_a_non_finite_gradient_stops_before_anything_moves(sampler_class, settings, bad):
    params = tensors()
    sampler = sampler_class(params, lr=0.1, kT=1.0, seed=0, **settings)
    before = flat(params)

    def closure() -> torch.Tensor:
        sampler.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        params[0].grad[0, 0] = bad
        return loss

    with pytest.raises(DivergedError, match="smaller"):
        sampler.step(closure)
    assert torch.equal(flat(params), before)
    assert sampler.steps == 0


def test_control_variates_need_their_anchor():
    params = tensors()
    sampler = SGLD(params, lr=0.1, kT=1.0, seed=0, control_variates=True)
    with pytest.raises(ConfigError, match="anchor"):
        sampler.step(closure_on(params, sampler))


def test_zero_gradient_leaves_sam_and_rank_one_without_nan():
    for sampler_class in (SAMSGLD, SAMSGLDR1):
        params = [torch.nn.Parameter(torch.zeros(3))]
        sampler = sampler_class(params, lr=0.1, kT=0.0, seed=0, rho=0.5)
        sampler.step(closure_on_zero(params, sampler))
        assert torch.equal(params[0].detach(), torch.zeros(3))


def closure_on_zero(params, sampler):
    def closure() -> torch.Tensor:
        sampler.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    return closure


def test_a_failing_second_pass_leaves_the_parameters_where_they_were():
    params = tensors()
    sampler = SAMSGLD(params, lr=0.1, kT=1.0, seed=0, rho=0.5)
    before, inner, calls = flat(params), closure_on(params, sampler), iter(range(2))

    def closure() -> torch.Tensor:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return inner()

    with pytest.raises(KeyboardInterrupt):
        sampler.step(closure)
    assert torch.equal(flat(params), before)


def test_a_closure_that_forgets_backward_is_named_even_when_old_gradients_are_around():
    params = tensors()
    sampler = SGLD(params, lr=0.1, kT=1.0, seed=0)
    sampler.step(closure_on(params, sampler))
    with pytest.raises(RuntimeError, match="backward"):
        sampler.step(lambda: sum(p.square().sum() for p in params))


def test_a_parameter_outside_the_potential_is_named():
    params = tensors()
    sampler = SGLD(params, lr=0.1, kT=1.0, seed=0)
    with pytest.raises(RuntimeError, match="1 of 3 parameters got no gradient"):
        sampler.step(closure_on(params[:2], sampler))


def test_a_sparse_gradient_is_refused():
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    sampler = SGLD(embedding.parameters(), lr=0.1, kT=1.0, seed=0)

    def closure() -> torch.Tensor:
        loss = embedding(torch.tensor([1])).sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="sparse"):
        sampler.step(closure)


def test_a_step_without_closure_says_what_is_needed():
    with pytest.raises(TypeError, match="closure"):
        SGLD(tensors(), lr=0.1, kT=1.0, seed=0).step(None)


@each(("sampler_class", "settings"), SAMPLERS)
def test_a_step_size_may_be_an_integer(sampler_class, settings):
    states = []
    for lr in (1, 1.0):
        params = tensors()
        sampler = sampler_class(params, lr=lr, kT=0.1, seed=0, **settings)
        for _ in range(2):
            sampler.step(closure_on(params, sampler, curvature=0.1))
        states.append(flat(params))
    assert torch.equal(*states)


@each(("sampler_class", "settings"), [(PSGLD, {}), (SAMSGLDR1, {"sigma": 1.0})])
def test_what_learns_in_burn_in_is_refused_without_one(sampler_class, settings):
    params = tensors()
    sampler = sampler_class(params, lr=0.1, kT=1.0, seed=0, **settings)
    sampler.freeze()
    before = flat(params)
    with pytest.raises(ConfigError, match="burn_in"):
        sampler.step(closure_on(params, sampler))
    assert torch.equal(flat(params), before)


def test_the_clipped_share_counts_steps_with_noise_only():
    params = tensors()
    sampler = SGLRW(params, lr=1e-3, kT=1e-6, seed=0)  # all clipped

    def cycles() -> None:
        for step in range(400):
            sampler.noise_free = step % 100 >= 60  # 240 steps with noise: two windows
            sampler.step(closure_on(params, sampler))

    with pytest.warns(RuntimeWarning, match="clips"):
        cycles()
    assert 0.9 < sampler.diagnostics()["clipped"] <= 1


def test_entropy_mcmc_keeps_its_coupling_while_it_explores():
    params = tensors()
    sampler = EntropyMCMC(params, lr=0.01, kT=0.5, seed=0, eta=0.1)
    sampler.step(closure_on(params, sampler))
    theta, guide = flat(params), sampler.memory["guide"].clone()
    sampler.noise_free = True
    sampler.step(closure_on(params, sampler))
    pull = (0.5 / 0.1) * (theta - guide)
    assert pull.abs().max() > 0.1
    torch.testing.assert_close(flat(params), theta - 0.01 * (6 * theta + theta.cos() + pull))
    torch.testing.assert_close(sampler.memory["guide"].flatten(), guide + 0.01 * pull)


@each(("sampler_class", "variance"), [(SGHMC, 2 / 1.8), (BAOAB, 1.0)])
def test_momenta_have_the_variance_of_their_docstring(sampler_class, variance):
    """On a flat potential p is an AR(1) with variance 2kT/(1 + μ), of BAOAB kT."""
    params = [torch.nn.Parameter(torch.zeros(40_000))]
    sampler = sampler_class(params, lr=0.1, kT=1.0, seed=0, momentum=0.8)

    def flat_potential() -> torch.Tensor:
        sampler.zero_grad()
        loss = (0 * params[0]).sum()
        loss.backward()
        return loss

    for _ in range(40):
        sampler.step(flat_potential)
    measured = sampler.memory["momentum"].var().item()
    assert abs(measured / variance - 1) < 4 * (2 / 40_000) ** 0.5


@pytest.mark.parametrize("chain", [3, [3, 5]])
def test_what_is_held_counts_in_no_mean_over_coordinates(chain):
    """Beside what is held, SGNHT's friction and SGLRW's clipped share are those of the sampled coordinates alone."""
    rows = () if isinstance(chain, int) else (2,)
    held = torch.arange(40).reshape(8, 5) < 30  # six rows of eight

    def run(sampler_class, lr: float, steps: int):
        p = torch.nn.Parameter(torch.zeros(*rows, 8, 5))
        sampler = sampler_class([p], lr=lr, kT=1.0, seed=0, chain=chain)
        sampler.hold([(~held).float().expand(p.shape)])

        def closure() -> torch.Tensor:
            loss = (3.0 * p).masked_fill(held, 0.0).reshape(*rows, -1).sum(-1)
            loss.sum().backward()
            return loss.detach()

        for _ in range(steps):
            sampler.step(closure)
        return sampler

    thermostat = run(SGNHT, 0.01, 1)
    p = thermostat.memory["momentum"].reshape(*rows, 8, 5)
    kinetic = (p * ~held).square().sum((-2, -1)) / 10
    friction = 1 - thermostat.momentum
    expected = friction + 0.01 * ((1 - friction / 2) * kinetic - 1)
    torch.testing.assert_close(thermostat.memory["friction"].squeeze(-1), expected.reshape(rows or ()))
    with pytest.warns(RuntimeWarning, match="SGLRW clips 100.0%"):  # |g| = 3 beyond √(2 kT/ε) = 2
        run(SGLRW, 0.5, 100)


def test_streams_differ_where_only_the_upper_half_of_a_seed_does():
    """`manual_seed` alone reads 32 bits on a CPU: 10⁵ streams would hold equal ones."""
    streams = [torch.rand(8, generator=reseed(torch.Generator(), seed)) for seed in (7, 7 + (1 << 32), 7 + (5 << 32))]
    assert not torch.equal(streams[0], streams[1])
    assert not torch.equal(streams[1], streams[2])
    assert torch.equal(streams[0], torch.rand(8, generator=reseed(torch.Generator().manual_seed(3), 7)))
    halves_alike = torch.randn(4_096, generator=reseed(torch.Generator(), 7 + (7 << 32)))
    assert abs(halves_alike.var().item() - 1) < 4 * (2 / 4_096) ** 0.5
