"""The report of a real run: its parts are those of the run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np

from bayeslora.app.compose import to_experiment
from bayeslora.report.data import gradients_by_round
from tests.run.tools import STEPS, TINY, Command, composed


def test_a_run_has_a_report_with_every_part(finished: Path, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    ended = command("evaluate", f"run_dir={folder}", "ood=digits", "corruptions=true", "corruption_examples=6")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    criteria = next(at for at, line in enumerate(lines) if line.startswith("criteria: "))
    report = next(at for at, line in enumerate(lines) if line.startswith("report: "))
    assert report - criteria <= 4
    assert lines[report + 1].startswith("next: ")
    assert re.fullmatch(r"criteria: \d of 9 met", lines[criteria])
    page = (folder / "report" / "index.html").read_text()
    for words in (
        "Telling digits from the run's own data",
        "Means over 6 corruptions",
        "Of 6 corrupted examples each.",
        "What draws disagree about most",
        "Block norms, worst of",
        "Random projections, worst of 10",
        "MAP with a fitted temperature is left out: there is no validation set to fit it on",
    ):
        assert words in page, words
    pictures = {file.stem for file in (folder / "report").glob("*.png")}
    assert {"corruptions", "cumulative", "rank_potential", "ess_growth", "autocorrelation"} <= pictures
    assert page.count('class="example"') >= 12
    assert command("evaluate", f"run_dir={folder}").code == 0
    again = {file.stem for file in (folder / "report").glob("*.png")}
    assert again == pictures - {"corruptions"}


def test_gradients_are_counted_from_the_warm_up_on_over_all_chains() -> None:
    setup = to_experiment(composed(*TINY))
    steps = [np.array(STEPS), np.array(STEPS)]
    assert gradients_by_round(setup, steps) == [2.0 * (step - 3) for step in STEPS]
    assert gradients_by_round(setup, steps)[-1] == setup.gradients([0, 1])
    assert gradients_by_round(setup, [np.array(STEPS), np.array(STEPS[:2])])[-1] == (15 - 3) + (9 - 3)


def test_a_probe_set_larger_than_the_data_is_all_of_the_data() -> None:
    setup = to_experiment(composed(*TINY, "chain.probe_size=5000"))
    assert sum(len(targets) for _, targets in setup.probe()()) == len(setup.data.train) == 64
    assert sum(len(targets) for _, targets in setup.function_probe()()) == 64
