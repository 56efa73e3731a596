"""From a composed or recorded configuration to an `Experiment`; all problems are reported at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from bayeslora.app.config import CONF_DIR, Form, apart, factory, instantiate, members, without_limits
from bayeslora.atomic import user_path
from bayeslora.codec import decode
from bayeslora.compatibility import check_fit
from bayeslora.datasets.base import Data, limited
from bayeslora.datasets.in_memory import load_data, made_data
from bayeslora.errors import ConfigError, require
from bayeslora.experiment import Experiment
from bayeslora.factories import in_memory
from bayeslora.likelihood import Bernoulli, Categorical, Likelihood
from bayeslora.models.checkpoint import Checkpoint
from bayeslora.models.starts import Starts
from bayeslora.parts import check_model_settings, check_sampler, check_temperature, check_warmup
from bayeslora.runs.directory import RunDirectory, relocated
from bayeslora.runs.trust import names
from bayeslora.settings import ChainSettings, Evaluation, TrainerSettings, check_together

log = logging.getLogger(__name__)


def to_experiment(cfg: DictConfig, run: RunDirectory | None = None) -> Experiment:
    """Check a configuration as a whole and make an experiment of it, with its data in memory.

    Args:
        cfg: composed configuration.
        run: where the run would go; its folder is checked too. None: only the parts are built.

    Raises:
        ConfigError: every problem found: unknown keys, impossible values, missing or wrong data, a taken run directory.
    """
    form = Form.of(cfg)
    problems, usable = form.problems, form.usable
    parts: dict[str, Any] = {}

    def collect(name: str, make: Callable[[], Any], node: str = "") -> None:
        with problems.collect():
            if (node or name) not in form.broken:
                parts[name] = make()

    collect("chain", lambda: decode(ChainSettings, plain(usable.chain), "chain"))
    collect("trainer", lambda: decode(TrainerSettings, plain(usable.trainer), "trainer"))
    collect("evaluation", lambda: decode(Evaluation, plain(usable.evaluate), "evaluate"))
    if {"chain", "trainer"} <= parts.keys():
        collect("together", lambda: check_together(parts["chain"], parts["trainer"]))
    collect("temperature", lambda: check_temperature(usable.temperature))
    collect("prior", lambda: instantiate(cfg.prior))
    collect("dataset", lambda: instantiate(without_limits(cfg.dataset)[0]))
    collect("sampler", lambda: _checked(factory(usable.sampler), partial(check_sampler, seed=usable.seed)))
    collect("warmup", lambda: _checked(factory(usable.chain.warmup.optimizer), check_warmup), "chain.warmup.optimizer")
    collect("model", lambda: _checked(factory(cfg.model), partial(check_model_settings, target=cfg.model._target_)))
    collect("starts", lambda: starts(cfg), "model")
    collect("likelihood", lambda: _likelihood(cfg))
    collect("ood", lambda: _second_dataset(cfg, parts["evaluation"]) if "evaluation" in parts else None)
    if run is not None and usable is cfg:
        with problems.collect():
            run.check(plain(cfg))
    problems.raise_if_any()  # reading the data is work: it waits until the settings are right
    labels = isinstance(parts["likelihood"], Bernoulli)
    dataset, limits = without_limits(cfg.dataset)
    experiment = Experiment(
        name=cfg.name,
        seed=cfg.seed,
        temperature=cfg.temperature,
        make_model=parts["model"],
        make_data=partial(made_data, factory(dataset), limits, labels=labels),
        likelihood=parts["likelihood"],
        prior=parts["prior"],
        make_sampler=parts["sampler"],
        make_warmup=parts["warmup"],
        chain=parts["chain"],
        trainer=parts["trainer"],
        evaluation=parts["evaluation"],
        record=plain(cfg),
        make_ood=parts["ood"],
        starts=parts["starts"],
        trained=bool(parts["starts"].weights),
        callbacks={name: factory(node) for name, node in members(cfg.callbacks).items()},
        loggers={name: factory(node) for name, node in members(cfg.logger).items()},
    )
    data = limited(load_data(parts["dataset"], labels), **limits)
    experiment = experiment.holding(data).with_batch_size()
    check_fit(experiment)
    return experiment.holding(experiment.as_taken(experiment.data))


def of_settings(settings: Mapping[str, Any], run: RunDirectory | None = None) -> Experiment:
    """`to_experiment` of a configuration as plain values."""
    return to_experiment(OmegaConf.create(dict(settings)), run)


def load_experiment(run: RunDirectory, trust: Any = None, data_path: str | None = None, **evaluate: Any) -> Experiment:
    """The experiment of a run that is there, on the CPU if there is no GPU.

    Args:
        run: its directory, wherever it lies now.
        trust: packages, modules or classes not of bayeslora that its configuration may name: one name, or several.
        data_path: where the dataset lies now; None: where the run found it.
        evaluate: other settings of its evaluation; None leaves one as it is.

    Raises:
        ConfigError: a path for a dataset that has none, or a run whose examples are those of a program.
        DataError: there is no run, or it names or points to what it should not.
    """
    experiment = of_settings(recorded_settings(run, trust, data_path, **evaluate))
    added = {key: value for key, value in run.config.items() if key in ("asked", "tuning")}
    return experiment.but(record={**experiment.record, **added})


def recorded_settings(
    run: RunDirectory, trust: Any = None, data_path: str | None = None, **evaluate: Any
) -> dict[str, Any]:
    """What `load_experiment` makes an experiment of, as plain values."""
    if (examples := in_memory(run.config.get("dataset"))) is not None:
        raise ConfigError(
            f"this run was sampled by bayeslora.sample from examples of a program (digest {examples.get('digest')});"
            " repeat the call there, with run_dir=… and test_dataset=…, to evaluate it"
        )
    config = relocated(run.trusted(names(trust)), run.root)
    if not torch.cuda.is_available() and isinstance(config.get("trainer"), dict):
        config["trainer"] |= {"accelerator": "cpu", "channels_last": False}  # a run from elsewhere
    if data_path is not None:
        dataset = config["dataset"]
        require("path" in dataset, f"dataset.path={data_path}: {dataset['_target_']} is read from no path")
        dataset["path"] = str(user_path(data_path))
    begun = config["model"].get("checkpoint") if isinstance(config.get("model"), dict) else None
    if begun is not None and not all(Path(file).is_file() for file in as_list(begun)):
        log.warning("model.checkpoint=%s is there no more: what the run did not sample is as the model makes it", begun)
        config["model"]["checkpoint"] = None  # the draws have all that is sampled
    config["evaluate"] = {
        **config.get("evaluate", {}),
        **{key: one for key, one in evaluate.items() if one is not None},
    }
    return config


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration resolved to plain Python."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def starts(cfg: DictConfig) -> Starts:
    """The weights that `model.checkpoint` names; the digests of what they are now are noted beside it.

    Raises:
        ConfigError: there is no such file.
        DataError: one cannot be read, or is not that of a run's beginning.
    """
    beside = apart(cfg.model) if "_target_" in cfg.model else {}
    if (named := beside.get("checkpoint")) is None:
        return Starts()
    paths, digests = as_list(named), as_list(beside.get("checkpoint_digest") or [None] * len(as_list(named)))
    require(bool(paths), "model.checkpoint=[] names no file; give one, or one a chain, or null")
    require(len(digests) == len(paths), f"model.checkpoint_digest has {len(digests)} entries for {len(paths)} files")
    files = tuple(Checkpoint(str(path), known).with_digest() for path, known in zip(paths, digests, strict=True))
    found = [file.digest for file in files]
    OmegaConf.update(cfg, "model.checkpoint_digest", found if is_list(named) else found[0], force_add=True)
    return Starts(files)


def as_list(named: Any) -> list[Any]:
    """What a setting names, one thing or a list of them, as a list."""
    return list(named) if is_list(named) else [named]


def is_list(named: Any) -> bool:
    """Whether a setting is a list, OmegaConf's or Python's."""
    return isinstance(named, list | ListConfig)


def _checked(make: Callable[..., Any], check: Callable[[Callable[..., Any]], None]) -> Callable[..., Any]:
    check(make)
    return make


def _likelihood(cfg: DictConfig) -> Likelihood:
    """The likelihood that a configuration names; classes where it names none."""
    node = cfg.get("likelihood")
    made: Likelihood = Categorical() if node is None else instantiate(node)
    return made


def _second_dataset(cfg: DictConfig, evaluation: Evaluation) -> Callable[[], Data] | None:
    """What loads the dataset that `evaluate.ood` names, if any; its texts and its test set are cut as the run's own.

    Raises:
        ConfigError: there is no such dataset.
    """
    name, path = evaluation.ood, evaluation.ood_path
    if name is None:
        return None
    folder = Path(CONF_DIR) / "dataset"
    choices = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in choices:
        close = get_close_matches(name, choices, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(choices)}"
        raise ConfigError(f"evaluate.ood={name} is no dataset; {hint}")
    node: Any = OmegaConf.load(folder / f"{name}.yaml")
    if "_target_" not in node:  # a variant of another file
        node = OmegaConf.merge(OmegaConf.load(folder / "glue.yaml"), node)
    node.pop("defaults", None)
    if path is not None:
        node["path"] = path
    if "augment" in node:
        node["augment"] = False
    for cut in ("max_length", "limit_test"):
        if cut in node and cut in cfg.dataset:
            node[cut] = cfg.dataset[cut]
    whole = OmegaConf.create({"dataset": node, "model": cfg.model})
    return partial(made_data, factory(whole.dataset))
