"""The report: what it says, that it stands alone, and that missing parts do not break it."""

from __future__ import annotations

import io
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bayeslora.diagnostics.convergence import convergence
from bayeslora.diagnostics.metrics import Reliability, reliability
from bayeslora.report.page import ReportData, write_report
from bayeslora.report.table import convergence_verdict, metrics_table, probe_verdict, rows, verdict

PNGS = {"trace_potential.png", "trace_l2_norm.png", "cumulative.png", "reliability.png"}
GOOD = {"accuracy": 0.952, "nll": 0.15, "ece": 0.01, "brier": 0.07}
POOR = {"accuracy": 0.952, "nll": 0.21, "ece": 0.04, "brier": 0.08}


def _reliability() -> Reliability:
    generator = torch.Generator().manual_seed(0)
    log_probs = (2 * torch.randn(300, 5, generator=generator)).log_softmax(1)
    return reliability(log_probs, torch.randint(5, (300,), generator=generator))


def _metrics(chains: int, series: list[np.ndarray]) -> dict[str, Any]:
    scalar = convergence(series).to_json()
    return {
        "map": POOR,
        "draw": {key: {"mean": value, "sd": 0.002, "mcse": 0.001} for key, value in POOR.items()},
        "ensemble": GOOD,
        "chains": [POOR] * chains,
        "diagnostics": {"potential": scalar, "l2_norm": scalar},
        "provenance": {"seed": 3, "versions": {"torch": "2.15"}},
    }


def _data(chains: int = 2, draws: int = 50, title: str = "A run") -> ReportData:
    rng = np.random.default_rng(0)
    series = [rng.normal(1_000, 5, draws) for _ in range(chains)]
    grown = [float(count) for count in range(1, draws + 1)]
    return ReportData(
        title=title,
        settings=[("Temperature", "1.0 (the Bayes posterior)")],
        metrics=_metrics(chains, series),
        steps=[np.arange(draws) * 100] * chains,
        potential=series,
        l2_norm=[values / 100 for values in series],
        cumulative={"draws": grown, **{key: [value] * draws for key, value in GOOD.items()}},
        reliability={"MAP": _reliability(), "Ensemble": _reliability()},
    )


class _Page(HTMLParser):
    """Collects tags, the addresses that they point to, and the text shown."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_page_and_four_pngs(tmp_path: Path) -> None:
    path = write_report(_data(), tmp_path / "report")
    assert {file.name for file in path.parent.iterdir()} == {"index.html", *PNGS}
    for name in PNGS:
        content = (path.parent / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


def test_the_page_stands_alone(tmp_path: Path) -> None:
    path = write_report(_data(), tmp_path)
    page = _Page(path)
    assert page.addresses
    assert all(address.startswith("data:") for address in page.addresses)
    assert page.tags.count("img") == len(PNGS)
    assert "script" not in page.tags
    assert not re.search(r"https?://|@import|url\(", path.read_text(encoding="utf-8"))


def test_hostile_text_is_shown_and_not_run(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>"
    data = _data(title=hostile)
    data.notes, data.settings = [hostile], [(hostile, hostile)]
    data.metrics["provenance"] = {hostile: {hostile: hostile}}
    page = _Page(write_report(data, tmp_path))
    assert "script" not in page.tags
    assert page.text.count(hostile) >= 6


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    data = _data()
    data.notes = ["chain 2 has 10 of 50 draws"]
    data.metrics["criteria"] = {"ece_below_map": {"value": 0.01, "limit": 0.04, "passed": True}}
    text = _Page(write_report(data, tmp_path)).text
    assert "beats MAP on NLL (0.150 vs 0.210)" in text
    for words in (
        "chain 2 has 10 of 50 draws",
        "95.20 ± 0.20 %",
        "versions.torch",
        "Temperature",
        "ece_below_map",
        "Bulk ESS",
    ):
        assert words in text


def test_the_page_without_map_says_so(tmp_path: Path) -> None:
    data = _data()
    data.metrics["map"] = None
    del data.reliability["MAP"]
    page = _Page(write_report(data, tmp_path))
    assert "there is no MAP baseline" in page.text
    assert page.tags.count("img") == len(PNGS)


@pytest.mark.parametrize(("chains", "draws"), [(1, 1), (1, 50), (3, 1), (12, 5)])
def test_few_chains_and_few_draws_still_have_every_plot(chains: int, draws: int, tmp_path: Path) -> None:
    page = _Page(write_report(_data(chains, draws), tmp_path))
    assert page.tags.count("img") == len(PNGS)
    assert ("Convergence was not assessed" in page.text) == (chains == 1 or draws < 4)


def test_series_that_are_not_finite_leave_their_plot_out_in_words(tmp_path: Path) -> None:
    write_report(_data(), tmp_path)
    data = _data()
    data.potential = [np.full(50, np.nan)] * 2
    data.l2_norm[0][:7] = np.inf
    data.metrics["diagnostics"]["potential"] = convergence(data.potential).to_json()
    data.metrics["ensemble"] = {**GOOD, "nll": float("nan")}
    page = _Page(write_report(data, tmp_path))
    assert "Left out: no finite value was recorded." in page.text
    assert "Not drawn: 7 values that are not finite." in page.text
    assert "The series holds NaN or infinite values" in page.text
    assert {file.name for file in tmp_path.iterdir()} == {"index.html", *PNGS} - {"trace_potential.png"}


def test_a_run_without_draws_has_a_page(tmp_path: Path) -> None:
    data = ReportData("Empty", [], {"map": None, "ensemble": None}, [], [], [], {}, {})
    page = _Page(write_report(data, tmp_path))
    assert "No draw has been evaluated" in page.text
    assert "img" not in page.tags


def test_a_large_report_is_small_and_quick(tmp_path: Path) -> None:
    start = time.perf_counter()
    path = write_report(_data(chains=8, draws=400), tmp_path)
    assert time.perf_counter() - start < 30
    assert path.stat().st_size < 10e6


def test_rows_are_map_draw_chains_and_ensemble_with_the_best_marked() -> None:
    found = rows(_data(chains=2).metrics)
    labels = [row.label for row in found]
    assert labels == [
        "MAP",
        "Draw ± sd",
        "Chain 0",
        "Chain 1",
        "Ensemble",
    ]
    assert [cell.text for cell in found[1].cells] == [
        "95.20 ± 0.20 %",
        "0.2100 ± 0.0020",
        "0.0400 ± 0.0020",
        "0.0800 ± 0.0020",
    ]
    best = [[cell.best for cell in row.cells] for row in found]
    assert best == [[False] * 4] * 4 + [[False, True, True, True]]


def test_the_higher_accuracy_is_best() -> None:
    found = rows({"map": {**POOR, "accuracy": 0.99}, "ensemble": GOOD})
    assert [row.cells[0].best for row in found] == [True, False]


def test_the_terminal_table_has_the_rows_of_the_page() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    metrics = _data().metrics
    console.print(metrics_table(metrics))
    text = console.export_text()
    for row in rows(metrics):
        assert row.label in text
        assert all(cell.text in text for cell in row.cells)


@pytest.mark.parametrize(
    ("ensemble", "sentence"),
    [
        (
            GOOD,
            "The ensemble of 200 draws beats MAP on NLL (0.150 vs 0.210), ECE (0.010 vs 0.040) and "
            "Brier score (0.070 vs 0.080), and ties on accuracy (95.2 %).",
        ),
        (
            {"accuracy": 0.9, "nll": 0.2, "ece": 0.05, "brier": 0.0801},
            "The ensemble of 200 draws beats MAP on NLL (0.200 vs 0.210), is worse on accuracy (90.0 % vs 95.2 %) and "
            "ECE (0.050 vs 0.040), and ties on Brier score (0.080).",
        ),
        (
            {**POOR, "ece": 0.05, "nll": float("nan")},
            "The ensemble of 200 draws is worse than MAP on ECE (0.050 vs 0.040), ties on accuracy (95.2 %) and "
            "Brier score (0.080), and cannot be compared on NLL (a value is missing).",
        ),
    ],
)
def test_the_verdict_is_honest(ensemble: dict[str, float], sentence: str) -> None:
    assert verdict({"map": POOR, "ensemble": ensemble}, 200) == sentence


@pytest.mark.parametrize(
    ("rhat", "words"),
    [(1.005, "agree on what"), (1.04, "not shown to agree"), (1.4, "disagree"), (None, "not assessed: one chain")],
)
def test_the_verdict_on_convergence_follows_the_rhat(rhat: float | None, words: str) -> None:
    scalar = {"rhat": rhat, "ess_bulk": 10.0, "ess_tail": 10.0, "reason": None if rhat else "one chain"}
    assert words in convergence_verdict({"diagnostics": {"potential": scalar}})


def test_predictions_that_disagree_are_not_hidden_by_scalars_that_agree() -> None:
    probes = {"rhat_median": 1.3, "rhat_q95": 1.9, "fraction_below_1_01": 0.02, "ess_median": 31.0}
    metrics = {"diagnostics": {"potential": {"rhat": 1.0}, "function_space": probes}}
    assert "disagree (R-hat up to 1.300)" in convergence_verdict(metrics)
    assert probe_verdict(metrics) is not None
    assert "median R-hat 1.300" in str(probe_verdict(metrics))
