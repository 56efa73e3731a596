"""The report's sentences and rows: honest about ties, worse results, chains that disagree, and what is not known."""

from __future__ import annotations

import io
import re
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bayeslora.codec import decode, encode
from bayeslora.evaluation.criteria import judge
from bayeslora.evaluation.results import Provenance, Results
from bayeslora.evaluation.scores import PredictionCount
from bayeslora.report import chain_rows, shift_rows, table, verdict
from bayeslora.report.words import duration, number, percent, provenance_pairs
from bayeslora.settings import Criteria
from tests.cases import each
from tests.unit.report_tools import LIMITS, predictions, report, series

GOOD = {"accuracy": 0.952, "nll": 0.15, "ece": 0.01, "brier": 0.07}
POOR = {"accuracy": 0.952, "nll": 0.21, "ece": 0.04, "brier": 0.08}
WORSE = {"accuracy": 0.90, "nll": 0.30, "ece": 0.04, "brier": 0.08}


def single(values: dict[str, float]) -> dict[str, Any]:
    return {key: {"mean": value, "sd": 0.002, "mcse": 0.001} for key, value in values.items()}


def run(**parts: Any) -> dict[str, Any]:
    return {
        "map": POOR,
        "draw": single(POOR),
        "ensemble": GOOD,
        "chains": [{"chain": at, **POOR} for at in range(2)],
    } | parts


def of(content: dict[str, Any]) -> Results:
    return Results.from_json(content)


def rhats(**values: Any) -> dict[str, Any]:
    """Diagnostics that hold these R-hats; `function_space` is of 95 % of the predictions."""
    found: dict[str, Any] = {name: {"rhat": value, "reason": None} for name, value in values.items()}
    if "function_space" in values:
        found["function_space"] = {"rhat_median": 1.0, "rhat_q95": values["function_space"], "reason": None}
    return {"diagnostics": found}


# Predictions


def test_rows_are_map_scaled_map_draw_chains_and_ensemble_with_the_best_marked() -> None:
    tempered = {**POOR, "nll": 0.20, "temperature": 1.3, "reason": None}
    found = table.rows(of(run(map_tempered=tempered)))
    assert [row.label for row in found] == ["MAP", "MAP, scaled", "Draw ± sd", "Chain 0", "Chain 1", "Ensemble"]
    assert [cell.text for cell in found[2].cells] == [
        "95.20 ± 0.20 %", "0.2100 ± 0.0020", "0.0400 ± 0.0020", "0.0800 ± 0.0020",
    ]  # fmt: skip
    assert [cell.note for cell in found[2].cells] == ["MCSE 0.10 %", "MCSE 0.0010", "MCSE 0.0010", "MCSE 0.0010"]
    assert [[cell.best for cell in row.cells] for row in found] == [[False] * 4] * 5 + [[False, True, True, True]]


def test_chains_keep_their_numbers() -> None:
    chains = [{"chain": 2, **POOR}, {"chain": 5, **POOR}]
    assert [row.label for row in table.rows(of(run(chains=chains)))][2:4] == ["Chain 2", "Chain 5"]


def test_the_higher_accuracy_is_best() -> None:
    found = table.rows(of({"map": {**POOR, "accuracy": 0.99}, "ensemble": GOOD}))
    assert [row.cells[0].best for row in found] == [True, False]


def test_f1_has_a_column_where_there_are_two_classes() -> None:
    assert [c.key for c in table.columns(of(run()))] == ["accuracy", "nll", "ece", "brier"]
    two = run(ensemble={**GOOD, "f1": 0.9})
    assert [c.key for c in table.columns(of(two))] == ["accuracy", "nll", "ece", "brier", "f1"]
    cells = [row.cells[-1].text for row in table.rows(of(two))]
    assert cells == ["–", "–", "–", "–", "0.9000"]


def test_a_temperature_that_could_not_be_fitted_has_a_reason_and_no_row() -> None:
    none = {"temperature": None, "nll_before": None, "nll_after": None, "reason": "there is no validation set"}
    assert [row.label for row in table.rows(of(run(map_tempered=none)))][:2] == ["MAP", "Draw ± sd"]
    assert table.tempering(of(run(map_tempered=none))) == (
        "MAP with a fitted temperature is left out: there is no validation set."
    )
    assert table.tempering(of(run(map_tempered=None))) is None


def test_the_terminal_table_has_the_rows_of_the_page() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    found = run(ensemble={**GOOD, "f1": 0.5})
    console.print(table.results_table(of(found)))
    text = console.export_text()
    for row in table.rows(of(found)):
        assert row.label.removeprefix("Ensemble ") in text
        assert all(cell.text in text for cell in row.cells)


def test_a_terminal_too_narrow_for_the_table_gets_every_number_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bayeslora.report.table.Console", lambda: Console(width=80, force_terminal=True))
    found = of(run(ensemble={**GOOD, "f1": 0.5}, draw=single({**POOR, "f1": 0.81})))
    table.print_summary(found, None)
    printed = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    values = [part for row in table.rows(found) for cell in row.cells for part in cell.text.partition(" ± ")[::2]]
    assert [value for value in values if value not in printed] == []


# Against MAP


@each(
    ("ensemble", "sentence"),
    [
        (
            GOOD,
            "The ensemble of 200 draws beats MAP on NLL (0.150 vs 0.210), ECE (0.010 vs 0.040) and "
            "Brier score (0.070 vs 0.080), and ties on accuracy (95.2\N{NO-BREAK SPACE}%).",
        ),
        (
            {"accuracy": 0.9, "nll": 0.2, "ece": 0.05, "brier": 0.0801},
            "The ensemble of 200 draws beats MAP on NLL (0.200 vs 0.210), is worse on accuracy "
            "(90.0\N{NO-BREAK SPACE}% vs 95.2\N{NO-BREAK SPACE}%) and "
            "ECE (0.050 vs 0.040), and ties on Brier score (0.080).",
        ),
        (
            {**POOR, "ece": 0.05, "nll": float("nan")},
            "The ensemble of 200 draws is worse than MAP on ECE (0.050 vs 0.040), ties on accuracy "
            "(95.2\N{NO-BREAK SPACE}%) and "
            "Brier score (0.080), and cannot be compared on NLL (a value is missing).",
        ),
    ],
)
def test_the_verdict_is_honest(ensemble: dict[str, float], sentence: str) -> None:
    assert verdict.verdict(of({"map": POOR, "ensemble": ensemble}), 200) == sentence


def test_a_fitted_temperature_is_the_harder_baseline() -> None:
    tempered = {**POOR, "nll": 0.12, "brier": 0.07, "temperature": 1.3}
    assert verdict.baselines_verdict(of(run(map_tempered=tempered))) == (
        "Against MAP with a temperature fitted on the validation set it is better on ECE, worse on NLL and as good on"
        " Brier score."
    )
    assert verdict.baselines_verdict(of(run(map_tempered={"temperature": None, "reason": "none"}))) is None


@each(
    ("temperature", "ensemble", "rhat", "words"),
    [
        (
            1.0,
            WORSE,
            1.002,
            "At T = 1, the Bayes posterior, predictions are worse than those of MAP on accuracy and NLL.",
        ),
        (1.0, WORSE, 1.002, "As the chains agree, this is the posterior's doing"),
        (1.0, WORSE, 1.2, "As the chains are not shown to agree, it may be the sampling's doing"),
        (1.0, WORSE, None, "As the chains are not shown to agree"),
        (1.0, GOOD, 1.002, None),
        (0.1, WORSE, 1.002, None),
        (None, WORSE, 1.002, None),
    ],
)
def test_where_t_1_predicts_worse_than_map_the_text_says_so(
    temperature: float | None, ensemble: dict[str, float], rhat: float | None, words: str | None
) -> None:
    found = verdict.temperature_verdict(of(run(ensemble=ensemble) | rhats(potential=rhat)), temperature)
    assert found is None if words is None else words in str(found)


def differing(se: float, *baselines: str) -> dict[str, Any]:
    """Differences of `GOOD` to `POOR`, all with this standard error, and of MAP × K to MAP, which is `POOR` itself."""
    found = {name: {"value": GOOD[name] - POOR[name], "se": se} for name in GOOD}
    none = {name: {"value": 0.0, "se": se} for name in GOOD}
    return {"differences": dict.fromkeys(baselines, found) | {"map_ensemble_less_map": none}}


def test_a_difference_within_two_standard_errors_is_a_tie_in_text_and_bold() -> None:
    sure, unsure = (of(run() | differing(se, "map")) for se in (0.001, 0.02))
    assert "beats MAP on NLL (0.150 vs 0.210), ECE (0.010 vs 0.040) and Brier" in verdict.verdict(sure, 9)
    assert verdict.verdict(unsure, 9) == (
        "The ensemble of 9 draws beats MAP on NLL (0.150 vs 0.210), and ties on accuracy "
        "(95.2\N{NO-BREAK SPACE}%), ECE (0.010 vs 0.040)"
        " and Brier score (0.070 vs 0.080)."
    )
    bold = {row.label: [cell.best for cell in row.cells] for row in table.rows(unsure)}
    assert bold["Ensemble"] == [False, True, False, False]
    assert bold["MAP"] == bold["Chain 0"] == [False] * 4
    (row,) = (row for row in table.rows(unsure) if row.difference)
    assert (row.label, row.cells[1].text) == ("Ensemble − MAP", "−0.060 ± 0.020")


def test_differences_too_small_for_three_digits_are_shown_in_more() -> None:
    content = run(ensemble={**POOR, "nll": POOR["nll"] - 0.00031}) | {"map": POOR}
    content["differences"] = {"map": {"nll": {"value": -0.00031, "se": 0.00012}}}
    found = of(content)
    row = next(row for row in table.rows(found) if row.label == "Ensemble − MAP")
    assert row.cells[1].text == "−0.0003 ± 0.0001"
    assert f"beats MAP on NLL ({POOR['nll'] - 0.00031:.4f} vs {POOR['nll']:.4f})" in verdict.verdict(found, 8)


def test_the_deep_ensemble_of_the_warm_up_ends_is_a_baseline_of_its_own() -> None:
    ends = {"members": 2, "reason": None, **POOR}
    found = of(
        run(map_ensemble=ends, chains=[{"chain": at, **GOOD} for at in range(2)])
        | differing(0.001, "map", "map_ensemble")
    )
    rows = {row.label: [cell.best for cell in row.cells] for row in table.rows(found)}
    assert list(rows) == [
        "MAP", "MAP × 2", "Draw ± sd", "Chain 0", "Chain 1", "Ensemble", "Ensemble − MAP", "Ensemble − MAP × 2",
    ]  # fmt: skip
    assert rows["Ensemble"] == [False, True, True, True]
    assert rows["Chain 0"] == [False] * 4  # as good as the ensemble, and no baseline
    assert verdict.baselines_verdict(found) == (
        "Against MAP × 2, the deep ensemble of the chains' warm-up ends, it is better on NLL, ECE and Brier score and"
        " as good on accuracy."
    )
    assert table.leaders(of(run(map_ensemble={**ends, "nll": 0.1})), table.COLUMNS[1]) == {"map_ensemble"}


# Convergence


@each(
    ("rhat", "words"),
    [(1.005, "agree on what"), (1.04, "not shown to agree"), (1.4, "disagree"), (None, "not assessed")],
)
def test_the_verdict_on_convergence_follows_the_rhat(rhat: float | None, words: str) -> None:
    assert words in verdict.convergence_verdict(of(rhats(potential=rhat)))


def test_predictions_that_disagree_are_not_hidden_by_scalars_that_agree() -> None:
    found = verdict.convergence_verdict(of(rhats(potential=1.0, function_space=1.9)))
    assert "disagree (R-hat up to 1.900, that of 95 % of the predictions)" in found


def test_a_quantity_without_rhat_keeps_the_chains_from_being_said_to_agree() -> None:
    found = rhats(potential=1.0, l2_norm=None)
    found["diagnostics"]["l2_norm"]["reason"] = "the series holds NaN"
    assert verdict.convergence_verdict(of(found)) == (
        "The chains are not shown to agree: the parameter norm not assessed (the series holds NaN)."
    )
    constant = rhats(potential=1.0)
    reason = "more than 5 % of the predictions do not vary"
    constant["diagnostics"]["function_space"] = {"rhat_median": 1.0, "rhat_q95": None, "reason": reason}
    assert reason in verdict.convergence_verdict(of(constant))
    assert not verdict.chains_agree(of(constant))


def test_weight_space_does_not_enter_the_verdict() -> None:
    found = rhats(potential=1.0, function_space=1.0) | {"chains": [{"chain": at, **POOR} for at in range(2)]}
    found["diagnostics"] |= {f"projection/{at}": {"rhat": 2.0 + at, "ess_bulk": 9.0 - at} for at in range(3)}
    found["diagnostics"] |= {"norm/head": {"rhat": None, "reason": "the series is constant"}}
    assert "The chains agree" in verdict.convergence_verdict(of(found))
    rows = {row.label: row for row in chain_rows.scalar_rows(of(found))}
    worst = rows["Random projections, worst of 3"]
    assert (worst.rhat, worst.bulk, worst.mcse) == ("4.000", "7", "–")
    assert worst.reading == "Weights differ between chains; predictions agree, so it does not matter for them"
    apart = found | {"diagnostics": found["diagnostics"] | rhats(function_space=1.4)["diagnostics"]}
    rows_apart = {row.label: row for row in chain_rows.scalar_rows(of(apart))}
    assert rows_apart["Random projections, worst of 3"].reading.endswith("so it matters")
    assert rows["Block norms, worst of 1"].reading == "R-hat of 1 of 1 is not known (the series is constant)"
    assert len(chain_rows.scalar_rows(of(found), grouped=False)) == 5


def test_the_runs_own_limits_hold_but_none_so_wide_that_all_agree() -> None:
    limits = {"criteria": {"l2_norm_rhat": {"limit": 1.05}, "potential_rhat": {"limit": 5.0}}}
    assert "agree on what" in verdict.convergence_verdict(of(rhats(l2_norm=1.04) | limits))
    assert "agree on what" in verdict.convergence_verdict(of(rhats(prior=1.04) | limits))
    assert "not shown to agree" in verdict.convergence_verdict(of(rhats(function_space=1.04) | limits))
    assert "disagree" in verdict.convergence_verdict(of(rhats(potential=1.2) | limits))


def test_rows_of_scalars_come_in_order_and_read_what_they_say() -> None:
    found = report(predictions([120, 120]), series([120, 120])).results
    rows = chain_rows.scalar_rows(found)
    assert [row.label for row in rows] == [
        "Potential", "NLL on the probe set", "Prior energy", "Parameter norm", "Block norms, worst of 3",
        "Random projections, worst of 2",
    ]  # fmt: skip
    potential = found["diagnostics"]["potential"]
    assert rows[0].rhat == f"{potential['rhat']:.3f}"
    assert rows[0].bulk == f"{potential['ess_bulk']:,.0f}"
    assert rows[0].mcse == f"{potential['mcse_mean']:.3g}"
    assert "agree" in rows[0].reading
    assert chain_rows.convergence_rows(found)[0] == (
        *(rows[0].label, rows[0].rhat, rows[0].bulk, rows[0].tail),
        rows[0].reading,
    )


def test_parts_of_the_draws_have_headings_and_dashes_for_what_is_not_known() -> None:
    parts = {"shares": [0.25, 1.0], "potential": [None, 1.012], "l2_norm": [1.2, 1.1], "function_space": [None, None]}
    headings, rows = chain_rows.part_rows(of({"diagnostics": {"prefixes": parts}}))
    assert headings == ["25\N{NO-BREAK SPACE}%", "100\N{NO-BREAK SPACE}%"]
    assert rows[0] == ("Potential", ["–", "1.012"])
    assert rows[2] == ("Predictions, median", ["–", "–"])


def test_predictions_of_the_chains_are_described_or_the_reason_given() -> None:
    results = report(predictions([30, 30]), series([30, 30])).results
    pairs = dict(chain_rows.function_pairs(results))
    assert set(pairs) >= {"R-hat of predictions", "Same class predicted", "Between two chains", "ESS of the potential"}
    labels = replace(results, predicted=PredictionCount("labels", 90, 30))
    assert dict(chain_rows.function_pairs(labels))["Same answer"].endswith("of the labels, by any two chains")
    assert "Between two chains" not in dict(chain_rows.function_pairs(replace(results, task="regression")))
    one = dict(chain_rows.function_pairs(report(predictions([30]), series([30])).results))
    assert one["R-hat of predictions"] == "– R-hat compares chains and there is only one"
    assert one["Between chains"] == "– there is only one chain to compare"


# Criteria


def test_criteria_met_are_counted_and_each_other_has_a_sentence() -> None:
    values = run() | rhats(potential=1.2, l2_norm=1.0, function_space=None)
    three = Criteria(
        **dict.fromkeys(asdict(LIMITS)) | {"potential_rhat": 1.01, "l2_norm_rhat": 1.05, "nll_above_map": 0.0}
    )
    values["criteria"] = encode(judge(of(values), three))
    met, count, problems = verdict.criteria_verdict(of(values))
    assert (met, count) == (False, "2 of 3 criteria met")
    assert problems == ["R-hat of the potential is 1.2 and must be at most 1.01."]
    assert ("R-hat of the potential", "1.2", "at most 1.01", "not met") in table.criteria_rows(of(values))
    assert verdict.criteria_verdict(of(run()))[:2] == (None, "No criterion was set, so nothing passes or fails.")


def test_a_criterion_whose_value_is_not_known_is_not_met_and_says_why() -> None:
    values = run(map=None) | rhats(potential=None)
    values["diagnostics"]["potential"]["reason"] = "there is only one chain"
    values["criteria"] = encode(judge(of(values), LIMITS))
    outcomes = {name: outcome for name, _, _, outcome in table.criteria_rows(of(values))}
    assert outcomes["R-hat of the potential"] == "not known: there is only one chain"
    assert outcomes["NLL, ensemble less MAP"] == "not known: there is no MAP baseline"
    assert verdict.criteria_verdict(of(values))[1] == "0 of 9 criteria met"


@each(("failing", "lines"), [(0, 1), (1, 2), (3, 4), (4, 4), (8, 4)])
def test_the_terminal_says_in_four_lines_at_most_what_became_of_the_criteria(failing: int, lines: int) -> None:
    criteria = {
        f"c{at}": {"title": f"Number {at}", "value": 1.0, "limit": 2.0, "relation": "below", "passed": at >= failing}
        for at in range(8)
    }
    found = table.criteria_lines(of({"criteria": criteria}))
    assert len(found) == lines
    assert found[0] == f"criteria: {8 - failing} of 8 met"
    named = sum("Number" in line for line in found)
    rest = [int(line.split()[1]) for line in found if "more" in line]
    assert named + sum(rest) == failing


# Beyond


def test_severities_are_means_over_corruptions_with_map_beside_the_ensemble() -> None:
    one = {"severity": [1, 2], "map": [POOR, POOR], "ensemble": [GOOD, GOOD]}
    other = {"severity": [1, 2], "map": [POOR, POOR], "ensemble": [WORSE, WORSE]}
    values = {"corruptions": {"examples": 9, "gaussian_noise": one, "jpeg": other}}
    assert shift_rows.severity_rows(of(values))[0] == (
        "Severity 1",
        ["95.2 → 92.6 %", "0.210 → 0.225", "0.040 → 0.025"],
    )
    assert [label for label, _ in shift_rows.corruption_rows(of(values))][:2] == [
        "Gaussian noise, 1",
        "Gaussian noise, 2",
    ]
    curves = shift_rows.corruption_curves(of(values))
    assert curves["severity"]["all"] == [1, 2]
    assert curves["nll"]["ensemble"] == pytest.approx([0.225, 0.225])


def test_corruptions_without_map_show_the_ensemble_alone() -> None:
    row = {"severity": [3], "map": [None], "ensemble": [GOOD]}
    values = {"corruptions": {"examples": 9, "jpeg": row}}
    assert shift_rows.severity_rows(of(values)) == [("Severity 3", ["95.2 %", "0.150", "0.010"])]


def test_other_data_and_a_reference_have_rows_in_order() -> None:
    score = {"auroc": 0.91, "aupr": 0.8}
    values: dict[str, Any] = {
        "ood": {"dataset": "x", "entropy": score, "mutual_information": None, "map_entropy": score}
    }
    assert shift_rows.detection_rows(of(values)) == [
        ("Entropy of MAP", ["0.9100", "0.8000"]),
        ("Entropy of the ensemble", ["0.9100", "0.8000"]),
        ("Mutual information", ["–", "–"]),
    ]
    fit = {"agreement": 0.9, "agreement_se": 0.01, "total_variation": 0.1, "total_variation_se": None}
    values["reference"] = {"ensemble": fit, "chain 1": fit, "map": fit, "draw": fit, "curve": {}}
    found = shift_rows.reference_rows(of(values))
    assert [label for label, _ in found] == ["MAP", "Single draw, mean", "Chain 1", "Ensemble"]
    assert found[0][1] == ["0.9000 ± 0.0100", "0.1000"]


# Numbers


def test_numbers_that_are_none_are_dashes_and_zero_has_no_sign() -> None:
    assert [number(value, ".2f") for value in (None, float("nan"), float("inf"), -0.001, 1.234, "text")] == [
        "–", "–", "–", "0.00", "1.23", "–",
    ]  # fmt: skip
    assert percent(np.float64(0.5)) == "50.0\N{NO-BREAK SPACE}%"
    assert [percent(share, 0).split("\N{NO-BREAK SPACE}")[0] for share in (0.994, 0.9996, 1.0)] == [
        "99",
        "99.96",
        "100",
    ]


@each(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (3599.7, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_durations_are_in_their_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words.replace(" ", "\N{NO-BREAK SPACE}")


def test_provenance_has_time_by_phase_and_leaves_nothing_out() -> None:
    recorded = {
        "command": "python -m x", "commit": "abc+", "python": "3.11", "versions": {"torch": "2.9", "peft": None},
        "hardware": "a CPU", "split": "test", "draws": 600, "chains": 4,
        "seconds": {"warm-up": 5.0, "sampling": 70.0}, "ess_per_second": 2.0, "other": {"key": 3},
    }  # fmt: skip
    five, long, whole = (s.replace(" ", "\N{NO-BREAK SPACE}") for s in ("5.0 s", "1 min 10 s", "1 min 15 s"))
    assert dict(provenance_pairs(decode(Provenance, recorded))) == {
        "Commit": "abc+",
        "Hardware": "a CPU",
        "Evaluated": "600 draws of 4 chains, on test",
        "Time": f"warm-up {five}, sampling {long}; {whole} in all, summed over chains",
        "Versions": "Python 3.11, torch 2.9, peft None",
        "other.key": "3",
    }
    assert dict(provenance_pairs(Provenance())) == {
        "Commit": "– not a checkout of the repository",
        "Time": "– the chains noted none",
    }
