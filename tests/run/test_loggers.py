"""Loggers: one W&B run a chain, also offline and stacked; csv and TensorBoard hold the same; the dashboard."""

from __future__ import annotations

import csv
import json
import shutil
import struct
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import wandb
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from bayeslora import dashboard
from bayeslora.app.compose import plain, recorded_settings, to_experiment
from bayeslora.app.config import CONF_DIR
from bayeslora.errors import DivergedError
from bayeslora.evaluation.evaluated_split import evaluated_split
from bayeslora.evaluation.results import Results
from bayeslora.loggers import has_wandb_account, log_evaluation, make_loggers
from bayeslora.loggers.keys import KEYS
from bayeslora.loggers.others import run_label
from bayeslora.posterior import Posterior
from bayeslora.runs.directory import RunDirectory
from tests.run.tools import OWN, STEPS, TINY, Command, composed, digests, manifest, run

CSV = ("logger.csv._target_=lightning.pytorch.loggers.CSVLogger", "logger.csv.name=''")
TENSORBOARD = ("logger.tb._target_=lightning.pytorch.loggers.TensorBoardLogger", "logger.tb.name=''")


@pytest.fixture(autouse=True, scope="module")
def no_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No key, no network, and a home of its own; W&B looks at its settings anew."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
            patch.delenv(name, raising=False)
        for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(home))
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        wandb.teardown()
        yield home
    wandb.teardown()


@dataclass
class Recorded:
    """What a folder that W&B wrote offline holds."""

    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    exit_code: int | None = None
    began: int = 0

    @property
    def keys(self) -> set[str]:
        return {key for row in self.history for key in row if not key.startswith("_")} - {"step"}

    def series(self, key: str) -> dict[int, float]:
        return {row["step"]: row[key] for row in self.history if key in row}


def recorded(folder: Path, wait: float = 10.0) -> list[Recorded]:
    """The runs under a run directory's `wandb`, in the order in which they began."""
    runs = sorted(map(read, folder.glob("wandb/offline-run-*/run-*.wandb")), key=lambda found: found.began)
    if any(found.exit_code is None for found in runs) and wait > 0:  # W&B's own process may be about to write it
        time.sleep(0.1)
        return recorded(folder, wait - 0.1)
    return runs


def read(file: Path) -> Recorded:
    """Read W&B's transaction log: blocks of 32 KiB that hold records, whole or in parts."""
    data, at, part, found = file.read_bytes(), 7, b"", Recorded()
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        _, size, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            note(found, wandb_internal_pb2.Record.FromString(part))
            part = b""
    return found


def note(found: Recorded, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        found.name, found.group, found.id = record.run.display_name, record.run.run_group, record.run.run_id
        found.tags = [*record.run.tags]
        found.began = record.run.start_time.ToNanoseconds()
        found.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
    elif kind == "history":
        items = record.history.item
        found.history.append({(item.nested_key or [item.key])[0]: json.loads(item.value_json) for item in items})
    elif kind == "artifact":
        contents = {entry.path: entry.local_path for entry in record.artifact.manifest.contents}
        found.artifacts[record.artifact.type] = contents
    elif kind == "files":
        found.files += [file.path for file in record.files.files]
    elif kind == "exit":
        found.exit_code = record.exit.exit_code


@pytest.fixture(scope="module")
def stacked(no_account: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stacked run with all three loggers; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "stacked"
    others = (*CSV, *TENSORBOARD, f"logger.csv.save_dir={folder}/logs", f"logger.tb.save_dir={folder}/logs/tb")
    size = ("dataset.validation_size=20", "evaluate.report=true", "callbacks.progress.log_every=5")
    run(folder, "logger=wandb", *others, "chain.parallel=stacked", *size)
    return folder


def in_csv(file: Path) -> dict[str, dict[int, float]]:
    """Values by key and step."""
    found: dict[str, dict[int, float]] = {}
    for row in csv.DictReader(file.open()):
        for key, value in row.items():
            if value and key != "step":
                found.setdefault(key, {})[int(row["step"])] = float(value)
    return found


# One W&B run a chain


def test_stacked_chains_have_a_run_each_and_the_evaluation_its_own(stacked: Path) -> None:
    runs = recorded(stacked)
    assert [r.name for r in runs] == [f"quickstart/stacked/{part}" for part in ("chain_0", "chain_1", "evaluation")]
    assert {r.group for r in runs} == {"quickstart/stacked"}
    assert len({r.id for r in runs}) == 3
    assert [r.exit_code for r in runs] == [0, 0, 0]
    assert all(r.config["chain"]["num_draws"] == 5 and "commit" in r.config["provenance"] for r in runs)
    assert wandb.run is None


def test_each_chains_run_holds_its_own_potential_step_size_and_draws(stacked: Path) -> None:
    for chain, found in enumerate(recorded(stacked)[:2]):
        assert {5, 10, 15} <= set(found.series("train/potential_per_example"))
        assert set(found.series("train/lr").values()) == {0.01}
        assert found.series("draws") == dict(zip(STEPS, range(1, 6), strict=True))
        for name in manifest(stacked, chain)[0]["scalars"]:
            kept = {record["step"]: record["scalars"][name] for record in manifest(stacked, chain)}
            assert found.series(f"draw/{name}") == pytest.approx(kept)
    one, other = (found.series("train/potential_per_example") for found in recorded(stacked)[:2])
    assert one != other


def test_stacked_and_sequential_chains_log_the_same_keys(stacked: Path, tmp_path: Path) -> None:
    size = ("dataset.validation_size=20", "callbacks.progress.log_every=5")
    run(tmp_path / "run", *size)
    for chain in (0, 1):
        alone = in_csv(tmp_path / "run" / "logs" / f"chain_{chain}" / "metrics.csv")
        together = in_csv(stacked / "logs" / f"chain_{chain}" / "metrics.csv")
        assert alone.keys() == together.keys()
        assert alone["draw/potential"] == pytest.approx(together["draw/potential"], rel=1e-3)


@pytest.mark.parametrize("part", ["chain_0", "chain_1", "evaluation"])
def test_csv_and_tensorboard_hold_the_scalars_that_wandb_holds(stacked: Path, part: str) -> None:
    found = next(r for r in recorded(stacked) if r.name == f"quickstart/stacked/{part}")
    keys = {key for key in found.keys if not key.startswith("report/")}
    in_file = in_csv(stacked / "logs" / part / "metrics.csv")
    events = EventAccumulator(str(stacked / "logs" / "tb" / part))
    events.Reload()
    assert set(in_file) == set(events.Tags()["scalars"]) == keys
    for key in keys:
        assert in_file[key] == pytest.approx(found.series(key))
        assert {e.step: e.value for e in events.Scalars(key)} == pytest.approx(found.series(key), rel=1e-6)


def test_logging_to_wandb_leaves_the_draws_alone(tmp_path: Path, finished: Path) -> None:
    run(tmp_path / "run", "logger=wandb", "logger.wandb.log_posterior=false")
    assert digests(tmp_path / "run") == digests(finished)
    assert "posterior" not in recorded(tmp_path / "run")[-1].artifacts


# The evaluation


def test_the_evaluation_holds_numbers_tables_plots_and_the_page(stacked: Path) -> None:
    found = recorded(stacked)[-1]
    metrics = json.loads((stacked / "metrics.json").read_text())
    for row in ("map", "ensemble"):
        for name, value in metrics[row].items():
            assert found.series(f"evaluation/{row}/{name}") == {10: pytest.approx(value)}
    for name, value in metrics["draw"].items():
        assert found.series(f"evaluation/draw/{name}/mean") == {10: pytest.approx(value["mean"])}
    assert found.series("evaluation/diagnostics/potential/rhat")
    logged = "\n".join(found.files)
    for plot in (stacked / "report").glob("*.png"):
        assert f"media/images/report/{plot.stem}_" in logged
    assert "media/html/report/page_" in logged
    (page,) = stacked.glob("wandb/offline*/files/media/html/report/page_*.html")
    assert page.read_text() == (stacked / "report" / "index.html").read_text()
    (table,) = stacked.glob("wandb/offline*/files/media/table/report/predictions_*.table.json")
    rows = json.loads(table.read_text())["data"]
    assert [row[0] for row in rows] == [
        "MAP", "MAP, scaled", "MAP × 2", "Draw ± sd", "Chain 0", "Chain 1", "Ensemble", "Ensemble − MAP",
        "Ensemble − MAP × 2",
    ]  # fmt: skip
    assert rows[6][2] == f"{metrics['ensemble']['nll']:.4f}"


def test_the_posterior_is_an_artifact_that_can_be_loaded(stacked: Path, tmp_path: Path) -> None:
    for path, source in recorded(stacked)[-1].artifacts["posterior"].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / path)
    assert digests(tmp_path) == digests(stacked)
    setup = to_experiment(composed(*TINY, "dataset.validation_size=20"))
    loader = setup.loader(evaluated_split(setup))
    theirs, ours = (Posterior.load(folder, setup.model()).predict(loader) for folder in (tmp_path, stacked))
    assert theirs.equal(ours)
    assert (tmp_path / "config.yaml").read_bytes() == (stacked / "config.yaml").read_bytes()


def test_a_run_that_was_moved_is_logged_where_it_is(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(finished, folder)
    settings = recorded_settings(RunDirectory(folder))
    settings["logger"] |= plain(composed(*TINY, "logger=wandb").logger)
    experiment = to_experiment(OmegaConf.create(settings))
    before = (finished / "logs" / "evaluation" / "metrics.csv").stat().st_mtime_ns
    curve = {"draws": [2, 10], "nll": [2.0, 1.5], "accuracy": [0.1, None]}
    content = json.loads((folder / "metrics.json").read_text()) | {"cumulative": curve}
    metrics = Results.from_json(content)
    log_evaluation(experiment, RunDirectory(folder), metrics)
    (found,) = recorded(folder)
    assert found.series("cumulative/nll") == {2: 2.0, 10: 1.5}
    assert found.series("cumulative/accuracy") == {2: 0.1}
    assert in_csv(folder / "logs" / "evaluation" / "metrics.csv")["cumulative/nll"] == {2: 2.0, 10: 1.5}
    assert (finished / "logs" / "evaluation" / "metrics.csv").stat().st_mtime_ns == before
    assert not (finished / "wandb").exists()
    log_evaluation(experiment, RunDirectory(folder), metrics)
    assert {r.id for r in recorded(folder)} == {found.id}  # evaluated again, it goes on with its run


# Failures, retries, sweeps


EXPLODING = ("sampler=sgld", "sampler._target_=tests.run.tools.Exploding", "sampler.at=9", "sampler.only=0")


def test_a_chain_that_diverges_ends_its_run_as_failed_and_goes_on_with_it(tmp_path: Path) -> None:
    retry = ("chain.on_divergence=retry", "sampler.above=0.008", f"logger.csv.save_dir={tmp_path}/run/logs")
    run(tmp_path / "run", "logger=wandb", *CSV, *EXPLODING, *retry, "callbacks.progress.log_every=1", base=OWN)
    first, again, other, evaluation = recorded(tmp_path / "run")
    assert [r.exit_code for r in (first, again, other, evaluation)] == [1, 0, 0, 0]
    assert first.id == again.id
    assert first.name == again.name == "own/run/chain_0"
    began = min(again.series("train/lr"))
    assert set(again.series("train/lr").values()) == {0.005}
    assert max(first.series("train/lr")) >= began - 1
    logs = tmp_path / "run" / "logs"
    assert in_csv(logs / "chain_0" / "metrics.csv")["train/lr"] == first.series("train/lr")
    assert in_csv(logs / f"chain_0_from_{began - 1}" / "metrics.csv")["train/lr"] == again.series("train/lr")


def test_a_run_that_fails_altogether_leaves_no_wandb_run_open(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        run(tmp_path / "run", "logger=wandb", *EXPLODING, "chain.num_chains=1", base=OWN)
    chain, evaluation = recorded(tmp_path / "run")
    assert (chain.exit_code, evaluation.exit_code) == (1, 0)


def test_every_job_of_a_sweep_has_runs_of_its_own(tmp_path: Path, command: Command) -> None:
    arguments = (*TINY, "logger=wandb", "chain.num_chains=1", "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    assert command("train", "-m", *arguments).code == 0
    jobs = [recorded(tmp_path / number) for number in ("0", "1")]
    assert [[r.exit_code for r in job] for job in jobs] == [[0, 0], [0, 0]]
    assert len({r.id for job in jobs for r in job}) == 4
    assert [job[0].config["seed"] for job in jobs] == [0, 1]


def test_logs_of_an_earlier_process_stay_as_they_are(tmp_path: Path) -> None:
    experiment = to_experiment(composed(*TINY, f"run_dir={tmp_path}"))
    for _ in range(2):
        with make_loggers(experiment, tmp_path, [0, 1]) as loggers:
            loggers.log(1, {"train/lr": 0.5}, step=3)
    files = sorted(str(file.parent.relative_to(tmp_path / "logs")) for file in tmp_path.glob("logs/*/metrics.csv"))
    assert files == ["chain_1", "chain_1_2"]


# Accounts and the way to W&B


def test_a_key_in_the_environment_or_for_the_host_is_an_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not has_wandb_account()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert not has_wandb_account()
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password key\n")
    assert has_wandb_account()
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert has_wandb_account()


def test_where_wandb_cannot_be_reached_it_goes_on_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.teardown()
    run(tmp_path / "run", "logger=wandb", "chain.num_chains=1")
    assert [r.exit_code for r in recorded(tmp_path / "run")] == [0, 0]
    out = capsys.readouterr().out
    assert out.count("offline now; `wandb sync ") == 1


# The dashboard


def has_panel(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in KEYS)


def test_every_logged_key_has_a_panel(stacked: Path) -> None:
    logged = set().union(*(r.keys for r in recorded(stacked)))
    assert {key for key in logged if not has_panel(key)} == set()
    assert {"train/potential_per_example", "train/lr", "draws", "draw/potential", "draw/validation/nll"} <= logged
    assert {"draw/norm/head", "evaluation/ensemble/nll", "report/predictions", "report/page"} <= logged
    assert {key for key in logged if key.startswith("report/")} <= KEYS.keys()  # plots that its panel names
    assert has_panel("online/potential_per_example/rhat")
    assert not has_panel("nonsense")


def test_every_key_is_shown_once() -> None:
    shown = [
        key
        for section in dashboard.workspace()["sections"]
        for panel in section["panels"]
        for key in panel.get("keys") or [panel["regex"]]
    ]
    named = [key for key in KEYS if "*" not in key]
    assert [key for key in shown if not key.startswith("^")] == sorted(named, key=shown.index)
    assert "^draw/norm/.*$" in shown


def test_the_page_on_the_dashboard_is_what_the_keys_say() -> None:
    page = Path(CONF_DIR).parent / "docs" / "dashboard.md"
    advice = "python -m bayeslora.dashboard --docs docs/dashboard.md writes it again"
    assert page.read_text() == dashboard.page(), advice


def test_the_command_prints_the_workspace_or_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard.main([]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [section["name"] for section in printed["sections"]] == list(dashboard.SECTIONS)
    assert dashboard.main(["--out", str(tmp_path / "a.json"), "--docs", str(tmp_path / "a.md")]) == 0
    assert json.loads((tmp_path / "a.json").read_text()) == printed
    assert (tmp_path / "a.md").read_text() == dashboard.page()
    assert capsys.readouterr().out == ""


# Which run is which, and others' loggers


def test_names_tell_jobs_of_a_sweep_apart() -> None:
    assert (
        run_label("quickstart", Path("outputs/quickstart/2026-11-24_12-00-00/3")) == "quickstart/2026-11-24_12-00-00/3"
    )
    assert run_label("quickstart", Path("/elsewhere/mine")) == "quickstart/mine"


def test_a_sweeps_jobs_have_groups_and_tags_of_their_own_and_the_command_that_compares_them(
    no_account: Path, tmp_path: Path, command: Command
) -> None:
    small = ("chain.num_chains=1", "chain.num_draws=1", f"hydra.sweep.dir={tmp_path}")
    ended = command("train", "-m", *TINY, *small, "logger=[csv,wandb]", "temperature=0.5,1")
    assert ended.code == 0, ended.err
    jobs = [recorded(tmp_path / str(job)) for job in (0, 1)]
    groups = [{found.group for found in job} for job in jobs]
    assert all(len(group) == 1 for group in groups)
    assert groups[0] != groups[1]
    for job, temperature in zip(jobs, ("0.5", "1"), strict=True):
        assert all(f"temperature={temperature}" in found.tags for found in job)
        assert not any(tag.startswith(("run_dir", "logger")) for found in job for tag in found.tags)
    assert all((tmp_path / str(job) / "logs" / "chain_0" / "metrics.csv").is_file() for job in (0, 1))
    assert f"compare them: python -m bayeslora.compare 'run_dirs={tmp_path}/*'" in ended.out


def test_mlflow_has_a_run_a_chain_and_one_for_the_evaluation(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'bayeslora[mlflow]'")
    before = tmp_path.with_name(f"{tmp_path.name}_before")
    for folder in (before, tmp_path):  # as two jobs of a sweep, in one process whose workers have its variables
        run(folder, "logger=mlflow", "chain.num_chains=1", "chain.parallel=processes")
    client = mlflow.tracking.MlflowClient(f"file:{tmp_path}/logs/mlruns")
    (experiment,) = client.search_experiments(filter_string="name = 'quickstart'")
    runs = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {f"{run_label('quickstart', tmp_path)}/{part}" for part in ("chain_0", "evaluation")}
    metrics = RunDirectory(tmp_path).metrics_file
    nll = json.loads(metrics.read_text())["ensemble"]["nll"]
    logged = runs[f"{run_label('quickstart', tmp_path)}/evaluation"].data.metrics
    assert logged["evaluation/ensemble/nll"] == pytest.approx(nll)


def test_comet_gets_a_run_a_chain_offline_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives that `comet upload` takes, one of the chain and one of the evaluation."""
    pytest.importorskip("comet_ml", reason="pip install 'bayeslora[comet]'")
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    run(tmp_path, "logger=comet", "chain.num_chains=1")
    logged = []
    for archive in (tmp_path / "comet").glob("*.zip"):
        with zipfile.ZipFile(archive) as content:
            lines = [json.loads(line) for line in content.read("messages.json").splitlines()]
        logged.append({line["payload"]["metric"]["metricName"] for line in lines if line["type"] == "metric_msg"})
    assert len(logged) == 2
    assert sum("train/lr" in names for names in logged) == 1
    assert sum("evaluation/ensemble/nll" in names for names in logged) == 1
