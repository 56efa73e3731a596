"""W&B runs: one a chain and one for the evaluation, offline where there is no account."""

from __future__ import annotations

import hashlib
import netrc
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from bayeslora.atomic import locked, write_atomically
from bayeslora.factories import first_line
from bayeslora.posterior.answers import ANSWERS_FILE
from bayeslora.posterior.store import MAP_FILE
from bayeslora.runs.directory import RunDirectory

if TYPE_CHECKING:
    from wandb import Artifact, Run

    from bayeslora.evaluation.results import Results


LONGEST_TAG = 64
"""Characters that W&B takes of a tag."""


class WandbRun:
    """A run of W&B for a part of a run directory: a chain, or the evaluation. It starts when something is logged.

    A part keeps its W&B run however often it is continued. Without an account, or where W&B cannot be reached, it is
    written to `run_dir/wandb`, and `wandb sync run_dir/wandb` uploads it later.

    Args:
        project, entity, group: where W&B files it; None: chains and evaluation of one run directory are a group.
        tags: of all of them; None: the settings given on the command line.
        log_posterior: hand over the draws as an artifact when the run is evaluated.
        run_dir, part, name: the application fills these in.
    """

    def __init__(
        self,
        project: str = "bayeslora",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
        log_posterior: bool = True,
        *,
        run_dir: str,
        part: str,
        name: str,
    ) -> None:
        self.filed: dict[str, Any] = {"project": project, "entity": entity, "name": name}
        self.filed["group"] = group or name.rpartition("/")[0]
        self.filed["tags"] = [tag[:LONGEST_TAG] for tag in tags or ()]
        self.log_posterior, self.folder, self.part = log_posterior, Path(run_dir), part
        self._run: Run | None = None

    @property
    def run(self) -> Run:
        """W&B's own object."""
        if self._run is None:
            self._run = self._start()
        return self._run

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Record values by key. `step` is one of them: W&B's own cannot go back, as a chain does when it is resumed."""
        self.run.log(metrics | {"step": step})

    def save(self) -> None:
        """Nothing: W&B writes as it goes."""

    def finalize(self, status: str) -> None:
        """End the run, so that the next chain or sweep job starts its own."""
        if self._run is not None:
            self._run.finish(exit_code=int(status != "success"))
            self._run = None

    def log_report(self, run: RunDirectory, results: Results) -> None:
        """Log tables, plots, the report's page and the posterior of a run that was evaluated."""
        import wandb

        for key, (headings, rows) in report_tables(results).items():
            self.run.log({key: wandb.Table(columns=list(headings), data=[list(row) for row in rows])})
        for file in sorted(run.report.glob("*.png")):
            self.run.log({f"report/{file.stem}": wandb.Image(str(file))})
        if (page := run.report / "index.html").exists():
            self.run.log({"report/page": wandb.Html(str(page), inject=False)})
        if self.log_posterior:
            self.run.log_artifact(self.posterior(run, results))
        where = self.run.url or f"offline; `wandb sync {self.folder / 'wandb'}` uploads it"
        print(f"W&B: {where}", flush=True)  # noqa: T201

    def posterior(self, run: RunDirectory, results: Results) -> Artifact:
        """The draws that are listed, their manifests, MAP and the configuration: a folder for `Posterior.load`."""
        import wandb

        facts = {key: getattr(results.provenance, key) for key in ("draws", "chains", "split")}
        artifact = wandb.Artifact(f"posterior-{self.run.id}", "posterior", metadata=facts)

        def add(file: Path, policy: Any) -> None:
            artifact.add_file(str(file), name=str(file.relative_to(run.root)), policy=policy)

        for file in (run.config_file, run.metrics_file, *run.root.glob("chains/*/manifest.jsonl")):
            add(file, "mutable")
        for kept in (*run.root.glob(f"chains/*/{MAP_FILE}"), run.fixed_file, run.root / ANSWERS_FILE):
            if kept.exists():
                add(kept, "immutable")
        for folder in run.root.glob("chains/*"):
            store = run.store(int(folder.name))
            for record in store.records():
                add(store.path(record.index), "immutable")  # uploaded from where they lie, without a copy
        return artifact

    def _start(self) -> Run:
        """Begin the run, or go on with it; offline where there is no account or no way to W&B."""
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        settings: dict[str, Any] = self.filed | {
            "dir": str(self.folder),
            "id": wandb_id(self.folder, self.part),
            "job_type": re.sub(r"_\d+$", "", self.part),
            "config": RunDirectory(self.folder).config,
            "resume": "allow",
            "reinit": "create_new",  # stacked chains have their runs side by side
        }
        mode: Any = os.environ.get("WANDB_MODE") or (None if has_wandb_account() else "offline")
        try:
            run = wandb.init(mode=mode, **settings)
        except wandb.Error as error:
            advice = f"offline now; `wandb sync {self.folder / 'wandb'}` uploads it later"
            print(f"W&B: {first_line(error)}; {advice}", flush=True)  # noqa: T201
            os.environ["WANDB_MODE"] = "offline"  # nor will it work for the other chains
            settings["id"] += "-offline"  # W&B holds the other one, which has failed, until the process ends
            run = wandb.init(mode="offline", **settings)
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run


def report_tables(results: Results) -> dict[str, tuple[Sequence[str], list[Sequence[str]]]]:
    """The report's tables by their key: headings and rows."""
    from bayeslora.report.chain_rows import convergence_rows
    from bayeslora.report.table import columns, criteria_rows, rows

    by_name: dict[str, tuple[Sequence[str], list[Sequence[str]]]] = {
        "report/predictions": (
            ("of", *(column.title for column in columns(results))),
            [(row.label, *(cell.text for cell in row.cells)) for row in rows(results)],
        ),
        "report/convergence": (
            ("of", "R-hat", "Bulk ESS", "Tail ESS", "reading"),
            [*convergence_rows(results)],
        ),
        "report/criteria": (("criterion", "value", "limit", "passed"), [*criteria_rows(results)]),
    }
    return {key: table for key, table in by_name.items() if table[1]}


def wandb_id(run_dir: Path, part: str) -> str:
    """W&B's id for a part of a run directory: the same for as long as the directory is there, also if it is moved."""
    file = run_dir / "wandb" / "id"
    with locked(file.with_name("id.lock"), busy="", wait=True):
        if not file.exists():
            write_atomically(file, uuid4().hex.encode())
    return hashlib.sha256(f"{file.read_text()}/{part}".encode()).hexdigest()[:16]


def has_wandb_account() -> bool:
    """Whether W&B has a key to log in with: WANDB_API_KEY, or an entry for its host in ~/.netrc (or $NETRC)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
