"""python -m bayeslora.compare: runs side by side as text, CSV and HTML; all that is wrong is named at once."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import Dataset

import bayeslora
from bayeslora.app.commands import command_settings
from bayeslora.compare import CompareSettings, compare, folders, labels
from bayeslora.errors import ConfigError, DataError
from bayeslora.evaluation.scores import DrawScore
from bayeslora.likelihood import Categorical
from bayeslora.report import comparison
from bayeslora.report.comparison import caveats, marks
from bayeslora.report.comparison_page import growth_figure, score_figure
from bayeslora.samplers import SGLD
from tests.run.tools import composed


def changed(folder: Path, file: str, **entries: Any) -> None:
    """Set entries of a run's config.yaml or metrics.json, by dotted name with `__` for the dot."""
    load, dump = (yaml.safe_load, yaml.safe_dump) if file.endswith("yaml") else (json.loads, json.dumps)
    content = load((folder / file).read_text())
    for name, value in entries.items():
        node = content
        *path, last = name.split("__")
        for part in path:
            node = node[part]
        node[last] = value
    (folder / file).write_text(dump(content))


@pytest.fixture
def pair(finished: Path, tmp_path: Path) -> list[Path]:
    """Two runs: the tiny quickstart, and one that differs in settings and scores."""
    found = [tmp_path / "runs" / name for name in ("first", "second")]
    for folder in found:
        shutil.copytree(finished, folder)
    changed(found[1], "config.yaml", sampler__lr=0.02, seed=7, run_dir="elsewhere", temperature=0.5)
    changed(found[1], "config.yaml", evaluate__report=False)
    shutil.rmtree(found[1] / "report")
    changed(found[1], "metrics.json", ensemble__nll=0.5, map=None, criteria={"ess": {"value": 12.0, "passed": False}})
    changed(found[0], "metrics.json", criteria={"ess": {"title": "Bulk ESS", "value": 512.5, "passed": True}})
    with np.load(found[1] / "examples.npz") as content:
        parts = {name: content[name] for name in content.files}
    noise = np.random.default_rng(0).normal(0, 0.1, parts["nll"].shape)
    parts["nll"] = 0.5 + noise - noise.mean()
    parts["brier"] = parts["brier"] + noise - noise.mean()
    np.savez(found[1] / "examples.npz", **parts)
    return found


def asked(*overrides: str) -> list[Any]:
    return compare(command_settings(CompareSettings, composed(*overrides, config="compare"), "compare"))


def table_of(out: str, title: str) -> dict[str, list[str]]:
    """Rows of a printed table by their name; cells are apart by two spaces."""
    lines = out.split(f"\n{title}", 1)[1].splitlines()[1:]
    body = lines[next(at for at, line in enumerate(lines) if "──" in line) + 1 :]
    rows = [re.split(r"\s{2,}", line.strip()) for line in body[: [*map(str.strip, body), ""].index("")]]
    return {row[0]: row[1:] for row in rows}


def test_the_text_holds_scores_diagnostics_criteria_and_what_differs(
    pair: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = asked(f"run_dirs=[{pair[0]},{pair[1]}]")
    out = capsys.readouterr().out
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in pair)
    assert re.search(r"A  quickstart: SGLD on Digits, T = 1  first\n +\S+/first/report/index.html", out)
    assert re.search(r"T = 0.5  second\n +\S+/second\n", out)  # it has no report
    assert max(map(len, out.splitlines()[4:])) <= 100
    assert out.index("Settings that differ") < out.index("Ensemble of all draws")
    ensembles = table_of(out, "Ensemble of all draws")
    assert ensembles["A"][1] == f"{first['ensemble']['nll']:.4f}"
    assert ensembles["B"][1] == "0.5000"
    assert list(table_of(out, "MAP")) == ["A"]
    nll = second["draw"]["nll"]
    assert table_of(out, "Single draws")["B"][1] == f"{nll['mean']:.4f} ± {nll['sd']:.4f}"
    convergence = table_of(out, "Convergence")
    assert convergence["Potential R-hat"][0] == f"{first['diagnostics']['potential']['rhat']:.3f}"
    assert (convergence["Draws"], convergence["Chains"]) == (["10", "10"], ["2", "2"])
    differences = table_of(out, "Ensemble less that of A")["B"]
    assert differences[0] == "+0.0 ± 0.0 %"
    with np.load(pair[0] / "examples.npz") as one, np.load(pair[1] / "examples.npz") as other:
        nll = (other["nll"] - one["nll"])[:, 0]
    shown = f"{nll.mean():+.3f} ± {nll.std(ddof=1) / len(nll) ** 0.5:.3f}".replace("-", "−")
    assert differences[1] == shown
    assert table_of(out, "Criteria") == {"Bulk ESS": ["512.5 ✓", "12 ✗"]}
    assert table_of(out, "Settings that differ") == {
        "sampler.lr": ["0.01", "0.02"],
        "seed": ["0", "7"],
        "temperature": ["1", "0.5"],
    }
    assert [run.mark for run in runs] == ["A", "B"]
    assert not (pair[0].parent / "comparison.csv").exists()


def test_csv_and_page_are_written(pair: list[Path], tmp_path: Path) -> None:
    curve = {"draws": [2, 4], "nll": [2.0, 1.9], "accuracy": [0.1, 0.2], "ece": [0.1, None], "brier": [0.9, 0.8]}
    changed(pair[0], "metrics.json", cumulative=curve)
    changed(pair[1], "config.yaml", name="<b>bold</b>")
    asked(f"run_dirs={pair[0].parent}/*", f"out_dir={tmp_path / 'out'}")
    first, second = csv.DictReader((tmp_path / "out" / "comparison.csv").open())
    metrics = json.loads((pair[0] / "metrics.json").read_text())
    assert float(first["ensemble.nll"]) == metrics["ensemble"]["nll"]
    assert float(first["draw.nll.mean"]) == metrics["draw"]["nll"]["mean"]
    assert (first["draws"], first["chains"], first["setting.sampler.lr"]) == ("10", "2", "0.01")
    assert (second["map.nll"], second["ensemble.nll"], second["setting.sampler.lr"]) == ("", "0.5", "0.02")
    assert (first["criteria.ess.value"], second["criteria.ess.passed"]) == ("512.5", "False")
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count("<svg") == 2
    links = re.findall(r'<a href="(.*?)"', page)
    assert links == ["../runs/first/report/index.html"]  # the other has none
    assert not re.search(r"https?://|<img", page)
    assert "&lt;b&gt;bold&lt;/b&gt;: SGLD" in page
    assert "<b>0.5000</b>" in page
    assert str(pair[0]) in page


def test_growth_is_drawn_where_it_is_recorded(pair: list[Path], tmp_path: Path) -> None:
    for folder in pair:
        content = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps({k: v for k, v in content.items() if k != "cumulative"}))
    runs = asked(f"run_dirs={pair[0].parent}/*")
    assert growth_figure(runs) is None
    changed(pair[1], "metrics.json", cumulative={"draws": [2, 4], "nll": [2.0, 1.9], "ece": [0.1, None]})
    figure = growth_figure(asked(f"run_dirs={pair[0].parent}/*"))
    (line,) = next(axes for axes in figure.axes if axes.get_title(loc="left") == "NLL").lines
    assert line.get_ydata().tolist() == [2.0, 1.9]
    figure = score_figure(runs)
    assert len(figure.axes) == 4
    figure.savefig(tmp_path / "scores.png")
    assert len(Image.open(tmp_path / "scores.png").convert("L").getcolors()) > 10


def test_all_runs_that_cannot_be_read_are_named_at_once(pair: list[Path], tmp_path: Path) -> None:
    bad = {name: tmp_path / "bad" / name for name in ("gone", "empty", "raw", "torn", "list", "yaml")}
    for name in ("raw", "torn", "list", "yaml"):
        shutil.copytree(pair[0], bad[name])
    bad["empty"].mkdir()
    (bad["raw"] / "metrics.json").unlink()
    (bad["torn"] / "metrics.json").write_text('{"ensemble": ')
    (bad["list"] / "metrics.json").write_text("[1]")
    (bad["yaml"] / "config.yaml").write_text("a: [")
    with pytest.raises(DataError) as error:
        asked(f"run_dirs=[{pair[0]},{','.join(map(str, bad.values()))}]")
    problems = error.value.problems
    assert len(problems) == 6
    for (name, folder), words in zip(
        bad.items(),
        ("is no run directory", "is no run directory", "has not been evaluated: python -m bayeslora.evaluate",
         "cannot read metrics.json", "does not hold a run's metrics", "config.yaml cannot be read"),
        strict=True,
    ):  # fmt: skip
        assert any(problem.startswith(str(folder)) and words in problem for problem in problems), name


def test_what_is_asked_wrongly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which runs"):
        asked()
    with pytest.raises(ConfigError, match="matches no run directory"):
        asked(f"run_dirs={tmp_path}/*")
    with pytest.raises(ConfigError, match="unknown key outdir: compare takes out_dir, run_dirs"):
        asked("run_dirs=[a]", "outdir=b")
    with pytest.raises(ConfigError, match="names no run"):
        asked("run_dirs=[]")


def test_patterns_find_runs_only_and_each_once(pair: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (pair[0].parent / "notes").mkdir()
    monkeypatch.chdir(pair[0].parent)
    assert folders("*") == [Path("first"), Path("second")]
    assert folders(["second", "*", str(pair[1])]) == [Path("second"), Path("first")]
    assert labels([pair[0]]) == ["first"]
    assert labels([pair[0] / "a", pair[1] / "a"]) == ["first/a", "second/a"]
    assert marks(3) == ["A", "B", "C"]
    assert marks(27)[-1] == "27"


def test_notes_say_what_makes_numbers_less_comparable(pair: list[Path]) -> None:
    both = f"run_dirs={pair[0].parent}/*"
    assert caveats(asked(both)) == []
    manifest = pair[1] / "chains" / "1" / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:3]) + lines[3][:20] + b'\n{"event": "retry"}\n')
    changed(pair[1], "metrics.json", provenance__split="validation")
    changed(pair[0], "config.yaml", dataset___target_="bayeslora.datasets.Cifar10")
    assert caveats(asked(both)) == [
        "The runs are of different datasets: their scores cannot be compared.",
        "The runs were evaluated on different splits (A on test, B on validation).",
        "B has 8 of 10 draws.",
        "B was evaluated with 10 draws and has 8: evaluate it again.",
    ]


def test_the_command_needs_no_torch(pair: list[Path], tmp_path: Path) -> None:
    script = (
        "import sys, bayeslora.compare as c\n"
        "try: c.main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", script, f"run_dirs={pair[0].parent}/*"]
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "0 False", result.stderr
    assert "Settings that differ" in result.stdout
    assert list(tmp_path.iterdir()) == [pair[0].parent]


def test_ties_are_not_bold_and_runs_without_examples_have_no_errors(
    pair: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = asked(f"run_dirs={pair[0].parent}/*")
    grids = {grid.title: grid for grid in comparison.grids(runs)}
    ensembles = grids["Ensemble of all draws"]
    assert [[cell.best for cell in row] for row in ensembles.cells] == [[False] * 4, [False, True, False, False]]
    (pair[1] / "examples.npz").write_bytes(b"torn")
    runs = asked(f"run_dirs={pair[0].parent}/*")
    assert caveats(runs) == ["Differences of B to A have no standard error: that takes B to be evaluated again."]
    assert not any("less that of" in grid.title for grid in comparison.grids(runs))


@pytest.mark.parametrize(("apart", "marked"), [(0.0005, [False, False]), (0.01, [False, True])])
def test_single_draws_are_bold_where_more_than_their_sampling_error_is_between_them(
    pair: list[Path], apart: float, marked: list[bool]
) -> None:
    runs = asked(f"run_dirs={pair[0].parent}/*")
    runs = [
        replace(run, results=replace(run.results, draw={"nll": DrawScore(0.2 - at * apart, 0.02, 0.001)}))
        for at, run in enumerate(runs)
    ]
    grids = {grid.title: grid for grid in comparison.grids(runs)}
    single = grids["Single draws, mean ± sd"]
    assert [row[single.columns.index("NLL")].best for row in single.cells] == marked


def test_runs_go_by_their_names_or_by_what_differs_where_that_tells_them_apart(pair: list[Path]) -> None:
    both = f"run_dirs={pair[0].parent}/*"
    changed(pair[1], "config.yaml", sampler__lr=0.01, seed=0)
    assert [run.mark for run in asked(both)] == ["T = 1", "T = 0.5"]
    changed(pair[1], "config.yaml", name="cold")
    assert [run.mark for run in asked(both)] == ["quickstart", "cold"]


def test_wide_tables_are_printed_in_parts(pair: list[Path]) -> None:
    runs = asked(f"run_dirs={pair[0].parent}/*")
    many = [replace(runs[0], mark=f"a-name-of-{at:02}-x") for at in range(9)]
    console = Console(width=80, record=True, file=io.StringIO())
    for part in comparison.text_tables(many, 80):
        if isinstance(part, Table):
            console.print(part)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert sum("Potential R-hat" in line for line in lines) > 1


def test_criteria_of_two_runs_stand_side_by_side_at_80_columns(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "cold")
    changed(tmp_path / "cold", "config.yaml", temperature=0.1)
    runs = asked(f"run_dirs=[{finished},{tmp_path / 'cold'}]")
    criteria = comparison.criteria_grid(runs)
    assert any(" tie " in cells[0].text for cells in criteria.cells)
    assert max(map(len, criteria.rows)) > comparison.LONGEST_LABEL  # which take a second line
    printed = capsys.readouterr().out.partition("Criteria")[2]
    assert "Criteria" not in printed  # one table, not one a run
    assert max(map(len, printed.splitlines())) <= 80
    for judged, cells in zip(runs[0].results.criteria.values(), criteria.cells, strict=True):
        assert cells[0].text == f"{judged.shown.replace(' (a tie)', ' tie')} {'✓' if judged.passed else '✗'}"
        assert cells[0].text in printed


def test_settings_that_a_pilot_found_are_compared_as_they_were_asked(
    pair: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for at, folder in enumerate(pair):
        found = {"sampler__lr": 0.1 + at, "chain__lr_factors": {"head.weight": 2.0 + at, "body.0.bias": 3.0 + at}}
        changed(folder, "config.yaml", asked={"sampler.lr": "auto", "chain.lr_factors": {}}, seed=0, **found)
    asked(f"run_dirs=[{pair[0]},{pair[1]}]")
    assert table_of(capsys.readouterr().out, "Settings that differ") == {"temperature": ["1", "0.5"]}
    changed(pair[1], "config.yaml", asked={}, temperature=1.0)
    asked(f"run_dirs=[{pair[0]},{pair[1]}]")
    rows = table_of(capsys.readouterr().out, "Settings that differ")
    assert rows["sampler.lr"] == ["auto", "1.1"]


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ({"_target_": "bayeslora.datasets.Csv", "path": "/data/wines.csv"}, "wines"),
        ({"_target_": "bayeslora.datasets.ImageFolder", "path": "/data/cats.v2"}, "cats.v2"),
        ({"_target_": "bayeslora.datasets.Glue", "path": "/data/x", "task": "rte"}, "Glue rte"),
        ({"in_memory": {"examples": 40, "digest": "0f3c"}}, "examples of a program"),
    ],
)
def test_runs_are_called_by_their_data(pair: list[Path], dataset: dict[str, Any], name: str) -> None:
    changed(pair[1], "config.yaml", dataset=dataset)
    runs = asked(f"run_dirs=[{pair[0]},{pair[1]}]")
    assert f" on {name}, T" in runs[1].title
    assert any("different datasets" in note for note in caveats(runs))


def test_what_a_program_gives_without_a_name_is_called_by_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Linked(Categorical):
        def __init__(self, link: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.link = link

        def log_p(self, outputs: Tensor) -> Tensor:
            return super().log_p(self.link(outputs))

    class Rows(Dataset[tuple[Tensor, int]]):
        def __init__(self, row: Callable[[int], tuple[Tensor, int]]) -> None:
            self.row = row

        def __len__(self) -> int:
            return 24

        def __getitem__(self, at: int) -> tuple[Tensor, int]:
            if at >= len(self):
                raise IndexError
            return self.row(at)

    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    rows = Rows(lambda at: (x[at], at % 2))
    for name, sampler in (("own", lambda params, **given: SGLD(params, **given)), ("ours", SGLD)):
        posterior = bayeslora.sample(
            lambda: nn.Linear(3, 2), rows, sampler, likelihood=Linked(lambda outputs: outputs / 2), lr=0.01, chains=2,
            draws=4, thin=1, burn_in=1, warmup=1, test_dataset=rows, run_dir=tmp_path / name,
        )  # fmt: skip
        print(posterior)
    runs = asked(f"run_dirs=[{tmp_path / 'own'},{tmp_path / 'ours'}]", f"out_dir={tmp_path / 'both'}")
    assert "a function on examples of a program" in runs[0].title
    pages = [tmp_path / "own/report/index.html", *(tmp_path / "both").iterdir()]
    assert len(pages) == 3
    for text in (capsys.readouterr().out, *(html.unescape(page.read_text()) for page in pages)):
        assert not re.search(r"<lambda>|<locals>|<function|object at 0x", text)
    assert "sample: a function" in pages[0].read_text()
