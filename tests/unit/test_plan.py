"""Phases and draws of a plan."""

from __future__ import annotations

import pytest

from bayeslora.chain.plan import Plan
from bayeslora.errors import ConfigError
from bayeslora.samplers import schedules
from tests.cases import each


def test_phases_and_draws_fall_where_the_plan_says():
    plan = Plan(warmup=3, burn_in=2, num_draws=2, thin=2)
    assert plan.total == 9
    assert [plan.phase(t) for t in range(9)] == ["warm-up"] * 3 + ["burn-in"] * 2 + ["sampling"] * 4
    assert [plan.draw_after(t) for t in range(10)] == [None] * 7 + [0, None, 1]


def test_a_plan_without_draws_is_refused_with_all_its_problems():
    with pytest.raises(ConfigError) as caught:
        Plan(warmup=-1, burn_in=10, num_draws=0, thin=0)
    assert len(caught.value.problems) == 3
    assert any("no posterior" in problem for problem in caught.value.problems)


def test_cosine_falls_from_one_towards_its_end():
    factor = schedules.cosine(10, end=0.2)
    assert factor(0) == 1
    assert factor(5) == pytest.approx(0.6)
    assert factor(10) == pytest.approx(0.2)


def test_an_unknown_schedule_lists_the_choices():
    with pytest.raises(ConfigError, match="constant, cosine"):
        schedules.make("cyclic", 10)


def test_cycles_explore_first_and_keep_their_share_of_the_draws():
    plan = Plan(warmup=1, burn_in=1, num_draws=4, thin=2, cycles=2, exploration=0.5)
    assert (plan.kept_length, plan.cycle_length, plan.total) == (4, 8, 18)
    assert [plan.phase(t) for t in range(2, 18)] == (["exploration"] * 4 + ["sampling"] * 4) * 2
    assert {t: plan.draw_after(t) for t in range(19) if plan.draw_after(t) is not None} == {8: 0, 10: 1, 16: 2, 18: 3}


def test_cycles_must_divide_the_draws():
    with pytest.raises(ConfigError, match="multiple"):
        Plan(warmup=0, burn_in=0, num_draws=5, thin=1, cycles=2)


def test_schedules_are_what_their_equations_say():
    assert [schedules.exponential(100, end=0.01, decay_steps=10)(t) for t in (0, 5, 10, 50)] == pytest.approx(
        [1, 0.1, 0.01, 0.01]
    )
    assert schedules.polynomial(10, power=0.6, offset=4.0)(12) == pytest.approx(4**-0.6)
    cyclical = schedules.cyclical(40, cycle_length=10)
    assert [cyclical(t) for t in (0, 5, 10, 15)] == pytest.approx([1, 0.5, 1, 0.5])
    assert schedules.constant(3)(2) == 1


@each(
    ("name", "settings"),
    [
        ("polynomial", {"power": 0.4}),
        ("polynomial", {"offset": 0.0}),
        ("exponential", {"end": 0.0}),
        ("cosine", {"b": 1}),
    ],
)
def test_schedules_refuse_impossible_settings(name, settings):
    with pytest.raises(ConfigError):
        schedules.make(name, 10, **settings)


@each("cycles", [0, 2])
def test_draws_by_a_step_are_those_kept_until_then(cycles: int) -> None:
    plan = Plan(3, 2, 4, 3, cycles=cycles, exploration=0.5)
    kept = 0
    for steps in range(plan.total + 1):
        kept += plan.draw_after(steps) is not None
        assert plan.draws_by(steps) == kept
    assert kept == 4
