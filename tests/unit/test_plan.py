"""Phases and draws of a plan."""

from __future__ import annotations

import pytest

from bayeslora.chains.plan import Plan
from bayeslora.errors import ConfigError
from bayeslora.samplers import schedules


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
