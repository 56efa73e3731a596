"""Posterior-predictive ensembles, streamed: memory does not grow with the number of draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bayeslora.errors import DataError
from bayeslora.posterior.export import export_adapters
from bayeslora.posterior.store import Draw, DrawStore, load_into, read_tensors

Loader = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts a pass over (inputs, targets) batches."""


class Mixture:
    """Running average of predictive probabilities: log (1/S) Σₛ pₛ, by logsumexp in fp32."""

    def __init__(self) -> None:
        self.count = 0
        self._log_sum: Tensor | None = None

    def add(self, log_probs: Tensor) -> None:
        """Take in one draw's log p [N, C]."""
        log_probs = log_probs.float()
        self._log_sum = log_probs.clone() if self._log_sum is None else torch.logaddexp(self._log_sum, log_probs)
        self.count += 1

    @property
    def log_probs(self) -> Tensor:
        """log p of the ensemble so far, [N, C].

        Raises:
            DataError: no draw was added.
        """
        if self._log_sum is None:
            raise DataError("an ensemble needs at least one draw")
        return self._log_sum - math.log(self.count)


@torch.inference_mode()
def log_probs(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """log p(y|x, θ) of a classifier in evaluation mode for every example, [N, C], fp32, on the CPU."""
    model.eval()
    return torch.cat([model(inputs).float().log_softmax(-1).cpu() for inputs, _ in batches])


class Posterior:
    """All draws of all chains of a run.

    Args:
        stores: one `DrawStore` a chain.
        model: a model to load draws into; needed for `predict`.
        map_file: the MAP baseline, if the run kept one.

    Example:
        >>> posterior = Posterior.load("outputs/quickstart/…", model)      # doctest: +SKIP
        >>> p = posterior.predict(loader).exp()                            # doctest: +SKIP
    """

    def __init__(self, stores: list[DrawStore], model: nn.Module | None = None, map_file: Path | None = None) -> None:
        self.stores, self.model, self.map_file = stores, model, map_file

    @classmethod
    def load(cls, run_dir: Path | str, model: nn.Module | None = None) -> Posterior:
        """The posterior of a finished or half-finished run.

        Raises:
            DataError: there is no draw in `run_dir`.
        """
        root = Path(run_dir)
        folders = sorted((p for p in root.glob("chains/*") if p.name.isdigit()), key=lambda p: int(p.name))
        stores = [store for store in (DrawStore(p, int(p.name)) for p in folders) if len(store)]
        map_file = root / "map.safetensors"
        if not stores and not map_file.exists():
            raise DataError(f"{root} holds no draws yet; run bayeslora.train with run_dir={root} first")
        return cls(stores, model, map_file if map_file.exists() else None)

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
        model = self._require_model()
        load_into(model, draw.tensors, f"draw {draw.index} of chain {draw.chain}")
        return model

    def predict_draw(self, draw: Draw, loader: Loader) -> Tensor:
        """log p [N, C] of one draw."""
        return log_probs(self.model_of(draw), loader())

    def predict_map(self, loader: Loader) -> Tensor | None:
        """log p [N, C] of the MAP baseline; None where the run kept none."""
        if self.map_file is None:
            return None
        model = self._require_model()
        load_into(model, read_tensors(self.map_file), str(self.map_file))
        return log_probs(model, loader())

    def predict(self, loader: Loader) -> Tensor:
        """log p [N, C] of the ensemble: probabilities averaged over all draws.

        Args:
            loader: called once a draw; gives (inputs, targets) batches in a fixed order.
        """
        mixture = Mixture()
        for draw in self.draws():
            mixture.add(self.predict_draw(draw, loader))
        return mixture.log_probs

    def adapters(self, out_dir: Path | str, facts: Mapping[str, str] | None = None) -> list[Path]:
        """Write every draw of a LoRA model as a PEFT adapter folder; returns the folders (see `export_adapters`)."""
        return export_adapters(self._require_model(), self.draws(), out_dir, facts)

    def _require_model(self) -> nn.Module:
        if self.model is None:
            raise DataError("Posterior.load(run_dir, model) needs the model to predict with")
        return self.model
