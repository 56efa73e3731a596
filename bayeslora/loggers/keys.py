"""Every key that a run logs, and the panel that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["line", "bar", "table", "image", "page"]


@dataclass(frozen=True)
class Panel:
    """Where a key is shown: section, title and kind of the panel, what it tells and what to look for."""

    section: str
    title: str
    tells: str
    look: str
    kind: Kind = "line"


SECTIONS = {
    "Convergence": "While the chains run: do they agree, and how many independent draws are there so far?",
    "Chains": "Every chain as it moves. One colour a chain; the x-axis is the step of the plan.",
    "Draws": "Scalars of each kept draw, the ones that the report's traces show.",
    "Evaluation": "What the run called `…/evaluation` holds: its step counts draws. Compare experiments by these bars.",
    "Report": "Tables, plots and the page that `report/` holds. The draws are the artifact of type `posterior`.",
}
"""Sections in their order, and what they are for."""

_GROWTH = Panel(
    "Evaluation",
    "The ensemble as it grows",
    "The scores of the ensemble of the first so many draws of every chain.",
    "Curves that are flat at the right. One still falling wants more draws.",
)
_FIGURES = (
    "cumulative", "reliability", "selective", "trace_potential", "trace_l2_norm", "rank_potential", "rank_l2_norm",
    "ess_growth", "autocorrelation", "temperature", "corruptions", "fidelity", "predicted", "residuals", "coverage",
)  # fmt: skip
_PLOTS = Panel(
    "Report",
    "Plots",
    "The report's figures: growth of the ensemble, reliability, traces and ranks, growth of ESS.",
    "Curves flat at the right, bars on the diagonal, bands of the chains that overlap, level ranks.",
    "image",
)
_SCORES = {
    "accuracy": ("Accuracy", "Higher is better."),
    "nll": ("NLL", "Lower is better. In nats per example; the ensemble below a single draw is what averaging brings."),
    "ece": ("ECE", "Lower is better. In 15 bins."),
    "brier": ("Brier score", "Lower is better."),
    "f1": ("F1", "Higher is better. Logged for two classes."),
}
_ROWS = ("map/{}", "map_tempered/{}", "map_ensemble/{}", "draw/{}/mean", "ensemble/{}")
_DIAGNOSTICS = {
    "rhat": ("R-hat", "At most 1.01 for potential and norm, and for the median of the predictions."),
    "ess_bulk": ("Bulk ESS", "At least 100 a chain."),
    "ess_tail": ("Tail ESS", "At least 100 a chain."),
}


_ONLINE = {
    "rhat": (
        "R-hat so far",
        "R-hat of potential per example and norm over the chains that move together or came as far before.",
        "It should come down to 1.01. Above 1.1 the chains disagree: longer burn-in, or another step size.",
    ),
    "ess": (
        "ESS so far",
        "How many independent values the sampling steps so far are worth, of each of the two.",
        "A steady rise to what the criteria ask for. A flat curve: the chain moves too slowly.",
    ),
    "tau": (
        "Autocorrelation time",
        "Steps of the sampler until potential per example and norm are nearly independent of their values now.",
        "Level. Still rising: the chain is shorter than its own memory, and ESS is overestimated. Compare with `thin`.",
    ),
    "mcse": (
        "Monte Carlo standard error",
        "Standard error of the mean potential per example (nats) and of the mean norm, autocorrelation counted.",
        "It falls as one over the square root of the steps.",
    ),
}


def _online_keys() -> Iterator[tuple[str, Panel]]:
    """Keys of convergence so far, which are logged at milestones of the sampling steps."""
    for name, words in _ONLINE.items():
        for scalar in ("potential_per_example", "l2_norm"):
            yield f"online/{scalar}/{name}", Panel("Convergence", *words)


def _evaluation_keys() -> Iterator[tuple[str, Panel]]:
    """Keys of the final scalars: `evaluation/` and their place in `metrics.json`."""
    for score, (title, look) in _SCORES.items():
        rows = "MAP, MAP scaled by a temperature, MAP × K, the mean single draw, the ensemble"
        tells = f"{title} on the evaluated split: {rows}."
        for row in _ROWS:
            yield f"evaluation/{row.format(score)}", Panel("Evaluation", title, tells, look, "bar")
    for score in _SCORES:
        yield f"cumulative/{score}", _GROWTH
    for part in ("map/total", "ensemble/total", "ensemble/aleatoric", "ensemble/mutual_information"):
        yield (
            f"evaluation/uncertainty/{part}",
            Panel(
                "Evaluation",
                "Predictive entropy",
                "Mean entropy of the predictions in nats: MAP's, the ensemble's, and the latter's two parts.",
                "Mutual information near 0: the draws all predict the same, the ensemble is one model.",
                "bar",
            ),
        )
    for name, (title, look) in _DIAGNOSTICS.items():
        predictions = {"rhat": "rhat_median", "ess_bulk": "ess_median"}.get(name)
        keys = [f"{scalar}/{name}" for scalar in ("potential", "l2_norm")]
        keys += [f"function_space/{predictions}"] if predictions else []
        for place in keys:
            tells = f"Final {title} over the chains, of potential, parameter norm and predictions on the probe set."
            yield f"evaluation/diagnostics/{place}", Panel("Evaluation", f"Final {title}", tells, look, "bar")


_AGREEMENT = Panel(
    "Evaluation",
    "Agreement of the chains' ensembles",
    "Total variation between the predictions of two chains' ensembles, and the share of equal predicted classes.",
    "Near 0 and near 1: every chain tells the same story.",
    "bar",
)
_EFFICIENCY = Panel(
    "Evaluation",
    "Efficiency",
    "Effective draws of the potential per second of sampling.",
    "Higher is better; only runs on one machine can be compared.",
    "bar",
)

KEYS: dict[str, Panel] = {
    **dict(_online_keys()),
    "draws": Panel("Convergence", "Draws kept", "Draws of the chain on disk.", "A staircase up to `chain.num_draws`."),
    "train/potential_per_example": Panel(
        "Chains",
        "Potential per example on the minibatch",
        "Ũ = U/N in nats per example, of the batch of that step.",
        "A fall in the warm-up, a rise when noise sets in, then a level band. It blows up: smaller `sampler.lr`.",
    ),
    "train/lr": Panel("Chains", "Step size", "ε of the last step.", "The schedule that you meant, also after a retry."),
    "draw/potential": Panel(
        "Draws",
        "Potential of the draws",
        "U(θ) in nats, its data term estimated on the probe set.",
        "Level, overlapping bands. A slope: burn-in was too short. Bands apart: the chains are in different modes.",
    ),
    "draw/nll": Panel(
        "Draws", "NLL on the probe set", "Nats per training example of the probe set.", "Level, as the potential."
    ),
    "draw/prior": Panel("Draws", "Prior energy", "−log p(θ) in nats, up to a constant.", "Level, as the potential."),
    "draw/l2_norm": Panel(
        "Draws", "Parameter norm", "‖θ‖.", "The slowest scalar: a drift here with a level potential is still burn-in."
    ),
    "draw/lr": Panel("Draws", "Step size at the draws", "ε at each draw.", "Constant, unless you chose a schedule."),
    "draw/norm/*": Panel(
        "Draws", "Norms by block", "‖θ‖ of each block of the network.", "One block that drifts has not mixed."
    ),
    "draw/projection/*": Panel(
        "Draws", "Random projections", "θ in fixed random directions.", "Bands of the chains that overlap."
    ),
    "draw/temperature/*": Panel(
        "Draws",
        "Temperature by block",
        "N⟨θ_b, g_b⟩/(D_b·T) on a fresh batch: in units of the temperature asked for, at each draw.",
        "Scatter about 1. Above: heat from minibatches or too large a step. Below: not burnt in.",
    ),
    "draw/kinetic/*": Panel(
        "Draws", "Kinetic temperature by block", "The same from the momenta, where there are any.", "Scatter about 1."
    ),
    "draw/validation/*": Panel(
        "Draws",
        "Single draws on the validation set",
        "Accuracy, NLL and ECE of each draw, where there is a validation set.",
        "Level. Choose settings by these, never by the test set.",
    ),
    "draw/friction": Panel("Draws", "Friction (SGNHT)", "The thermostat.", "It settles; if not, ε is too large."),
    "draw/clipped": Panel(
        "Draws", "Share clipped (SGLRW)", "Coordinates whose force was clipped.", "Below 1 %; beyond, the law is off."
    ),
    **dict(_evaluation_keys()),
    "evaluation/diagnostics/temperature/*/ratio": Panel(
        "Evaluation",
        "Measured temperature",
        "The temperature at which each block, the pool of small blocks and the whole net are sampled, in units of T.",
        "1 within 5 %. Above: smaller steps or larger batches. Below: a longer burn-in.",
        "bar",
    ),
    "evaluation/diagnostics/agreement/total_variation": _AGREEMENT,
    "evaluation/diagnostics/agreement/same_top": _AGREEMENT,
    "evaluation/provenance/ess_per_second": _EFFICIENCY,
    "report/predictions": Panel(
        "Report", "Predictions", "MAP, single draws, each chain, the ensemble.", "Chains that score alike.", "table"
    ),
    "report/convergence": Panel(
        "Report", "Convergence", "R-hat and ESS by scalar, and in words what they say.", "The last column.", "table"
    ),
    "report/criteria": Panel("Report", "Criteria", "Criteria with limits, where there are any.", "Passed.", "table"),
    "report/page": Panel("Report", "Report", "The whole page.", "Its first sentence, and the notes under it.", "page"),
    **{f"report/{name}": _PLOTS for name in (*_FIGURES, "*")},
}  # fmt: skip
"""Every key that is logged (`*` stands for a name that depends on the network or the data), and where it is shown."""
