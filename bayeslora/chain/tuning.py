"""Step sizes by block, momentum and lengths of a run, found by a pilot before its chains begin.

The pilot warms up as the run's chains will, from their own initial weights, and takes the first part of a burn-in. On
its way it estimates the largest curvature λ_b of every block of Ũ's Hessian, by power iteration on differences of the
sampler's own force, at the distance √(kT/λ) to which heat moves a chain:

    ε_b = c/λ_b,  all then scaled so that λmax(E^½ H E^½) ≤ c with E = diag(ε),  c = Sampler.curvature_limit,

with the maximum over chains and over the last `REMEMBERED` estimates. What the data do not constrain moves slowest:
r = min_b ε_b/(Nσ_b²) is the rate of the slowest prior mode a step. From it follow

    1 − μ = clip(2√r, 0.005, 0.3),     τ = max(1/(r·s), 2s) steps, s = Sampler.speed (1/(1 − μ) with momentum),

burn-in 5τ in [300, 8000] and thin ⌈τ/3⌉ ≤ 150. The run's chains begin anew with these settings and keep them.

On minibatches the variance of their gradient is estimated beside the curvatures, and ε_b is at most that at which it
heats the block by `Sampler.heat_limit`; a batch size that is open becomes the one that costs least (`noise_limit`).
That is heat as a mean over coordinates. Where noise lies there is more, which is found beside it (`noise_heat`).
"""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import torch

from bayeslora.chain.chain import Batch
from bayeslora.chain.noise_limit import LARGEST, NoisyBlock, cheapest_batch, remaining, sharing, whole_batch
from bayeslora.chain.pilot import Curvature, Pilot
from bayeslora.chain.plan import Plan
from bayeslora.chain.snapshot import Snapshot, capture, restore
from bayeslora.diagnostics.noise_heat import FORCES, noise_heat, traces
from bayeslora.diagnostics.projections import block_of
from bayeslora.diagnostics.values import BlockTuning, NoiseHeat, Tuning
from bayeslora.errors import DivergedError
from bayeslora.likelihood import NOISE
from bayeslora.potential import last_match

FIRST, LAST_DOUBLED, EVERY, SHARE = 5, 160, 200, 0.6
"""Steps of the sampler after which curvatures are estimated again: the first, twice as many up to the second, as chains
heat up, then every so many, up to a share of the burn-in."""
TRIAL = 40
"""A burn-in given as shorter than this is a trial, for which the whole net's curvature is roughly estimated, once."""
PRODUCTS, AGAIN, IN_TRIAL = 8, 4, 2
"""Products of a power iteration from a random direction, from the last estimate's, and in a trial."""
REMEMBERED = 3
"""Estimates whose maximum counts."""
HALVINGS = 3
"""Times that a pilot which diverges goes on at half the step sizes."""
BURN_IN, THIN = (300, 8000), (1, 150)
"""Limits of the lengths, in steps."""
TIMES = 5.0
"""Relaxation times in a burn-in that is chosen."""
FRICTION = (0.005, 0.3)
"""Limits of 1 − μ."""
FOURS = 4
"""Times four minibatches from which the covariance of the gradient is estimated."""
SILENCE = 10.0
"""Seconds after which a pilot says where it is."""
SETTLING = 60
"""Times that step sizes and momentum are found from each other: their logarithms come closer by half each time."""
Traces = tuple[float, float]
"""tr(C) and tr(C²)."""


def momentum(rate: float) -> float:
    """μ for a slowest mode that relaxes by `rate` a step without momentum: critical damping, within limits."""
    return 1 - min(max(2 * math.sqrt(rate), FRICTION[0]), FRICTION[1])


def relaxation(rate: float, speed: float) -> float:
    """τ in steps: of the slowest mode, or of the momentum where that is slower."""
    return max(1 / (rate * speed), 2 * speed)


def burn_in(tau: float) -> int:
    """Steps of burn-in for a relaxation time."""
    return min(max(math.ceil(TIMES * tau), BURN_IN[0]), BURN_IN[1])


def thin(tau: float) -> int:
    """Steps before each draw for a relaxation time."""
    return min(max(math.ceil(tau / 3), THIN[0]), THIN[1])


def is_trial(steps: int | None) -> bool:
    """Whether a burn-in is too short to learn anything in."""
    return steps is not None and steps < TRIAL


def _after(taken: int) -> int:
    """The step of the sampler at which curvatures are estimated next."""
    if taken < LAST_DOUBLED:
        return max(FIRST, 2 * taken)
    return taken + EVERY


class Tuner:
    """Runs pilots side by side and finds one set of step sizes for all of them.

    Args:
        pilots: at their beginning: one stack of all chains, or each chain by itself.
        batches: the training batches of each pilot by step, for batches of a given size; None: of all the data.
        probes: of each pilot, equal shares of the examples on which curvatures are taken.
        noisy: of each pilot, single minibatches for the covariance of the gradient, in fours; none with all the data.
        batch_size: examples a batch, of `noisy` too; None for all the data.
        find_batch: whether the batch size is to be found.
        largest: the most examples that it may be.
        find_momentum: whether μ is to be found.
        burn_in: steps of burn-in to plan for; None: to be found.
        say: prints a line.
    """

    def __init__(
        self,
        pilots: Sequence[Pilot],
        batches: Callable[[int | None], Sequence[Callable[[int], Batch]]],
        probes: Sequence[Sequence[Batch]],
        noisy: Sequence[Sequence[Batch]] = (),
        *,
        batch_size: int | None = None,
        find_batch: bool = False,
        largest: int = LARGEST,
        find_momentum: bool = False,
        burn_in: int | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.pilots, self.probes, self.noisy = list(pilots), list(probes), list(noisy)
        self.batches_of, self.batches = batches, batches(batch_size)
        self.find_batch, self.largest = find_batch, largest
        self.probed = self.batch_size = batch_size
        self.find_momentum, self.fixed_burn_in, self.say = find_momentum, burn_in, say
        self.trial = is_trial(burn_in)
        self.blocks = self.pilots[0].blocks
        factors = self.pilots[0].lr_factors
        self.factors = {block: last_match(names[0], factors, 1.0) for block, names in self.blocks.items()}
        products = (IN_TRIAL, IN_TRIAL) if self.trial else (PRODUCTS, AGAIN)
        self.curvatures = [{b: Curvature(p, names, products) for b, names in self.blocks.items()} for p in self.pilots]
        self.whole = [Curvature(pilot, [*pilot.params], products) for pilot in self.pilots]
        self.seen: dict[str, deque[float]] = {block: deque(maxlen=REMEMBERED) for block in self.blocks}
        self.coupling: deque[float] = deque(maxlen=REMEMBERED)
        self.noise: dict[str, deque[list[Traces]]] = {block: deque(maxlen=REMEMBERED) for block in self.blocks}
        self.halvings, self.kept = 0, list[list[Snapshot]]()
        self._last_line = time.monotonic()

    def run(self) -> Tuning:
        """Warm up, estimate, move, estimate again; what is found in the end.

        Raises:
            DivergedError: the warm-up diverged, or the pilot did so `HALVINGS` times and once more.
        """
        self._advance(self.pilots[0].plan.warmup)
        taken, found = 0, self._estimate()
        while (due := _after(taken)) <= self._end(found):
            try:
                self._advance(due - taken)
                taken, found = due, self._estimate()
            except DivergedError as error:
                self._halve(error)
                found = self._result()
        return replace(found, steps=self.pilots[0].steps_taken, halvings=self.halvings)

    def _end(self, found: Tuning) -> int:
        """The step of the sampler up to which curvatures are estimated again."""
        if self.trial:
            return 0
        return max(
            LAST_DOUBLED, int(SHARE * (burn_in(found.relaxation) if self.fixed_burn_in is None else self.fixed_burn_in))
        )

    def _advance(self, steps: int) -> None:
        """Take steps with all pilots side by side."""
        for _ in range(steps):
            for pilot, batch in zip(self.pilots, self.batches, strict=True):
                pilot.step(batch(pilot.steps_taken))
            self._report(f"step {self.pilots[0].steps_taken:,}")
        for pilot in self.pilots:
            pilot.check_finite()

    def _report(self, where: str) -> None:
        """Say where the pilot is, where it has been silent for long."""
        if time.monotonic() - self._last_line > SILENCE:
            self.say(f"pilot: {where}")
            self._last_line = time.monotonic()

    def _estimate(self) -> Tuning:
        """Estimate all curvatures where the pilots are, and set the step sizes that follow."""
        sampler, pairs = self.pilots[0].sampler, [*zip(self.curvatures, self.whole, self.probes, strict=True)]
        if self.trial:
            values = dict.fromkeys(self.blocks, max(whole(probe) for _, whole, probe in pairs))
        else:
            values = dict[str, float]()
            for block in self.blocks:
                self._report(f"curvature of {block} after step {self.pilots[0].steps_taken:,}")
                values[block] = max(by_block[block](probe) for by_block, _, probe in pairs)
        for block, value in values.items():
            self.seen[block].append(max(value, self._prior_curvature(block)) + sampler.own_curvature)
        roots = {name: math.sqrt(self._unscaled(block)) for block, names in self.blocks.items() for name in names}
        top = 0.0 if self.trial else max(whole(probe, roots) for _, whole, probe in pairs)
        self.coupling.append(max(1.0, top * sampler.stiffness / sampler.curvature_limit))
        if self.noisy:
            for block, found in self._covariances().items():
                self.noise[block].append(found)
        self.kept = [copy.deepcopy(capture(pilot)) for pilot in self.pilots]  # its tensors are the chain's own
        return self._result()

    def _result(self) -> Tuning:
        """The step sizes by all that was seen, set in the pilots, with the batch size that goes with them."""
        scale = 0.5**self.halvings / max(self.coupling)
        pilot, sampler = self.pilots[0], self.pilots[0].sampler
        noisy = self._noisy_blocks(scale)
        best = self._cheapest_batch(noisy) if self.noisy else None
        if self.find_batch and self.noisy and best != self.batch_size:
            self.batch_size, self.batches = best, self.batches_of(best)
        sizes = self._held_back(noisy)
        for one in self.pilots:
            one.set_step_sizes(sizes)
        rates = {block: sizes[block] * one.prior_rate for block, one in noisy.items() if one.prior_rate}
        speed, kept = sampler.speed, remaining(self.batch_size, pilot.potential.num_data)
        blocks = {
            block: BlockTuning(
                sizes[block],
                max(self.seen[block]),
                1 / (rates[block] * speed) if block in rates else None,
                noisy[block].size,
                sizes[block] * noisy[block].variance * kept * speed / (2 * sampler.kT) if kept else None,
                noisy[block].variance * kept if kept else None,
                self._noise_heat(block, noisy[block].size, sizes[block] * kept * speed / (2 * sampler.kT)),
            )
            for block in self.blocks
        }
        mu = getattr(sampler, "momentum", None)
        tau = relaxation(min(rates.values()), speed)
        return Tuning(blocks, mu, tau, scale, pilot.steps_taken, self.halvings, self.batch_size, best)

    def _noisy_blocks(self, scale: float) -> dict[str, NoisyBlock]:
        """What limits the steps of every block."""
        pilot = self.pilots[0]
        sizes = pilot.padding.sizes(pilot.params, pilot.chain_axes)
        parts: dict[str, dict[str, NoisyBlock]] = {}
        for block, names in self.blocks.items():
            size = sum(sizes[name] for name in names)
            parts.setdefault(block_of(names[0]), {})[block] = NoisyBlock(
                size,
                scale * self._unscaled(block),
                max((fmean(first for first, _ in found) / size for found in self.noise[block]), default=0.0),
                self._prior_curvature(block, True),
                pilot.sampler.heat_limit,
            )
        shared = (zip(of_block, sharing([*of_block.values()]), strict=True) for of_block in parts.values())
        return {block: one for pairs in shared for block, one in pairs}

    def _held_back(self, blocks: Mapping[str, NoisyBlock]) -> dict[str, float]:
        """ε by block, with the momentum that goes with them set where it is to be found."""
        pilot, sampler = self.pilots[0], self.pilots[0].sampler
        noise = remaining(self.batch_size, pilot.potential.num_data)
        speed = 1 / FRICTION[1] if self.find_momentum else sampler.speed
        for _ in range(SETTLING):
            sizes = {b: one.held_back(noise, sampler.kT, speed) for b, one in blocks.items()}
            if not self.find_momentum:
                break
            mu = momentum(min(sizes[block] * one.prior_rate for block, one in blocks.items() if one.prior_rate))
            speed = 1 / (1 - mu)
            for one in self.pilots:
                one.sampler.momentum = mu  # type: ignore[attr-defined]
        return sizes

    def _cheapest_batch(self, blocks: Mapping[str, NoisyBlock]) -> int | None:
        """The batch size that costs least at these curvatures and noise; None for all the data."""
        pilot, sampler, speed = self.pilots[0], self.pilots[0].sampler, self.pilots[0].sampler.speed
        if self.find_momentum:
            speed = 1 / (1 - momentum(min(one.step_size * one.prior_rate for one in blocks.values() if one.prior_rate)))
        count = pilot.potential.num_data
        return whole_batch(cheapest_batch(blocks.values(), count, sampler.kT, speed), count, self.largest)

    def _unscaled(self, block: str) -> float:
        """ε of a block before all are scaled: factor · c/λ_b."""
        sampler = self.pilots[0].sampler
        return self.factors[block] * sampler.curvature_limit / (sampler.stiffness * max(self.seen[block]))

    def _prior_curvature(self, block: str, slowest: bool = False) -> float:
        """1/(Nσ²) of a block: its largest, or its smallest without a likelihood's own parameters (of none, 0)."""
        pilot = self.pilots[0]
        names = [name for name in self.blocks[block] if not (slowest and name.endswith(NOISE))]
        prior, axes = pilot.potential.prior, pilot.chain_axes
        found = [prior.precision(name, pilot.params[name].shape[axes:]) / pilot.potential.num_data for name in names]
        return (min if slowest else max)(found, default=0.0)

    def _halve(self, error: DivergedError) -> None:
        """Go back to where the last estimate was made, at half the step sizes.

        Raises:
            DivergedError: it was done `HALVINGS` times already.
        """
        if self.halvings == HALVINGS:
            raise DivergedError(
                f"sampler.lr=auto: the pilot diverged {HALVINGS + 1} times, the last time at 1/{2**HALVINGS} of the"
                f" step sizes that its curvatures call for ({error}). Standardise inputs and targets, make"
                " prior.variance smaller or the warm-up longer, or give sampler.lr a number",
                error.chains,
                error.step,
            ) from error
        self.halvings += 1
        self.say(f"the pilot diverged; going on from its last estimate at 1/{2**self.halvings} of the step sizes")
        for pilot, snapshots in zip(self.pilots, self.kept, strict=True):
            restore(pilot, snapshots)
        for curvature in [*self.whole, *(c for by_block in self.curvatures for c in by_block.values())]:
            if curvature.value is not None and not curvature.value.isfinite().all():
                curvature.value, curvature.direction = None, {}

    def _covariances(self) -> dict[str, list[Traces]]:
        """Of C of one example's gradient tr(C) and tr(C²) in every block, of each chain and four minibatches."""
        found: dict[str, list[Traces]] = {block: [] for block in self.blocks}
        count = self.pilots[0].potential.num_data
        kept = remaining(self.probed, count)
        for pilot, batches in zip(self.pilots, self.noisy, strict=True):
            rows = len(pilot.chains) if pilot.chain_axes else 1
            for start in range(0, len(batches), FORCES):
                several = enumerate(batches[start : start + FORCES], start)
                given = (pilot.force(pilot.sampler, [batch], step, count) for step, batch in several)
                forces = [{name: g.clone() for name, g in force.items()} for force in given]
                for block, names in self.blocks.items():
                    flat = [torch.cat([force[n].reshape(rows, -1).double() for n in names], 1) for force in forces]
                    by_chain = torch.stack(flat, 1)
                    found[block] += [traces(gram.cpu(), 1 / kept) for gram in by_chain @ by_chain.mT]
        return found

    def _noise_heat(self, block: str, size: int, scale: float) -> NoiseHeat | None:
        """By how much noise heats a block where it lies, by the estimate of most noise; scale: ε·s(1/B − 1/N)/(2kT)."""
        sampler = self.pilots[0].sampler
        if not (scale and self.noise[block] and sampler.heated and sampler.plain_noise):
            return None
        most = max(self.noise[block], key=lambda found: fmean(first for first, _ in found))
        return noise_heat([(scale * first, scale**2 * second) for first, second in most], size)


def pilot_plan(plan: Plan) -> Plan:
    """A plan with room for all steps of a pilot: warm-up, then burn-in without end."""
    return Plan(plan.warmup, BURN_IN[1], 1, 1)
