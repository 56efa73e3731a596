"""An experiment: all that a run is made of, checked, as factories and settings that can go to other processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from bayeslora.chain.batches import Batches, FreshBatches, evaluation_batches
from bayeslora.chain.chain import Chain
from bayeslora.chain.optimizers import sampler_schedule
from bayeslora.chain.pilot import Pilot
from bayeslora.chain.plan import Plan
from bayeslora.chain.stack import Stack, StackedBatches
from bayeslora.chain.tuning import pilot_plan
from bayeslora.datasets.base import Data, Split, Transform
from bayeslora.datasets.text import sequence_lengths
from bayeslora.diagnostics.convergence import MAX_ENTRIES
from bayeslora.diagnostics.relaxation import Relaxation, relaxations, too_short
from bayeslora.errors import ConfigError
from bayeslora.factories import naming, offer, settings_of
from bayeslora.likelihood import NOISE, Likelihood
from bayeslora.models.keywords import take_keywords
from bayeslora.models.starts import Starts
from bayeslora.parts import check_kind, check_temperature, is_own, precision_of, with_numbers
from bayeslora.potential import Potential, Prior, last_match
from bayeslora.rng import derive_seed, generator, seeded
from bayeslora.runs.identity import Fingerprint, first_few, identify, put_fixed
from bayeslora.samplers import Sampler
from bayeslora.settings import AUTO, ChainSettings, Component, Evaluation, TrainerSettings, check_together

if TYPE_CHECKING:
    from bayeslora.runs.directory import RunDirectory

FULL_BATCH_UP_TO = 2000
"""Training examples up to which `chain.batch_size=auto` takes all of them at every step."""
MINIBATCH = 128
"""Examples that it takes beyond."""
TEXTS = 32
"""Most texts of an evaluation batch, which are sorted by length: in a larger one more would be padding."""
Loader = Callable[[], Iterable[tuple[Tensor, Tensor]]]
C = TypeVar("C", bound=Chain)
BatchAt = Callable[[int], tuple[Tensor, Tensor]]
"""The training batch (inputs, targets) of a step."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """A run's parts and settings. It is pickled without its data, which every process loads once by `make_data`.

    Attributes:
        name, seed, temperature: of the run.
        make_model: takes the numbers of outputs and inputs, where it has such arguments.
        make_data: loads the dataset.
        likelihood: what the model's outputs say of a target.
        prior: over the model's own parameters.
        make_sampler: `(params, kT=, seed=, chain=) -> Sampler`.
        make_warmup: `(params) -> Optimizer`.
        chain, trainer, evaluation: settings, each checked by itself.
        make_ood: loads the dataset that `evaluate.ood` names.
        callbacks, loggers: factories by name, which take what of a run they ask for (see `factories.offer`).
        record: all of it as plain values, which `config.yaml` holds and repeated runs are compared by.
        starts: weights with which chains begin, where these are not those that the model is made with.
        trained: whether they begin with somebody's, which are the MAP baseline where there is no warm-up.
        flat: how a `Stack` runs the model, as its trial step showed; None: as its structure says.
        fingerprint: what the models of all chains share; None where it was not looked at.
        fixed: the run's own values of tensors that are not sampled and are drawn at random.

    Raises:
        ConfigError: settings that do not go together.
    """

    name: str
    seed: int
    temperature: float
    make_model: Callable[..., nn.Module]
    make_data: Callable[[], Data]
    likelihood: Likelihood
    prior: Prior
    make_sampler: Callable[..., Sampler]
    make_warmup: Callable[..., Optimizer]
    chain: ChainSettings
    trainer: TrainerSettings
    evaluation: Evaluation
    record: Mapping[str, Any]
    make_ood: Callable[[], Data] | None = None
    callbacks: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    loggers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    starts: Starts = field(default_factory=Starts)
    trained: bool = False
    flat: bool | None = None
    fingerprint: Fingerprint | None = None
    fixed: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_together(self.chain, self.trainer)
        check_temperature(self.temperature)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("data", "potential")}

    def but(self, **changes: Any) -> Experiment:
        """The same experiment with other values of fields; data that are in memory stay there."""
        other = replace(self, **changes)
        return other.holding(self.data) if "data" in vars(self) and "make_data" not in changes else other

    def with_trainer(self, **changes: Any) -> Experiment:
        """The same experiment with other settings of `trainer`, recorded too."""
        trainer = replace(self.trainer, **changes)
        return self.but(trainer=trainer, record={**self.record, "trainer": asdict(trainer)})

    @property
    def open_settings(self) -> list[str]:
        """Settings that say `auto`, by dotted name."""
        own = settings_of(self.make_sampler)
        of_sampler = [f"sampler.{key}" for key in ("lr", "momentum") if own.get(key) == AUTO]
        return of_sampler + [f"chain.{k}" for k in ("batch_size", "burn_in", "thin") if getattr(self.chain, k) == AUTO]

    def settled(self, settings: Mapping[str, Any], tuning: Mapping[str, Any] | None = None) -> Experiment:
        """The experiment with values in the place of settings of `sampler` and `chain`, by dotted name.

        The record has them, under `asked` what the settings were before, and under `tuning` how they were found.
        """
        record: dict[str, Any] = {**self.record}
        parts: dict[str, dict[str, Any]] = {"sampler": {}, "chain": {}}
        for key, value in settings.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
            record["asked"] = {key: record[part].get(name), **record.get("asked", {})}
        record |= {part: {**record[part], **values} for part, values in parts.items()}
        if tuning is not None:
            record["tuning"] = dict(tuning)
        return self.but(
            make_sampler=partial(self.make_sampler, **parts["sampler"]),
            chain=replace(self.chain, **parts["chain"]),
            record=record,
        )

    def longer(self, num_draws: int) -> Experiment:
        """The experiment with so many draws a chain, recorded too, or as it is where it has more."""
        if num_draws <= self.chain.num_draws:
            return self
        record = {**self.record["chain"], "num_draws": num_draws}
        return self.but(chain=replace(self.chain, num_draws=num_draws), record={**self.record, "chain": record})

    def with_batch_size(self) -> Experiment:
        """The experiment with all of the data a batch, or some, where its batch size says `auto`."""
        if self.chain.batch_size != AUTO:
            return self
        return self.settled({"chain.batch_size": None if len(self.data.train) <= FULL_BATCH_UP_TO else MINIBATCH})

    def holding(self, data: Data) -> Experiment:
        """This experiment, which takes these as its data, without loading any."""
        vars(self)["data"] = data
        return self

    @cached_property
    def data(self) -> Data:
        """The dataset, as `as_taken` gives it."""
        return self.as_taken(self.make_data())

    @cached_property
    def potential(self) -> Potential:
        """Ũ and kT."""
        return Potential(self.likelihood.extend(self.prior), len(self.data.train))

    @property
    def plan(self) -> Plan:
        """The phases of a chain."""
        return self.chain.plan

    @property
    def device(self) -> torch.device:
        """The device that `trainer.accelerator` names."""
        return torch.device("cuda", 0) if self.trainer.accelerator == "gpu" else torch.device("cpu")

    @property
    def here(self) -> Experiment:
        """This experiment on a device that is this process's: the CPU, where the others are of worker processes."""
        elsewhere = self.chain.parallel == "processes" or self.trainer.devices > 1
        return self.but(trainer=replace(self.trainer, accelerator="cpu", channels_last=False)) if elsewhere else self

    def component(self, part: str) -> Component:
        """How `model`, `sampler` or `likelihood` is recorded."""
        return Component.of(self.record.get(part) or {"_target_": "Categorical"})

    @property
    def effective_temperature(self) -> float:
        """T of what is sampled: 0 for MAP, whatever the run's is."""
        return 0.0 if self.sampler_of_one().kT == 0 else float(self.temperature)

    @property
    def map_step(self) -> int | None:
        """Steps after which a chain is at the MAP baseline: its warm-up's, or all of them where all is at T = 0.

        None where there is no baseline: no warm-up, and initial weights that are nobody's.
        """
        if not self.effective_temperature:
            return self.plan.total
        return self.plan.warmup if self.plan.warmup or self.trained else None

    def keeps_map(self, chain: int) -> bool:
        """Whether a chain has a MAP baseline of its own: where all begin at one, chain 0 has it."""
        return self.map_step is not None and (self.map_step > 0 or chain == 0 or self.starts.apart)

    def sampler_of_one(self, kT: float | None = None) -> Sampler:
        """The run's sampler, of a model of one parameter; kT: None for the run's."""
        kT = self.potential.kT(self.temperature) if kT is None else kT
        return with_numbers(self.make_sampler)([nn.Parameter(torch.zeros(1))], kT=kT, seed=self.seed, chain=0)

    # -- the model ----------------------------------------------------------------------------------------------

    def make(self, data: Data | None = None) -> nn.Module:
        """A new model for the run's data, or others, with the likelihood's parameters."""
        data = data or self.data
        outputs = self.likelihood.outputs(data.num_classes)
        sizes = {"in_channels": data.in_channels, "in_features": data.in_features}
        with naming(self.record["model"]["_target_"]):
            model = offer(self.make_model, num_classes=outputs, num_outputs=outputs, **sizes)
        check_kind(model)
        if isinstance(data.train.inputs, Mapping):
            take_keywords(model, data.train.inputs)
        return self.likelihood.attach(model, data.num_classes)

    def model(self, chain: int = 0) -> nn.Module:
        """The model with the initial weights of one chain, on the run's device.

        Raises:
            ConfigError: what is not sampled of it is not what the run has.
        """
        data = self.data  # loaded by now: no number of the seed's goes to that
        with seeded(self.seed, chain, 0, "init"):
            model = self.starts.load_into(self.make(data), chain)
            self.likelihood.extend(self.prior).for_model(model).draw_into(model, self.chain.from_prior)
        put_fixed(model, self.fixed)
        if differences := Fingerprint.of(model).differences(self.fingerprint) if self.fingerprint else []:
            raise ConfigError(f"model: chain {chain} differs from the run's: {first_few(differences)}")
        memory_format = torch.channels_last if self.trainer.channels_last else torch.contiguous_format
        return model.to(self.device, memory_format=memory_format)  # type: ignore[call-overload]

    def structure(self) -> nn.Module:
        """The model for the sake of its tensors' names and shapes; those of this package hold no memory."""
        with torch.device("meta") if is_own(self.make_model) else nullcontext():
            return self.make()

    def as_taken(self, data: Data) -> Data:
        """Data in the model's precision, with the activations of its frozen layers, where it remembers them."""
        if data.reals and not is_own(self.make_model):  # those are in single precision
            data = data.in_precision(precision_of(self.make(data)))
        if not settings_of(self.make_model).get("cache_prefix"):
            return data
        from bayeslora.models.prefix import with_prefix

        return with_prefix(data, self.starts.load_into(self.make(data)).to(self.device), self.device)

    def identified(self, run: RunDirectory) -> Experiment:
        """The experiment with what the models of all chains share (`fingerprint`), and what they take from `fixed`.

        Raises:
            ConfigError: they have too little in common to sample one posterior.
        """
        here = self.here.but(fixed=run.fixed)
        inputs = tree_map(lambda t: t.to(here.device), self.data.transform(self.data.train.take(slice(2)).inputs))
        fingerprint, random = identify(here.model, self.chain.num_chains, inputs)
        return self.but(fingerprint=fingerprint, fixed={**random, **here.fixed})

    def new_pilot(self, number: int | Sequence[int]) -> Pilot:
        """A pilot of a chain, or of several stacked: at their beginning, with noise of its own."""
        noise = derive_seed(self.seed, 0, 0, "pilot")
        other = self.but(make_sampler=with_numbers(self.make_sampler), chain=replace(self.chain, schedule="constant"))
        return other._chain(Pilot, number, pilot_plan(self.plan), noise)

    def new_chain(self, number: int | Sequence[int]) -> Chain:
        """A chain at its beginning, or several stacked."""
        return self._chain(Chain, number, self.plan, self.seed)

    def _chain(self, kind: type[C], number: int | Sequence[int], plan: Plan, noise: int) -> C:
        settings = self.chain
        return kind(
            self.model(number) if isinstance(number, int) else Stack(map(self.model, number), self.flat),
            self.potential,
            self.make_sampler,
            self.make_warmup,
            plan,
            temperature=self.temperature,
            seed=noise,
            number=number,
            warmup_schedule=settings.warmup.schedule,
            warmup_schedule_settings=settings.warmup.schedule_settings,
            schedule=settings.schedule,
            schedule_settings=settings.schedule_settings,
            lr_factors=settings.lr_factors,
            scale_free=settings.scale_free,
            full_data=self.loader(self.data.train) if self.control_variates else None,
            max_potential=settings.max_potential,
            likelihood=self.likelihood,
        )

    @property
    def control_variates(self) -> bool:
        """Whether the sampler takes gradients of all the data."""
        return bool(settings_of(self.make_sampler).get("control_variates"))

    # -- batches ------------------------------------------------------------------------------------------------

    def batches(self, chain: int | Sequence[int], fresh: bool = False) -> BatchAt:
        """Training batches of one chain, or of several side by side, as a function of the step.

        Args:
            chain: its number, or those of the chains of a stack.
            fresh: batches that are independent of those by which the chain moves.
        """
        make = partial(
            FreshBatches if fresh else Batches,
            replace(self.data, train=self.data.train.to(self.device)),
            self.chain.batch,
            self.seed,
            device=self.device, channels_last=self.trainer.channels_last, bucket=self.chain.bucket,
        )  # fmt: skip
        return make(chain) if isinstance(chain, int) else StackedBatches([make(one) for one in chain])

    def loader(self, split: Split, transform: Transform | None = None) -> Loader:
        """Passes over a split in evaluation batches, through the dataset's transform or another one."""
        return partial(
            evaluation_batches,
            split,
            self.data.transform if transform is None else transform,
            min(self.evaluation.batch_size, TEXTS if self.data.kind == "texts" else self.evaluation.batch_size),
            self.device, self.trainer.channels_last,
        )  # fmt: skip

    def probe(self) -> Loader:
        """Passes over the probe set: a fixed subset of the training data, the same for every chain."""
        return self.loader(self.by_length(self._probe_split()))

    def function_probe(self) -> Loader:
        """Passes over those of the probe set on whose predictions chains are compared: about 2,000 numbers a draw."""
        positions = math.prod(self.data.train.targets.shape[1:]) if self.data.axes else 1
        examples = max(20 if positions == 1 else 1, MAX_ENTRIES // (self.data.num_classes * positions))
        return self.loader(self.by_length(self._probe_split().take(slice(examples))))

    def _probe_split(self) -> Split:
        size = min(self.chain.probe_size, len(self.data.train))
        order = torch.randperm(len(self.data.train), generator=generator(self.seed, 0, 0, "probe"))
        return self.data.train.take(order[:size]).to(self.device)

    def validation_probe(self) -> Loader | None:
        """Passes over the validation set, at most as much of it as of the probe set; None where there is none."""
        split = self.by_length(self.data.validation.take(slice(self.chain.probe_size)))
        return self.loader(split.to(self.device)) if len(split) else None

    def by_length(self, split: Split) -> Split:
        """A split in the order in which it is evaluated: texts by length, so that a batch has little padding."""
        return split.take(self.order(split)) if self.data.kind == "texts" else split

    def order(self, split: Split) -> Tensor:
        """Which example of a split is evaluated in each place, int64 [N]."""
        if self.data.kind != "texts":
            return torch.arange(len(split))
        return sequence_lengths(split.inputs).amax(1).argsort(stable=True)

    # -- what a run takes ---------------------------------------------------------------------------------------

    def gradients(self, chains: Sequence[int]) -> int:
        """Minibatch gradients that the sampler takes from the warm-up's end to the last draw, summed over chains."""
        return self.sampler_of_one(kT=1.0).gradients_per_step * len(chains) * (self.plan.total - self.plan.warmup)

    def relaxations(self) -> list[Relaxation]:
        """How long each block takes to forget its start, and how long it has; nothing where nothing is sampled."""
        sampler, model = self.sampler_of_one(), self.structure()
        if sampler.kT == 0 or "sampler.lr" in self.open_settings:
            return []
        prior = self.potential.prior.for_model(model)
        shapes = {n: p.shape for n, p in model.named_parameters() if p.requires_grad and not n.endswith(NOISE)}
        return relaxations(
            self.plan,
            {name: 1 / prior.precision(name, shape) for name, shape in shapes.items()},
            {name: sampler.param_groups[0]["lr"] * last_match(name, self.chain.lr_factors, 1.0) for name in shapes},
            self.potential.num_data,
            sampler.speed,
            sampler_schedule(self.chain.schedule, self.plan, self.chain.schedule_settings),
        )

    def short_burn_in(self) -> str | None:
        """What to say of a burn-in in which a block does not forget its start; None where all have the time."""
        return too_short(self.relaxations(), cycles=self.plan.cycles > 0)
