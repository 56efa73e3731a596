"""Step sizes found by a pilot: the curvatures against linear models whose Hessian is known, the lengths, bad input."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor, nn

from bayeslora.chain.noise_limit import NoisyBlock, cheapest_batch, largest_batch, sharing, whole_batch
from bayeslora.chain.pilot import Curvature, Pilot
from bayeslora.chain.plan import Plan
from bayeslora.chain.stack import Stack
from bayeslora.chain.tuning import BURN_IN, THIN, Tuner, burn_in, momentum, relaxation, thin
from bayeslora.chain.tuning_table import pilot_table
from bayeslora.diagnostics.values import Tuning
from bayeslora.errors import DivergedError
from bayeslora.likelihood import Gaussian
from bayeslora.potential import Potential, Prior
from bayeslora.samplers import BAOAB, SGLD, SGLRW
from tests.cases import each
from tests.run.tools import Exploding

N, NOISE, VARIANCE = 60, 0.5, 2.0
SOURCE = torch.Generator().manual_seed(3)
X = torch.randn(N, 5, generator=SOURCE, dtype=torch.float64) * torch.tensor([3.0, 1.0, 0.5, 1.0, 0.2])
Y = (X.sum(1, keepdim=True) + NOISE * torch.randn(N, 1, generator=SOURCE, dtype=torch.float64)).double()
HESSIAN = X.T @ X / N / NOISE**2 + torch.eye(5, dtype=torch.float64) / (N * VARIANCE)
"""Of Ũ: the data's, and the prior's 1/(Nσ²)."""


class Two(nn.Module):
    """A linear model in two blocks: three weights of `wide`, two of `narrow`."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(3, 1, bias=False), nn.Linear(2, 1, bias=False)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x[..., :3]) + self.narrow(x[..., 3:])


BAOAB_OF_ONE = partial(BAOAB, lr=1e-3)


def pilot(model=None, chains: int = 1, sampler=BAOAB_OF_ONE, warmup: int = 0, **settings) -> Pilot:
    made = (model or Two)() if chains == 1 else Stack([(model or Two)() for _ in range(chains)])
    found = Pilot(
        made, Potential(Prior(VARIANCE), N), sampler, partial(torch.optim.SGD, lr=0.01), Plan(warmup, 8000, 1, 1),
        temperature=1.0, seed=0, number=0 if chains == 1 else range(chains),
        likelihood=Gaussian(noise=NOISE), **settings,
    )  # fmt: skip
    found.begin()
    return found


def tuned(one: Pilot, data=(X, Y), **settings) -> Tuning:
    batch = data if isinstance(one.model, nn.Module) and not isinstance(one.model, Stack) else tuple(
        t.expand(len(one.chains), *t.shape) for t in data
    )  # fmt: skip
    return Tuner([one], lambda _size: [lambda _step: batch], [[batch]], **settings).run()


def test_power_iteration_finds_the_largest_curvature_of_blocks_and_of_the_scaled_whole() -> None:
    one = pilot()
    sizes = {"wide.weight": 0.05, "narrow.weight": 0.4}
    roots = {name: math.sqrt(size) for name, size in sizes.items()}
    e = torch.tensor([roots["wide.weight"]] * 3 + [roots["narrow.weight"]] * 2, dtype=torch.float64)
    for names, known, scale in (
        (["wide.weight"], HESSIAN[:3, :3], None),
        (["narrow.weight"], HESSIAN[3:, 3:], None),
        ([*sizes], HESSIAN * e[:, None] * e, roots),
    ):
        found = Curvature(one, names, (200, 4))
        assert found([(X, Y)], scale) == pytest.approx(torch.linalg.eigvalsh(known)[-1].item(), rel=1e-3)
    before = {name: p.detach().clone() for name, p in one.params.items()}
    Curvature(one, ["wide.weight"], (2, 2))([(X, Y)])
    assert all(torch.equal(before[name], p) for name, p in one.params.items())


@each("chains", [1, 3])
def test_step_sizes_of_a_quadratic_are_those_of_its_curvatures(chains: int) -> None:
    found = tuned(pilot(chains=chains), find_momentum=True, burn_in=200)
    top = {b: torch.linalg.eigvalsh(h)[-1].item() for b, h in (("wide", HESSIAN[:3, :3]), ("narrow", HESSIAN[3:, 3:]))}
    e = torch.tensor([0.5 / top["wide"]] * 3 + [0.5 / top["narrow"]] * 2, dtype=torch.float64).sqrt()
    whole = torch.linalg.eigvalsh(HESSIAN * e[:, None] * e)[-1].item()
    for block, size in (("wide", 3), ("narrow", 2)):
        assert found.blocks[block].curvature == pytest.approx(top[block], rel=0.02)
        assert found.blocks[block].step_size == pytest.approx(0.5 / top[block] * 0.5 / whole, rel=0.03)
        assert found.blocks[block].size == size
    rate = min(one.step_size for one in found.blocks.values()) / (N * VARIANCE)
    assert found.momentum == pytest.approx(momentum(rate))
    assert found.relaxation == pytest.approx(relaxation(rate, 1 / (1 - momentum(rate))))
    assert found.scale <= 1


def test_a_tuner_is_deterministic() -> None:
    torch.manual_seed(0)
    model = Two()
    runs = []
    for _ in range(2):
        one = pilot(lambda: model)
        for p in model.parameters():
            p.data.fill_(0.1)
        runs.append(tuned(one, find_momentum=True, burn_in=200))
    assert runs[0] == runs[1]


def test_lengths_follow_the_slowest_mode_within_limits() -> None:
    assert momentum(1e-9) == pytest.approx(0.995)
    assert momentum(0.5) == pytest.approx(0.7)
    assert momentum(0.0025) == pytest.approx(0.9)
    assert relaxation(0.0025, 10) == pytest.approx(40)
    assert (burn_in(100), thin(100)) == (500, 34)
    assert (burn_in(1), burn_in(1e6)) == BURN_IN
    assert (thin(0.1), thin(1e6)) == THIN


def test_without_curvature_in_the_data_the_priors_counts() -> None:
    found = tuned(pilot(), (torch.zeros(N, 5, dtype=torch.float64), Y), burn_in=0)
    for one in found.blocks.values():
        assert one.curvature == pytest.approx(1 / (N * VARIANCE), rel=1e-6)
        assert math.isfinite(one.step_size)


def test_a_model_of_one_tensor_has_one_step_size() -> None:
    one = pilot(lambda: nn.Linear(5, 1, bias=False).double())
    found = tuned(one, burn_in=200)
    (block,) = found.blocks.values()
    assert block.step_size == pytest.approx(0.5 / torch.linalg.eigvalsh(HESSIAN)[-1].item(), rel=0.05)


def test_vectors_stand_apart_from_the_matrices_of_their_block() -> None:
    one = pilot(lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 1)).double())
    assert [*one.blocks] == ["0", "0 vectors", "1", "2", "2 vectors"]
    assert one.blocks["0 vectors"] == ["0.bias"]


def test_factors_on_step_sizes_part_a_block() -> None:
    plain, factored = tuned(pilot(), burn_in=0), tuned(pilot(lr_factors={"narrow": 0.1}), burn_in=0)
    assert [*factored.blocks] == ["wide", "narrow × 0.1"]
    ratio = factored.blocks["narrow × 0.1"].step_size / factored.scale / plain.blocks["narrow"].step_size * plain.scale
    assert ratio == pytest.approx(0.1, rel=0.01)


def test_a_pilot_that_diverges_goes_on_at_half_the_step_three_times() -> None:
    size = tuned(pilot(), burn_in=200).blocks["wide"].step_size
    said: list[str] = []
    bad = partial(Exploding, lr=1e-3, at=3, above=0.2 * size * 0.3)  # SGLD's limit on ε is a fifth of BAOAB's
    found = tuned(pilot(sampler=bad), say=said.append, burn_in=200)
    assert found.halvings == len(said) == 2
    never = partial(Exploding, lr=1e-3, at=3)
    with pytest.raises(DivergedError, match=r"the pilot diverged 4 times.*give sampler.lr a number"):
        tuned(pilot(sampler=never), burn_in=200)


def test_a_pilot_that_takes_long_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("bayeslora.chain.tuning.SILENCE", -1.0)
    found = tuned(pilot(), say=said.append, burn_in=200)
    steps = [int(line.removeprefix("pilot: step ")) for line in said if line.startswith("pilot: step ")]
    assert steps == list(range(1, found.steps + 1))
    assert "pilot: curvature of wide after step 160" in said


def on_minibatches(one: Pilot | None = None, size: int = 10, **settings) -> Tuning:
    """What a pilot finds on independent batches of that size."""
    one = one or pilot(sampler=partial(BAOAB, lr=1e-3, momentum=0.9))

    def batch(step: int, size: int | None = size) -> tuple[Tensor, Tensor]:
        rows = torch.randperm(N, generator=torch.Generator().manual_seed(step))[:size]
        return X[rows], Y[rows]

    noisy = [batch(1000 + step) for step in range(400)]
    batches = lambda size: [partial(batch, size=size)]  # noqa: E731
    return Tuner([one], batches, [[(X, Y)]], [noisy], batch_size=size, burn_in=10, **settings).run()


def test_minibatches_heat_no_block_beyond_the_limit() -> None:
    found = on_minibatches()
    assert found.batch_size == 10
    assert [block.heat for block in found.blocks.values()] == pytest.approx([0.05, 0.05])
    for block in found.blocks.values():
        assert block.heat == pytest.approx(block.step_size * block.gradient_variance * 10 * N / 2, rel=1e-6)
        assert block.step_size < 0.1 * 0.5 / block.curvature  # noise sets it, not curvature
    assert tuned(pilot(), burn_in=0).blocks["wide"].heat is None


def test_where_noise_lies_it_heats_by_more_than_the_blocks_mean() -> None:
    one = pilot(sampler=partial(BAOAB, lr=1e-3, momentum=0.9))
    found = on_minibatches(one)
    weights = torch.cat([p.detach() for p in one.params.values()], 1)[0]  # a trial: where its one estimate was made
    covariance = torch.cov((X * ((X @ weights) - Y[:, 0])[:, None] / NOISE**2).T)  # of one example's gradient
    for block, rows in (("wide", slice(3)), ("narrow", slice(3, 5))):
        heat = found.blocks[block].step_size * covariance[rows, rows] * (1 / 10 - 1 / N) * 10 * N / 2
        share, noise = (heat @ heat).trace() / heat.trace(), found.blocks[block].noise
        assert noise is not None
        assert abs(noise.share - share) < 4 * noise.se < share
        assert noise.mean == pytest.approx(found.blocks[block].heat, rel=1e-6)
        assert noise.share > 1.5 * noise.mean
    assert tuned(pilot(), burn_in=0).blocks["wide"].noise is None
    table = pilot_table(found)
    assert "where noise lies" in table
    assert "about 1 of the 3 directions of wide" in table


@each(("sampler", "settings"), [(SGLRW, {}), (SGLD, {"control_variates": True})])
def test_a_sampler_that_plain_noise_does_not_heat_has_none_where_it_lies(sampler: type, settings: dict) -> None:
    found = on_minibatches(pilot(sampler=partial(sampler, lr=1e-3, **settings)))
    assert all(block.noise is None and block.heat is not None for block in found.blocks.values())
    assert "where noise lies" not in pilot_table(found)


def test_an_open_batch_size_becomes_the_cheapest() -> None:
    found = on_minibatches(find_batch=True)
    assert found.batch_size is None  # as little data as here are best taken whole
    assert found.cheapest_batch is None
    assert all(block.heat is None for block in found.blocks.values())
    assert found.blocks["wide"].step_size > 5 * on_minibatches().blocks["wide"].step_size


def test_the_cheapest_batch_relaxes_the_slowest_block_on_the_fewest_examples() -> None:
    count, kT, limit, speed = 50_000, 1 / 50_000, 0.05, 10.0
    parts = sharing([NoisyBlock(100, 0.1, 2e-3, 1e-5, limit), NoisyBlock(20, 0.5, 4e-2, 3e-5, limit)])
    assert np.average([part.limit for part in parts], weights=[100, 20]) == pytest.approx(limit)
    blocks = dict(zip("abc", [*parts, NoisyBlock(1, 1.0, 1.0, 0.0, limit)], strict=True))

    def examples(size: float) -> float:
        sizes = {b: one.held_back(1 / size - 1 / count, kT, speed) for b, one in blocks.items()}
        rates = [sizes[b] * one.prior_rate * speed for b, one in blocks.items() if one.prior_rate]
        return size / min(rates)

    held = [part.held_back(1, kT, speed) * part.prior_rate for part in parts]
    assert held[0] == pytest.approx(held[1])  # at one pace
    best = cheapest_batch(blocks.values(), count, kT, speed)
    assert 1 < best < count
    assert examples(best) <= min(examples(best * factor) for factor in (0.5, 0.8, 0.99, 1.01, 1.2))


@each(
    ("size", "count", "batch"),
    [(1, 50_000, 127), (700, 50_000, 704), (30_000, 50_000, 4166), (700, 5_000, 714), (2600, 5_000, None)],
)
def test_a_whole_number_of_batches_makes_an_epoch(size: float, count: int, batch: int | None) -> None:
    assert whole_batch(size, count) == batch


def test_batches_of_large_inputs_are_smaller() -> None:
    images = {"left": torch.zeros(5, 3, 32, 32), "right": torch.zeros(5, 3, 32, 32)}
    assert largest_batch(images, 5) == 2_000_000 // (2 * 3 * 32 * 32)
    assert largest_batch(torch.zeros(5, 20), 5) == 4096
    assert whole_batch(3000, 5_000, largest=651) == 625


# Laws 2 and 3 with step sizes by block


def simulated(sampler_class, sizes: dict[str, float], noise: float = 0.0, **settings) -> tuple[np.ndarray, int]:
    """The covariance of 8,000 chains on the quadratic, after 400 steps, over kT."""
    count, kT = 8_000, 1 / N
    theta = [nn.Parameter(torch.zeros(count, width, dtype=torch.float64)) for width in (3, 2)]
    groups = [{"params": [p], "lr": sizes[b]} for p, b in zip(theta, ("wide", "narrow"), strict=True)]
    sampler = sampler_class(groups, lr=1.0, kT=kT, seed=5, chain=range(count), **settings)
    source = torch.Generator().manual_seed(8)
    sampler.draw = lambda out, *_, **__: out.normal_(
        generator=source
    )  # one stream for all chains: seconds, not minutes

    def closure() -> Tensor:
        g = torch.cat(theta, 1).detach() @ HESSIAN
        if noise:
            g = g + noise**0.5 * torch.randn(g.shape, generator=source, dtype=torch.float64)
        for p, part in zip(theta, g.split([3, 2], 1), strict=True):
            p.grad = part.clone()
        return torch.zeros(count)

    for _ in range(400):
        sampler.step(closure)
    state = torch.cat(theta, 1).detach().numpy()
    return state.T @ state / count / kT, count


def agree(found: np.ndarray, exact: np.ndarray, count: int) -> bool:
    """Whether all entries of a covariance are within 4 standard errors."""
    error = np.sqrt((np.outer(exact.diagonal(), exact.diagonal()) + exact**2) / count)
    return bool((np.abs(found - exact) < 4 * error).all())


def test_step_sizes_by_block_leave_the_law_as_it_is() -> None:
    """Law 2: BAOAB's covariance is the posterior's; law 3: SGLD's with minibatch noise is Lyapunov's."""
    h = HESSIAN.numpy()
    found = tuned(pilot(), burn_in=200)
    sizes = {block: one.step_size for block, one in found.blocks.items()}
    sampled, count = simulated(BAOAB, sizes, momentum=0.7)
    assert agree(sampled, np.linalg.inv(h), count)
    assert not agree(1.1025 * sampled, np.linalg.inv(h), count)  # noise × 1.05
    e, variance = np.diag([sizes["wide"]] * 3 + [sizes["narrow"]] * 2), 0.05
    exact = solve_discrete_lyapunov(np.eye(5) - e @ h, 2 * e + e @ e * variance * N)
    sampled, count = simulated(SGLD, sizes, noise=variance)
    assert agree(sampled, exact, count)
    assert not agree(sampled, np.linalg.inv(h), count)
