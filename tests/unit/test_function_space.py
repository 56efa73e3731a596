"""R-hat and ESS of predictions: each summary on chains whose share of disagreeing predictions is known."""

from __future__ import annotations

import arviz
import numpy as np
import pytest

from bayeslora.diagnostics.convergence import function_space, rank_counts
from tests.cases import each

CHAINS, DRAWS, EXAMPLES, CLASSES = 4, 400, 50, 2
ENTRIES = EXAMPLES * CLASSES


def chains(apart: int = 0, stuck: int = 0, distance: float = 3.0) -> list[np.ndarray]:
    """Independent predictions; in the first `apart` the last chain is elsewhere, the next `stuck` never move."""
    draws = np.random.default_rng(0).normal(size=(CHAINS, DRAWS, ENTRIES))
    draws[-1, :, :apart] += distance
    draws[:, :, apart : apart + stuck] = 1.0
    return list(draws.reshape(CHAINS, DRAWS, EXAMPLES, CLASSES))


def test_chains_of_one_distribution_agree_in_every_prediction() -> None:
    found = function_space(chains())
    assert (found.entries, found.fraction_below_1_05, found.reason) == (ENTRIES, 1.0, None)
    assert found.fraction_below_1_01 > 0.9
    assert found.rhat_median < found.rhat_q95 < 1.01
    assert found.ess_median == pytest.approx(CHAINS * DRAWS, rel=0.1)
    assert found.ess_q05 < found.ess_median


def test_the_numbers_are_those_of_arviz_for_each_prediction() -> None:
    draws = chains(apart=20, distance=0.4)
    series = np.stack(draws).reshape(CHAINS, DRAWS, ENTRIES)
    rhat = [float(arviz.rhat(series[:, :, i])) for i in range(ENTRIES)]
    ess = [float(arviz.ess(series[:, :, i], method="bulk")) for i in range(ENTRIES)]
    found = function_space(draws)
    assert found.rhat_median == pytest.approx(np.median(rhat))
    assert found.rhat_q95 == pytest.approx(sorted(rhat)[95])
    assert found.fraction_below_1_01 == pytest.approx(np.mean(np.array(rhat) <= 1.01))
    assert found.ess_median == pytest.approx(np.median(ess))
    assert found.ess_q05 == pytest.approx(sorted(ess)[4])


@each("apart", [3, 7])
def test_the_share_that_agrees_is_counted_and_the_quantile_shows_more_than_five_percent(apart: int) -> None:
    found = function_space(chains(apart))
    assert found.fraction_below_1_05 == pytest.approx(1 - apart / ENTRIES)
    assert found.rhat_median < 1.01
    assert (found.rhat_q95 > 1.2) == (apart == 7)


def test_a_disagreement_of_less_than_1_05_is_told_from_agreement() -> None:
    """The last chain half a standard deviation off: R-hat about 1.03 for all predictions."""
    found = function_space(chains(ENTRIES, distance=0.55))
    assert 1.01 < found.rhat_median < 1.05
    assert (found.fraction_below_1_01, found.fraction_below_1_05) == (0.0, 1.0)


def test_predictions_that_never_move_do_not_count_as_agreeing() -> None:
    found = function_space(chains(stuck=10))
    assert found.fraction_below_1_05 == pytest.approx(0.9)
    assert found.rhat_q95 is None
    assert found.reason == "more than 5 % of the predictions do not vary"
    assert found.ess_q05 == 0


def test_few_entries_are_looked_at_where_there_are_many_and_they_are_spread_evenly() -> None:
    found = function_space(chains(apart=ENTRIES // 2), limit=20)
    assert found.entries == 20
    assert found.fraction_below_1_05 == pytest.approx(0.5)


def test_what_cannot_be_judged_has_a_reason() -> None:
    one = function_space(chains()[:1])
    assert (one.rhat_median, one.fraction_below_1_05) == (None, None)
    assert "only one" in one.reason
    assert "fewer than 4 draws" in function_space([chain[:3] for chain in chains()]).reason


def test_ranks_are_among_all_chains() -> None:
    ahead = [np.arange(20.0) + 100 * chain for chain in range(2)]
    counts = rank_counts(ahead)
    assert counts is not None
    assert counts.tolist() == [[10, 10, 0, 0], [0, 0, 10, 10]]
