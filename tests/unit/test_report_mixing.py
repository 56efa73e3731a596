"""What the report's figures of the chains are drawn from, and that figures appear only where there is something."""

from __future__ import annotations

import numpy as np
import pytest

from bayeslora.diagnostics.convergence import autocorrelation, convergence, growth, rank_counts
from bayeslora.evaluation.results import Fidelity, FidelityCurve, Results, Selective
from bayeslora.report import figures, mixing, plots
from tests.cases import each
from tests.unit.report_tools import changed, predictions, report, series


def normal(chains: int, draws: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(chains, draws)))


def autoregression(rho: float, draws: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=draws)
    values = np.empty(draws)
    values[0] = noise[0]
    for at in range(1, draws):
        values[at] = rho * values[at - 1] + (1 - rho**2) ** 0.5 * noise[at]
    return values


def test_growth_ends_with_the_whole_and_begins_with_the_fewest_draws() -> None:
    chains = normal(3, 200)
    found = growth(chains, points=5)
    whole = convergence(chains)
    assert found["draws"] == [12, 159, 306, 453, 600]
    assert found["ess_bulk"][-1] == whole.ess_bulk
    assert found["mcse_mean"][-1] == whole.mcse_mean
    assert found["ess_bulk"][1] == convergence([chain[:53] for chain in chains]).ess_bulk


@each("chains", [[], [np.arange(3.0)], [np.arange(9.0), np.arange(2.0)]])
def test_too_few_draws_do_not_grow(chains: list[np.ndarray]) -> None:
    assert growth(chains) == {"draws": [], "ess_bulk": [], "ess_tail": [], "mcse_mean": []}


def test_growth_of_a_series_with_nan_is_none_from_there_on() -> None:
    chains = normal(2, 100)
    chains[0][60] = np.nan
    found = growth(chains, points=10)
    known = [value is not None for value in found["ess_bulk"]]
    assert known == [draws <= 120 for draws in found["draws"]]
    assert known[0]
    assert not known[-1]


def test_autocorrelation_of_an_autoregression_falls_as_its_power() -> None:
    (found,) = autocorrelation([autoregression(0.8, 20_000, seed=1)], max_lag=5)
    assert found[0] == pytest.approx(1.0)
    np.testing.assert_allclose(found, 0.8 ** np.arange(6), atol=4 * 20_000**-0.5 * 3)  # se about 3 / sqrt(n)


def test_autocorrelation_is_empty_where_there_is_none() -> None:
    found = autocorrelation([np.ones(50), np.array([1.0, np.nan] * 25), np.arange(3.0), normal(1, 50)[0]])
    assert [len(curve) for curve in found] == [0, 0, 0, 26]


def test_ranks_of_one_distribution_are_level_and_those_of_shifted_chains_are_not() -> None:
    level = rank_counts(normal(4, 500))
    assert level is not None
    assert level.shape == (4, 20)
    assert level.sum() == 2_000
    assert np.all(level.sum(1) == 500)
    expected = 25
    assert np.abs(level - expected).max() < 5 * expected**0.5
    shifted = normal(4, 500)
    shifted[0] += 10
    counts = rank_counts(shifted)
    assert counts is not None
    assert counts[0].tolist() == [0] * 15 + [100] * 5


def test_ranks_use_fewer_bins_for_fewer_draws_and_need_two_chains() -> None:
    few = rank_counts(normal(2, 12))
    assert few is not None
    assert few.shape == (2, 2)
    assert rank_counts(normal(1, 100)) is None
    assert rank_counts([np.ones(10), np.ones(10)]) is None


def test_no_figure_is_drawn_of_nothing() -> None:
    nan = [np.full(30, np.nan)] * 2
    assert mixing.trace([np.arange(30)] * 2, nan, "x", [0, 1]) is None
    assert mixing.ranks(nan, [0, 1]) is None
    assert mixing.ess_growth({"x": nan}, {}) is None
    assert mixing.autocorrelations({"x": nan}, [0, 1]) is None
    assert plots.cumulative(Results(), {}) is None
    assert plots.reliability_diagrams({}) is None
    assert plots.selective(Selective()) is None
    assert plots.severity_curves({}) is None
    assert plots.fidelity_curves(FidelityCurve(), [], None) is None


def band(lengths: list[int], **curve: list[float | None]) -> tuple[np.ndarray, str]:
    """Corners [points, 2] of the band around a run's cumulative NLL, and what its caption says."""
    data = report(predictions(lengths), series(lengths))
    changed(data, cumulative=data.results["cumulative"] | curve)
    errors, words = figures.cumulative_errors(data)
    figure = plots.cumulative(data.results, errors)
    assert figure is not None
    found = figure.axes[1].collections
    return (found[0].get_paths()[0].vertices if found else np.empty((0, 2))), words


def test_the_band_is_the_monte_carlo_error_of_single_draws_where_it_is_known() -> None:
    corners, words = band([20, 20])
    data = report(predictions([20, 20]), series([20, 20]))
    error, nll = data.results["draw"]["nll"]["mcse"], data.results["ensemble"]["nll"]
    at_end = corners[corners[:, 0] == 40][:, 1]
    assert (at_end.min(), at_end.max()) == pytest.approx((nll - error, nll + error))
    assert corners[:, 0].min() == 8  # four draws a chain are the fewest
    assert "of the mean over these single draws" in words


def test_the_band_is_the_error_over_chains_where_the_run_has_it() -> None:
    corners, words = band([6, 6], nll_se=[None, 0.5, 0.4, 0.3, 0.2, 0.1])
    at_end = corners[corners[:, 0] == 12][:, 1]
    assert at_end.max() - at_end.min() == pytest.approx(0.2)
    assert corners[:, 0].min() == 4
    assert "from the chains' ensembles" in words


def test_without_an_error_there_is_no_band_and_a_reason() -> None:
    corners, words = band([1, 1])
    assert len(corners) == 0
    assert "Without the band of its Monte Carlo error: fewer than 4 draws a chain" in words


def test_chains_keep_their_numbers_in_the_legend() -> None:
    figure = mixing.trace([np.arange(30)] * 2, normal(2, 30), "x", [3, 7])
    assert figure is not None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["chain 3", "chain 7"]


def test_fidelity_is_drawn_against_draws_and_gradients() -> None:
    curve = FidelityCurve(draws=[2.0, 4.0], agreement=[0.5, 0.6], total_variation=[0.4, 0.3])
    baseline = Fidelity(agreement=0.4, agreement_se=None, total_variation=0.5, total_variation_se=None)
    figure = plots.fidelity_curves(curve, [100.0, 200.0], baseline)
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == ["draws", "draws", "gradients", "gradients"]
    np.testing.assert_array_equal(figure.axes[2].lines[0].get_xdata(), [100, 200])
    without = plots.fidelity_curves(curve, [], None)
    assert without is not None
    assert len(without.axes) == 2
