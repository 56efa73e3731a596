"""The evaluation of a run: `metrics.json`, `diagnostics.nc` and `report/`; and whether draws are what they were."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.atomic import write_atomically
from bayeslora.codec import decode
from bayeslora.diagnostics.convergence import to_inference_data
from bayeslora.errors import CriteriaError, DataError
from bayeslora.evaluation.acceptance import full_data_acceptance
from bayeslora.evaluation.block_temperatures import with_temperatures
from bayeslora.evaluation.classification import evaluate_classes
from bayeslora.evaluation.criteria import OF_CHAINS, failed, judge
from bayeslora.evaluation.evaluated_split import tokens
from bayeslora.evaluation.hidden_heat import hidden_heat
from bayeslora.evaluation.predictions import Predictions
from bayeslora.evaluation.regression import RegressionPass, evaluate_reals
from bayeslora.evaluation.results import Provenance, Results, Tokens
from bayeslora.evaluation.series import Series, scalar_series
from bayeslora.evaluation.steepness import steepness
from bayeslora.experiment import Experiment
from bayeslora.loggers import log_evaluation
from bayeslora.models.prefix import FromPrefix
from bayeslora.posterior import Posterior
from bayeslora.posterior.answers import keep_answers
from bayeslora.report.data import report_data
from bayeslora.report.page import write_page
from bayeslora.report.table import print_summary
from bayeslora.runs.directory import RunDirectory


def evaluate(run: RunDirectory, experiment: Experiment) -> Results:
    """Evaluate a run: write `metrics.json`, `diagnostics.nc` and `report/`, print the table.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: the run holds no draws, or a draw is corrupt or of another model; a reference does not fit.
        CriteriaError: `evaluate.strict` and a criterion is not met; all is written before.
    """
    posterior = Posterior.load(run.root, experiment.model(), experiment.likelihood)
    if not len(posterior):
        raise DataError(f"{run.root} holds no draws yet; repeat the training command with run_dir={run.root}")
    check_recorded_nll(posterior, experiment)
    with run.evaluating():
        series = scalar_series(posterior)
        predictions, results = diagnosed(posterior, experiment, series)
        diagnostics = replace(
            results.diagnostics,
            acceptance=full_data_acceptance(posterior, experiment),
            noise_heat=hidden_heat(posterior, experiment, results),
            steepness=steepness(posterior, experiment),
        )
        results = replace(results, diagnostics=diagnostics)
        results = replace(results, provenance=evaluation_provenance(run, experiment, results, series))
        results = replace(results, criteria=judge(results, experiment.evaluation.criteria))
        run.write_metrics(results.to_json())
        write_atomically(run.examples_file, predictions.score_parts_npz())
        write_report(run, experiment, predictions, series, results)
        log_evaluation(experiment, run, results)
    problems = failed(results.criteria)
    if experiment.evaluation.strict and problems:
        raise CriteriaError(*problems)
    return results


def diagnosed(
    posterior: Posterior, experiment: Experiment, series: Series
) -> tuple[Predictions | RegressionPass, Results]:
    """Predictions of the evaluated split, their scores, and the diagnostics of the chains."""
    of_task = evaluate_classes if experiment.data.real is None else evaluate_reals
    predictions, results = of_task(posterior, experiment, series)
    return predictions, replace(
        results, diagnostics=with_temperatures(results.diagnostics, posterior, experiment, series)
    )


def not_converged(run: RunDirectory, experiment: Experiment) -> list[str]:
    """Sentences on the criteria of the chains themselves that a run does not meet; scores of predictions play no part.

    Raises:
        DataError: the run holds no draws, or a draw is corrupt or of another model.
    """
    posterior = Posterior.load(run.root, experiment.model(), experiment.likelihood)
    alone = replace(experiment.evaluation, reference=None, ood=None, corruptions=False)
    experiment = experiment.but(evaluation=alone, make_ood=None)
    _, results = diagnosed(posterior, experiment, scalar_series(posterior))
    criteria = judge(results, experiment.evaluation.criteria)
    return failed({name: criterion for name, criterion in criteria.items() if name in OF_CHAINS})


def evaluation_provenance(run: RunDirectory, experiment: Experiment, results: Results, series: Series) -> Provenance:
    """Where the numbers come from, and how long they took."""
    seconds = run.phase_totals("seconds")
    total, steps = sum(seconds.values()), sum(run.phase_totals("steps").values())
    sampling = sum(spent for phase, spent in seconds.items() if phase != "warm-up")
    ess, counts = results.diagnostics.of("potential").ess_bulk, tokens(experiment)
    rate = counts.per_batch * steps / total if counts is not None and total else None
    return replace(
        decode(Provenance, run.config.get("provenance", {}), "provenance"),
        split=experiment.evaluation.split,
        draws=sum(len(chain["step"]) for chain in series),
        chains=len(series),
        seconds=seconds,
        ess_per_second=ess / sampling if ess is not None and sampling else None,
        tokens=None if counts is None else Tokens(counts.per_batch, counts.padding, rate),
        short_burn_in=experiment.short_burn_in(),
    )


def write_report(
    run: RunDirectory,
    experiment: Experiment,
    predictions: Predictions | RegressionPass,
    series: Series,
    results: Results,
) -> None:
    """Write `diagnostics.nc` and `report/`; print the table, what became of the criteria, and where the report is.

    Without `evaluate.report` a page of other numbers, from an evaluation before, is removed.
    """
    data = report_data(run, experiment, predictions, series, results)
    to_inference_data(data.series, run.diagnostics_file, predictions.probe_arrays)
    if experiment.evaluation.report:
        page = write_page(data, run.report)
    else:
        page = None
        rmtree(run.report, ignore_errors=True)
    print_summary(results, page, data.next)


ROUNDING = 1e-4
"""Of the NLL, absolute and relative, between two ways to add in fp32."""


def check_draws(run: RunDirectory, experiment: Experiment) -> None:
    """Check the draws of a run, if it has any (see `check_recorded_nll`)."""
    if any(len(run.store(chain)) for chain in range(experiment.chain.num_chains)):
        check_recorded_nll(Posterior.load(run.root, experiment.model(), experiment.likelihood), experiment)


def check_recorded_nll(posterior: Posterior, experiment: Experiment) -> None:
    """Compute the NLL on the probe set of each chain's first and last draw, and compare it with what was recorded.

    This finds what no fingerprint of a model does: tensors that are plain attributes, functions that use a variable
    from outside, other data. Draws that were sampled in half precision, or on another device, may differ by rounding:
    twice as far as bfloat16 moves the examples' NLL on average. What the draws answer is kept then, for whoever loads
    them without the data.

    Raises:
        DataError: a draw's NLL is another one.
    """
    for store in posterior.stores:
        records = [record for record in store.records() if "nll" in record.scalars]
        for record in {record.index: record for record in (*records[:1], *records[-1:])}.values():
            if not store.intact(record):
                continue  # whoever needs the draw says so, or computes it again
            model = posterior.model_of(store.load(record))
            recorded, computed = record.scalars["nll"], probe_nll(model, experiment)
            off, allowed = abs(computed.mean().item() - recorded), ROUNDING * (1 + abs(recorded))
            if not off <= allowed:
                allowed += 2 * _rounding(model, experiment, computed)
            if not off <= allowed:
                raise DataError(
                    f"draw {record.index} of chain {store.chain} was recorded with NLL {recorded:.4g} on the probe set"
                    f" and has {computed.mean().item():.4g} now, so the training data or the model are not those of the"
                    " run: give the run's own. If the model's function draws tensors at random that are neither"
                    " parameters nor buffers, make them once, outside the function, or seed them, and sample again"
                )
    inputs: Any = next(iter(experiment.probe()()))[0]
    if isinstance(experiment.data.transform, FromPrefix):
        inputs = inputs["tokens"]
    assert posterior.root is not None
    keep_answers(posterior.root, posterior.model, posterior.likelihood, posterior.stores, inputs)


@torch.no_grad()
def probe_nll(model: nn.Module, experiment: Experiment) -> Tensor:
    """−log p(y|x, θ) in nats of every example of the probe set, [P]."""
    model.eval()
    return torch.cat(
        [experiment.likelihood.nll(model(inputs), targets).float() for inputs, targets in experiment.probe()()]
    )


def _rounding(model: nn.Module, experiment: Experiment, nll: Tensor) -> float:
    """How far an example's NLL moves on average in bfloat16; 0 where the model cannot be run so."""
    with suppress(RuntimeError), torch.autocast(experiment.device.type, torch.bfloat16):
        return (probe_nll(model, experiment) - nll).abs().mean().item()
    return 0.0
