"""The callback that keeps posterior draws by the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from bayeslora.chain.modes import evaluation_mode
from bayeslora.diagnostics.projections import block_norms, projections
from bayeslora.engine.module import SamplingModule
from bayeslora.engine.writing import Writer
from bayeslora.loggers import ChainLoggers
from bayeslora.posterior.store import DrawStore, write_baseline

Probe = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts a pass over the probe set: (inputs, targets) batches, not augmented."""


class DrawScalars:
    """What adds scalars of its own to every draw: a callback that reads the state which is kept."""

    def draw_scalars(self, trainer: Trainer, module: SamplingModule) -> dict[str, Tensor]:
        """Scalars, or [K] in a stack, of the present states by name; leaves them as they are."""
        raise NotImplementedError


class DrawCollector(Callback):
    """Keeps a draw of every chain wherever the plan says so, with its scalars, and its MAP baseline after the warm-up.

    Scalars of a draw: `potential` (U in nats, its data term estimated on the probe set), `nll` (mean over the probe
    set, nats), `prior` (prior energy, nats), `l2_norm` (‖θ‖), `lr` (ε), what the sampler says of itself, norms by block
    (`norm/…`), ten random projections (`projection/…`), scores on the validation set, if there is one (`validation/…`),
    and what `sources` add.

    Args:
        stores: where the draws go, one store a chain, in the module's order.
        probe: the probe set, a fixed subset of the training data.
        map_files: where the chains' MAP baselines go, in the order of the stores; None of a chain that keeps none.
        map_step: after how many steps the state is the MAP baseline, which may be 0; None: never.
        validation: held-out examples on which every draw is scored, or None.
        loggers: to whom every draw's scalars go too, or None.
        sources: what else gives scalars of a draw.
        writer: writes draws and baselines while the chains go on; the run gives it, and waits for it.
    """

    def __init__(
        self,
        stores: Sequence[DrawStore],
        probe: Probe,
        map_files: Sequence[Path | None] = (),
        map_step: int | None = None,
        *,
        validation: Probe | None = None,
        loggers: ChainLoggers | None = None,
        sources: Sequence[DrawScalars] = (),
        writer: Writer | None = None,
    ) -> None:
        self.writer = writer or Writer()
        self.sources = list(sources)
        self.stores, self.probe, self.validation = list(stores), probe, validation
        self.map_files, self.map_step = list(map_files), map_step
        self.loggers = loggers or ChainLoggers()
        self.kept = 0

    def on_train_start(self, trainer: Trainer, module: SamplingModule) -> None:  # type: ignore[override]  # noqa: ARG002
        self.kept = module.plan.draws_by(module.steps_taken)
        if module.steps_taken == self.map_step == 0:
            for file, store, state in zip(self.map_files, self.stores, module.chain.states(), strict=False):
                if file is not None:
                    write_baseline(file, state, store.chain, 0)

    def on_train_batch_end(self, trainer: Trainer, module: SamplingModule, *_: Any) -> None:  # type: ignore[override]
        """Keep what the plan wants kept after this step."""
        taken = module.steps_taken
        index, map_files = module.plan.draw_after(taken), self.map_files if taken == self.map_step else []
        if index is None and not map_files:
            return
        module.chain.check_finite()
        scalars = self.scalars(trainer, module)
        states = [{name: t.detach().to("cpu", copy=True) for name, t in one.items()} for one in module.chain.states()]
        ends = zip(map_files, self.stores, states, strict=False)
        works: list[Callable[[], Any]] = [
            partial(write_baseline, file, state, store.chain, taken) for file, store, state in ends if file is not None
        ]
        if index is not None:
            draws = zip(self.stores, states, scalars, strict=True)
            works += [partial(store.put, index, state, step=taken, scalars=values) for store, state, values in draws]
        self.writer.put(*works)
        if index is not None:
            self.kept = index + 1
            self._log(scalars, taken)

    def on_train_end(self, trainer: Trainer, module: SamplingModule) -> None:  # type: ignore[override]  # noqa: ARG002
        self.writer.wait()

    def _log(self, scalars: list[dict[str, float]], taken: int) -> None:
        """Hand the scalars and the number of draws kept to the loggers."""
        for store, values in zip(self.stores, scalars, strict=True):
            drawn = {f"draw/{name}": value for name, value in values.items()}
            self.loggers.log(store.chain, drawn | {"draws": self.kept}, taken)

    @torch.no_grad()
    def scalars(self, trainer: Trainer, module: SamplingModule) -> list[dict[str, float]]:
        """Diagnostics of the present states, one dictionary a chain; leaves the model as it was.

        Raises:
            DivergedError: one of them is not finite.
        """
        with evaluation_mode(module.chain.network), trainer.precision_plugin.forward_context():
            nll = torch.cat([module.chain.nll(x, y) for x, y in self.probe()], dim=-1).mean(-1)
            validation = self._validation(module)
        prior = module.chain.prior_energy()
        blocks = block_norms(module.chain.params, module.chain.chain_axes)
        directions = projections(module.chain.params, module.chain.chain_axes).unbind(-1)
        columns: dict[str, Any] = {
            "potential": module.chain.potential.num_data * nll + prior,
            "nll": nll,
            "prior": prior,
            "l2_norm": module.chain.l2_norm(),
            "lr": torch.tensor(module.chain.step_size, dtype=torch.float64),
            **module.chain.sampler.diagnostics(),
            **{f"norm/{block}": norm for block, norm in blocks.items()},
            **{f"projection/{i}": value for i, value in enumerate(directions)},
            **validation,
        }
        if module.plan.draw_after(module.steps_taken) is not None:
            for source in self.sources:
                columns |= source.draw_scalars(trainer, module)
        chains = len(self.stores)
        rows = {name: torch.as_tensor(column).expand(chains).tolist() for name, column in columns.items()}
        scalars = [{name: row[place] for name, row in rows.items()} for place in range(chains)]
        wrong = {
            chain: [f"{name} {value:g}" for name, value in values.items() if not math.isfinite(value)]
            for chain, values in zip(module.chain.chains, scalars, strict=True)
        }
        bad = [chain for chain, names in wrong.items() if names]
        if bad:
            raise module.chain.diverged(", ".join(wrong[bad[0]]), module.steps_taken, bad)
        return scalars

    def _validation(self, module: SamplingModule) -> dict[str, list[float]]:
        """The likelihood's scores on the validation set, each by chain; nothing where there is none."""
        if self.validation is None:
            return {}
        stacked = module.chain.chain_axes
        batches = [(module.chain.logits(x), y) for x, y in self.validation()]
        outputs = torch.cat([part for part, _ in batches], dim=stacked).cpu()
        targets = torch.cat([y for _, y in batches]).cpu()
        rows = [module.chain.likelihood.scores(row, targets) for row in (outputs if stacked else [outputs])]
        return {f"validation/{name}": [row[name] for row in rows] for name in rows[0]}
