"""The optimizers move parameters in place by the numbers that the pure functions give on joined vectors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bayeslora import samplers
from bayeslora.errors import DivergedError
from bayeslora.rng import derive_seed, reseed
from bayeslora.samplers import functional
from tests.cases import each

SHAPES = ((4, 3), (5,), (2, 2, 2))
SIZE, KT, SEED = 25, 0.1, 7
RATES = (0.005, 0.02, 0.005)


def gradient(theta: Tensor) -> Tensor:
    """Of Σ 3θ² + sin θ, plus a coupling of all coordinates of a chain."""
    return 6 * theta + theta.cos() + theta.sum(-1, keepdim=True)


def potential(theta: Tensor) -> Tensor:
    return (3 * theta.square() + theta.sin()).sum(-1) + theta.sum(-1).square() / 2


class Reference:
    """A sampler written with the pure functions, on θ [K, D]."""

    def __init__(self, chains: list[int], lr: float | Tensor, settings: dict[str, float]) -> None:
        self.chains, self.lr, self.settings, self.memory, self.step = chains, lr, settings, {}, 0

    def normal(self, purpose: str = "noise", step: int | None = None) -> Tensor:
        step = self.step if step is None else step
        seeds = [derive_seed(SEED, chain, step, purpose) for chain in self.chains]
        return torch.stack(
            [torch.randn(SIZE, generator=reseed(torch.Generator(), s), dtype=torch.float64) for s in seeds]
        )

    def sgld(self, theta: Tensor) -> Tensor:
        return functional.sgld(theta, gradient(theta), self.normal(), self.lr, KT)

    def leimkuhler_matthews(self, theta: Tensor) -> Tensor:
        pair = self.normal(), self.normal(step=self.step + 1)
        return functional.leimkuhler_matthews(theta, gradient(theta), pair, self.lr, KT)

    def asgld(self, theta: Tensor) -> Tensor:
        g, t = gradient(theta), self.step
        m, v = self.memory.get("m", 0 * g), self.memory.get("v", 0 * g)
        hat = (m / (1 - 0.9**t), v / (1 - 0.999**t)) if t else (m, v)
        drift = functional.adaptive_drift(g, *hat, self.settings["a"], 1e-6) if t else g
        self.memory = {"m": 0.9 * m + 0.1 * g, "v": 0.999 * v + 0.001 * g * g}
        return functional.sgld(theta, drift, self.normal(), self.lr, KT)

    def sam(self, theta: Tensor) -> Tensor:
        uphill = gradient(theta + functional.sam_ascent(gradient(theta), self.settings["rho"]))
        return functional.sgld(theta, uphill, self.normal(), self.lr, KT)

    def rank_one(self, theta: Tensor) -> Tensor:
        present = functional.sam_ascent(gradient(theta), 1.0)
        total = self.memory["sum"] = self.memory.get("sum", 0) + present
        along = present if self.settings.get("direction") == "adaptive" else functional.sam_ascent(total, 1.0)
        uphill = gradient(theta + self.settings["rho"] * present)
        return functional.rank_one_langevin(
            theta, uphill, self.normal(), self.lr, KT, direction=along, sigma=self.settings["sigma"],
            plain=self.settings.get("drift") == "plain",
        )  # fmt: skip

    def psgld(self, theta: Tensor) -> Tensor:
        g = gradient(theta)
        square = self.memory["v"] = 0.99 * self.memory["v"] + 0.01 * g * g if self.step else g * g
        scale = 1 / (self.settings["floor"] + square.sqrt())
        return functional.preconditioned(theta, g, self.normal(), self.lr, KT, scale=scale)

    def momentum(self, theta: Tensor, rule: Callable[..., tuple[Tensor, Tensor]], **more: float) -> Tensor:
        p = self.memory.get("p", 0 * theta)
        theta, self.memory["p"] = rule(theta, p, gradient(theta), self.normal(), self.lr, KT, **more)
        return theta

    def sghmc(self, theta: Tensor) -> Tensor:
        return self.momentum(theta, functional.underdamped_euler, friction=1 - self.settings["momentum"])

    def baoab(self, theta: Tensor) -> Tensor:
        return self.momentum(theta, functional.baoab, persistence=self.settings["momentum"])

    def sgnht(self, theta: Tensor) -> Tensor:
        injected = 1 - self.settings["momentum"]
        friction = self.memory.get("friction", torch.full_like(theta[:, :1], injected))
        theta = self.momentum(theta, functional.underdamped_euler, friction=friction, injected=injected)
        kinetic = self.memory["p"].square().mean(-1, keepdim=True)
        rate = self.lr if isinstance(self.lr, float) else self.lr.mean()
        self.memory["friction"] = friction + rate * ((1 - friction / 2) * kinetic / KT - 1)
        return theta

    def fsgld(self, theta: Tensor) -> Tensor:
        g = gradient(theta + self.settings["sigma"] * self.normal("perturbation"))
        return functional.sgld(theta, g, self.normal(), self.lr, KT)

    def entropy(self, theta: Tensor) -> Tensor:
        guide = self.memory.get("guide", theta)
        pull = functional.entropic_pull(theta, guide, self.settings["eta"], KT)
        self.memory["guide"] = functional.sgld(guide, -pull, self.normal("guide"), self.lr, KT)
        return functional.sgld(theta, gradient(theta) + pull, self.normal(), self.lr, KT)

    def map(self, theta: Tensor) -> Tensor:
        v = self.memory.get("v", 0 * theta)
        theta, self.memory["v"] = functional.heavy_ball(theta, gradient(theta), v, self.lr, 0.9, nesterov=True)
        return theta

    def lattice(self, theta: Tensor) -> Tensor:
        rows = []
        for chain in self.chains:
            source = reseed(torch.Generator(), derive_seed(SEED, chain, self.step, "noise"))
            words = torch.empty(-(-SIZE // 4), dtype=torch.int64).random_(-(2**63), None, generator=source)
            rows.append((words.view(torch.int16)[:SIZE].double() + 0.5) / 2**15)
        return functional.lattice_walk(theta, gradient(theta), torch.stack(rows), self.lr, KT)


RULES = [
    (samplers.SGLD, Reference.sgld, {}),
    (samplers.SGLD, Reference.leimkuhler_matthews, {"integrator": "leimkuhler_matthews"}),
    (samplers.ASGLD, Reference.asgld, {"a": 0.5}),
    (samplers.SAMSGLD, Reference.sam, {"rho": 0.1}),
    (samplers.SAMSGLDR1, Reference.rank_one, {"rho": 0.1, "sigma": 0.5}),
    (samplers.SAMSGLDR1, Reference.rank_one, {"rho": 0.1, "sigma": 0.5, "direction": "adaptive", "drift": "plain"}),
    (samplers.PSGLD, Reference.psgld, {"floor": 1.0}),
    (samplers.SGHMC, Reference.sghmc, {"momentum": 0.8}),
    (samplers.SGNHT, Reference.sgnht, {"momentum": 0.8}),
    (samplers.BAOAB, Reference.baoab, {"momentum": 0.8}),
    (samplers.FSGLD, Reference.fsgld, {"sigma": 0.05}),
    (samplers.SGLRW, Reference.lattice, {}),
    (samplers.EntropyMCMC, Reference.entropy, {"eta": 0.5}),
    (samplers.MAP, Reference.map, {"nesterov": True}),
]


class Steps:
    """A sampler on parameters of `SHAPES`, in one group or three, of one chain or a stack."""

    def __init__(self, sampler_class, settings, chain, grouped: bool, dtype=torch.float64) -> None:
        rows = len(chain) if isinstance(chain, list) else 1
        source = torch.Generator().manual_seed(1)
        self.start = torch.randn(rows, SIZE, generator=source, dtype=torch.float64).to(dtype)
        sizes = [torch.Size(shape).numel() for shape in SHAPES]
        lead = (rows,) if isinstance(chain, list) else ()
        self.params = [
            nn.Parameter(part.reshape(*lead, *shape).clone())
            for part, shape in zip(self.start.split(sizes, dim=1), SHAPES, strict=True)
        ]
        groups = (
            [{"params": [p], "lr": lr} for p, lr in zip(self.params, RATES, strict=True)] if grouped else self.params
        )
        self.sampler = sampler_class(groups, lr=0.005, kT=KT, seed=SEED, chain=chain, **settings)
        self.rows = rows

    @property
    def theta(self) -> Tensor:
        return torch.cat([p.reshape(self.rows, -1) for p in self.params], dim=1)

    def closure(self) -> Tensor:
        value = potential(self.theta)
        value.sum().backward()
        return value if self.sampler.stacked else value[0]


@each("grouped", [False, True])
@each("chain", [3, [0, 5, 2]])
@each(("sampler_class", "rule", "settings"), RULES)
def test_a_step_in_place_is_the_pure_function(sampler_class, rule, settings, chain, grouped):
    """To rounding: double precision, relative 1e-10 after four steps."""
    steps = Steps(sampler_class, settings, chain, grouped)
    sizes = torch.tensor([torch.Size(shape).numel() for shape in SHAPES])
    lr = torch.tensor(RATES, dtype=torch.float64).repeat_interleave(sizes) if grouped else 0.005
    reference, theta = Reference(chain if isinstance(chain, list) else [chain], lr, settings), steps.start
    for _ in range(4):
        theta = rule(reference, theta)
        reference.step += 1
        steps.sampler.step(steps.closure)
        torch.testing.assert_close(steps.theta.detach(), theta, rtol=1e-10, atol=1e-12)


@each(("sampler_class", "rule", "settings"), RULES)
def test_noise_drawn_ahead_is_the_same_noise(sampler_class, rule, settings):
    now, ahead = (Steps(sampler_class, settings, [0, 1], True, torch.float32) for _ in range(2))
    ahead.sampler.noise_ahead = True
    for number in range(6):
        for steps in (now, ahead):
            steps.sampler.noise_free = number == 2
            steps.sampler.step(steps.closure)
        assert torch.equal(now.theta, ahead.theta)


@each(("sampler_class", "rule", "settings"), RULES)
def test_late_checks_change_no_step_and_stop_at_the_first_that_is_not_finite(sampler_class, rule, settings):
    early, late = (Steps(sampler_class, settings, [0, 4], True, torch.float32) for _ in range(2))
    late.sampler.checks_late = True
    for _ in range(3):
        for steps in (early, late):
            steps.sampler.step(steps.closure)
        assert torch.equal(early.theta, late.theta)
    late.sampler.check_finite()
    before = late.theta.detach().clone()

    def bad() -> Tensor:
        value = late.closure()
        late.params[1].grad[1, 2] = float("nan")
        return value

    late.sampler.step(bad)
    late.sampler.step(late.closure)
    assert torch.equal(late.theta, before)
    with pytest.raises(DivergedError) as caught:
        late.sampler.check_finite()
    assert caught.value.chains == [4]


@each(("sampler_class", "rule", "settings"), RULES)
def test_a_step_that_checks_late_reads_no_number(sampler_class, rule, settings, monkeypatch):
    """On a GPU every read makes the host wait."""
    steps = Steps(sampler_class, settings, [0, 1], True, torch.float32)
    steps.sampler.checks_late = True
    steps.sampler.step(steps.closure)
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda self, *a, name=name, f=original: (reads.append(name), f(self, *a))[1])
    steps.sampler.step(steps.closure)
    monkeypatch.undo()
    assert reads == []


@each(
    ("sampler_class", "buffers"),
    [(samplers.SGLD, 1), (samplers.SGHMC, 2), (samplers.BAOAB, 2), (samplers.SGNHT, 2), (samplers.SAMSGLD, 2)],
)
def test_state_beside_parameters_and_gradients(sampler_class, buffers):
    steps = Steps(sampler_class, {}, 0, False, torch.float32)
    for _ in range(2):
        steps.sampler.step(steps.closure)
    held = {id(v): v for v in gc_tensors(steps)}
    assert sum(t.numel() for t in held.values() if t.numel() >= SIZE) == buffers * SIZE


def gc_tensors(steps: Steps) -> list[Tensor]:
    """Tensors with storage of their own that the sampler holds, beside the parameters and their gradients."""
    known = {t.untyped_storage().data_ptr() for p in steps.params for t in (p, p.grad)}
    found: dict[int, Tensor] = {}

    def walk(value: object) -> None:
        if isinstance(value, Tensor):
            pointer = value.untyped_storage().data_ptr()
            if pointer not in known:
                found.setdefault(pointer, value if value._base is None else value._base)
        elif isinstance(value, dict):
            for item in value.values():
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)

    walk(vars(steps.sampler))
    return list(found.values())
