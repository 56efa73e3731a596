"""What the commands share: Hydra's composition, one message for all problems, exit codes."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from bayeslora.app import command_help
from bayeslora.app.config import CONF_DIR
from bayeslora.atomic import user_path
from bayeslora.engine.signals import ending_the_command
from bayeslora.errors import BayesloraError, ConfigError, InterruptedRunError, Problems, StorageError

# here, so that the processes which launchers start are quiet too: they import this file before they compose
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

QUICK = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "-sc", "--shell-completion"}
"""Options of Hydra by which nothing is run."""
STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""What the system says where the trouble is the disk, whatever was being written."""


def run_command(config_name: str, doc: str | None, job: Callable[[Any], Any], settings: type | None = None) -> None:
    """Compose `conf/<config_name>.yaml` with the command line, run the job and end the process.

    Exit codes are `command_help.EXIT_CODES`. Errors are one message on stderr, without a traceback (set
    BAYESLORA_TRACEBACK=1 to see it).

    Args:
        config_name: of the command, and of its configuration.
        doc: the command's docstring, of which its help is made.
        job: what to run, on the settings.
        settings: a dataclass of the command's settings (see `commands`); None: the job takes the configuration.
    """
    text = command_help.answer(sys.argv[1:], config_name, doc or "")
    if text is not None:
        print(text)  # noqa: T201
        sys.exit(0)
    problem = command_help.wrong_option(sys.argv[1:], config_name)
    if problem is not None:
        sys.exit(print_problems(ConfigError(problem), [problem], ConfigError.exit_code))
    if sys.stderr.isatty() and config_name != "compare" and not {*sys.argv} & QUICK:
        print("loading torch, Lightning …", file=sys.stderr, flush=True)  # noqa: T201
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand exceptions to us instead of printing them
    strict = "++evaluate.strict=true" if config_name == "train" else "++strict=true"
    if not command_help.completes(sys.argv):
        sys.argv[1:] = [strict if argument == "--strict" else forced(argument) for argument in sys.argv[1:]]
    task = _Task(config_name, job, settings)
    code = 0
    try:
        require_extras(sys.argv[1:])
        with ending_the_command():
            hydra.main(version_base="1.3", config_path=CONF_DIR, config_name=config_name)(task)()
        for failure in task.failures:
            raise failure
    except (BayesloraError, HydraException, OmegaConfBaseException, OSError, KeyboardInterrupt) as error:
        code = print_problems(error, *_problems_of(error))
    sys.exit(code)


@dataclass
class _Task:
    """A command's job as Hydra runs it: here, or in the processes of a launcher, to which this object is sent."""

    command: str
    job: Callable[[Any], Any]
    settings: type | None
    failures: list[Exception] = field(default_factory=list)

    def __call__(self, cfg: Any) -> Any:
        """The number that the job returns, if it is one, for a sweeper that searches."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.errors import HydraException
        from hydra.types import RunMode
        from omegaconf.errors import OmegaConfBaseException

        from bayeslora.app.commands import command_settings

        try:
            given = cfg if self.settings is None else command_settings(self.settings, cfg, self.command)
            returned = self.job(given)
            return returned if isinstance(returned, float) else None
        except (BayesloraError, HydraException, OmegaConfBaseException) as error:
            if isinstance(error, InterruptedRunError):
                raise KeyboardInterrupt(str(error)) from error  # the jobs of a sweep that are still to come, too
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # Hydra goes on to the next job and says which one failed
            self.failures.append(error)
            return None


def _problems_of(error: BaseException) -> tuple[list[str], int]:
    """What to tell the user of an error, one message a problem, and the exit code; other errors go on."""
    from hydra.errors import HydraException

    if isinstance(error, OSError) and error.errno in STORAGE:
        error = StorageError(Path(error.filename or "a file"), error)
    if isinstance(error, BayesloraError):
        return error.problems if isinstance(error, ConfigError) else [str(error)], error.exit_code
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # some of Hydra's are both
        raise error
    if isinstance(error, KeyboardInterrupt):
        name = str(error) or signal.SIGINT.name
        advice = "what was written is kept. Repeat the command; run_dir=… of a run that had begun goes on with it"
        return [f"stopped by {name}; {advice}" if name.startswith("SIG") else name], InterruptedRunError.exit_code
    assert isinstance(error, Exception)
    return [hydra_message(error)], ConfigError.exit_code


def forced(argument: str) -> str:
    """`key=value` as `++key=value`, so that unknown keys reach our own check, which reports all of them at once.

    Choices of a config group (`model=resnet18`), Hydra's own keys, flags and explicit `+`, `++`, `~` stay as they are.
    In a path `~` becomes the home, and a value of one mark (`dataset.separator=;`) gets the quotes that Hydra wants.
    """
    key, equals, value = argument.partition("=")
    if key.endswith(("_dir", "path")):  # a shell leaves `~` alone here, and Hydra makes folders of that name
        argument = key + equals + re.sub(r"^(['\"]?)(~)(?=/|$)", lambda match: match[1] + str(user_path("~")), value)
    elif re.fullmatch(r"[^\w\s\[\]{}'\"]|\t|\\t", value):  # such as a separator of columns: Hydra cannot read it
        argument = f'{key}="{value}"'
    plain = re.fullmatch(r"[A-Za-z_][\w.]*", key) is not None and "=" in argument
    group = (Path(CONF_DIR) / key).is_dir()
    return f"++{argument}" if plain and not group and not key.startswith("hydra.") else argument


EXTRAS = {
    "hydra/launcher=joblib": ("joblib", "hydra-joblib-launcher"),
    "hydra/launcher=submitit_local": ("submitit", "hydra-submitit-launcher"),
    "hydra/launcher=submitit_slurm": ("submitit", "hydra-submitit-launcher"),
    "hydra/launcher=ray": ("ray", "hydra-ray-launcher"),
    "hydra/sweeper=optuna": ("optuna", "hydra-optuna-sweeper"),
    "logger=mlflow": ("mlflow", "mlflow-skinny"),
    "logger=comet": ("comet", "comet-ml"),
    "search=step_prior_temperature": ("optuna", "hydra-optuna-sweeper"),
}
"""Choices that need an extra of this package: its name, and the distribution that comes with it."""


def require_extras(arguments: list[str]) -> None:
    """Raise `ConfigError` for a launcher, logger or search whose extra, or whose cluster, is not here."""
    problems = Problems()
    for argument in arguments:
        key, _, values = argument.lstrip("+").partition("=")
        for choice in (f"{key}={value.strip()}" for value in values.strip("[]").split(",")):
            extra, distribution = EXTRAS.get(choice, (None, ""))
            if extra and not any(metadata.distributions(name=distribution)):
                problems.add(f"{choice} needs an extra: pip install 'bayeslora[{extra}]'")
    slurm = "hydra/launcher=submitit_slurm" in arguments and {"-m", "--multirun"} & {*arguments}
    if slurm and shutil.which("srun") is None:  # said before a thousand jobs are composed
        problems.add(
            "hydra/launcher=submitit_slurm gives jobs to SLURM, and there is no srun here: start it where the cluster's"
            " commands are; hydra/launcher=joblib or submitit_local runs the jobs on this machine"
        )
    problems.raise_if_any()


def print_problems(error: BaseException, problems: list[str], code: int) -> int:
    """Print the problems to stderr and return the exit code."""
    if os.environ.get("BAYESLORA_TRACEBACK"):
        raise error
    if len(problems) == 1:
        print(f"bayeslora: {problems[0]}", file=sys.stderr)  # noqa: T201
    else:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        print(f"bayeslora: {len(problems)} problems, nothing was started:\n{listed}", file=sys.stderr)  # noqa: T201
    return code


def hydra_message(error: Exception) -> str:
    """Hydra's message in one paragraph, without its internals."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return f"there is no {group} called {name}; choose one of {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read {error.override.removeprefix('++')!r} on the command line: write KEY=VALUE, for example "
            "experiment=quickstart; a value that holds commas, brackets or other marks takes quotes of its own: "
            "'KEY=\"a, b\"'"
        )
    if several := re.match(r"Ambiguous value for argument '([^=']+)=(.*)'", str(error)):
        key, values = several[1].removeprefix("++"), several[2]
        return (
            f"{key}={values} names several values: for a run of each add -m (python -m bayeslora.train -m … "
            f"{key}={values}); a list is written '{key}=[{values}]'"
        )
    if "HydraConfig was not set" in str(error):
        return (
            "${hydra:…} is not known before the jobs begin, so that run_dir cannot hold it; leave run_dir out, and each"
            " job gets a folder of its own, or give hydra.sweep.dir=FOLDER for FOLDER/0, FOLDER/1, …"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not re.match(r"(full_key|object_type|reference_type|Set the environment)", line)]
    place = getattr(error, "full_key", None)
    return " ".join(kept).replace("++", "") + (f" (in {place})" if place else "")
