"""What the report and a comparison say of measured temperatures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bayeslora.diagnostics.values import MeasuredTemperature as Measured
from bayeslora.diagnostics.values import NoiseHeat, Steepness
from bayeslora.evaluation.results import Criterion, Diagnostics, Results
from bayeslora.loggers.others import final_scalars
from bayeslora.report.comparison import Compared, temperature_grid
from bayeslora.report.figures import figures
from bayeslora.report.temperature import measured_temperature_verdict
from tests.unit.report_tools import predictions, report, series


def of(**blocks: Measured) -> Results:
    limit = {"temperature": Criterion(limit=0.05)}
    return Results(diagnostics=Diagnostics(temperature=blocks), criteria=limit)


def known(ratio: float, status: str = "measured", reason: str | None = None) -> Measured:
    return Measured(ratio, 0.01, reason, status, "other chains", 72)  # type: ignore[arg-type]


SAID: list[tuple[dict[str, Measured], str]] = [
    ({"stem": known(1.63), "head": known(1.02), "all": known(1.1)}, "block stem runs 63 % too hot; 5 % are allowed"),
    ({"stem": known(0.941)}, "block stem runs 5.9 % too cold; 5 % are allowed"),
    ({"stem": known(-4.7)}, "block stem runs nowhere near it (reading −4.7); 5 % are allowed"),
    ({"stem": known(4.2), "head": known(0.8)}, "block stem runs 4.2 times too hot, block head runs 20 % too cold"),
    ({"stem": known(1.01), "all": known(1.0, "not shown", "few")}, "the whole net is not shown to be right (few)"),
    ({"stem": known(1.02), "pooled": known(0.97)}, "(at most 3.0 % too cold, the pool of small blocks)"),
    ({"0": known(1.02)}, "(at most 2.0 % too hot, block 0)"),
    ({"all": Measured(reason="T = 0")}, "the whole net is not shown to be right (T = 0)"),
]


@pytest.mark.parametrize(("blocks", "said"), SAID)
def test_one_sentence_says_which_block_is_off(blocks: dict[str, Measured], said: str) -> None:
    assert said in str(measured_temperature_verdict(of(**blocks))).replace("\N{NO-BREAK SPACE}", " ")


def test_where_minibatch_noise_heats_a_block_at_its_temperature_is_called_a_mean() -> None:
    well, hot = of(stem=known(1.02)), of(stem=known(1.63))
    assert "mean over a block's coordinates" in str(measured_temperature_verdict(well, heated=True))
    assert "mean over" not in f"{measured_temperature_verdict(well)}{measured_temperature_verdict(hot, heated=True)}"


def test_of_norms_that_were_drawn_it_is_said_what_a_reading_shows() -> None:
    well, hot = of(stem=known(1.02)), of(stem=known(1.63))
    assert "of their directions it shows nothing" in str(measured_temperature_verdict(well, drawn=True))
    assert "directions" not in f"{measured_temperature_verdict(well)}{measured_temperature_verdict(hot, drawn=True)}"


def test_where_noise_lies_its_heat_is_said_in_numbers() -> None:
    well = of(stem=known(1.02), head=known(0.99))

    def said(**heats: NoiseHeat) -> str:
        found = replace(well, diagnostics=replace(well.diagnostics, noise_heat=heats))
        return str(measured_temperature_verdict(found, heated=True)).replace("\N{NO-BREAK SPACE}", " ")

    little, much = NoiseHeat(0.031, 0.01, 0.001, 7.4, 72), NoiseHeat(0.62, 0.12, 0.01, 3.2, 24576)
    assert said(stem=little).endswith("Where minibatch noise lies, it heats by 3.1 % at most (in block stem).")
    assert "noise heats about 3 of the 24,576 directions of block head by 62 % ± 12 %" in said(stem=little, head=much)


def test_steps_too_long_for_the_steepest_direction_are_said_where_blocks_are_well() -> None:
    def said(results: Results, value: float) -> str:
        steep = replace(results.diagnostics, steepness=Steepness(value, 0.5))
        return str(measured_temperature_verdict(replace(results, diagnostics=steep)))

    well, hot = of(stem=known(1.02)), of(stem=known(1.63))
    assert "ε·λ is 13 there, and the sampler is accurate up to 0.5" in said(well, 12.7)
    assert "too long" not in said(well, 0.9) + said(hot, 12.7)


def test_there_is_a_figure_where_there_is_a_number_and_else_the_reason() -> None:
    data = report(predictions([10, 10]), series([10, 10]))
    for results, missing in ((of(stem=known(1.6), all=known(1.1)), ""), (of(all=Measured(reason="T = 0")), "T = 0")):
        data.results = results
        plot = next(plot for plot in figures(data)["convergence"] if plot.name == "temperature")
        assert (plot.png is None) == bool(missing)
        assert not missing or plot.missing == missing
    assert measured_temperature_verdict(Results()) is None


def test_runs_are_compared_block_by_block_and_loggers_get_them() -> None:
    runs = [
        Compared(mark, mark, Path(mark), {"chain": {}}, results, {0: 1})
        for mark, results in (("A", of(stem=known(1.6), noise=known(1.2, "pooled"))), ("B", of(stem=known(1.0))))
    ]
    grid = temperature_grid(runs)
    assert grid.rows == ["stem", "noise"]
    texts = [[cell.text for cell in row] for row in grid.cells]
    assert texts == [["1.60 ± 0.01", "1.00 ± 0.01"], ["(1.20 ± 0.01)", "–"]]
    assert final_scalars(runs[0].results)["evaluation/diagnostics/temperature/stem/ratio"] == 1.6
