"""From a run that was evaluated to what its report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bayeslora.diagnostics.calibration import scaled
from bayeslora.diagnostics.metrics import Reliability, reliability
from bayeslora.evaluation.evaluated_split import evaluated_order
from bayeslora.evaluation.hidden_heat import is_heated
from bayeslora.evaluation.predictions import Predictions
from bayeslora.evaluation.regression import ABSENT, RegressionPass
from bayeslora.evaluation.results import Results
from bayeslora.evaluation.scores import TemperedMap
from bayeslora.evaluation.series import Series, by_scalar
from bayeslora.experiment import Experiment
from bayeslora.factories import in_memory
from bayeslora.report.classes import ClassRow, class_rows
from bayeslora.report.gallery import Gallery, Shown, confident_errors, most_uncertain
from bayeslora.report.next_step import Step, next_step
from bayeslora.report.reals import Reals
from bayeslora.report.words import run_notes, run_settings, run_title
from bayeslora.runs.directory import RunDirectory


@dataclass
class ReportData:
    """All that the page shows.

    Attributes:
        title: heading of the page.
        settings: (label, value) pairs in the order to show, e.g. `("Temperature", "1.0 (the Bayes posterior)")`.
        results: the content of `metrics.json`.
        temperature: T of the run, 0 for MAP; None if it is not known.
        chains: numbers of the chains, in the order of the lists below; none: 0, 1, ….
        steps: step number of each draw, one array a chain.
        series: scalars of each draw by name, e.g. `"potential"`: one array [draws] a chain.
        singles: scores of each single draw by name, e.g. `"nll"`: one array [draws] a chain.
        gradients: minibatch gradients taken for the ensembles of `results.reference.curve`; may be empty.
        reliability: diagrams by name, in the order to show, e.g. `"MAP"` and `"Ensemble"`.
        classes: the results of each class, in their order.
        uncertain, errors: the examples that draws disagree about most, and the most confident errors.
        notes: warnings for the top of the page.
        reals: predictions of a regression, in the place of classes, diagrams and examples.
        absent: why there are no tables and figures of classes.
        next: what to do next: why, and a command to paste; None where nothing is known of the run.
        heated: whether minibatch noise heated the chains.
        drawn_norms: whether norms of scale-free weights were drawn.
        of_program: whether `bayeslora.sample` made the run, to whose reader settings are arguments.
    """

    title: str
    settings: list[tuple[str, str]]
    results: Results = field(default_factory=Results)
    temperature: float | None = None
    chains: list[int] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    series: Mapping[str, list[np.ndarray]] = field(default_factory=dict)
    singles: Mapping[str, list[np.ndarray]] = field(default_factory=dict)
    gradients: list[float] = field(default_factory=list)
    reliability: dict[str, Reliability] = field(default_factory=dict)
    classes: list[ClassRow] = field(default_factory=list)
    uncertain: Gallery = field(default_factory=lambda: Gallery(missing="no predictions were recorded"))
    errors: Gallery = field(default_factory=lambda: Gallery(missing="no predictions were recorded"))
    notes: list[str] = field(default_factory=list)
    reals: Reals | None = None
    absent: str = "no predictions were recorded"
    next: Step | None = None
    heated: bool = False
    drawn_norms: bool = False
    of_program: bool = False

    @property
    def draws(self) -> int:
        """Draws of all chains."""
        return sum(len(steps) for steps in self.steps)

    @property
    def chain_numbers(self) -> list[int]:
        """The chains' numbers."""
        return self.chains or list(range(len(self.steps)))


def report_data(
    run: RunDirectory,
    experiment: Experiment,
    predictions: Predictions | RegressionPass,
    series: Series,
    results: Results,
) -> ReportData:
    """All that the report of a run shows; of a regression, what needs classes is left out, with the reason."""
    data = ReportData(
        title=run_title(experiment),
        settings=run_settings(experiment),
        results=results,
        temperature=experiment.effective_temperature,
        chains=list(predictions.chains),
        steps=[chain["step"] for chain in series],
        series=by_scalar(series),
        singles={
            name: [np.asarray(draws[name]) for draws in predictions.draw_scores] for name in predictions.draw_scores[0]
        },
        notes=run_notes(run, experiment),
        next=next_step(results, experiment, run),
        heated=is_heated(experiment),
        drawn_norms=bool(experiment.chain.scale_free),
        of_program=in_memory(experiment.record.get("dataset")) is not None,
    )
    if isinstance(predictions, RegressionPass):
        data.reals, data.absent = Reals.of(predictions), ABSENT
        return data
    data.gradients = gradients_by_round(experiment, data.steps)
    data.reliability = diagrams(predictions, results)
    if (count := results.predicted) is not None:
        what = "known labels" if count.of == "labels" else "positions with a class"
        data.notes.insert(
            0,
            f"Scores are means over the {count.predictions:,} {what} in {count.examples:,} examples.",
        )
        if count.of == "positions":
            data.classes = class_rows(predictions.ensemble, predictions.targets, experiment.data.class_names)
        return data
    split = experiment.evaluation.split
    order, texts = evaluated_order(experiment), experiment.data.texts.get(split, ())
    shown = Shown(
        experiment.by_length(getattr(experiment.data, split)).inputs,
        [texts[row] for row in order.tolist()] if len(texts) == len(order) else texts,
        experiment.data.class_names,
        predictions.targets, predictions.ensemble, predictions.map, predictions.entropy,
    )  # fmt: skip
    data.classes = class_rows(predictions.ensemble, predictions.targets, experiment.data.class_names)
    data.uncertain, data.errors = most_uncertain(shown, data.draws), confident_errors(shown)
    return data


def diagrams(predictions: Predictions, results: Results) -> dict[str, Reliability]:
    """Reliability of MAP, of MAP with its fitted temperature, and of the ensemble; what is at hand."""
    fitted = (results.map_tempered or TemperedMap()).temperature
    shown = {}
    if predictions.map is not None:
        shown["MAP"] = predictions.map
        if fitted is not None:
            shown["MAP, scaled"] = scaled(predictions.map, fitted)
    shown["Ensemble"] = predictions.ensemble
    return {name: reliability(log_probs, predictions.targets) for name, log_probs in shown.items()}


def gradients_by_round(experiment: Experiment, steps: Sequence[np.ndarray]) -> list[float]:
    """Minibatch gradients that all chains together took from the warm-up's end to each round of draws."""
    warmup = experiment.plan.warmup
    total = experiment.plan.total - warmup
    each = experiment.gradients([0]) / total if total else 0.0
    rounds = max((len(chain) for chain in steps), default=0)
    taken = [[chain[min(at, len(chain) - 1)] - warmup for chain in steps if len(chain)] for at in range(rounds)]
    return [float(each * sum(one)) for one in taken]
