"""Sampling without Hydra: `bayeslora.sample` for anyone's module and map-style dataset."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bayeslora.atomic import digest, user_path
from bayeslora.chain.plan import Plan
from bayeslora.codec import decode, encode
from bayeslora.compatibility import check_fit, check_task
from bayeslora.datasets.base import Data, Split
from bayeslora.datasets.in_memory import from_examples
from bayeslora.engine.callbacks.milestones import Online
from bayeslora.engine.callbacks.progress import Progress
from bayeslora.engine.callbacks.thermometer import Thermometer
from bayeslora.engine.pipeline import prepared, sampled
from bayeslora.errors import ConfigError, DivergedError, Problems, require
from bayeslora.evaluation.run import check_recorded_nll, evaluate
from bayeslora.experiment import Experiment
from bayeslora.factories import check_arguments, described, naming, of_instance, settings_of, target_of
from bayeslora.likelihood import LIKELIHOODS, Bernoulli, Categorical, Gaussian, Likelihood
from bayeslora.models.starts import OfModule, Starts
from bayeslora.parts import check_kind, check_sampler, check_temperature, copied, precision_of
from bayeslora.posterior import Posterior
from bayeslora.potential import Prior, matches
from bayeslora.runs.directory import RunDirectory
from bayeslora.runs.identity import Fingerprint, first_few
from bayeslora.samplers import BY_NAME, Sampler
from bayeslora.settings import AUTO, ChainSettings, Evaluation, TrainerSettings, in_arguments

DEFAULT_PRIOR: dict[str, Any] = {"variance": 2.0, "scaling": "fan_in"}
"""The prior of `sample`, that of conf/prior/fan_in.yaml; docs/step-size.md says what others gave."""
LORA_PRIOR = {"lora_A": 0.001, "lora_B": 0.01}
"""Variances of LoRA tensors, as in `conf/prior/lora.yaml`: 2 / fan-in of B, 2 / r, would let it outweigh the base."""
CHAINS = 4
"""How many there are where no number is given."""
DEVICES = ("cpu", "cuda", "cuda:0")


@contextmanager
def _told_by_argument() -> Iterator[None]:
    """Errors raised within name arguments of `sample`, not settings; also a decorator."""
    try:
        yield
    except ConfigError as error:
        error.problems = [in_arguments(problem) for problem in error.problems]
        error.args = ("\n".join(error.problems),)
        raise
    except DivergedError as error:
        error.args = (in_arguments(str(error)),)
        raise


@_told_by_argument()
def sample(
    model: nn.Module | Sequence[nn.Module] | Callable[[], nn.Module], dataset: Any,
    sampler: str | Callable[..., Sampler] = "baoab", *, likelihood: str | Likelihood | None = None,
    prior: Prior | float | None = None, temperature: float = 1.0, lr: float | str | None = None,
    chains: int | None = None, draws: int = 200, thin: int | str = AUTO, burn_in: int | str = AUTO, warmup: int = 500,
    warmup_lr: float = 1e-2, plan: Plan | None = None, batch_size: int | str | None = AUTO, val_dataset: Any = None,
    test_dataset: Any = None, class_names: tuple[str, ...] | None = None, seed: int = 0, parallel: str = AUTO,
    device: str = "cpu", run_dir: Path | str | None = None, name: str = "sample", progress: bool = True,
    report: bool = True, sampler_settings: Mapping[str, Any] | None = None,
    chain_settings: Mapping[str, Any] | None = None,
) -> Posterior:  # fmt: skip
    """Sample the posterior of a model given a dataset; what is sampled are the parameters that require a gradient.

    Args:
        model: maps a batch of inputs to logits [B, C] (classes) or means [B, D] (regression). A module: every chain
            begins with its weights, which with `warmup=0` are the MAP baseline. A list of modules (a deep ensemble), or
            a function that makes one: each chain with its own, which lets R-hat see more.
        dataset: map-style, of (input, target) items, or a pair of tensors (inputs, targets). An input may be a
            dictionary of several, which the model takes as keywords; so may be an item that holds its `label` too.
            Whole-number targets are classes, one an example or, [N, …], one at each position of the outputs [B, C, …];
            floats are real numbers, which take the model's precision, float32 or float64; with `"bernoulli"` both are
            labels. Read into memory once, so random augmentation in it happens once.
        sampler: by name (`sgld`, `sghmc`, `baoab`, `psgld`, `map`, …: `bayeslora.samplers.BY_NAME`), or what makes one,
            such as `SGHMC` or `partial(SGHMC, momentum=0.8)`.
        likelihood: `"categorical"`, `"bernoulli"` (labels [N, L] of 1, 0, and -1 or NaN where one is not known),
            `"gaussian"` (one sampled noise a target), an object such as `Gaussian(noise=0.1)`; None: by the targets.
        prior: a `Prior`, or the variance of N(0, ·) on every parameter; None: variance / fan-in on weights, as
            `DEFAULT_PRIOR` says, and on LoRA tensors as `LORA_PRIOR` does.
        temperature: 1 is the Bayes posterior.
        lr: step size ε on the mean loss, or `"auto"`: step sizes by block, which a pilot finds before the chains begin
            and which are recorded (docs/step-size.md). None: the sampler's own (`bayeslora.samplers.BY_NAME`, or what
            makes it), which is `"auto"` of the default sampler alone, together with its momentum.
        chains, draws, thin, burn_in: chains (None: four, or one a module of a list), draws kept of each, steps a draw,
            steps before the first; `"auto"`: as the slowest block calls for.
        warmup, warmup_lr: steps of AdamW (without weight decay) to the MAP baseline, from which burn-in begins.
        plan: the phases in one, in the place of `draws`, `thin`, `burn_in` and `warmup`.
        batch_size: None for all the data; `"auto"`: that if they are few, else what costs least (docs/step-size.md).
        val_dataset, test_dataset: further examples: every draw is scored on the first; on the second the posterior is
            evaluated (`posterior.metrics`, and a report in the run directory).
        class_names: by class, or by label.
        seed: of batches and noise.
        parallel: `"sequential"`, or `"stacked"`: all chains in one pass; `"auto"`: that for small models that can be.
        device: `"cpu"` or `"cuda"`, the first GPU that is visible.
        run_dir: where draws are kept (`~` is the home); a repeated call goes on there. None: a folder that goes with
            the posterior.
        name: of the run, in reports.
        progress, report: print how chains come on; write the page of an evaluation, which takes seconds.
        sampler_settings, chain_settings: further arguments of the sampler, and keys of `conf/chain/default.yaml`.

    Returns:
        A `Posterior`, which predicts, iterates over draws, saves.

    Raises:
        ConfigError: settings, model and data do not fit each other; nothing was started.
        DivergedError: a chain left the finite numbers.

    Examples:
        >>> x, y = torch.randn(64, 3), torch.randint(2, (64,))
        >>> posterior = sample(nn.Linear(3, 2), (x, y), chains=1, draws=5, thin=1, burn_in=5, warmup=5, progress=False)
        >>> posterior.predict(x).exp().shape
        torch.Size([64, 2])
    """
    labels = likelihood == "bernoulli" or isinstance(likelihood, Bernoulli)
    data = from_examples(dataset, test_dataset, val_dataset, name=name, class_names=class_names, precision=None,
                         labels=labels)  # fmt: skip
    one, starts = _starts(model)
    example = _example(one)
    data = data.in_precision(precision_of(example)) if data.reals else data
    phases = {"warmup": warmup, "num_draws": draws, "thin": thin, "burn_in": burn_in} if plan is None else vars(plan)
    run, keeps = _run(run_dir)
    experiment = _experiment(
        _chain(phases | {"parallel": parallel}, chains, starts, batch_size, len(data.train))
        | _plain(chain_settings or {}),
        make_model=_model(one), make_warmup=_warmup(_plain(warmup_lr)), data=data, run=run, kept=keeps is None,
        starts=starts, make_sampler=_sampler(sampler, _plain(lr), _plain(sampler_settings or {})),
        likelihood=_likelihood(likelihood, data), prior=_prior(prior, example), trainer=_trainer(device),
        callbacks={"thermometer": Thermometer} | ({"online": Online, "progress": Progress} if progress else {}),
        evaluation=Evaluation(report=report), **_plain({"name": name, "seed": seed, "temperature": temperature}),
    )  # fmt: skip
    return _sampled(prepared(experiment, run), run, keeps, evaluated=test_dataset is not None)


def _chain(
    phases: Mapping[str, Any], chains: int | None, starts: Starts, batch_size: int | str | None, examples: int
) -> dict[str, Any]:
    """Settings of the chains as `conf/chain/default.yaml` has them."""
    chains = (len(starts.weights) or CHAINS) if chains is None else chains
    size = min(batch_size, examples) if isinstance(batch_size, int | np.integer) else batch_size
    return _plain({**phases, "warmup": {"steps": phases["warmup"]}, "num_chains": chains, "batch_size": size})


def _trainer(device: Any) -> TrainerSettings:
    require(str(device) in DEVICES, f"device={device}: choose {' or '.join(DEVICES[:2])}; another GPU than the first is"
            " chosen by CUDA_VISIBLE_DEVICES=1 in the environment")  # fmt: skip
    on_gpu = str(device) != "cpu"
    require(not on_gpu or torch.cuda.is_available(), f"device={device}: torch sees no CUDA device; choose cpu")
    return TrainerSettings(accelerator="gpu" if on_gpu else "cpu")


def _run(run_dir: Path | str | None) -> tuple[RunDirectory, Any]:
    """The run directory, and what keeps it where it is a temporary one."""
    if run_dir is not None:
        return RunDirectory(user_path(run_dir)), None
    folder = tempfile.TemporaryDirectory(prefix="bayeslora-")
    return RunDirectory(Path(folder.name)), folder


def _sampled(experiment: Experiment, run: RunDirectory, keeps: Any, evaluated: bool) -> Posterior:
    """The chains run, and their draws checked or evaluated."""
    if (short := experiment.short_burn_in()) is not None:
        warnings.warn(in_arguments(short), stacklevel=4)
    experiment, stopped = sampled(experiment, run)
    if stopped:
        raise DivergedError("; ".join(dict.fromkeys(stopped.values())), list(stopped))
    posterior = Posterior.load(run.root, experiment.model(), experiment.likelihood)
    posterior.transform, posterior._keeps = experiment.data.transform, keeps
    if evaluated:
        posterior.metrics = evaluate(run, experiment)
        if keeps is not None:
            print("draws and report are in a temporary folder, which goes with the posterior; run_dir=… keeps them")  # noqa: T201
    else:
        check_recorded_nll(posterior, experiment)
    return posterior


def _experiment(
    chain: dict[str, Any], *, make_model: partial[nn.Module], make_sampler: partial[Sampler],
    make_warmup: partial[torch.optim.AdamW], starts: Starts, data: Data, likelihood: Likelihood, prior: Prior,
    trainer: TrainerSettings, callbacks: dict[str, Callable[..., Any]], evaluation: Evaluation, run: RunDirectory,
    kept: bool, name: str, seed: int, temperature: float,
) -> Experiment:  # fmt: skip
    """All parts, checked, with what `config.yaml` records; every problem is reported at once."""
    problems, settings = Problems(), ChainSettings()
    problems.add(*check_arguments(make_sampler.func, make_sampler.keywords, "sampler"))
    if not problems.messages:
        with problems.collect():
            check_sampler(make_sampler, seed)
    optimizer = described(make_warmup.func, _partial_=True, **make_warmup.keywords)
    with problems.collect():
        settings = decode(ChainSettings, chain | {"warmup": {"optimizer": optimizer} | chain["warmup"]}, "chain")
    if settings.parallel == "processes":
        problems.add("parallel=processes needs a configuration; choose sequential or stacked")
    if type(seed) is not int:
        problems.add(f"seed={seed!r} must be a whole number")
    with problems.collect():
        check_temperature(temperature)
    record = _plain(
        {
            "name": name,
            "seed": seed,
            "temperature": temperature,
            "run_dir": str(run.root) if kept else None,
            "resume": False,
            "dataset": {"in_memory": _described_examples(data.train)},
            "model": _described_model(make_model.args[0], starts),
            "sampler": described(make_sampler.func, _partial_=True, **make_sampler.keywords),
            "prior": of_instance(prior),
            "likelihood": of_instance(likelihood),
            "chain": encode(settings),
            "trainer": encode(trainer),
            "logger": None,
            "callbacks": {key: described(make) for key, make in callbacks.items()} or None,
            "evaluate": encode(evaluation),
        }
    )
    with problems.collect():
        run.check(record)
    with problems.collect():
        check_task(data, likelihood)
    problems.raise_if_any()
    experiment = Experiment(
        name, seed, temperature, make_model, partial(_identity, data), likelihood, prior, make_sampler, make_warmup,
        settings, trainer, evaluation, record, callbacks=callbacks, starts=starts,
        trained=isinstance(make_model.args[0], nn.Module),
    ).holding(data).with_batch_size()  # fmt: skip
    check_fit(experiment)
    return experiment


def _identity(data: Data) -> Data:
    return data


def _new_model(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """A copy of the module, or a new one."""
    return copied(model) if isinstance(model, nn.Module) else model()


def _model(model: nn.Module | Callable[[], nn.Module]) -> partial[nn.Module]:
    """The model's factory."""
    require(callable(model), f"model must be a module, or a function that makes one, not {type(model).__name__}")
    return partial(_new_model, model)


def _sampler(sampler: str | Callable[..., Sampler], lr: float | None, settings: dict[str, Any]) -> partial[Sampler]:
    """The sampler's factory, with all its settings."""
    if isinstance(sampler, str):
        require(sampler in BY_NAME, f"sampler={sampler} is unknown; choose one of {', '.join(sorted(BY_NAME))}")
        sampler = BY_NAME[sampler]
    require(callable(sampler), f"sampler must be a name or a class of samplers, not {type(sampler).__name__}")
    target, own = target_of(sampler), _plain(settings_of(sampler))
    usual = {target_of(make): {"lr": settings_of(make)["lr"]} for make in BY_NAME.values()}
    parameters = inspect.signature(target).parameters.values()
    left = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
    given = {} if lr is None else {"lr": lr}
    return partial(target, **left | usual.get(target, {}) | own | given | settings)


def _warmup(lr: float) -> partial[torch.optim.AdamW]:
    require(lr > 0, f"warmup_lr={lr} must be a positive number")
    return partial(torch.optim.AdamW, lr=lr, weight_decay=0.0)


def _likelihood(likelihood: str | Likelihood | None, data: Data) -> Likelihood:
    if likelihood is None:
        return Categorical(data.axes) if data.real is None else Gaussian()
    if not isinstance(likelihood, str):
        return likelihood
    names = ", ".join(LIKELIHOODS)
    require(likelihood in LIKELIHOODS, f"likelihood={likelihood} is unknown; choose one of {names}")
    made: Likelihood = Categorical(data.axes) if likelihood == "categorical" else LIKELIHOODS[likelihood]()
    return made


def _prior(prior: Prior | float | None, model: nn.Module) -> Prior:
    if isinstance(prior, Prior):
        return prior
    if prior is not None:
        return Prior(float(prior))
    sampled = [name for name, p in model.named_parameters() if p.requires_grad]
    adapted = any(matches(name, tensor) for name in sampled for tensor in LORA_PRIOR)
    return Prior(**DEFAULT_PRIOR, overrides=LORA_PRIOR if adapted else None)


def _plain(value: Any) -> Any:
    """Settings with NumPy's and torch's numbers as Python's."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    is_number = isinstance(value, np.generic | np.ndarray | torch.Tensor) and value.ndim == 0
    return value.item() if is_number else value


def _example(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The model, or one that its function makes, to look at."""
    with torch.random.fork_rng(devices=[]), naming("model"):
        made = model if isinstance(model, nn.Module) else _model(model)()
        check_kind(made)
        return made


def _starts(model: Any) -> tuple[Any, Starts]:
    """The model, or the first of several modules, and with what weights chains begin where each has its own.

    Raises:
        ConfigError: they are none, or not modules of one kind.
    """
    if not isinstance(model, list | tuple | nn.ModuleList):
        return model, Starts()
    require(len(model) > 0, "model: no module is given; give one, or as many as there are chains")
    for one in model:
        check_kind(one)
    first = Fingerprint.of(model[0])
    for number, one in enumerate(model):
        differences = Fingerprint.of(one).differences(first)
        require(not differences, f"model[{number}] is not the model that model[0] is: {first_few(differences)}")
    return model[0], Starts(tuple(OfModule(one, f"model[{number}]") for number, one in enumerate(model)))


def _described_model(model: nn.Module | Callable[[], nn.Module], starts: Starts) -> dict[str, Any]:
    """A model's name and, of a module, its state, or those of several: other weights are another run."""
    if not isinstance(model, nn.Module):
        return {"_target_": f"{getattr(model, '__module__', '')}.{getattr(model, '__qualname__', 'model')}"}
    check_kind(model)
    states = [digest(dict(one.fitting(model)))[:16] for one in starts.weights]
    return described(type(model), state=states or digest(model.state_dict())[:16])


def _described_examples(split: Split) -> dict[str, Any]:
    """Their number, the shapes of one's inputs, by name, and targets, and the digest of all."""
    inputs = split.inputs if isinstance(split.inputs, Mapping) else {"inputs": split.inputs}
    tensors = {**inputs, "targets": split.targets}
    shapes = {name: list(tensor.shape[1:]) for name, tensor in tensors.items()}
    return {"examples": len(split), "shapes": shapes, "digest": digest(tensors)[:16]}
