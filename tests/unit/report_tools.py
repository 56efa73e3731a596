"""Hand-made predictions and series of a run, and what its report shows of them."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeslora.diagnostics.metrics import metrics, reliability
from bayeslora.diagnostics.uncertainty import EntropySplit
from bayeslora.evaluation.classification import classification_results
from bayeslora.evaluation.criteria import judge
from bayeslora.evaluation.predictions import Predictions
from bayeslora.evaluation.results import Provenance, Results
from bayeslora.posterior import Mixture
from bayeslora.report.classes import class_rows
from bayeslora.report.data import ReportData
from bayeslora.report.gallery import Shown, confident_errors, most_uncertain
from bayeslora.settings import Criteria

LIMITS = Criteria()
CLASSES = ("zebra", "yak", "xerus", "wolf", "vole")
EXAMPLES = 60


def targets(classes: int = len(CLASSES)) -> Tensor:
    return torch.arange(EXAMPLES) % classes


def log_probs(seed: int, classes: int = len(CLASSES), strength: float = 1.5) -> Tensor:
    """Log p [N, C] that favour the true class, under noise that all have in common and noise of their own."""
    common, own = (torch.randn(EXAMPLES, classes, generator=torch.Generator().manual_seed(s)) for s in (999, seed))
    return (common + own + strength * torch.nn.functional.one_hot(targets(classes), classes)).log_softmax(1)


def predictions(lengths: list[int], baseline: bool = True, classes: int = len(CLASSES)) -> Predictions:
    """Predictions of chains of so many draws; MAP also on a validation set."""
    truth = targets(classes)
    draws = [[log_probs(100 * chain + at + 1, classes) for at in range(length)] for chain, length in enumerate(lengths)]
    whole, entropy, by_chain, growing = Mixture(), EntropySplit(), [Mixture() for _ in lengths], []
    for at in range(max(lengths)):
        for chain, own in enumerate(draws):
            if at < len(own):
                for part in (whole, entropy, by_chain[chain]):
                    part.add(own[at])
        growing.append({"draws": float(whole.count)} | metrics(whole.log_probs, truth))
    ends = Mixture()
    for chain in range(len(lengths)):
        ends.add(log_probs(1000 * chain, classes))
    singles = [[metrics(draw, truth) for draw in own] for own in draws]
    rng = np.random.default_rng(1)
    return Predictions(
        chains=list(range(len(lengths))),
        targets=truth,
        map=log_probs(0, classes) if baseline else None,
        map_ensemble=ends.log_probs if baseline and len(lengths) > 1 else None,
        map_members=len(lengths) if baseline else 0,
        map_validation=(log_probs(7, classes, strength=1.0), truth) if baseline else None,
        ensemble=whole.log_probs,
        by_chain=[mixture.log_probs for mixture in by_chain],
        draw_scores=[{name: [one[name] for one in own] for name in own[0]} for own in singles],
        cumulative={name: [point[name] for point in growing] for name in growing[0]},
        probe_arrays=[rng.normal(size=(length, 20, classes)) for length in lengths],
        entropy=entropy.entropy,
    )


def series(lengths: list[int], seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Independent draws of every scalar that decides, and of two groups in weight space that differ between chains."""
    rng = np.random.default_rng(seed)
    chains = []
    for chain, length in enumerate(lengths):
        one = {name: rng.normal(place, 1, length) for name, place in (("potential", 900), ("nll", 1), ("prior", 300))}
        one |= {"l2_norm": rng.normal(30, 1, length), "lr": np.full(length, 0.1)}
        one |= {f"norm/layer.{at}": rng.normal(0, 1, length) for at in range(3)}
        one |= {f"projection/{at}": rng.normal(5 * chain, 1, length) for at in range(2)}
        chains.append(one | {"step": 100 * (1 + np.arange(length))})
    return chains


def report(
    found: Predictions, scalars: list[dict[str, np.ndarray]], limits: Criteria = LIMITS, **more: Any
) -> ReportData:
    """What the report of such a run shows; `more` replaces parts of it."""
    values = classification_results(found, scalars, gradients=1_000)
    values = replace(
        values,
        criteria=judge(values, limits),
        provenance=Provenance("python -m bayeslora.train", seconds={"sampling": 75.0}),
    )
    names = CLASSES[: found.ensemble.shape[1]]
    images = torch.randint(0, 256, (EXAMPLES, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    shown = Shown(images, (), names, found.targets, found.ensemble, found.map, found.entropy)
    diagrams = {"MAP": found.map, "Ensemble": found.ensemble}
    parts: dict[str, Any] = {
        "title": "A run",
        "settings": [("Temperature", "1 (the Bayes posterior)")],
        "results": values,
        "temperature": 1.0,
        "chains": found.chains,
        "steps": [one["step"] for one in scalars],
        "series": {name: [one[name] for one in scalars] for name in scalars[0] if name != "step"},
        "singles": {name: [np.asarray(one[name]) for one in found.draw_scores] for name in found.draw_scores[0]},
        "reliability": {name: reliability(p, found.targets) for name, p in diagrams.items() if p is not None},
        "classes": class_rows(found.ensemble, found.targets, names),
        "uncertain": most_uncertain(shown, sum(len(one["step"]) for one in scalars)),
        "errors": confident_errors(shown),
    }
    return ReportData(**(parts | more))


def changed(data: ReportData, **parts: Any) -> None:
    """Replace parts of the results, given as `metrics.json` holds them."""
    data.results = Results.from_json(data.results.to_json() | parts)


class Page(HTMLParser):
    """Collects tags, the addresses that they point to, and the text shown, in which runs of spaces are one."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}]

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"
