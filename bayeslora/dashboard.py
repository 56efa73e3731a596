"""python -m bayeslora.dashboard: the W&B dashboard made from the keys that a run logs, as JSON, as a page, or in W&B.

Examples:
    python -m bayeslora.dashboard                                  # the workspace as JSON
    python -m bayeslora.dashboard --docs docs/dashboard.md         # the page that says what each panel tells
    python -m bayeslora.dashboard --create my-team/bayeslora       # a saved view in W&B (pip install wandb-workspaces)
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from bayeslora.loggers.keys import KEYS, SECTIONS, Kind, Panel

_INTRODUCTION = """---
hide: [toc]
---

# The dashboard

<!-- Written by `python -m bayeslora.dashboard --docs docs/dashboard.md`; a test compares the two. -->

`logger=wandb` starts one W&B run a chain, grouped by run directory, also where chains are stacked, and one more,
`<run>/evaluation`, when the run is evaluated. Without an account, or where W&B cannot be reached, all of it is written
to `RUN_DIR/wandb`, and `wandb sync RUN_DIR/wandb` uploads it later. A resumed chain goes on with its W&B run.
`logger=csv` and `logger=tensorboard` log the same scalars to `RUN_DIR/logs/chain_<k>` (`chain_<k>_from_<step>` where
the chain was resumed) and `RUN_DIR/logs/evaluation`.

`python -m bayeslora.dashboard --create ENTITY/PROJECT` makes these panels a saved view of the project (it needs
`pip install wandb-workspaces`); without `--create` it prints them as JSON.
"""


def panels() -> dict[Panel, list[str]]:
    """The keys of each panel, panels in the order of their sections."""
    by_panel: dict[Panel, list[str]] = {}
    for key, panel in KEYS.items():
        by_panel.setdefault(panel, []).append(key)
    order = list(SECTIONS)
    return dict(sorted(by_panel.items(), key=lambda item: order.index(item[0].section)))


def workspace() -> dict[str, Any]:
    """The dashboard as plain data: sections with panels, each with its keys or, for names that vary, a regex."""
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for panel, keys in panels().items():
        named = [key for key in keys if "*" not in key]
        shown: dict[str, Any] = (
            {"keys": named} if named else {"regex": f"^{re.escape(keys[0]).replace(re.escape('*'), '.*')}$"}
        )
        axis = {"x": "step"} if panel.kind == "line" else {}
        sections[panel.section].append({"kind": panel.kind, "title": panel.title, **axis, **shown})
    return {"name": "bayeslora", "sections": [{"name": name, "panels": plots} for name, plots in sections.items()]}


def page() -> str:
    """`docs/dashboard.md`: which panels there are, what each tells and what to look for."""
    lines = _INTRODUCTION.splitlines()
    shown = panels()
    for section, purpose in SECTIONS.items():
        lines += ["", f"## {section}", "", purpose, "", "| panel | keys | tells | look for |", "|---|---|---|---|"]
        for panel, keys in shown.items():
            if panel.section == section:
                listed = ", ".join(f"`{key}`" for key in keys)
                lines.append(f"| {panel.title} | {listed} | {panel.tells} | {panel.look} |")
    return "\n".join(lines) + "\n"


def saved_view(entity: str, project: str) -> Any:
    """The dashboard as an object of wandb-workspaces, not saved yet."""
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=section["name"], panels=[_view_panel(**panel) for panel in section["panels"]], is_open=True)
        for section in workspace()["sections"]
    ]
    return ws.Workspace(entity=entity, project=project, name=workspace()["name"], sections=sections)


def _view_panel(kind: Kind, title: str, keys: list[str] | None = None, regex: str | None = None, x: str = "") -> Any:
    """A panel of `workspace()` as wandb-workspaces has it."""
    import wandb_workspaces.reports.v2 as wr

    if kind == "line":
        return wr.LinePlot(title=title, x=x, **({"y": keys} if keys else {"metric_regex": regex}))
    if kind == "bar":
        return wr.BarPlot(title=title, metrics=keys)
    if kind == "table":
        return wr.WeavePanelSummaryTable(table_name=(keys or [""])[0])
    return wr.MediaBrowser(title=title, media_keys=keys)


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 done, 2 where wandb-workspaces is missing."""
    parser = argparse.ArgumentParser(prog="python -m bayeslora.dashboard", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there instead of printing it")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the page on the panels")
    parser.add_argument("--create", metavar="ENTITY/PROJECT", help="save the dashboard as a view of a W&B project")
    chosen = parser.parse_args(arguments)
    text = json.dumps(workspace(), indent=2) + "\n"
    if chosen.out:
        chosen.out.write_text(text)
    if chosen.docs:
        chosen.docs.write_text(page())
    if chosen.create:
        return _create(*chosen.create.partition("/")[::2])
    if not (chosen.out or chosen.docs):
        sys.stdout.write(text)
    return 0


def _create(entity: str, project: str) -> int:
    """Save the view in W&B and print its address."""
    try:
        view = saved_view(entity, project)
    except ModuleNotFoundError as error:
        print(f"bayeslora: {error}; pip install wandb-workspaces", file=sys.stderr)  # noqa: T201
        return 2
    view.save()
    print(view.url)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
