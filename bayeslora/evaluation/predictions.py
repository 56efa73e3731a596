"""One pass over all draws: each is loaded once and asked about every set of examples, in memory that stays the same."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from bayeslora.diagnostics.fidelity import Fidelity, MeanFidelity, Reference, fidelity
from bayeslora.diagnostics.metrics import metrics, score_parts
from bayeslora.diagnostics.paired import by_group, to_bytes
from bayeslora.diagnostics.uncertainty import Entropy, EntropySplit
from bayeslora.evaluation.scores import ClassificationScores
from bayeslora.likelihood import Categorical, Likelihood, OfClasses
from bayeslora.posterior import Mixture, Posterior
from bayeslora.posterior.predictive import reading
from bayeslora.posterior.stacked import Read, outputs

Loader = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class View:
    """A further set of examples that MAP and every draw are asked about, e.g. corrupted images.

    Attributes:
        name: what to call it.
        loader: passes over its batches.
        targets: true classes [N], or None where they mean nothing (another dataset).
    """

    name: str
    loader: Loader
    targets: Tensor | None


@dataclass
class ViewPredictions:
    """Predictions of MAP and of the ensemble on a view.

    Attributes:
        map: log p [N, C] of the MAP baseline, or None.
        ensemble: log p [N, C] of all draws.
        entropy: the ensemble's predictive entropy and its parts.
    """

    map: Tensor | None
    ensemble: Tensor
    entropy: Entropy


@dataclass
class Predictions:
    """What one streamed pass over all draws leaves.

    Attributes:
        chains: numbers of the chains that have draws, in the order of the lists below.
        targets: true classes [N] of the evaluated split; of several predictions an example, all that are known.
        map: log p [N, C] of the MAP baseline, or None.
        map_ensemble: log p [N, C] of the warm-up ends of several chains, averaged, or None.
        map_members: how many they are.
        map_validation: as `map` on the validation set, with its targets; None where there is no such set or baseline.
        ensemble: log p [N, C] of all draws.
        by_chain: log p [N, C] of each chain's draws.
        draw_scores: scores of the single draws of each chain, by name: [draws].
        cumulative: metrics of the ensemble of the first so many draws (in rounds over the chains), by name.
        probe_arrays: log p of each chain's draws on part of the probe set, [draws, P, C].
        entropy: the ensemble's predictive entropy and its parts, [N] each.
        views: predictions on further sets of examples, by name.
        fidelity: to a reference: `map`, `draw`, `chain <k>` and `ensemble`; empty without one.
        fidelity_curve: of the ensemble of the first so many draws: `draws`, `agreement`, `total_variation`.
        owners: the place in the split's targets (example, then label or position) of each of the N, [N, A]; None
            where each example has one.
    """

    chains: list[int]
    targets: Tensor
    map: Tensor | None
    map_ensemble: Tensor | None
    map_members: int
    map_validation: tuple[Tensor, Tensor] | None
    ensemble: Tensor
    by_chain: list[Tensor]
    draw_scores: list[dict[str, list[float]]]
    cumulative: dict[str, list[float]]
    probe_arrays: list[np.ndarray]
    entropy: Entropy
    views: dict[str, ViewPredictions] = field(default_factory=dict)
    fidelity: dict[str, Fidelity] = field(default_factory=dict)
    fidelity_curve: dict[str, list[float]] = field(default_factory=dict)
    owners: Tensor | None = None

    @property
    def num_draws(self) -> int:
        """Draws of all chains."""
        return sum(len(chain["nll"]) for chain in self.draw_scores)

    def score_parts_npz(self) -> bytes:
        """What each example adds to the ensemble's scores, as a file."""
        targets = self.targets.numpy()
        if self.owners is not None:  # of each example one number, by which it is known
            weights = 1 + np.arange(len(targets)) % 1009
            targets = np.bincount(self.owners[:, 0].numpy(), weights * (1.0 + targets))
            targets = targets[np.unique(self.owners[:, 0].numpy())]
        return to_bytes(self.parts(self.ensemble), targets)

    def parts(self, log_p: Tensor) -> dict[str, np.ndarray]:
        """What each example adds to the scores of log p [N, C]; those of one example's predictions are put together."""
        single = score_parts(log_p, self.targets)
        return single if self.owners is None else by_group(single, self.owners[:, 0].numpy())


class Rounds:
    """Takes in draws round by round; memory does not grow with their number, but for what is kept of each.

    Attributes:
        read: what is kept of a model's outputs.
        loaders: passes over all that a draw is asked about.
        singles: scores of each chain's single draws, by name.
        probes: predictions of each chain's draws on the probe set.
        curve: scores of the ensemble of the first `draws` draws.
    """

    def __init__(self, read: Read, loaders: Sequence[Loader]) -> None:
        self.read, self.loaders = read, list(loaders)
        self.singles: dict[int, dict[str, list[float]]] = {}
        self.probes: dict[int, list[np.ndarray]] = {}
        self.curve: dict[str, list[float]] = defaultdict(list)

    @property
    def chains(self) -> list[int]:
        """Numbers of the chains that have draws."""
        return sorted(self.probes)

    @property
    def draw_scores(self) -> list[dict[str, list[float]]]:
        """Scores of the single draws of each chain, by name: [draws]."""
        return [dict(self.singles[chain]) for chain in self.chains]

    @property
    def probe_arrays(self) -> list[np.ndarray]:
        """Predictions of each chain's draws on the probe set, [draws, P, …]."""
        return [np.stack(self.probes[chain]) for chain in self.chains]

    def note(self, chain: int, scores: Mapping[str, float], probe: Tensor) -> None:
        """Keep a single draw's scores, and its predictions on the probe set."""
        for name, value in scores.items():
            self.singles.setdefault(chain, defaultdict(list))[name].append(value)
        self.probes.setdefault(chain, []).append(probe.numpy())

    def note_ensemble(self, draws: int, scores: Mapping[str, float]) -> None:
        """Keep the scores of the ensemble so far."""
        for name, value in {"draws": draws, **scores}.items():
            self.curve[name].append(value)

    def add(self, chain: int, answers: Sequence[Tensor]) -> None:
        """Take in a draw, by what is read of its outputs for each of the `loaders`."""
        raise NotImplementedError

    def end_round(self) -> None:
        """Note the ensemble so far, when every chain has given another draw."""
        raise NotImplementedError


class Pass(Rounds):
    """Takes in the draws of a classifier.

    Args:
        targets: true classes [N] of the evaluated split.
        loader: passes over it.
        probe: passes over the part of the probe set whose predictions are kept of every draw.
        views: further sets of examples.
        reference: predictions of a reference posterior on the evaluated split, or None.
        likelihood: what the model's outputs mean.
    """

    def __init__(
        self,
        targets: Tensor,
        loader: Loader,
        probe: Loader,
        views: Sequence[View] = (),
        reference: Reference | None = None,
        *,
        likelihood: Likelihood | None = None,
    ) -> None:
        self.likelihood = likelihood or Categorical()
        self.targets, self.owners = observed_targets(targets, self.likelihood)
        loaders = [loader, probe, *(view.loader for view in views)]
        super().__init__(reading(self.likelihood, observed=self.owners is not None), loaders)
        self.loader, self.views, self.reference = loader, list(views), reference
        self.whole, self.entropy = Mixture(), EntropySplit()
        self.by_chain: dict[int, Mixture] = {}
        self.fidelity_curve: dict[str, list[float]] = defaultdict(list)
        self.draw_fidelity = None if reference is None else MeanFidelity(reference)
        self.by_view = {view.name: (Mixture(), EntropySplit()) for view in self.views}

    def log_probs(self, model: nn.Module, loader: Loader) -> Tensor:
        """log p [N, C] of all predictions whose targets are known."""
        return outputs(model, loader(), self.read)

    def add(self, chain: int, answers: Sequence[Tensor]) -> None:
        predicted, probe, *viewed = answers
        self.whole.add(predicted)
        self.entropy.add(predicted)
        self.by_chain.setdefault(chain, Mixture()).add(predicted)
        self.note(chain, metrics(predicted, self.targets), probe)
        if self.draw_fidelity is not None:
            self.draw_fidelity.add(predicted)
        for view, log_p in zip(self.views, viewed, strict=True):
            mixture, entropy = self.by_view[view.name]
            mixture.add(log_p)
            entropy.add(log_p)

    def end_round(self) -> None:
        self.note_ensemble(self.whole.count, metrics(self.whole.log_probs, self.targets))
        if self.reference is not None:
            close = fidelity(self.whole.log_probs, self.reference)
            for name, value in (("draws", self.whole.count), *vars(close).items()):
                if not name.endswith("_se"):
                    self.fidelity_curve[name].append(value)

    def result(
        self,
        baseline: Tensor | None,
        members: Mixture,
        validation: tuple[Tensor, Tensor] | None,
        views_by_map: Mapping[str, Tensor],
    ) -> Predictions:
        """What all draws together leave, beside the predictions of MAP and of all chains' warm-up ends, `members`."""
        ends = members.log_probs if members.count > 1 else None
        chains = self.chains
        mixtures = [self.by_chain[chain].log_probs for chain in chains]
        views = {
            name: ViewPredictions(views_by_map.get(name), mixture.log_probs, entropy.entropy)
            for name, (mixture, entropy) in self.by_view.items()
        }
        return Predictions(
            chains, self.targets, baseline, ends, members.count, validation, self.whole.log_probs, mixtures,
            self.draw_scores, dict(self.curve), self.probe_arrays, self.entropy.entropy, views,
            self._fidelities({"map": baseline, "map_ensemble": ends}, chains, mixtures), dict(self.fidelity_curve),
            self.owners,
        )  # fmt: skip

    def _fidelities(
        self, baselines: Mapping[str, Tensor | None], chains: list[int], mixtures: list[Tensor]
    ) -> dict[str, Fidelity]:
        if self.reference is None or self.draw_fidelity is None:
            return {}
        named = {"ensemble": self.whole.log_probs} | {
            f"chain {k}": predicted for k, predicted in zip(chains, mixtures, strict=True)
        }
        named |= {name: baseline for name, baseline in baselines.items() if baseline is not None}
        return {name: fidelity(predicted, self.reference) for name, predicted in named.items()} | {
            "draw": self.draw_fidelity.fidelity
        }


def class_scores(log_probs: Tensor, targets: Tensor) -> ClassificationScores:
    """Scores of log p [N, C], given the true classes [N]."""
    return ClassificationScores(**metrics(log_probs, targets))


@torch.inference_mode()
def take_in(posterior: Posterior, work: Rounds) -> None:
    """Ask every draw of a posterior; draws in rounds, so that ensembles of part of them hold all chains."""
    last = None
    rounds = max((len(store) for store in posterior.stores), default=0)
    seen = with_progress(posterior.rounds(), rounds, "evaluating, a draw of every chain each")
    for draws, ask in posterior.groups(draw for round_ in seen for draw in round_):
        answers = [ask(loader, work.read) for loader in work.loaders]
        for place, draw in enumerate(draws):
            if last is not None and draw.chain <= last:
                work.end_round()
            work.add(draw.chain, [answer[place] for answer in answers])
            last = draw.chain
    work.end_round()


@torch.inference_mode()
def predict(posterior: Posterior, work: Pass, validation: tuple[Loader, Tensor] | None) -> Predictions:
    """Ask MAP and every draw of a posterior; draws in rounds, so that ensembles of part of them hold all chains.

    Args:
        posterior: with its model.
        work: what to ask; it takes in the draws.
        validation: passes over the validation set, which only MAP is asked about, and its targets.
    """
    take_in(posterior, work)
    members = Mixture()
    for model in posterior.map_models():
        members.add(work.log_probs(model, work.loader))
    baseline, held_out, by_map = None, None, {}
    if (end := posterior.map_model()) is not None:
        baseline = work.log_probs(end, work.loader)
        by_map = {view.name: work.log_probs(end, view.loader) for view in work.views}
        if validation is not None:
            loader, targets = validation
            held_out = work.log_probs(end, loader), observed_targets(targets, work.likelihood)[0]
    return work.result(baseline, members, held_out, by_map)


def observed_targets(targets: Tensor, likelihood: Likelihood) -> tuple[Tensor, Tensor | None]:
    """Targets that are there, [M], and their places [M, A]; None where each example has one."""
    if targets.ndim == 1 or not isinstance(likelihood, OfClasses):
        return targets, None
    observed = likelihood.observed(targets)
    return targets[observed], observed.nonzero()


T = TypeVar("T")
EVERY = 5.0
"""Seconds between lines where there is no terminal; what takes less is not told."""


def with_progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, of which there are `total`, told as they come: `what` is done with them."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            yield from bar.track(items, total=total, description=what)
        return
    shown = time.monotonic()
    for done, item in enumerate(items):
        if done and time.monotonic() - shown > EVERY:
            shown = time.monotonic()
            print(f"{what}: {done:,} of {total:,}", flush=True)  # noqa: T201
        yield item
