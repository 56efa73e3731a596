"""What a command answers without Hydra: `--help` on one screen, and completion for bash.

Hydra's own help template has the groups' names and the composed configuration, some 120 lines without a default marked
or an experiment described, and composes first (1.9 CPU seconds in place of 0.3). Its completion is for a program of a
name, not for `python -m`; what can follow is still asked of it.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import yaml

from bayeslora.app.config import CONF_DIR, GROUPS, RootConfig, known_keys

EXIT_CODES = {
    0: "done",
    1: "a file could not be written",
    2: "wrong configuration or data, nothing was started",
    3: "a chain diverged",
    4: "a criterion was not met (--strict)",
    130: "interrupted, can be resumed",
}
"""What the exit codes of the commands mean."""

MORE = """\
--cfg job shows the composed configuration, -m runs a sweep (a=1,2), --hydra-help lists Hydra's own options.
Completion in bash: eval "$(python -m bayeslora.train -sc install=bash)". Is all well here? python -m bayeslora.doctor
Docs: docs/cli.md (the commands), docs/samplers.md, docs/metrics.md, docs/troubleshooting.md."""


def answer(arguments: Sequence[str], command: str, doc: str) -> str | None:
    """The text that answers these arguments; None where they ask for something else.

    Args:
        arguments: the command line.
        command: `conf/<command>.yaml` configures it.
        doc: the command's docstring: what it does, and examples.
    """
    if {"-h", "--help"} & {*arguments}:
        width = min(120, shutil.get_terminal_size((100, 24)).columns)
        return screen(command, doc, [Path(CONF_DIR), *config_dirs(arguments)], width)
    if completes(arguments) and "install=bash" in arguments:
        return BASH
    return None


OPTIONS = {
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun",
    "--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info",
    "--strict",
}  # fmt: skip
"""Hydra's options, and our own."""


def wrong_option(arguments: Sequence[str], command: str) -> str | None:
    """What to write in place of the first `--setting value`, which Hydra does not know; None where all is well."""
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not option.startswith("--") or option in OPTIONS:
            continue
        after = "".join(arguments[place + 1 : place + 2])
        if not equals:
            value = after if after and "=" not in after and not after.startswith("-") else "…"
        key = option.removeprefix("--").replace("-", "_")
        return f"{option} is no option: settings are written without dashes; write {setting(key, command)}={value}"
    return None


def setting(name: str, command: str) -> str:
    """The dotted key that a name may mean: `sampler.lr` for `lr`, of `train`; the name itself where none ends so."""
    if command != "train" or name in {*(field.name for field in fields(RootConfig)), *GROUPS}:
        return name
    return next((f"{node}.{name}" for node, keys in known_keys().items() if name in keys), name)


def completes(arguments: Sequence[str]) -> bool:
    """Whether the arguments are a shell's, about completion."""
    return bool({"-sc", "--shell-completion"} & {*arguments})


def config_dirs(arguments: Sequence[str]) -> Iterator[Path]:
    """The folders that `--config-dir` names."""
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in ("--config-dir", "-cd"):
            yield Path(value if equals else "".join(arguments[place + 1 : place + 2]))


def screen(command: str, doc: str, folders: Sequence[Path], width: int = 100) -> str:
    """The help of a command: what it does, examples, what can be chosen, exit codes, where to read on.

    Args:
        command, doc: see `answer`.
        folders: of configurations, the package's first.
        width: characters a line.
    """
    settings = (folders[0] / f"{command}.yaml").read_text()
    defaults = [one for one in yaml.safe_load(settings)["defaults"] if isinstance(one, dict)]
    chosen = {str(group): choice for one in defaults for group, choice in one.items()}
    parts = [doc.strip()]
    if "experiment" in chosen:
        parts += [
            "Groups, GROUP=CHOICE (* by default):\n" + "\n".join(groups(folders, chosen, width)),
            "Experiments, experiment=NAME:\n" + "\n".join(experiment_lines(folders, width)),
            f"Settings, KEY=VALUE, e.g. chain.num_draws=100: what each key means is in\n  {folders[0]}",
        ]
    else:
        parts.append("Settings, KEY=VALUE:\n" + textwrap.indent(settings.partition("\n\n")[2].rstrip(), "  "))
    codes = "Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    parts += [textwrap.fill(codes, width), "\n".join(textwrap.fill(line, width) for line in MORE.splitlines())]
    return "\n\n".join(parts)


def groups(folders: Sequence[Path], chosen: dict[str, str | None], width: int) -> Iterator[str]:
    """A paragraph a config group: its choices, the default marked."""
    names = {folder.name for conf in folders for folder in conf.glob("*/") if any(folder.glob("*.yaml"))}
    for group in [*(name for name in chosen if name in names), "optimizer", "hydra/launcher"]:
        if group in ("experiment", "hydra"):
            continue
        shown = "optimizer@chain.warmup.optimizer" if group == "optimizer" else group
        options = [f"{name}*" if name == chosen.get(group) else name for name in choices(folders, group)]
        yield textwrap.fill(" ".join(options), width, initial_indent=f"  {shown:12} ", subsequent_indent=" " * 15)


def experiment_lines(folders: Sequence[Path], width: int) -> Iterator[str]:
    """A line an experiment: its name, and the beginning of what its file says."""
    files = {file.stem: file for conf in folders for file in conf.glob("experiment/*.yaml")}
    column = max(map(len, files), default=0)
    for name in sorted(files):
        room = width - column - 4
        yield f"  {name:{column}}  {textwrap.shorten(first_comment(files[name]), room, placeholder=' …')}"


def choices(folders: Sequence[Path], group: str) -> list[str]:
    """The names of a config group's files."""
    return sorted({file.stem for conf in folders for file in (conf / group).glob("*.yaml")})


def first_comment(file: Path) -> str:
    """The first paragraph of comments of a yaml file, without its package; empty where there is none."""
    words: list[str] = []
    for line in file.read_text().splitlines():
        text = line.removeprefix("#").strip()
        if line.startswith("# @package"):
            continue
        if not line.startswith("#") or not text:
            break
        words.append(text)
    return " ".join(words)


BASH = r"""# completion of `python -m bayeslora.…` in bash; Hydra answers what can follow
_bayeslora() {
    local words=($COMP_LINE) word=${COMP_WORDS[COMP_CWORD]} module choices
    module=${words[2]}
    [[ ${words[1]} == -m ]] || return
    if (( COMP_CWORD == 2 )); then
        choices=$(printf "bayeslora.%s " train evaluate compare export bias_check doctor)
    elif [[ $module == bayeslora.* ]]; then
        choices=$(COMP_LINE="bayeslora ${COMP_LINE#*"$module"}" "${words[0]}" -m "$module" -sc query=bash 2>/dev/null)
    fi
    COMPREPLY=($(compgen -o nospace -o default -W "$choices" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _bayeslora python python3"""
