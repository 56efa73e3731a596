"""MC dropout and Laplace approximations beside the MAP run of MRPC: uncertainty without sampling.

    python benchmarks/reproduce.py mrpc-map-single --data FOLDER     # the run that they are around
    python benchmarks/mrpc_baselines.py last-layer --data FOLDER
    python benchmarks/mrpc_baselines.py lora --data FOLDER
    python benchmarks/mrpc_baselines.py dropout --data FOLDER
    python benchmarks/reproduce.py --tables                          # into docs/results.md

Laplace by laplace-torch (extra `bench`), with the generalized Gauss-Newton matrix of the 3,302 training pairs at MAP:
of the head (full), of LoRA tensors and head (Kronecker factors). The prior is the run's, so that the posterior which
samplers target is approximated; or one precision for all, by marginal likelihood. MC dropout is trained anew on the
same potential, from chain 0's start and by its batches, with PEFT's dropout before A; of several p the best on the
366 validation pairs is shown. The numbers go to docs/results/mrpc-PART.0.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peers.results import origin
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayeslora.datasets.base import Split
from bayeslora.diagnostics.calibration import fit_temperature
from bayeslora.diagnostics.metrics import score_parts
from bayeslora.diagnostics.paired import Parts, paired
from bayeslora.experiment import Experiment
from bayeslora.posterior import Posterior
from bayeslora.samplers import schedules

NUMBERS = Path(__file__).resolve().parents[1] / "docs" / "results"
DRAWS = 64
"""Passes of MC dropout."""
OUTPUT_DRAWS = 4096
"""Draws of the outputs, whose cost is nothing."""
WEIGHTS = "16 draws of the weights"
WAYS: dict[str, dict[str, Any]] = {
    "linearised, probit": {"pred_type": "glm", "link_approx": "probit"},
    "linearised, draws of the outputs": {"pred_type": "glm", "link_approx": "mc", "n_samples": OUTPUT_DRAWS},
    WEIGHTS: {"pred_type": "nn", "link_approx": "mc", "n_samples": 16},
}
"""Ways in which laplace-torch predicts."""
SHOWN = ("accuracy", "f1", "nll", "ece")
Predict = Callable[[Tensor], Tensor]
"""Numbers of examples [B] -> probabilities [B, C]."""


class OfExamples(nn.Module):
    """A run's model as a function of the numbers of examples, as laplace-torch batches: int64 [B] -> logits [B, C]."""

    def __init__(self, model: nn.Module, experiment: Experiment) -> None:
        super().__init__()
        data = experiment.data
        self.model, self.transform = model.eval(), data.transform
        self.stored = torch.cat([split.inputs for split in (data.train, data.validation, data.test)])

    def forward(self, numbers: Tensor) -> Tensor:
        logits: Tensor = self.model(self.transform(self.stored[numbers]))
        return logits


class Mrpc:
    """The MAP run, its splits, and what every approximation is compared with."""

    def __init__(self, run: Path, data: Path, dropout: Sequence[float] = ()) -> None:
        self.dropout = dropout
        self.posterior = Posterior.load(run, data_path=data)
        self.experiment = self.posterior.experiment
        model = self.posterior.map_model()
        assert model is not None
        self.model = OfExamples(model, self.experiment)
        parts = self.experiment.data.train, self.experiment.data.validation, self.experiment.data.test
        begins = torch.tensor([0, *(len(split) for split in parts)]).cumsum(0).tolist()
        self.train, self.validation, self.test = (self._numbers(*pair) for pair in zip(parts, begins, strict=False))
        self.prior = self.experiment.potential.prior.for_model(model)
        self.map = self.parts(self.at_map)

    def at_map(self, numbers: Tensor) -> Tensor:
        """Probabilities of examples at MAP, [B, C]."""
        return self.model(numbers).softmax(-1).detach()

    def baselines(self) -> Iterator[dict[str, Any]]:
        """Rows of MAP, and of MAP with one temperature that is fitted on the validation pairs."""
        yield self.row("MAP", "", self.map, cpu_seconds=0.0)
        scaling = fit_temperature(*self.predictions(self.at_map, self.validation, 32))
        log_p, targets = self.predictions(self.at_map, self.test, 32)
        name = "temperature fitted on validation pairs"
        yield self.row("MAP", name, score_parts(scaling.apply(log_p), targets), t=scaling.temperature, cpu_seconds=0.0)

    def _numbers(self, split: Split, begin: int) -> TensorDataset:
        """Numbers and targets of a split, by length, so that batches have little padding."""
        order = self.experiment.order(split)
        return TensorDataset(begin + order, split.targets[order])

    def precisions(self) -> Tensor:
        """The prior's, one a sampled tensor of `OfExamples`, in its order."""
        named = {name.removeprefix("model."): p for name, p in self.model.named_parameters() if p.requires_grad}
        return torch.tensor([self.prior.precision(name, p.shape) for name, p in named.items()])

    def predictions(self, predict: Predict, examples: TensorDataset, batch_size: int) -> tuple[Tensor, Tensor]:
        """log p [N, C] and targets [N]."""
        batches = [(predict(numbers), targets) for numbers, targets in DataLoader(examples, batch_size)]
        p, targets = (torch.cat(part) for part in zip(*batches, strict=True))
        return (p / p.sum(-1, keepdim=True)).clamp(min=torch.finfo(p.dtype).tiny).log(), targets

    def parts(self, predict: Predict, batch_size: int = 32) -> Parts:
        """What each test pair adds to the scores."""
        return score_parts(*self.predictions(predict, self.test, batch_size))

    def row(self, method: str, prediction: str, parts: Parts, **settings: Any) -> dict[str, Any]:
        """Scores with standard errors over test pairs, and their differences to MAP's, paired."""
        zero = {name: 0 * values for name, values in parts.items()}
        found = {
            key: {name: vars(d) for name, d in paired(parts, other).items() if name in SHOWN}
            for key, other in (("scores", zero), ("less_map", self.map))
        }
        print(method, prediction, {n: f"{s['value']:.4f}" for n, s in found["scores"].items()}, settings, flush=True)
        return {"method": method, "prediction": prediction, **found, **settings}


def last_layer(mrpc: Mrpc) -> Iterator[dict[str, Any]]:
    """Full Laplace approximation of the head, on the features of all other layers at MAP.

    The outputs are linear in what is uncertain, so that their draws are those of the weights.
    """
    from laplace import Laplace

    head = next(m for name, m in mrpc.model.named_modules() if name.endswith("head.modules_to_save.default"))
    features = _inputs_of(head, mrpc)
    numbers, targets = mrpc.train.tensors
    train = DataLoader(TensorDataset(features[numbers], targets), len(numbers))
    precision = float(mrpc.precisions()[-1])  # of the head's weight and bias alike
    before = time.process_time()
    net = nn.Sequential(nn.Identity(), head)
    fit = Laplace(net, "classification", "last_layer", "full", prior_precision=precision, last_layer_name="1")
    fit.fit(train)
    spent = time.process_time() - before
    yield from _both_priors(mrpc, "last-layer Laplace, full", fit, spent, lambda n: features[n])


def _both_priors(mrpc: Mrpc, method: str, fit: Any, spent: float, inputs: Predict) -> Iterator[dict[str, Any]]:
    """Rows of a fitted approximation under the run's prior, then under one precision by marginal likelihood."""
    for prior in ("of the run", "by marginal likelihood"):
        before = time.process_time()
        if prior != "of the run":
            fit.optimize_prior_precision(method="marglik", init_prior_prec=100.0)
        found = {"prior": prior, "precisions": sorted(set(fit.prior_precision.tolist())),
                 "log_marginal_likelihood": float(fit.log_marginal_likelihood())}  # fmt: skip
        spent += time.process_time() - before
        for way in WAYS:
            if way != WEIGHTS:
                parts, seconds = _predicted(mrpc, fit, way, inputs)
                yield mrpc.row(method, way, parts, **found, cpu_seconds=round(spent + seconds, 1))


def _inputs_of(layer: nn.Module, mrpc: Mrpc) -> Tensor:
    """What a layer is given for each example, [N, F]."""
    seen: list[Tensor] = []
    numbers = torch.cat([split.tensors[0] for split in (mrpc.train, mrpc.validation, mrpc.test)])
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in numbers.split(32):
            mrpc.model(batch)
    handle.remove()
    values = torch.cat(seen)
    return torch.empty_like(values).index_copy_(0, numbers, values)


def lora(mrpc: Mrpc) -> Iterator[dict[str, Any]]:
    """Laplace approximation of LoRA tensors and head, with Kronecker factors."""
    from laplace import Laplace
    from laplace.curvature import CurvlinopsGGN

    class OfPairs(CurvlinopsGGN):
        """Counts the two texts of a pair, which curvlinops takes for two examples' worth of inputs, as one's tokens."""

        def kron(self, x: Any, y: Tensor, N: int, **more: Any) -> Any:  # noqa: N803
            loss, factors = super().kron(x, y, N, **more)
            for factor in factors.kfacs[:-2]:  # all but the head's
                factor[1] /= 2
            return loss, factors

    before = time.process_time()
    fit = Laplace(mrpc.model, "classification", "all", "kron", prior_precision=mrpc.precisions(), backend=OfPairs)
    fit.fit(DataLoader(mrpc.train, 32))
    name, spent = "LoRA Laplace, Kronecker", time.process_time() - before
    yield from _both_priors(mrpc, name, fit, spent, lambda n: n)
    fit.prior_precision = mrpc.precisions()
    parts, seconds = _predicted(mrpc, fit, WEIGHTS, lambda n: n)
    yield mrpc.row(name, WEIGHTS, parts, prior="of the run", cpu_seconds=round(spent + seconds, 1))


def _predicted(mrpc: Mrpc, fit: Any, way: str, inputs: Predict) -> tuple[Parts, float]:
    """What each test pair adds to the scores of a Laplace approximation, in one of `WAYS` to predict; CPU seconds."""
    before = time.process_time()
    torch.manual_seed(0)

    def predict(numbers: Tensor) -> Tensor:
        if way == WEIGHTS:  # the same ones for every batch
            torch.manual_seed(0)
        with torch.set_grad_enabled(way != WEIGHTS):
            p: Tensor = fit(inputs(numbers), **WAYS[way])
        return p.detach()

    parts = mrpc.parts(predict, 32 if way == WEIGHTS else 4)  # a Jacobian costs a pass of its batch for each output
    return parts, time.process_time() - before


def dropout(mrpc: Mrpc) -> Iterator[dict[str, Any]]:
    """MC dropout in LoRA, trained with each p that is asked for: the best on validation pairs, on the test pairs."""
    best: tuple[float, float, nn.Module] | None = None
    tried, spent = {}, {}
    for p in mrpc.dropout:
        before = time.process_time()
        model = _trained(mrpc.experiment, p)
        spent[p], tried[p] = time.process_time() - before, 0.0
        if len(mrpc.dropout) > 1:
            log_p, targets = mrpc.predictions(_passes(model), mrpc.validation, 32)
            tried[p] = float(score_parts(log_p, targets)["nll"].mean())
            print(f"p = {p}: NLL {tried[p]:.4f} on the validation pairs", flush=True)
        if best is None or tried[p] < best[0]:
            best = tried[p], p, model
    assert best is not None
    _, p, model = best
    found = {"p": p, "validation_nll": tried if len(tried) > 1 else None}
    before = time.process_time()
    parts = mrpc.parts(_passes(model))
    yield mrpc.row(
        "MC dropout", f"{DRAWS} passes", parts, **found, cpu_seconds=round(spent[p] + time.process_time() - before, 1)
    )
    model.eval()
    parts = mrpc.parts(lambda numbers: model(numbers).softmax(-1).detach())
    yield mrpc.row("MC dropout", "dropout off", parts, **found, cpu_seconds=round(spent[p], 1))


def _trained(experiment: Experiment, p: float) -> nn.Module:
    """The model of chain 0 after the run's warm-up, with dropout before every A."""
    chain, potential = experiment.chain, experiment.potential
    model = experiment.model(0)
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = nn.Dropout(p)
    params = {name: q for name, q in model.named_parameters() if q.requires_grad}
    optimizer, batches = experiment.make_warmup(list(params.values())), experiment.batches(0)
    of_steps = schedules.make(chain.warmup.schedule, chain.warmup.steps, **chain.warmup.schedule_settings)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, of_steps)
    _dropping(model)
    torch.manual_seed(experiment.seed)
    for step in range(chain.warmup.steps):
        inputs, targets = batches(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=experiment.trainer.precision != "32-true"):
            nll = experiment.likelihood.nll(model(inputs), targets)
        optimizer.zero_grad()
        potential(nll, params).backward()
        optimizer.step()
        rates.step()
    return OfExamples(model, experiment)


def _dropping(model: nn.Module) -> None:
    """Evaluation mode, but for the dropout before A."""
    model.eval()
    for name, module in model.named_modules():
        if name.endswith("lora_dropout.default"):
            module.train()


def _passes(model: nn.Module) -> Predict:
    """Mean probabilities of `DRAWS` passes with dropout."""

    @torch.no_grad()
    def predict(numbers: Tensor) -> Tensor:
        _dropping(model)
        torch.manual_seed(int(numbers[0]))
        return torch.stack([model(numbers).softmax(-1) for _ in range(DRAWS)]).mean(0)

    return predict


PARTS: dict[str, Callable[[Mrpc], Iterator[dict[str, Any]]]] = {
    "last-layer": last_layer,
    "lora": lora,
    "dropout": dropout,
}


def main() -> None:
    """Compute a part, and write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--run", type=Path, default=Path("outputs/results/mrpc-map-single/0"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=NUMBERS)
    parser.add_argument("--p", type=float, nargs="+", default=[0.1], help="probabilities of MC dropout to choose from")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="By default `link_approx`")
    start = time.process_time()
    mrpc = Mrpc(asked.run, asked.data / "mrpc", asked.p)
    rows = [*mrpc.baselines()]
    more = ["--p", *map(str, asked.p)] if asked.part == "dropout" else []
    command = shlex.join(["python", "benchmarks/mrpc_baselines.py", asked.part, "--data", "DATA", *more])
    for row in PARTS[asked.part](mrpc):  # written as they come: some take minutes
        rows.append(row)
        spent = time.process_time() - start
        source = origin(["laplace-torch", "curvlinops-for-pytorch", "peft"], spent, test_pairs=len(mrpc.test))
        source.pop("command")  # it says where the data lie on this machine
        record = {"row": f"mrpc-{asked.part}", "seed": mrpc.experiment.seed, "command": command,
                  "cpu_seconds": round(spent, 1), "rows": rows, "provenance": source}  # fmt: skip
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (asked.out / f"mrpc-{asked.part}.0.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
