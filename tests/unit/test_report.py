"""The report's page: what it shows, that it stands alone, and that what is missing is said and breaks nothing."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayeslora.diagnostics.convergence import convergence
from bayeslora.report.data import ReportData
from bayeslora.report.page import write_page
from tests.cases import each
from tests.unit.report_tools import Page, changed, predictions, report, series

PNGS = {
    f"{name}.png"
    for name in (
        "trace_potential", "trace_l2_norm", "rank_potential", "rank_l2_norm", "ess_growth", "autocorrelation",
        "cumulative", "reliability", "selective",
    )
}  # fmt: skip


def data(lengths: tuple[int, ...] = (50, 50), baseline: bool = True, **more: Any) -> ReportData:
    return report(predictions(list(lengths), baseline), series(list(lengths)), **more)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of two chains; not to be changed."""
    notes = ["chain 2 has 10 of 50 draws"]
    return write_page(data((100, 100), notes=notes), tmp_path_factory.mktemp("whole") / "report")


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_the_report_is_one_page_and_a_picture_a_plot(written: Path) -> None:
    assert files(written.parent) == {"index.html", *PNGS}
    for name in PNGS:
        content = (written.parent / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


def test_the_page_stands_alone(written: Path) -> None:
    page = Page(written)
    assert {address for address in page.addresses if not address.startswith(("data:", "#"))} == {"../metrics.json"}
    assert page.tags.count("img") == 12 + 6
    assert (page.tags.count("script"), page.tags.count("svg")) == (1, len(PNGS))
    assert not re.search(r"https?://|@import|url\((?!#)", written.read_text(encoding="utf-8"))


def test_figures_follow_the_pages_colours_and_hold_what_they_tell(written: Path) -> None:
    content = written.read_text(encoding="utf-8")
    pictures = re.findall(r"<svg.*?</svg>", content, flags=re.DOTALL)
    for picture in pictures:
        assert "var(--ink)" in picture
        assert "#222222" not in picture
    colours = {name for picture in pictures for name in re.findall(r"var\((--\w+)\)", picture)}
    for theme in re.findall(r":root \{(.*?)\}", content)[:2]:  # light and dark
        assert colours <= set(re.findall(r"(--\w+):", theme))
    trace = next(picture for picture in pictures if 'aria-label="Potential of the draws"' in picture)
    (panel, *_) = json.loads(unescape(re.search(r'data-panels="(.*?)"', trace)[1]))
    assert panel["labels"] == ["step", "potential (nats)"]
    assert [mark[0] for mark in panel["marks"]] == ["chain 0", "chain 1"]
    told = series([100, 100])[0]
    assert panel["marks"][0][1] == told["step"].tolist()
    assert panel["marks"][0][2] == pytest.approx(told["potential"], rel=1e-4)


def test_every_link_within_the_page_has_its_place(written: Path) -> None:
    content = written.read_text(encoding="utf-8")
    links = set(re.findall(r'<a href="#(\w+)"', content))
    places = set(re.findall(r'<h2 id="(\w+)"', content))
    assert links == places
    assert {"predictions", "criteria", "convergence", "classes", "uncertainty", "examples", "provenance"} <= links


def test_the_page_says_what_was_found(written: Path) -> None:
    page = Page(written).text
    assert "chain 2 has 10 of 50 draws" in page
    for words in (
        "The ensemble of 200 draws ",
        "Against MAP × 2, the deep ensemble",
        "MAP, scaled: its logits divided by a temperature fitted on the validation set",
        "MCSE",
        "criteria met",
        "R-hat of the potential",
        "at least 200",
        "Random projections, worst of 2",
        "in 1,000 gradients",
        "total variation",
        "zebra",
        "Most confused with",
        "Mutual information",
        "sampling 1 min 15 s",
        "python -m bayeslora.train",
    ):
        assert words in page, words


def test_hostile_text_is_shown_and_not_run(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>"
    found = data(title=hostile, notes=[hostile], settings=[(hostile, hostile)])
    changed(found, provenance={"command": hostile, hostile: {hostile: hostile}})
    page = Page(write_page(found, tmp_path))
    assert page.tags.count("script") == 1  # the page's own
    assert page.text.count(hostile) >= 7


def test_the_report_of_hundreds_of_draws_is_small(written: Path) -> None:
    assert written.stat().st_size < 3e6  # 10 MB is what a run with 400 draws may take


def test_a_run_without_draws_has_a_page(tmp_path: Path) -> None:
    page = Page(write_page(ReportData("Empty", []), tmp_path))
    assert "No draw has been evaluated" in page.text
    assert "Convergence was not assessed: nothing was recorded." in page.text
    assert "img" not in page.tags
    assert files(tmp_path) == {"index.html"}


# What cannot be computed


def constant(scalars: list[dict[str, np.ndarray]]) -> None:
    for chain in scalars:
        chain["potential"][:] = 7.0


def holding_nan(scalars: list[dict[str, np.ndarray]]) -> None:
    scalars[0]["potential"][3] = np.nan


ODD: list[Any] = [
    ([30], None, ["R-hat compares chains and there is only one", "ranks compare chains"]),
    ([1, 1], None, ["fewer than 4 draws a chain (the shortest has 1)"]),
    ([1], None, ["fewer than 4 draws", "there is only one"]),
    ([40, 40], constant, ["the series is constant in every chain"]),
    ([40, 40], holding_nan, ["the series holds NaN or infinite values", "Not drawn: 1 values"]),
]


@each(("lengths", "spoil", "words"), ODD)
def test_what_cannot_be_computed_is_null_with_its_reason_and_passes_nothing(
    lengths: list[int], spoil: Any, words: list[str], tmp_path: Path
) -> None:
    scalars = series(lengths)
    if spoil:
        spoil(scalars)
    found = report(predictions(lengths), scalars)
    potential = found.results["diagnostics"]["potential"]
    assert potential["rhat"] is None
    assert potential["reason"]
    criterion = found.results["criteria"]["potential_rhat"]
    assert (criterion["value"], criterion["passed"]) == (None, False)
    json.dumps(found.results.to_json(), allow_nan=False)
    page = Page(write_page(found, tmp_path)).text
    assert potential["reason"] in page
    assert "✗ not known" in page
    assert "The chains agree" not in page
    for reason in words:
        assert reason in page


def test_one_draw_says_nothing_of_what_draws_disagree_about(tmp_path: Path) -> None:
    page = Page(write_page(data((1,)), tmp_path)).text
    assert "mutual information is what draws disagree about, and there is only one" in page
    assert "which takes two draws" in page
    assert re.search(r"Ensemble [\d.]+ [\d.]+ –", page[page.index("Mean entropy") :])
    assert data((1,)).results["uncertainty"]["ensemble"]["mutual_information"] is None


def test_chains_of_different_length_are_not_judged_and_the_page_says_so(tmp_path: Path) -> None:
    found = data((20, 35))
    for name in ("potential", "l2_norm"):
        assert {found.results["diagnostics"][name][key] for key in ("rhat", "ess_bulk", "ess_tail")} == {None}
    assert found.results["diagnostics"]["function_space"]["rhat_q95"] is None
    assert set(found.results["diagnostics"]["prefixes"]["potential"]) == {None}
    page = Page(write_page(found, tmp_path)).text
    same = convergence([chain["potential"][:20] for chain in series([20, 35])])
    assert "chains of 20 to 35 draws cannot be judged together until all are as long" in page
    assert f"(the first 20 draws of each: R-hat {same.rhat:.3f} and ESS {same.ess_bulk:.0f})" in page
    assert "The chains agree" not in page
    assert "The ensemble of 55 draws" in page
    assert files(tmp_path) == {"index.html", *PNGS}


def test_plots_of_a_scalar_that_is_not_finite_are_left_out_in_words(tmp_path: Path) -> None:
    for name in PNGS:
        (tmp_path / name).touch()  # those of the run when it was shorter
    scalars = series([50, 50])
    for chain in scalars:
        chain["potential"][:] = np.nan
    page = Page(write_page(report(predictions([50, 50]), scalars), tmp_path)).text
    assert "Left out: no finite value was recorded." in page
    assert "Left out: potential (the series holds NaN or infinite values)." in page
    assert files(tmp_path) == {"index.html", *PNGS} - {"trace_potential.png", "rank_potential.png"}


def test_the_page_without_map_says_so_and_compares_nothing(tmp_path: Path) -> None:
    found = data(baseline=False)
    assert found.results["criteria"]["nll_above_map"]["value"] is None
    page = Page(write_page(found, tmp_path)).text
    assert "there is no MAP baseline to compare it with" in page
    assert "NLL, ensemble less MAP is not known and must be below 0 (there is no MAP baseline)." in page
    assert "MAP, scaled" not in page
    assert files(tmp_path) == {"index.html", *PNGS}


def test_a_baseline_without_validation_set_has_no_fitted_temperature_and_the_page_says_why(tmp_path: Path) -> None:
    found = predictions([10, 10])
    found.map_validation = None
    page = Page(write_page(report(found, series([10, 10])), tmp_path)).text
    assert "MAP with a fitted temperature is left out: there is no validation set to fit it on" in page


def test_what_was_asked_for_beyond_the_test_set_and_could_not_be_had_is_given_its_reason(tmp_path: Path) -> None:
    found = data()
    changed(found, ood={"dataset": "cifar10", "entropy": None, "reason": "its images are of another size"})
    changed(found, corruptions={"examples": None, "reason": "the data are texts"})
    changed(found, reference={"ensemble": None, "reason": "it has other classes"})
    page = Page(write_page(found, tmp_path)).text
    for words in (
        "Entropy of the ensemble – –",
        "another size",
        "Left out: the data are texts",
        "it has other classes",
    ):
        assert words in page
    assert files(tmp_path) == {"index.html", *PNGS}


def test_many_chains_are_all_traced_and_the_first_are_ranked(tmp_path: Path) -> None:
    page = Page(write_page(data((10,) * 12), tmp_path)).text
    assert "The first 8 of 12 chains." in page
    assert files(tmp_path) == {"index.html", *PNGS}


def test_pictures_that_were_asked_for_once_do_not_stay(tmp_path: Path) -> None:
    found = data()
    values = {"accuracy": 0.5, "nll": 1.0, "ece": 0.1, "brier": 0.6}
    row = {"severity": [1, 2], "map": [values, None], "ensemble": [values, values]}
    changed(found, corruptions={"examples": 10, "gaussian_noise": row, "jpeg": row})
    fit = {"agreement": 0.9, "agreement_se": 0.01, "total_variation": 0.1, "total_variation_se": 0.02}
    curve = {"draws": [2.0, 4.0], "agreement": [0.8, 0.9], "total_variation": [0.2, 0.1]}
    changed(found, reference={"ensemble": fit, "curve": curve})
    page = Page(write_page(found, tmp_path)).text
    assert "Means over 2 corruptions" in page
    assert "Ensemble 0.9000 ± 0.0100 0.1000 ± 0.0200" in page
    assert files(tmp_path) == {"index.html", "corruptions.png", "fidelity.png", *PNGS}
    (tmp_path / "rank_potential.png").touch()
    write_page(ReportData("Empty", []), tmp_path)
    assert files(tmp_path) == {"index.html"}
