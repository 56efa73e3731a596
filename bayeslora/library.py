"""Sampling without Hydra: `bayeslora.sample` for anyone's module and map-style dataset."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from bayeslora.build import Setup, check_values, plain
from bayeslora.chains.plan import Plan
from bayeslora.chains.trial import try_step
from bayeslora.config import CONF_DIR, IN_PYTHON, RootConfig, check_target, instantiate
from bayeslora.datasets.base import Data
from bayeslora.datasets.batches import Batches
from bayeslora.datasets.examples import from_examples
from bayeslora.errors import ConfigError, DivergedError, Problems, require
from bayeslora.files import digest, user_path
from bayeslora.fit import check_kind, check_names, check_outputs, check_task, copied
from bayeslora.likelihood import LIKELIHOODS, Categorical, Gaussian, Likelihood
from bayeslora.posterior import Posterior
from bayeslora.potential import Potential, Prior
from bayeslora.rundir import RunDirectory

DEVICES = ("cpu", "cuda", "cuda:0")


def sample(
    model: nn.Module | Callable[[], nn.Module], dataset: Any, sampler: str = "sghmc", *,
    likelihood: str | Likelihood | None = None, prior: Prior | float = 0.1, temperature: float = 1.0,
    lr: float | None = None, chains: int = 4, draws: int = 100, thin: int = 40, burn_in: int = 1000,
    warmup: int = 500, warmup_lr: float = 1e-3,
    batch_size: int | None = 128, val_dataset: Any = None, test_dataset: Any = None,
    class_names: tuple[str, ...] | None = None, seed: int = 0, parallel: str = "sequential", device: str = "cpu",
    run_dir: Path | str | None = None, name: str = "sample", progress: bool = True,
    sampler_settings: Mapping[str, Any] | None = None, chain_settings: Mapping[str, Any] | None = None,
) -> Posterior:  # fmt: skip
    """Sample the posterior of a model given a dataset; what is sampled are the parameters that require a gradient.

    Args:
        model: maps a batch of inputs to logits [B, C] (classes) or means [B, D] (regression). A module: every chain
            begins with its weights. A function that makes one: every chain with its own, drawn under the chain's seed,
            which lets R-hat see more.
        dataset: map-style, of (input, target) items, or a pair of tensors (inputs, targets). Whole-number targets are
            classes, floats are real numbers, which take the model's precision, float32 or float64. Read into memory
            once, so random augmentation in it happens once.
        sampler: a file in `conf/sampler`: `sgld`, `sghmc`, `baoab`, `psgld`, `map`, ….
        likelihood: `"categorical"`, `"gaussian"` (one sampled noise a target), an object such as
            `Gaussian(noise=0.1)`; None: by the targets.
        prior: a `Prior`, or the variance of N(0, ·) on every parameter.
        temperature: 1 is the Bayes posterior.
        lr: step size ε on the mean loss; None: that of `conf/sampler/<sampler>.yaml`. With the defaults of sampler,
            prior and lr a burn-in of 1,000 steps is enough for up to 1,600 examples; a warning says what others need.
        chains, draws, thin, burn_in: chains, draws kept of each, steps a draw, steps before the first.
        warmup, warmup_lr: steps of AdamW (without weight decay) to the MAP baseline, from which burn-in begins.
        batch_size: None for all the data at every step.
        val_dataset, test_dataset: further examples: every draw is scored on the first; on the second the posterior is
            evaluated (`posterior.metrics`, and a report in the run directory).
        class_names: by class.
        seed: of batches and noise.
        parallel: `"sequential"`, or `"stacked"`: all chains in one pass.
        device: `"cpu"` or `"cuda"`, the first GPU that is visible.
        run_dir: where draws are kept (`~` is the home); a repeated call goes on there. None: a folder that goes with
            the posterior.
        name: of the run, in reports.
        progress: print how chains come on.
        sampler_settings, chain_settings: further keys of `conf/sampler/<sampler>.yaml` and `conf/chain/default.yaml`.

    Returns:
        A `Posterior`, which predicts, iterates over draws, saves.

    Raises:
        ConfigError: settings, model and data do not fit each other; nothing was started.
        DivergedError: a chain left the finite numbers.

    Example:
        >>> x, y = torch.randn(64, 3), torch.randint(2, (64,))
        >>> posterior = sample(nn.Linear(3, 2), (x, y), chains=1, draws=5, thin=1, burn_in=5, warmup=5, progress=False)
        >>> posterior.predict(x).exp().shape
        torch.Size([64, 2])
    """
    require(str(device) in DEVICES, f"device={device}: choose {' or '.join(DEVICES[:2])}; another GPU than the first is"
            " chosen by CUDA_VISIBLE_DEVICES=1 in the environment")  # fmt: skip
    parts = (dataset, test_dataset, val_dataset)
    data = from_examples(*parts, name=name, class_names=class_names, precision=_precision(model))
    chosen = _likelihood(likelihood, data)
    given = prior if isinstance(prior, Prior) else Prior(float(prior))
    folder, keeps = (user_path(run_dir), None) if run_dir is not None else _temporary()
    size = batch_size if batch_size is None else min(batch_size, len(data.train))
    lengths = {"num_chains": chains, "num_draws": draws, "thin": thin, "burn_in": burn_in, "batch_size": size}
    chain = lengths | {"parallel": parallel, "warmup": _warmup(warmup, warmup_lr)} | dict(chain_settings or {})
    cfg = _composed(
        name=name, seed=seed, temperature=temperature, run_dir=str(folder), chain=chain,
        sampler=_sampler(sampler, lr, sampler_settings), prior=_described(given, vars(given)),
        likelihood=_described(chosen, vars(chosen)), model=_described_model(model),
        dataset={"_target_": IN_PYTHON, "examples": digest(vars(data.train))[:16]},
        callbacks=_callbacks(progress),
        trainer={"accelerator": "cpu" if str(device) == "cpu" else "gpu"},
    )  # fmt: skip
    run = RunDirectory(folder)
    posterior = _sampled(_setup(cfg, data, chosen, given, model, run), run, evaluated=test_dataset is not None)
    posterior._keeps = keeps
    return posterior


@dataclass
class OwnSetup(Setup):
    """The parts of a run whose model is anyone's object."""

    own: nn.Module | Callable[[], nn.Module] | None = None

    def make(self) -> nn.Module:
        """A copy of the module, or a new one."""
        made = copied(self.own) if isinstance(self.own, nn.Module) else self.own()  # type: ignore[misc]
        check_kind(made)
        return self.likelihood.attach(made, self.data.num_classes)

    def structure(self) -> nn.Module:
        return self.model()


def _setup(
    cfg: DictConfig,
    data: Data,
    likelihood: Likelihood,
    prior: Prior,
    model: nn.Module | Callable[[], nn.Module],
    run: RunDirectory,
) -> OwnSetup:
    """All parts, checked; every problem is reported at once."""
    problems = Problems()
    unknown = list(check_target(cfg.sampler, "sampler"))
    problems.add(*unknown)
    check_values(cfg, problems)
    if cfg.chain.parallel == "processes":
        problems.add("parallel=processes needs a configuration; choose sequential or stacked")
    chain = cfg.chain
    with problems.collect():
        run.check(plain(cfg))
    with problems.collect():
        Batches(data, chain.batch_size, cfg.seed, 0)
    with problems.collect():
        plan = Plan(chain.warmup.steps, chain.burn_in, chain.num_draws, chain.thin, chain.cycles, chain.exploration)
    with problems.collect():
        check_task(data, likelihood)
    if not unknown:
        with problems.collect():
            make_sampler = instantiate(cfg.sampler)
            make_sampler([nn.Parameter(torch.zeros(1))], kT=1.0, seed=cfg.seed, chain=0)
    problems.raise_if_any()
    potential = Potential(likelihood.extend(prior), len(data.train))
    where = torch.device("cuda", 0) if cfg.trainer.accelerator == "gpu" else torch.device("cpu")
    warmup = instantiate(chain.warmup.optimizer)
    setup = OwnSetup(cfg, data, potential, plan, make_sampler, warmup, where, likelihood, own=model)
    made = setup.model().cpu()
    require(any(p.requires_grad for p in made.parameters()), "model: no parameter requires a gradient: none to sample")
    check_names(cfg, made)
    check_outputs(made, data, likelihood, f"model: {type(made).__name__}")
    setup.identify(run)
    try_step(setup)
    return setup


def _sampled(setup: Setup, run: RunDirectory, evaluated: bool) -> Posterior:
    """Run the chains to their ends, and perhaps evaluate what they found.

    Raises:
        DivergedError: some did not reach theirs.
    """
    from bayeslora.chains.runner import ChainRunner
    from bayeslora.evaluate import evaluate
    from bayeslora.evaluation.rechecks import check_draws, check_recorded_nll

    run.open(plain(setup.cfg), setup.fingerprint, setup.fixed)
    if (short := setup.short_burn_in()) is not None:
        warnings.warn(short, stacklevel=3)
    check_draws(run, setup)
    stopped = ChainRunner(setup, run).run_all(setup.chains)
    if stopped:
        raise DivergedError("; ".join(stopped.values()), list(stopped))
    posterior = Posterior.load(run.root, setup.model(), setup.likelihood)
    posterior.transform = setup.data.transform
    if evaluated:
        posterior.metrics = evaluate(run, setup)
    else:
        check_recorded_nll(posterior, setup)
    return posterior


def _likelihood(likelihood: str | Likelihood | None, data: Data) -> Likelihood:
    if likelihood is None:
        return Categorical() if data.real is None else Gaussian()
    if not isinstance(likelihood, str):
        return likelihood
    known = ", ".join(LIKELIHOODS)
    require(likelihood in LIKELIHOODS, f"likelihood={likelihood} is unknown; choose one of {known}")
    made: Likelihood = LIKELIHOODS[likelihood]()
    return made


def _sampler(name: str, lr: float | None, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The node of `conf/sampler/<name>.yaml` with a step size, if one is given, and further settings."""
    file = Path(CONF_DIR) / "sampler" / f"{name}.yaml"
    known = ", ".join(sorted(other.stem for other in file.parent.glob("*.yaml")))
    require(file.is_file(), f"sampler={name} is unknown; choose one of {known}")
    node = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()} | ({} if lr is None else {"lr": lr}) | dict(settings or {})


def _warmup(steps: int, lr: float) -> dict[str, Any]:
    require(lr > 0, f"warmup_lr={lr} must be a positive number")
    optimizer = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": lr, "weight_decay": 0.0}
    return {"steps": steps, "optimizer": optimizer}


def _callbacks(progress: bool) -> dict[str, Any]:
    """The default callbacks; without those that print, if they are not wanted."""
    node = OmegaConf.to_container(OmegaConf.load(Path(CONF_DIR) / "callbacks" / "default.yaml"))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items() if progress or key == "thermometer"}


def _composed(**settings: Any) -> DictConfig:
    """A configuration as the commands compose it, of these settings and the defaults of the rest."""
    from omegaconf.errors import OmegaConfBaseException

    from bayeslora.config import first_line

    try:
        merged = OmegaConf.merge(OmegaConf.structured(RootConfig), OmegaConf.create(_python(settings)))
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from error
    cfg = OmegaConf.create(OmegaConf.to_container(merged))
    assert isinstance(cfg, DictConfig)
    return cfg


def _python(value: Any) -> Any:
    """Settings with NumPy's and torch's numbers as Python's."""
    if isinstance(value, Mapping):
        return {key: _python(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_python(entry) for entry in value]
    is_number = isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.ndim == 0)
    return value.item() if is_number else value


def _precision(model: nn.Module | Callable[[], nn.Module]) -> torch.dtype:
    """That of the model's parameters, where it is there already; a function's is torch's own for new ones."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    kinds = {p.dtype for p in parameters if p.is_floating_point()} or {torch.get_default_dtype()}
    return torch.float64 if torch.float64 in kinds else torch.float32


def _described(what: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """An object as a node of a configuration."""
    kind = type(what)
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **settings}


def _described_model(model: nn.Module | Callable[[], nn.Module]) -> dict[str, Any]:
    """A model's name and, of a module, its state: other weights are another run."""
    if not isinstance(model, nn.Module):
        require(callable(model), f"model must be a module, or a function that makes one, not {type(model).__name__}")
        return {"_target_": f"{getattr(model, '__module__', '')}.{getattr(model, '__qualname__', 'model')}"}
    check_kind(model)
    return _described(model, {"state": digest(model.state_dict())[:16]})


def _temporary() -> tuple[Path, Any]:
    folder = tempfile.TemporaryDirectory(prefix="bayeslora-")
    return Path(folder.name), folder
