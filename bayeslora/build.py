"""From a configuration to the parts of a run. Every part checks its own values; all problems are reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bayeslora.chains import ranks
from bayeslora.chains.plan import Plan
from bayeslora.chains.stack import StackedBatches
from bayeslora.codec import decode
from bayeslora.config import CONF_DIR, Form, check_precision, instantiate
from bayeslora.datasets.base import Data, Split, Transform
from bayeslora.datasets.batches import Batches, FreshBatches, evaluation_batches
from bayeslora.datasets.text import TokenCounts, token_counts
from bayeslora.diagnostics.convergence import MAX_ENTRIES
from bayeslora.diagnostics.relaxation import Relaxation, relaxations, too_short
from bayeslora.engine.acceleration import AUTO
from bayeslora.errors import ConfigError, Problems, require
from bayeslora.fit import build_model, check_fit, load_data, make_likelihood, try_model
from bayeslora.identity import Fingerprint, identify, named, put_fixed
from bayeslora.likelihood import NOISE, Categorical, Likelihood
from bayeslora.potential import Potential, Prior, last_match
from bayeslora.rng import generator, seeded
from bayeslora.rundir import RunDirectory
from bayeslora.samplers import schedules
from bayeslora.settings import Component, Evaluation, RunSettings

if TYPE_CHECKING:
    from bayeslora.chains.module import SamplingModule  # Lightning takes seconds to import: not before the checks

Loader = Callable[[], Iterable[tuple[Tensor, Tensor]]]
BatchAt = Callable[[int], tuple[Tensor, Tensor]]
"""The training batch (inputs, targets) of a step."""


PARALLEL = ("sequential", "stacked", "processes")
ON_DIVERGENCE = ("stop", "retry")


@dataclass
class Setup:
    """All parts of a run, checked, with the data in memory."""

    cfg: DictConfig
    data: Data
    potential: Potential
    plan: Plan
    make_sampler: Callable[..., Any]
    make_warmup: Callable[..., Any]
    device: torch.device
    likelihood: Likelihood = field(default_factory=Categorical)
    flat: bool | None = None
    """How a `Stack` runs the model, as its trial step showed; None: as its structure says."""
    fingerprint: Fingerprint | None = None
    fixed: Mapping[str, Tensor] = field(default_factory=dict)

    def identify(self, run: RunDirectory) -> None:
        """Find what the models of all chains have in common (`fingerprint`) and what chains take from `fixed`.

        Raises:
            ConfigError: they have too little in common to sample one posterior.
        """
        elsewhere = self.cfg.chain.parallel == "processes" or self.cfg.trainer.devices > 1  # so are the devices
        here = replace(self, fixed=run.fixed, device=torch.device("cpu") if elsewhere else self.device)
        inputs = tree_map(lambda t: t.to(here.device), self.data.transform(self.data.train.inputs[:2]))
        self.fingerprint, random = identify(here.model, self.cfg.chain.num_chains, inputs)
        self.fixed = {**random, **here.fixed}

    @property
    def chains(self) -> list[int]:
        """Numbers of the chains to run: `chain.index`, or all."""
        index = self.cfg.chain.index
        if index is None:
            return list(range(self.cfg.chain.num_chains))
        return [index] if isinstance(index, int) else list(index)

    @cached_property
    def evaluation(self) -> Evaluation:
        """How the run is evaluated."""
        return evaluation_settings(self.cfg)

    @property
    def settings(self) -> RunSettings:
        """What a report says of the run's settings."""
        cfg, sampler = self.cfg, component(self.cfg.sampler)
        return RunSettings(
            name=cfg.name,
            seed=cfg.seed,
            temperature=0.0 if sampler.name == "MAP" else float(cfg.temperature),
            sampler=sampler,
            model=component(cfg.model),
            likelihood=Component("Categorical") if cfg.get("likelihood") is None else component(cfg.likelihood),
            num_chains=cfg.chain.num_chains,
            batch_size=cfg.chain.batch_size,
            probe_size=cfg.chain.probe_size,
            precision=cfg.trainer.precision,
            accelerator=cfg.trainer.accelerator,
        )

    @property
    def map_step(self) -> int:
        """Steps after which a chain is at the MAP baseline: its warm-up's, or all of them where all is at T = 0."""
        kT = self.potential.kT(self.cfg.temperature)
        cold = self.make_sampler([nn.Parameter(torch.zeros(1))], kT=kT, seed=0, chain=0).kT == 0
        return self.plan.total if cold else self.plan.warmup

    def make(self) -> nn.Module:
        """A new model."""
        return build_model(self.cfg.model, self.data, self.likelihood)

    def model(self, chain: int = 0) -> nn.Module:
        """The model with the initial weights of one chain, on the run's device.

        Raises:
            ConfigError: what is not sampled of it is not what the run has.
        """
        with seeded(self.cfg.seed, chain, 0, "init"):
            model = self.make()
        put_fixed(model, self.fixed)
        differences = Fingerprint.of(model).differences(self.fingerprint) if self.fingerprint else []
        require(not differences, f"model: chain {chain} differs from the run's: {named(differences)}")
        memory_format = torch.channels_last if self.cfg.trainer.channels_last else torch.contiguous_format
        return model.to(self.device, memory_format=memory_format)  # type: ignore[call-overload]

    def module(self, chain: int | Sequence[int]) -> SamplingModule:
        """The LightningModule of one chain, or of several stacked."""
        from bayeslora.chains.module import SamplingModule
        from bayeslora.chains.stack import Stack

        cfg = self.cfg
        return SamplingModule(
            self.model(chain) if isinstance(chain, int) else Stack(map(self.model, chain), self.flat),
            self.potential,
            self.make_sampler,
            self.make_warmup,
            self.plan,
            temperature=cfg.temperature,
            seed=cfg.seed,
            chain=chain,
            warmup_schedule=cfg.chain.warmup.schedule,
            warmup_schedule_settings=plain(cfg.chain.warmup).get("schedule_settings"),
            schedule=cfg.chain.schedule,
            schedule_settings=plain(cfg.chain).get("schedule_settings"),
            lr_factors=plain(cfg.chain).get("lr_factors"),
            full_data=self.loader(self.data.train) if cfg.sampler.get("control_variates") else None,
            compile_model=cfg.trainer.compile,
            max_potential=cfg.chain.max_potential,
            likelihood=self.likelihood,
        )

    def batches(self, chain: int | Sequence[int], fresh: bool = False) -> BatchAt:
        """Training batches of one chain, or of several side by side, as a function of the step.

        Args:
            chain: its number, or those of the chains of a stack.
            fresh: batches that are independent of those by which the chain moves.
        """
        cfg = self.cfg
        on_device = replace(self.data, train=self.data.train.to(self.device))
        make = partial(
            FreshBatches if fresh else Batches,
            on_device,
            cfg.chain.batch_size,
            cfg.seed,
            device=self.device,
            channels_last=cfg.trainer.channels_last,
            bucket=cfg.chain.bucket,
        )
        return make(chain) if isinstance(chain, int) else StackedBatches([make(one) for one in chain])

    def tokens(self) -> TokenCounts | None:
        """Tokens and padding of an epoch's steps of a text dataset, of all stacked chains together or of one chain."""
        if self.data.lengths is None:
            return None
        cfg = self.cfg.chain
        side_by_side = self.chains if cfg.parallel == "stacked" else self.chains[:1]
        batches = [Batches(self.data, cfg.batch_size, self.cfg.seed, k, bucket=cfg.bucket) for k in side_by_side]
        return token_counts(batches, range(batches[0].steps_per_epoch))

    def loader(self, split: Split, transform: Transform | None = None) -> Loader:
        """Passes over a split in evaluation batches, through the dataset's transform or another one."""
        cfg = self.cfg
        return partial(
            evaluation_batches,
            split,
            self.data.transform if transform is None else transform,
            self.evaluation.batch_size,
            self.device,
            cfg.trainer.channels_last,
        )

    def probe(self) -> Loader:
        """Passes over the probe set: a fixed subset of the training data, the same for every chain."""
        return self.loader(self._probe_split())

    def validation_set(self) -> tuple[Loader, Tensor] | None:
        """Passes over the validation set and its targets; None where there is none, or where it is evaluated itself."""
        split = self.data.validation
        if not len(split) or self.evaluation.split == "validation":
            return None
        return self.loader(split.to(self.device)), split.targets

    def gradients(self, chains: Sequence[int]) -> int:
        """Minibatch gradients that the sampler takes from the warm-up's end to the last draw, summed over chains."""
        each = self.make_sampler([nn.Parameter(torch.zeros(1))], kT=1.0, seed=0, chain=0).gradients_per_step
        return each * len(chains) * (self.plan.total - self.plan.warmup)

    def relaxations(self) -> list[Relaxation]:
        """How long each block takes to forget its start, and how long it has; nothing where nothing is sampled."""
        from bayeslora.chains.module import sampler_schedule

        chain, kT = self.cfg.chain, self.potential.kT(self.cfg.temperature)
        sampler = self.make_sampler([nn.Parameter(torch.zeros(1))], kT=kT, seed=0, chain=0)
        if sampler.kT == 0:
            return []
        model = self.structure()
        prior = self.potential.prior.for_model(model)
        shapes = {n: p.shape for n, p in model.named_parameters() if p.requires_grad and not n.endswith(NOISE)}
        return relaxations(
            self.plan,
            {name: 1 / prior.precision(name, shape) for name, shape in shapes.items()},
            {name: sampler.param_groups[0]["lr"] * last_match(name, chain.lr_factors, 1.0) for name in shapes},
            self.potential.num_data,
            sampler.speed,
            sampler_schedule(chain.schedule, self.plan, plain(chain).get("schedule_settings") or {}),
        )

    def short_burn_in(self) -> str | None:
        """What to say of a burn-in in which a block does not forget its start; None where all have the time."""
        return too_short(self.relaxations(), cycles=self.plan.cycles > 0)

    def structure(self) -> nn.Module:
        """The model for the sake of its tensors' names and shapes; those of this package hold no memory."""
        ours = self.cfg.model._target_.startswith("bayeslora.")
        with torch.device("meta") if ours else nullcontext():
            return build_model(self.cfg.model, self.data, self.likelihood)

    def validation_probe(self) -> Loader | None:
        """Passes over the validation set, at most as much of it as of the probe set; None where there is none."""
        split = self.data.validation.take(slice(self.cfg.chain.probe_size))
        return self.loader(split.to(self.device)) if len(split) else None

    def function_probe(self) -> Loader:
        """Passes over those of the probe set on whose predictions chains are compared: about 2,000 numbers a draw."""
        examples = max(20, MAX_ENTRIES // self.data.num_classes)
        return self.loader(self._probe_split().take(slice(examples)))

    @property
    def whole_test_set(self) -> bool:
        """Whether the evaluated split is the whole test set in its order."""
        return self.evaluation.split == "test" and self.cfg.dataset.get("limit_test") is None

    def second_dataset(self) -> Data | None:
        """The dataset that `evaluate.ood` names, if any; its texts are cut as the run's own are.

        Raises:
            ConfigError: there is no such dataset.
            DataError: its files are not where they should be.
        """
        name, path = self.evaluation.ood, self.evaluation.ood_path
        if name is None:
            return None
        folder = Path(CONF_DIR) / "dataset"
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(names)}"
            raise ConfigError(f"evaluate.ood={name} is no dataset; {hint}")
        node: Any = OmegaConf.load(folder / f"{name}.yaml")
        if "_target_" not in node:  # a variant of another file
            node = OmegaConf.merge(OmegaConf.load(folder / "glue.yaml"), node)
        node.pop("defaults", None)
        if path is not None:
            node["path"] = path
        if "augment" in node:
            node["augment"] = False
        if "max_length" in node and "max_length" in self.cfg.dataset:
            node["max_length"] = self.cfg.dataset.max_length
        whole = OmegaConf.create({"dataset": node, "model": self.cfg.model})
        return load_data(instantiate(whole.dataset))

    def through_prefix(self, data: Data) -> Data:
        """Other data with the activations of the model's frozen layers, where it remembers them."""
        if not self.cfg.model.get("cache_prefix"):
            return data
        from bayeslora.models.prefix import with_prefix

        return with_prefix(data, self.model(), self.device)

    def _probe_split(self) -> Split:
        size = min(self.cfg.chain.probe_size, len(self.data.train))
        order = torch.randperm(len(self.data.train), generator=generator(self.cfg.seed, 0, 0, "probe"))
        return self.data.train.take(order[:size]).to(self.device)

    def evaluation_split(self) -> Split:
        """The split that `evaluate.split` names, on the run's device."""
        return getattr(self.data, self.evaluation.split).to(self.device)


@dataclass
class Steps:
    """A chain's batches as an iterable over what is left of its plan, for Lightning's loop."""

    batches: BatchAt
    total: int
    start: int = 0

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batches(step) for step in range(self.start, self.total))


def build(cfg: DictConfig, run: RunDirectory | None = None) -> Setup:
    """Check a configuration as a whole and build its parts.

    Args:
        cfg: composed configuration.
        run: where the run would go; its folder is checked too. None: only the parts are built.

    Raises:
        ConfigError: every problem found: unknown keys, impossible values, missing or wrong data, a taken run directory.
    """
    form = Form.of(cfg)
    problems, usable, chain = form.problems, form.usable, form.usable.chain
    parts: dict[str, Any] = {}

    def collect(name: str, make: Callable[[], Any], node: str = "") -> None:
        with problems.collect():
            if (node or name) not in form.broken:
                parts[name] = make()

    collect(
        "plan",
        lambda: Plan(chain.warmup.steps, chain.burn_in, chain.num_draws, chain.thin, chain.cycles, chain.exploration),
    )
    collect("prior", lambda: instantiate(cfg.prior))
    collect("dataset", lambda: instantiate(cfg.dataset))
    collect("sampler", lambda: _sampler(usable))
    collect("warmup", lambda: _warmup(usable), "chain.warmup.optimizer")
    collect("model", lambda: try_model(cfg.model))
    collect("likelihood", lambda: make_likelihood(cfg))
    check_values(usable, problems)
    if run is not None and usable is cfg:
        with problems.collect():
            run.check(plain(cfg))
    problems.raise_if_any()  # reading the data is work: it waits until the settings are right
    collect("data", lambda: load_data(parts["dataset"]))
    if "data" in parts:
        _check_against_data(cfg, parts["data"], parts["likelihood"], problems)
    problems.raise_if_any()
    return Setup(
        cfg,
        _with_prefix(cfg, parts["data"]),
        Potential(parts["likelihood"].extend(parts["prior"]), len(parts["data"].train)),
        parts["plan"],
        parts["sampler"],
        parts["warmup"],
        device(cfg),
        parts["likelihood"],
    )


def evaluation_settings(cfg: DictConfig) -> Evaluation:
    """How a run of a configuration is evaluated.

    Raises:
        ConfigError: a value is impossible.
    """
    return decode(Evaluation, plain(cfg.evaluate), "evaluate")


def component(node: DictConfig) -> Component:
    """What a node with a `_target_` names."""
    arguments = {key: value for key, value in plain(node).items() if not key.startswith("_")}
    return Component(str(node._target_).rsplit(".", 1)[-1], arguments)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration resolved to plain Python."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def device(cfg: DictConfig) -> torch.device:
    """The device that `trainer.accelerator` names."""
    return torch.device("cuda", 0) if cfg.trainer.accelerator == "gpu" else torch.device("cpu")


def _with_prefix(cfg: DictConfig, data: Data) -> Data:
    """The data with the activations of the model's frozen layers, where it remembers them."""
    if not cfg.model.get("cache_prefix"):
        return data
    from bayeslora.models.prefix import with_prefix

    return with_prefix(data, build_model(cfg.model, data).to(device(cfg)), device(cfg))


def _sampler(cfg: DictConfig) -> Callable[..., Any]:
    """The sampler's factory, tried once on a dummy parameter so that its settings are checked now."""
    make = instantiate(cfg.sampler)
    with _naming("sampler"):
        make([nn.Parameter(torch.zeros(1))], kT=1.0, seed=cfg.seed, chain=0)
    return make


def _warmup(cfg: DictConfig) -> Callable[..., Any]:
    """The warm-up optimizer's factory, tried once on a dummy parameter."""
    make = instantiate(cfg.chain.warmup.optimizer)
    lr = cfg.chain.warmup.optimizer.get("lr", 1.0)
    valid = isinstance(lr, int | float) and 0 < lr < float("inf")
    require(valid, f"chain.warmup.optimizer.lr={lr} must be a positive finite number")
    with _naming("chain.warmup.optimizer"):
        make([nn.Parameter(torch.zeros(1))])
    return make


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """What a class not of this package finds wrong with its arguments, as a problem of the node at `path`."""
    try:
        yield
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def check_values(cfg: DictConfig, problems: Problems) -> None:
    """Values that no part of its own checks."""
    checks = [
        *(
            (name in schedules.SCHEDULES, f"{key}={name} is unknown; choose one of {', '.join(schedules.SCHEDULES)}")
            for key, name in (
                ("chain.schedule", cfg.chain.schedule),
                ("chain.warmup.schedule", cfg.chain.warmup.schedule),
            )
        ),
        (
            cfg.trainer.num_threads is None or cfg.trainer.num_threads >= 1,
            f"trainer.num_threads={cfg.trainer.num_threads} must be at least 1, or null",
        ),
        (
            cfg.chain.parallel in PARALLEL,
            f"chain.parallel={cfg.chain.parallel} is unknown; choose one of {', '.join(PARALLEL)}",
        ),
        (
            cfg.chain.on_divergence in ON_DIVERGENCE,
            f"chain.on_divergence={cfg.chain.on_divergence} is unknown; choose {' or '.join(ON_DIVERGENCE)}",
        ),
        (cfg.chain.max_potential > 0, f"chain.max_potential={cfg.chain.max_potential} must be positive"),
        (cfg.chain.resume_every >= 0, f"chain.resume_every={cfg.chain.resume_every} must be at least 0 (seconds)"),
        (cfg.chain.num_chains >= 1, f"chain.num_chains={cfg.chain.num_chains} must be at least 1"),
        (cfg.chain.probe_size >= 1, f"chain.probe_size={cfg.chain.probe_size} must be at least 1"),
        (
            cfg.trainer.accelerator in ("cpu", "gpu"),
            f"trainer.accelerator={cfg.trainer.accelerator} must be cpu or gpu",
        ),
        (
            cfg.trainer.accelerator != "gpu" or torch.cuda.is_available(),
            "trainer.accelerator=gpu but torch sees no CUDA device; use trainer=cpu, or look at nvidia-smi",
        ),
    ]
    problems.add(*(message for holds, message in checks if not holds))
    problems.add(*_index_problems(cfg.chain.index, cfg.chain.num_chains), *ranks.setting_problems(cfg))
    for key in ("channels_last", "compile"):
        if cfg.trainer[key] not in (True, False, AUTO):
            problems.add(f"trainer.{key}={cfg.trainer[key]} must be true, false or auto")
    if cfg.trainer.precision != AUTO:
        with problems.collect():
            check_precision(cfg.trainer.precision)
    with problems.collect():
        evaluation_settings(cfg)
    with problems.collect():
        Potential(Prior(), 1).kT(cfg.temperature)


def _index_problems(index: Any, num_chains: int) -> Iterator[str]:
    """What is wrong with `chain.index`."""
    chosen = [index] if isinstance(index, int) else index
    if chosen is None:
        return
    if not isinstance(chosen, Sequence | ListConfig) or not all(isinstance(one, int) for one in chosen) or not chosen:
        yield f"chain.index={index} must be the number of a chain, or a list of such, or null for all"
    elif not all(0 <= one < num_chains for one in chosen) or len(set(chosen)) < len(chosen):
        yield f"chain.index={index} names chains from 0 to {num_chains - 1}, each once (chain.num_chains={num_chains})"


def _check_against_data(cfg: DictConfig, data: Data, likelihood: Likelihood, problems: Problems) -> None:
    """What can be said only once the data are there."""
    with problems.collect():
        Batches(data, cfg.chain.batch_size, cfg.seed, 0, bucket=cfg.chain.bucket)
    if cfg.sampler.get("control_variates") and data.augment is not None:
        problems.add("sampler.control_variates needs the gradient of all the data: set dataset.augment=false")
    if cfg.evaluate.split == "validation" and not len(data.validation):
        problems.add("evaluate.split=validation needs a validation set: train with dataset.validation_size=…")
    with problems.collect():
        check_fit(cfg, data, likelihood)
