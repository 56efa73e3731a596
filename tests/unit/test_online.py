"""Online estimators against streams with a known law, against arviz, and as state that goes on bit for bit."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from bayeslora.diagnostics.online import (
    CHUNK,
    MIN_UPDATES,
    Estimate,
    OnlineMoments,
    OnlineSeries,
    is_milestone,
    rhat,
    summary,
)
from bayeslora.errors import ConfigError
from tests.cases import each

RHOS = [0.0, 0.5, 0.9, 0.95]


def _autoregressive(rho: float, updates: int, chains: int, seed: int = 1) -> np.ndarray:
    """Stationary AR(1) streams of unit variance, [updates, chains]."""
    noise = np.random.default_rng(seed).normal(size=(updates, chains))
    noise[1:] *= np.sqrt(1 - rho**2)
    return lfilter([1], [1, -rho], noise, axis=0)


def _true_time(rho: float) -> float:
    return (1 + rho) / (1 - rho)


def _estimates(values: np.ndarray) -> tuple[Estimate, ...]:
    series = OnlineSeries(values.shape[1])
    series.extend(values)
    return series.estimates()


def _times(values: np.ndarray) -> np.ndarray:
    """τ of every stream; fails if one is None."""
    times = [found.tau for found in _estimates(values)]
    assert None not in times
    return np.array(times)


def _same(one: OnlineSeries, other: OnlineSeries) -> bool:
    """Whether two series hold the same state, bit for bit."""
    states = one.state_dict(), other.state_dict()
    arrays = all(np.array_equal(states[0][name], states[1][name], equal_nan=True) for name in states[0])
    return arrays and one.estimates() == other.estimates()


# -- against laws and arviz ------------------------------------------------------------------------------------------


@each("rho", RHOS)
def test_time_of_an_autoregression_is_within_a_tenth(rho: float) -> None:
    """32 streams: their mean within 2 % and its error of the truth, and nearly all single ones within 10 %."""
    ratios = _times(_autoregressive(rho, 300_000, chains=32)) / _true_time(rho)
    error = ratios.std(ddof=1) / np.sqrt(32)
    assert error < 0.015
    assert abs(ratios.mean() - 1) < 0.02 + 4 * error
    assert np.mean(np.abs(ratios - 1) < 0.1) >= 0.85


@each("rho", RHOS)
def test_a_million_updates_give_the_time_of_one_stream_within_a_tenth(rho: float) -> None:
    assert _times(_autoregressive(rho, 1_000_000, chains=1))[0] == pytest.approx(_true_time(rho), rel=0.1)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@each("rho", RHOS)
def test_effective_number_agrees_with_arviz_on_the_same_streams(rho: float) -> None:
    """log(ESS / arviz's) over 16 streams: its mean is within its standard error and the bias above of 0."""
    import arviz

    values = _autoregressive(rho, 200_000, chains=16, seed=2)
    ours = np.array([found.ess for found in _estimates(values)])
    theirs = np.array([arviz.ess(stream[None], method="mean") for stream in values.T])
    differences = np.log(ours / theirs)
    assert abs(differences.mean()) < 0.02 + 4 * differences.std(ddof=1) / 4
    assert np.abs(differences).max() < 0.25


@each("rho", [0.5, 0.9])
def test_standard_error_covers_the_true_mean(rho: float) -> None:
    """z = mean / mcse of 400 streams about the true mean 0 has standard deviation 1 (± 0.035)."""
    found = _estimates(_autoregressive(rho, 20_000, chains=400, seed=3))
    z = np.array([one.mean / one.mcse for one in found if one.mcse is not None])
    assert len(z) > 390
    assert z.std() == pytest.approx(1, abs=4 * 0.035)


def test_moments_are_numpys_far_from_zero() -> None:
    values = 1e8 + np.random.default_rng(0).normal(size=(3, 10_007))
    moments = OnlineMoments(3)
    for part in np.split(values, [1, 2, 500, 5_000], axis=1):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, values.mean(1), rtol=1e-14)
    np.testing.assert_allclose(moments.variance, values.var(1, ddof=1), rtol=1e-9)


def test_batch_means_are_those_of_every_batch_written_out() -> None:
    """V_b and V_{b/2} by their definition, from batches that start every b/4 updates."""
    values = _autoregressive(0.5, 5_001, chains=1)[:, 0]
    found = _estimates(values[:, None])[0]

    def by_hand(b: int) -> float:
        means = [values[start : start + b].mean() for start in range(0, len(values) - b + 1, b // 4)]
        return b * np.mean((np.array(means) - values.mean()) ** 2) / (1 - b / len(values))

    expected = (2 * by_hand(found.batch) - by_hand(found.batch // 2)) / values.var(ddof=1)
    assert found.tau == pytest.approx(expected, rel=1e-10)


def test_a_shift_and_a_scale_leave_the_time_alone() -> None:
    values = _autoregressive(0.9, 50_000, chains=4)
    np.testing.assert_allclose(_times(values), _times(1e6 - 1e-2 * values), rtol=1e-5)


def test_batches_grow_as_the_root_of_the_updates() -> None:
    """Each of four times as many updates doubles them; independent values never need longer ones."""
    series, batches = OnlineSeries(), []
    values = np.random.default_rng(0).normal(size=4**9)
    for exponent in range(5, 10):
        series.extend(values[series.count : 4**exponent])
        batches.append(series.estimates()[0].batch)
    assert batches == [2 ** (exponent - 1) for exponent in range(5, 10)]


# -- what cannot be computed -----------------------------------------------------------------------------------------


@each(
    ("values", "words"),
    [
        (np.array([]), "two updates, not 0"),
        (np.array([1.0]), "two updates, not 1"),
        (np.arange(MIN_UPDATES - 1) % 7, f"takes {MIN_UPDATES} updates"),
        (np.full(5_000, 0.1), "constant"),
        (np.zeros(5_000), "constant"),
        (np.append(np.nan, np.arange(5_000)), "NaN"),
        (np.append(np.arange(5_000.0), -np.inf), "NaN or infinite"),
        (np.array([np.inf]), "NaN or infinite"),
        (np.arange(5_000.0) * 1e160, "too large"),
        (np.arange(5_000.0), "run longer"),
        (np.random.default_rng(0).normal(size=20_000).cumsum(), "run longer"),
        (_autoregressive(0.999, 20_000, chains=1)[:, 0], "run longer"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_computed_is_none_with_a_reason(values: np.ndarray, words: str) -> None:
    series = OnlineSeries()
    series.extend(values)
    found = series.estimates()[0]
    assert (found.tau, found.ess, found.mcse, found.batch) == (None,) * 4
    assert words in (found.reason or "")
    assert found.count == len(values)


@each(("noise", "rho", "updates"), [(10, 0.99, 3_000), (10, 0.99, 100_000), (100, 0.999, 30_000)])
def test_noise_does_not_hide_a_slow_component(noise: int, rho: float, updates: int) -> None:
    """White noise of `noise` times the variance: short batches alone would find τ near 1 where it is about 20."""
    slow = _autoregressive(rho, updates, chains=16)
    values = slow + np.sqrt(noise) * np.random.default_rng(4).normal(size=slow.shape)
    times, true = [found.tau for found in _estimates(values)], (noise + _true_time(rho)) / (noise + 1)
    assert all(time is None or time > true / 2 for time in times)
    assert updates < 100_000 or None not in times


def test_one_bad_series_leaves_its_neighbour_alone() -> None:
    values = _autoregressive(0.5, 2_000, chains=2)
    alone = _estimates(values[:, 1:])
    values[700, 0] = np.nan
    bad, good = _estimates(values)
    assert bad.mean is None
    assert (good,) == alone


@each("values", [1.0, [1.0, 2.0, 3.0]])
def test_an_update_of_another_size_is_refused(values: float | list[float]) -> None:
    series = OnlineSeries(2)
    with pytest.raises(ConfigError, match="2 series"):
        series.update(values)
    with pytest.raises(ConfigError, match="2 series"):
        series.extend([values])


# -- state -----------------------------------------------------------------------------------------------------------


def test_one_at_a_time_equals_many_at_once_and_beside_others() -> None:
    values = _autoregressive(0.5, 3 * CHUNK + 17, chains=3)
    single, whole, parts, alone = OnlineSeries(3), OnlineSeries(3), OnlineSeries(3), OnlineSeries()
    whole.extend(values)
    alone.extend(values[:, 2])
    for row in values:
        single.update(row)
        single.estimates()
    for part in np.split(values, [0, 1, 100, CHUNK, 3 * CHUNK]):
        parts.extend(part)
    assert _same(single, whole)
    assert _same(parts, whole)
    assert alone.estimates() == whole.estimates()[2:]


@each("saved", [0, 1, 100, CHUNK, 5 * CHUNK - 1, 2_001, 40_000])
def test_a_resumed_stream_goes_on_bit_for_bit(saved: int) -> None:
    values = _autoregressive(0.9, 50_000, chains=2)
    through, before, after = OnlineSeries(2), OnlineSeries(2), OnlineSeries(2)
    through.extend(values)
    before.extend(values[:saved])
    state = pickle.loads(pickle.dumps(before.state_dict()))  # noqa: S301
    before.extend(values[:1_000])
    after.load_state_dict(state)
    after.extend(values[saved:])
    assert _same(after, through)


def test_state_may_come_back_as_tensors_and_shares_no_memory() -> None:
    series, copy = OnlineSeries(2), OnlineSeries(2)
    series.extend(_autoregressive(0.5, 1_000, chains=2))
    state = {name: torch.as_tensor(value) for name, value in series.state_dict().items()}
    copy.load_state_dict(state)
    assert _same(series, copy)
    for value in state.values():
        value.zero_()
    assert _same(series, copy)


def test_state_of_another_size_is_refused() -> None:
    series = OnlineSeries(2)
    with pytest.raises(ConfigError, match=r"size=2"):
        series.load_state_dict(OnlineSeries(3).state_dict())
    with pytest.raises(ConfigError, match=r"size=2"):
        series.load_state_dict({"count": 3})


def test_state_is_of_plain_types_and_does_not_grow() -> None:
    def size(series: OnlineSeries) -> int:
        assert all(type(v) is int or v.dtype == np.float64 for v in series.state_dict().values())
        return sum(np.asarray(value).nbytes for value in series.state_dict().values())

    series = OnlineSeries(4)
    at_first = size(series)
    series.extend(np.random.default_rng(0).normal(size=(100_000, 4)))
    assert size(series) == at_first < 4 * 5_000


def test_a_million_single_updates_run() -> None:
    series = OnlineSeries()
    for value in np.random.default_rng(0).normal(size=1_000_000).tolist():
        series.update(value)
    found = series.estimates()[0]
    assert found.count == 1_000_000
    assert found.tau == pytest.approx(1, rel=0.1)
    assert found.mcse == pytest.approx(1e-3, rel=0.05)


# -- over chains -----------------------------------------------------------------------------------------------------


def test_chains_of_one_law_have_rhat_near_one_and_add_up() -> None:
    chains = _estimates(_autoregressive(0.9, 100_000, chains=4))
    found = summary(chains)
    assert found.rhat == rhat(chains)
    assert found.rhat == pytest.approx(np.sqrt(1 + 18 / 100_000), abs=4e-5)
    assert found.ess == pytest.approx(4 * 100_000 / 19, rel=0.15)
    assert found.tau == pytest.approx(19, rel=0.15)
    assert found.mcse == pytest.approx(np.sqrt(19 / 400_000), rel=0.1)
    assert (found.chains, found.count, found.reason) == (4, 100_000, None)


def test_summary_agrees_with_arviz_on_the_same_chains() -> None:
    import arviz

    values = _autoregressive(0.9, 100_000, chains=4, seed=5)
    found, stacked = summary(_estimates(values)), values.T
    assert found.ess == pytest.approx(arviz.ess(stacked, method="mean"), rel=0.15)
    assert found.mcse == pytest.approx(arviz.mcse(stacked, method="mean"), rel=0.1)
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)


@each("updates", [5_000, 500_000])
def test_chains_at_different_places_have_a_large_rhat_however_long(updates: int) -> None:
    chains = _estimates(_autoregressive(0.5, updates, chains=4) + np.array([0, 0, 0, 2]))
    found = summary(chains)
    assert found.rhat == pytest.approx(np.sqrt(1 + 1), rel=0.05)
    assert found.ess is not None
    assert found.ess < 12
    assert found.mcse == pytest.approx(0.5, rel=0.1)
    assert "differ by more" in (found.reason or "")


def test_drifting_chains_have_no_rhat() -> None:
    """All drift alike, so their means agree; τ is what does not settle."""
    found = summary(_estimates(_autoregressive(0.5, 10_000, chains=4) + np.linspace(0, 4, 10_000)[:, None]))
    assert (found.rhat, found.ess, found.mcse) == (None, None, None)
    assert "run longer" in (found.reason or "")


def test_one_stuck_chain_is_named_and_nothing_passes() -> None:
    values = _autoregressive(0.5, 10_000, chains=3)
    values[:, 1] = 0.3
    found = summary(_estimates(values))
    assert (found.rhat, found.ess, found.mcse) == (None, None, None)
    assert found.reason == "chain 1: the series is constant"


def test_where_no_time_is_found_the_means_still_speak() -> None:
    values = _autoregressive(0.5, 100, chains=2) + np.array([0, 10])
    found = summary(_estimates(values))
    alone = np.sqrt(0.99 + values.mean(0).var(ddof=1) / values.var(0, ddof=1).mean())
    assert found.rhat is None
    assert found.reason == (
        f"chain 0: tau takes 256 updates, not 100; 1 more likewise; R-hat of the chains' means alone is {alone:.3g}"
    )


def test_one_chain_has_ess_but_no_rhat() -> None:
    chains = _estimates(_autoregressive(0.5, 10_000, chains=1))
    found = summary(chains)
    assert found.rhat is None
    assert found.ess == pytest.approx(chains[0].ess, rel=1e-3)
    assert "only one" in (found.reason or "")
    assert summary([]).reason == "there are no chains"


def test_disagreement_is_not_cried_too_often() -> None:
    """The χ² test at 0.1 %: of 200 groups of four like chains at most 3 are told that they differ."""
    found = _estimates(_autoregressive(0.5, 10_000, chains=800, seed=6))
    groups = [summary(found[start : start + 4]) for start in range(0, 800, 4)]
    assert sum("differ" in (group.reason or "") for group in groups) <= 3


def test_to_json_is_strict_json() -> None:
    found = vars(summary(_estimates(_autoregressive(0.5, 100, chains=2))))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"chains", "count", "mean", "rhat", "ess", "tau", "mcse", "reason"}


def test_milestones_are_one_two_five_from_the_first() -> None:
    assert [n for n in range(60_000) if is_milestone(n)] == [1_000, 2_000, 5_000, 10_000, 20_000, 50_000]
    assert is_milestone(20, first=10)
