"""Posterior-predictive ensembles, streamed: memory does not grow with the number of draws."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bayeslora.atomic import digest
from bayeslora.counts import counted
from bayeslora.errors import BayesloraError, DataError, require
from bayeslora.factories import FAILURES, in_memory
from bayeslora.likelihood import NOISE, Bernoulli, Categorical, Gaussian, Likelihood, OfClasses, from_recorded
from bayeslora.posterior.answers import ANSWERS_FILE, check_answers_of
from bayeslora.posterior.density import Mixture, NormalMixture, Normals, mixture_quantiles
from bayeslora.posterior.stacked import Ask, Loader, Read, StackedDraws, outputs, raw_outputs
from bayeslora.posterior.store import MAP_FILE, Draw, DrawStore, load_into, read_baseline, read_tensors
from bayeslora.runs.identity import Fingerprint, first_few, put_fixed
from bayeslora.runs.trust import read_config

if TYPE_CHECKING:
    from bayeslora.evaluation.results import Results
    from bayeslora.experiment import Experiment


def log_probs(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], likelihood: Likelihood, observed: bool = False
) -> Tensor:
    """log p(y|x, θ) of a classifier in evaluation mode, at least fp32, on the CPU.

    Args:
        model: gives logits.
        batches: of inputs and targets.
        likelihood: what the logits mean.
        observed: keep those predictions alone whose targets are known.

    Returns:
        [N, C]; of several predictions an example [N, …, C], or with `observed` [M, C].
    """
    return outputs(model, batches, reading(likelihood, observed))


def reading(likelihood: Likelihood, observed: bool = False) -> Read:
    """What is read of a batch's outputs: log p, `observed` of those predictions alone whose targets are known."""
    require(isinstance(likelihood, OfClasses), f"{type(likelihood).__name__} has no classes to predict")
    assert isinstance(likelihood, OfClasses)

    def read(logits: Tensor, targets: Tensor) -> Tensor:
        log_p = likelihood.log_p(logits)
        return log_p[:, likelihood.observed(targets)] if observed else log_p

    return read


def normals(outputs: Tensor, likelihood: Gaussian) -> tuple[Tensor, Tensor]:
    """Means and variances [N, D] of a regression model's outputs."""
    mean, log_variance = likelihood.moments(outputs)
    return mean, log_variance.exp()


class Posterior:
    """All draws of all chains of a run.

    Args:
        stores: one `DrawStore` a chain.
        model: a model to load draws into; None: that of the run in `root`, built when it is first needed.
        baselines: by chain, the warm-up's end point, where the run kept them; that of chain 0 is the MAP baseline.
        likelihood: what the model's outputs mean; None: classes.
        root: the run directory, if there is one.
        trust, data_path: of the run, as `load` has them.

    Attributes:
        metrics: the content of `metrics.json`, if the run was evaluated.
        transform: what is stored to model inputs (images of bytes to numbers, tokens), as the run made its own.

    Examples:
        >>> posterior = Posterior.load("outputs/quickstart/…")                         # doctest: +SKIP
        >>> p = posterior.predict(posterior.experiment.data.test).exp()                # doctest: +SKIP
    """

    def __init__(
        self,
        stores: list[DrawStore],
        model: nn.Module | None = None,
        baselines: Mapping[int, Path] | None = None,
        likelihood: Likelihood | None = None,
        root: Path | None = None,
        *,
        trust: str | Sequence[str] | None = None,
        data_path: Path | str | None = None,
    ) -> None:
        self.stores, self._model, self.baselines = stores, model, dict(baselines or {})
        self._trust, self._data_path = trust, data_path
        self.likelihood: Likelihood = likelihood or Categorical()
        self.root = root
        self.metrics: Results | None = None
        self.transform: Callable[[Tensor], Tensor] | None = None
        self._keeps: Any = None
        self._stacked: StackedDraws | None = None

    def __repr__(self) -> str:
        words = [f"{counted(len(self), 'draw')} of {counted(len(self.stores), 'chain')}"]
        words.append(type(self.likelihood).__name__)
        if self._model is not None:
            sampled = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
            words.append(f"{type(self._model).__name__} with {counted(sampled, 'sampled parameter')}")
        return f"Posterior({', '.join(words)}{f', in {self.root}' if self.root is not None else ''})"

    @classmethod
    def load(
        cls,
        run_dir: Path | str,
        model: nn.Module | None = None,
        likelihood: Likelihood | None = None,
        *,
        trust: str | Sequence[str] | None = None,
        data_path: Path | str | None = None,
    ) -> Posterior:
        """The posterior of a finished or half-finished run, or what `save` wrote.

        Args:
            run_dir: its folder.
            model: the one that was sampled: of the same structure, and with the same values of all that was not
                sampled. Its sampled tensors are replaced, and those that its function draws at random. None: built from
                the run's `config.yaml` when it is first needed, which loads the run's dataset; only `bayeslora.sample`
                records no way to build its model.
            likelihood: None: as the run's `config.yaml` says.
            trust: packages, modules or classes not of bayeslora that the configuration may name when it is built.
            data_path: where the run's dataset lies now; None: where the run found it.

        Raises:
            DataError: there is no draw in `run_dir`, or it is a run of another model.
        """
        root = Path(run_dir)
        folders = sorted((p for p in root.glob("chains/*") if p.name.isdigit()), key=lambda p: int(p.name))
        stores = [store for store in (DrawStore(p, int(p.name)) for p in folders) if len(store)]
        baselines = {int(p.name): p / MAP_FILE for p in folders if (p / MAP_FILE).exists()}
        if (root / MAP_FILE).exists():  # where runs of before kept chain 0's
            baselines.setdefault(0, root / MAP_FILE)
        if not stores and not baselines:
            raise DataError(f"{root} holds no draws yet; run bayeslora.train with run_dir={root} first")
        config_file = root / "config.yaml"
        config = read_config(config_file) if config_file.is_file() else {}
        likelihood = likelihood or from_recorded(config.get("likelihood"))
        if model is not None and config:
            _check_model(model, root, likelihood, stores)
        return cls(stores, model, baselines, likelihood, root, trust=trust, data_path=data_path)

    @cached_property
    def experiment(self) -> Experiment:
        """The run's parts, built from its `config.yaml`: model, likelihood, dataset (`experiment.data.test`), settings.

        Raises:
            DataError: there is no run directory, or it is that of a program that called `bayeslora.sample`.
            ConfigError: its dataset cannot be loaded, or its configuration names code that is not trusted.
        """
        config = read_config(file) if self.root and (file := self.root / "config.yaml").is_file() else {}
        dataset = config.get("dataset")
        if self.root is None or not dataset or in_memory(dataset):
            raise DataError(
                "this posterior does not say how its model is made: give it, Posterior.load(run_dir, model)"
            )
        from bayeslora.app.compose import load_experiment
        from bayeslora.runs.directory import RunDirectory

        return load_experiment(
            RunDirectory(self.root), self._trust, None if self._data_path is None else str(self._data_path)
        )

    @property
    def model(self) -> nn.Module:
        """The model into which draws are loaded: the one that was given, or that of `experiment`, on the CPU."""
        if self._model is None:
            model, experiment = self.experiment.model().cpu(), self.experiment
            assert self.root is not None
            _check_model(model, self.root, self.likelihood, self.stores)
            self._model, self.transform = model, experiment.data.transform
        return self._model

    def to(self, device: torch.device | str) -> Posterior:
        """This posterior, with its model on another device; inputs follow it, predictions are on the CPU."""
        self.model.to(device)
        return self

    def save(self, folder: Path | str) -> Path:
        """Copy draws, baseline and settings into a new folder, from which `load` reads them; returns it.

        Raises:
            DataError: the folder is there already and not empty.
        """
        target = Path(folder)
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
        if taken:
            raise DataError(f"{target} is there already; choose another folder")
        for store in self.stores:
            into = target / "chains" / str(store.chain)
            into.mkdir(parents=True)
            shutil.copytree(store.folder / "draws", into / "draws")
            shutil.copy2(store.manifest, into)
        for chain, file in self.baselines.items():
            into = target / "chains" / str(chain)
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, into)
        for name in ("fixed.safetensors", ANSWERS_FILE, "config.yaml", "metrics.json"):
            if self.root is not None and (self.root / name).is_file():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.root / name, target)
        return target

    def draws(self, chain: int | None = None) -> Iterator[Draw]:
        """All draws, or those of one chain, read one at a time."""
        for store in self.stores:
            if chain is None or store.chain == chain:
                yield from store

    def __len__(self) -> int:
        return sum(len(store) for store in self.stores)

    def rounds(self) -> Iterator[list[Draw]]:
        """First draws of all chains, then their second ones, …; a chain that has run out is left out."""
        records = [(store, store.records()) for store in self.stores]
        for i in range(max((len(r) for _, r in records), default=0)):
            yield [store.load(r[i]) for store, r in records if i < len(r)]

    def model_of(self, draw: Draw) -> nn.Module:
        """The model with a draw's tensors (the one model there is: the next draw takes its place)."""
        return self._model_with(draw.tensors, f"draw {draw.index} of chain {draw.chain}")

    def models(self, chain: int | None = None) -> Iterator[nn.Module]:
        """The model with the tensors of each draw in turn, in evaluation mode."""
        return (self.model_of(draw).eval() for draw in self.draws(chain))

    def groups(self, draws: Iterable[Draw] | None = None) -> Iterator[tuple[list[Draw], Ask]]:
        """Draws (None: all) in groups, each with what asks them about a loader's examples; see `StackedDraws`."""
        if self._stacked is None or self._stacked.model is not self.model:
            self._stacked = StackedDraws(self.model, self.model_of)
        return self._stacked.groups(self.draws() if draws is None else draws)

    def _each(self, loader: Loader, read: Read, chain: int | None = None) -> Iterator[Tensor]:
        """What is read of each draw's outputs in turn, [N, …], of all or of one chain."""
        try:
            for _, ask in self.groups(self.draws(chain)):
                yield from ask(loader, read)
        except BayesloraError:
            raise
        except FAILURES as error:
            words = ("shape", "size", "channels", "dimension", "dtype")  # torch has no kind of error for these
            of_device = isinstance(error, RuntimeError) and not any(word in str(error) for word in words)
            if of_device or isinstance(error, torch.OutOfMemoryError):  # whose message speaks of sizes, too
                raise
            raise DataError(f"the model cannot take these inputs: {error}") from error

    def predict_draw(self, draw: Draw, loader: Loader) -> Tensor:
        """log p [N, C] of one draw, as `predict` gives it."""
        return self._in_output_order(log_probs(self.model_of(draw), loader(), self.likelihood))

    def _in_output_order(self, log_p: Tensor) -> Tensor:
        return self.likelihood.in_output_order(log_p) if isinstance(self.likelihood, OfClasses) else log_p

    def predict_map(self, loader: Loader) -> Tensor | None:
        """log p [N, C] of the MAP baseline; None where the run kept none."""
        model = self.map_model()
        return None if model is None else self._in_output_order(log_probs(model, loader(), self.likelihood))

    def map_model(self) -> nn.Module | None:
        """The model with the MAP baseline's tensors; None where the run kept none."""
        file = self.baselines.get(0)
        return None if file is None else self._model_with(read_baseline(file), str(file))

    def map_models(self) -> Iterator[nn.Module]:
        """The model with the warm-up's end point of each chain in turn, a deep ensemble; of equal ones the first."""
        seen = set()
        for file in self.baselines.values():
            tensors = read_baseline(file)
            if (key := digest(tensors)) not in seen:
                seen.add(key)
                yield self._model_with(tensors, str(file))

    def predict(self, inputs: Any, return_std: bool = False) -> Any:
        """What the ensemble of all draws predicts: probabilities, or densities, averaged.

        Args:
            inputs: a function that starts a pass over (inputs, targets) batches, called once a draw; or a list or a
                `DataLoader` of such batches that does not shuffle; or a map-style `Dataset`; or a tensor or array
                [N, …], or a pair of it and its targets. Of datasets, tensors and arrays, images of bytes become what
                the run made of its own, and so does a `Split` of the run's data. Floating-point inputs take the
                model's precision.
            return_std: give a pair in its place, as scikit-learn does: mean and standard deviation.

        Returns:
            Classes: log p [N, C], or [N, C, …] at positions; labels: log p [N, L] that each holds; with `return_std` p
            and its standard deviation over draws. Regression: `Normals`, mean and variances [N, D]; with `return_std`
            the mean and the sd of a new target, noise included.

        Raises:
            DataError: images of bytes, of a posterior that was loaded and cannot know how they were scaled; batches
                that are not the same in every pass; inputs of a shape that the model does not take.
        """
        if isinstance(self.likelihood, Gaussian):
            density = self.predict_normals(inputs)
            return (density.mean, density.sd) if return_std else density
        if return_std:
            loader, moments = self._loader(inputs), NormalMixture()
            for log_p in self._each(loader, reading(self.likelihood)):
                p = self._in_output_order(log_p).exp()
                moments.add(p, torch.zeros_like(p))
            return moments.normals.mean, moments.normals.spread.sqrt()
        mixture, loader = Mixture(), self._loader(inputs)
        for log_p in self._each(loader, reading(self.likelihood)):
            mixture.add(self._in_output_order(log_p))
        return mixture.log_probs

    def predict_normals(self, inputs: Any, chain: int | None = None) -> Normals:
        """Mean, noise and spread of a regression's predictions; inputs as `predict` takes them."""
        require(isinstance(self.likelihood, Gaussian), "this posterior is of classes: use predict")
        assert isinstance(self.likelihood, Gaussian)
        mixture, loader = NormalMixture(), self._loader(inputs)
        for given in self._each(loader, raw_outputs, chain):
            mixture.add(*normals(given, self.likelihood))
        return mixture.normals

    def quantiles(self, inputs: Any, levels: float | Sequence[float] = (0.05, 0.5, 0.95)) -> Tensor:
        """Quantiles of a regression's predictive density, the mixture of all draws' normals: [Q, N, D] for Q levels.

        Holds mean and variance of every draw, 2·S·N·D numbers.

        Args:
            inputs: as `predict` takes them.
            levels: shares below, each between 0 and 1; one number gives [N, D].

        Raises:
            ConfigError: the posterior is of classes, or a level is out of range.
        """
        likelihood = self.likelihood
        require(isinstance(likelihood, Gaussian), "this posterior is of classes, which have no quantiles: use predict")
        assert isinstance(likelihood, Gaussian)
        loader = self._loader(inputs)
        moments = [normals(given, likelihood) for given in self._each(loader, raw_outputs)]
        mean, variance = (torch.stack(part) for part in zip(*moments, strict=True))
        quantiles = mixture_quantiles(mean, variance, torch.atleast_1d(torch.as_tensor(levels, dtype=torch.float64)))
        return quantiles[0] if isinstance(levels, float | int) else quantiles

    def diagnostics(self) -> dict[str, dict[str, Any]]:
        """R-hat, ESS and Monte Carlo error of every scalar of the draws, by name (see `Convergence`)."""
        import numpy as np

        from bayeslora.diagnostics.convergence import convergence

        records = [store.records() for store in self.stores]
        shared = [name for name in records[0][0].scalars if name != "lr"] if records else []
        series = {
            name: [np.array([r.scalars.get(name, np.nan) for r in chain]) for chain in records] for name in shared
        }
        return {name: vars(convergence(chains)) for name, chains in series.items()}

    def adapters(self, out_dir: Path | str, facts: Mapping[str, str] | None = None) -> list[Path]:
        """Write every draw of a LoRA model as a PEFT adapter folder; returns the folders (see `export_adapters`)."""
        from bayeslora.models.adapters import export_adapters  # with the names of peft

        return export_adapters(self.model, self.draws(), out_dir, facts)

    def _model_with(self, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
        """The model with these tensors; a sampled noise becomes its parameter."""
        model = self.model
        if NOISE in tensors:
            self.likelihood.attach(model, len(tensors[NOISE]))
        load_into(model, tensors, source)
        return model

    def _loader(self, inputs: Any) -> Loader:
        """Passes over batches of whatever `predict` takes."""
        from bayeslora.posterior.inputs import passes  # with the readers of datasets

        model = self.model  # which may bring the transform with it
        return passes(inputs, model, self.transform, isinstance(self.likelihood, Bernoulli))


def _check_model(model: nn.Module, root: Path, likelihood: Likelihood, stores: Sequence[DrawStore]) -> None:
    """Raise `DataError` unless this is the model of a run; give it the run's own values of what is drawn at random."""
    config_file = root / "config.yaml"
    theirs = Fingerprint.from_json(read_config(config_file).get("fingerprint"), config_file)
    ours, file = Fingerprint.of(model), root / "fixed.safetensors"
    kept = read_tensors(file) if file.is_file() else {}
    differences = ours.with_fixed(kept).differences(theirs)
    if differences:
        raise DataError(
            f"{root} holds draws of another model: {first_few(differences)}. Give the model that was sampled, with the"
            " same values of what was not; where it is made for its data, these must be the run's, too"
        )
    put_fixed(model, kept)
    check_answers_of(root, model, likelihood, stores)
