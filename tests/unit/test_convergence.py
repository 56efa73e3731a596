"""Convergence diagnostics against laws with a known answer, and what is said where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bayeslora.diagnostics.convergence import Convergence, convergence, to_inference_data
from tests.cases import each

CHAINS, DRAWS = 4, 2_000


def _normal(chains: int = CHAINS, draws: int = DRAWS, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(chains, draws)))


def _autoregressive(rho: float, chains: int, draws: int) -> list[np.ndarray]:
    """Stationary AR(1) chains of unit variance."""
    noise = np.random.default_rng(1).normal(size=(draws, chains))
    states = np.empty_like(noise)
    states[0] = noise[0]
    for step in range(1, draws):
        states[step] = rho * states[step - 1] + np.sqrt(1 - rho**2) * noise[step]
    return list(states.T)


def _is_empty(found: Convergence) -> bool:
    return (found.rhat, found.ess_bulk, found.ess_tail, found.mcse_mean) == (None, None, None, None)


def test_independent_draws_have_rhat_one_and_ess_of_their_number() -> None:
    found = convergence(_normal())
    assert found.rhat is not None
    assert found.rhat < 1.01
    assert found.ess_bulk == pytest.approx(CHAINS * DRAWS, rel=0.1)
    assert found.ess_tail == pytest.approx(CHAINS * DRAWS, rel=0.15)
    assert found.mcse_mean == pytest.approx(1 / np.sqrt(CHAINS * DRAWS), rel=0.1)
    assert found.reason is None


def test_chains_at_different_places_have_a_large_rhat() -> None:
    chains = [chain + shift for chain, shift in zip(_normal(), (0, 0, 0, 2), strict=True)]
    found = convergence(chains)
    assert found.rhat is not None
    assert found.rhat > 1.1
    assert found.ess_bulk is not None
    assert found.ess_bulk < 0.05 * CHAINS * DRAWS


def test_chains_of_different_width_have_a_large_rhat() -> None:
    """The folded half of R-hat: equal means do not hide unequal spreads."""
    chains = [chain * scale for chain, scale in zip(_normal(), (1, 1, 1, 5), strict=True)]
    assert (convergence(chains).rhat or 0) > 1.1


def test_drifting_chains_have_a_large_rhat() -> None:
    """The split: all chains drift alike, so only their halves differ."""
    assert (convergence([chain + np.linspace(0, 4, DRAWS) for chain in _normal()]).rhat or 0) > 1.1


@each("rho", [0.5, 0.8])
def test_ess_of_an_autoregression_is_as_computed_by_hand(rho: float) -> None:
    found = convergence(_autoregressive(rho, chains=4, draws=10_000))
    assert found.ess_bulk == pytest.approx(40_000 * (1 - rho) / (1 + rho), rel=0.12)


def test_one_chain_has_ess_but_no_rhat() -> None:
    found = convergence(_normal(chains=1))
    assert found.rhat is None
    assert found.ess_bulk == pytest.approx(DRAWS, rel=0.15)
    assert found.reason is not None
    assert "only one" in found.reason


def test_chains_of_different_length_are_cut_to_the_shortest() -> None:
    chains = _normal()
    chains[2] = chains[2][:500]
    cut, reference = convergence(chains), convergence([chain[:500] for chain in chains])
    assert (cut.rhat, cut.ess_bulk, cut.ess_tail) == (reference.rhat, reference.ess_bulk, reference.ess_tail)
    assert cut.reason == "chains of 500 to 2000 draws were cut to the shortest"


@each(
    ("series", "words"),
    [
        ([], "no chains"),
        ([np.arange(3.0)] * 2, "fewer than 4 draws"),
        ([np.arange(50.0), np.arange(3.0)], "the shortest has 3"),
        ([np.arange(50.0), np.array([])], "the shortest has 0"),
        ([np.full(50, 7.0)] * 2, "constant"),
        ([np.full(50, 7.0), np.full(50, 8.0)], "constant"),
        ([np.arange(50.0), np.append(np.arange(49.0), np.nan)], "NaN"),
        ([np.arange(50.0), np.append(np.arange(60.0), np.inf)], "NaN or infinite"),
    ],
)
def test_what_cannot_be_computed_is_none_with_a_reason(series: list[np.ndarray], words: str) -> None:
    found = convergence(series)
    assert _is_empty(found)
    assert found.reason is not None
    assert words in found.reason


def test_one_stuck_chain_among_moving_ones_does_not_pass() -> None:
    rhat = convergence([*_normal(chains=3, draws=200), np.zeros(200)]).rhat
    assert rhat is None or rhat > 1.1


@each("draws", [4, 5, 6, 7])
def test_few_draws_give_finite_numbers_or_a_reason(draws: int) -> None:
    found = convergence(_normal(draws=draws))
    values = (found.rhat, found.ess_bulk, found.ess_tail, found.mcse_mean)
    assert all(value is None or np.isfinite(value) for value in values)
    assert found.reason is not None or None not in values


def test_to_json_is_strict_json() -> None:
    found = vars(convergence(_normal(chains=1, draws=100)))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"rhat", "ess_bulk", "ess_tail", "mcse_mean", "reason"}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_inference_data_opens_with_arviz_and_holds_the_draws(tmp_path: Path) -> None:
    import arviz

    path = tmp_path / "run" / "diagnostics.nc"
    potential, norm = _normal(draws=30), _normal(draws=30, seed=3)
    norm[1] = norm[1][:20]
    to_inference_data({"potential": potential, "l2_norm": norm}, path)
    posterior = arviz.from_netcdf(str(path)).posterior
    assert posterior["potential"].dims == ("chain", "draw")
    np.testing.assert_array_equal(posterior["potential"], np.stack(potential)[:, :20])
    np.testing.assert_array_equal(posterior["l2_norm"], np.stack([chain[:20] for chain in norm]))
    assert [file.name for file in path.parent.iterdir()] == ["diagnostics.nc"]


def test_inference_data_replaces_an_older_file(tmp_path: Path) -> None:
    import arviz

    path = tmp_path / "diagnostics.nc"
    for draws in (30, 40):
        to_inference_data({"potential": _normal(draws=draws)}, path)
    assert arviz.from_netcdf(str(path)).posterior.sizes["draw"] == 40


@each("scalars", [{}, {"potential": [np.array([]), np.arange(4.0)]}, {"potential": []}])
def test_inference_data_without_draws_is_still_a_readable_file(
    scalars: dict[str, list[np.ndarray]], tmp_path: Path
) -> None:
    import arviz

    to_inference_data(scalars, tmp_path / "diagnostics.nc")
    arviz.from_netcdf(str(tmp_path / "diagnostics.nc"))
