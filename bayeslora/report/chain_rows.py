"""Convergence of a run's scalars and predictions as rows and pairs: what the chains agree on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bayeslora.counts import counted
from bayeslora.diagnostics.convergence import Convergence, FunctionSpace
from bayeslora.evaluation.results import Criterion, Prefixes, Results
from bayeslora.report.words import MISSING, finite_or_none, listed, number, percent, sentence

RHAT_LIMIT, RHAT_BAD = 1.01, 1.1
"""R-hat up to the first: chains agree. Above the second: they disagree. Between: not shown to agree."""
ESS_A_CHAIN = 100
"""Effective draws a chain below which estimates are called noisy."""
LIMITED_BY = {
    "potential": "potential_rhat",
    "nll": "potential_rhat",
    "l2_norm": "l2_norm_rhat",
    "prior": "l2_norm_rhat",
    "function_space": "function_space_rhat",
}
"""What decides whether chains agree, and the criterion whose limit holds for it instead of `RHAT_LIMIT`."""
LABELS = {
    "potential": "Potential",
    "nll": "NLL on the probe set",
    "prior": "Prior energy",
    "l2_norm": "Parameter norm",
    "validation/accuracy": "Accuracy on validation",
    "validation/nll": "NLL on validation",
    "validation/ece": "ECE on validation",
    "function_space": "95 % of the predictions",
}
"""In the order to show."""
WEIGHT_SPACE = {"norm": "Block norms", "projection": "Random projections"}
"""Groups of scalars that networks of one function need not share: they are shown by their worst and decide nothing."""


@dataclass(frozen=True)
class ScalarRow:
    """One line of the table: a scalar, its diagnostics as shown, and in words what they say or why they are missing."""

    label: str
    rhat: str
    bulk: str
    tail: str
    mcse: str
    reading: str


def convergence_rows(results: Results) -> list[tuple[str, str, str, str, str]]:
    """For each scalar its name, R-hat, bulk ESS, tail ESS, and in words what they say or why they are missing."""
    return [(row.label, row.rhat, row.bulk, row.tail, row.reading) for row in scalar_rows(results)]


def scalar_rows(results: Results, grouped: bool = True) -> list[ScalarRow]:
    """The scalars in the order of `LABELS`, then all others; groups in weight space by their worst, if `grouped`."""
    scalars = results.diagnostics.scalars
    alone = [name for name in scalars if name.partition("/")[0] not in WEIGHT_SPACE]
    order = [*(name for name in LABELS if name in alone), *(name for name in alone if name not in LABELS)]
    table = [_row(results, name, scalars[name]) for name in order]
    if not grouped:
        return table + [_row(results, name, scalars[name]) for name in scalars if name not in alone]
    groups = {group: [scalars[name] for name in scalars if name.startswith(f"{group}/")] for group in WEIGHT_SPACE}
    return table + [_worst(results, group, members) for group, members in groups.items() if members]


def rhat_limit(results: Results, name: str) -> float:
    """R-hat up to which chains are said to agree on something: the run's criterion, never above `RHAT_BAD`."""
    limit = results.criteria.get(LIMITED_BY.get(name, ""), Criterion()).limit
    return RHAT_LIMIT if limit is None else min(limit, RHAT_BAD)


def deciding(results: Results) -> dict[str, tuple[float | None, str | None]]:
    """By name, what decides whether chains agree and was recorded: its R-hat, or the reason why there is none."""
    rhats = {name: (finite_or_none(one.rhat), one.reason) for name, one in results.diagnostics.scalars.items()}
    predictions = results.diagnostics.function_space
    if predictions is not None:
        rhats["function_space"] = finite_or_none(predictions.rhat_q95), predictions.reason
    return {name: rhats[name] for name in LIMITED_BY if name in rhats}


def part_rows(results: Results) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """R-hat from the first part of the draws: headings, and for each quantity its name and cells."""
    parts = results.diagnostics.prefixes or Prefixes()
    rows = {
        "Potential": parts.potential,
        "Parameter norm": parts.l2_norm,
        "Predictions, median": parts.function_space,
    }
    return [percent(share, 0) for share in parts.shares], [
        (label, [number(value, ".3f") for value in values]) for label, values in rows.items() if values
    ]


def function_pairs(results: Results) -> list[tuple[str, str]]:
    """What is known of predictions: their R-hat and ESS, how far chains agree, and how fast draws come."""
    return [
        *_probe_pairs(results), *_agreement_pairs(results), *_efficiency_pairs(results), *_acceptance_pairs(results)
    ]  # fmt: skip


def _probe_pairs(results: Results) -> Iterator[tuple[str, str]]:
    probes = results.diagnostics.function_space or FunctionSpace()
    if probes.rhat_median is not None:
        yield "R-hat of predictions", f"{number(probes.rhat_median, '.3f')} in the median"
        worst_rhat = probes.rhat_q95
        yield (
            "Worst 5 %",
            "they do not vary, and have no R-hat" if worst_rhat is None else f"R-hat above {number(worst_rhat, '.3f')}",
        )
        shares = {"1.01": probes.fraction_below_1_01, "1.05": probes.fraction_below_1_05}
        words = [f"{percent(share, 0)} of them at most {limit}" for limit, share in shares.items()]
        yield "R-hat within limits", ", ".join(words)
        worst = f", {number(probes.ess_q05, ',.0f')} or more for 95 %"
        yield "ESS of predictions", f"{number(probes.ess_median, ',.0f')} in the median{worst}"
    elif results.diagnostics.function_space is not None:
        yield "R-hat of predictions", f"{MISSING} {probes.reason or 'no reason was recorded'}"


def _agreement_pairs(results: Results) -> Iterator[tuple[str, str]]:
    between = results.diagnostics.agreement
    if between is None or results.task == "regression":  # agreement is of classes
        return
    if between.kl is None:
        yield "Between chains", f"{MISSING} {between.reason or 'no reason was recorded'}"
        return
    what = "Same answer" if results.scored == "labels" else "Same class predicted"
    yield what, f"{percent(between.same_top)} of the {results.scored}, by any two chains"
    distance = f"KL {number(between.kl, '.4f')} nats, total variation {number(between.total_variation, '.4f')}"
    yield "Between two chains", distance


def _efficiency_pairs(results: Results) -> Iterator[tuple[str, str]]:
    spent, a_second = results.diagnostics.efficiency, results.provenance.ess_per_second
    words = []
    if a_second is not None:
        words.append(f"{a_second:.3g} a second of burn-in and sampling")
    if spent is not None and spent.ess_per_gradient is not None:
        words.append(f"{1000 * spent.ess_per_gradient:.3g} in 1,000 gradients")
    if spent is not None:
        reason = results.diagnostics.of("potential").reason or "neither time nor ESS is known"
        yield "ESS of the potential", ", ".join(words) or f"{MISSING} {reason}"


def _acceptance_pairs(results: Results) -> Iterator[tuple[str, str]]:
    one = results.diagnostics.acceptance
    if one is not None and one.mean is not None:
        shown, draws = f"{number(one.mean, '.3f')} ± {number(one.se, '.3f')}", counted(one.draws, "draw")
        yield "Acceptance of full-data steps", f"{shown}, had they a Metropolis test (from {draws})"


def _row(results: Results, name: str, values: Convergence) -> ScalarRow:
    """The line of one scalar."""
    weight_space = name.partition("/")[0] in WEIGHT_SPACE
    label = LABELS.get(name, name.replace("_", " ").capitalize())
    return _shown(label, values, _weight_reading(results, values) if weight_space else _reading(results, name, values))


def _worst(results: Results, group: str, members: Sequence[Convergence]) -> ScalarRow:
    """The line of a group: the largest R-hat and the smallest ESS."""
    missing = sum(finite_or_none(member.rhat) is None for member in members)
    reasons = listed(sorted({member.reason for member in members if member.reason})) or "no reason"
    values = Convergence(
        rhat=max(filter(None, [finite_or_none(member.rhat) for member in members]), default=None),
        ess_bulk=min((ess for m in members if (ess := finite_or_none(m.ess_bulk)) is not None), default=None),
        ess_tail=min((ess for m in members if (ess := finite_or_none(m.ess_tail)) is not None), default=None),
        reason=f"R-hat of {missing} of {len(members)} is not known ({reasons})" if missing else None,
    )
    return _shown(f"{WEIGHT_SPACE[group]}, worst of {len(members)}", values, _weight_reading(results, values))


def _shown(label: str, values: Convergence, reading: str) -> ScalarRow:
    rhat, mcse = number(values.rhat, ".3f"), number(values.mcse_mean, ".3g")
    return ScalarRow(label, rhat, number(values.ess_bulk, ",.0f"), number(values.ess_tail, ",.0f"), mcse, reading)


def _weight_reading(results: Results, values: Convergence) -> str:
    """What diagnostics in weight space say: nothing that decides, and whether that matters for predictions."""
    words = []
    if values.rhat is not None and values.rhat <= RHAT_LIMIT:
        words.append("chains agree here too")
    elif values.rhat is not None:
        rhat = deciding(results).get("function_space", (None, None))[0]
        matters = {
            None: "whether predictions do is not known",
            True: "predictions agree, so it does not matter for them",
            False: "predictions are not shown to agree either, so it matters",
        }[None if rhat is None else rhat <= rhat_limit(results, "function_space")]
        words.append(f"weights differ between chains; {matters}")
    return sentence("; ".join([*words, *([values.reason] if values.reason else [])])).removesuffix(".")


def _reading(results: Results, name: str, values: Convergence) -> str:
    """What a scalar's diagnostics say, in words."""
    words = []
    sizes = [size for size in (values.ess_bulk, values.ess_tail) if size is not None]
    if values.rhat is not None:
        apart = "chains disagree" if values.rhat > RHAT_BAD else "chains not shown to agree"
        words.append("chains agree" if values.rhat <= rhat_limit(results, name) else apart)
    if sizes:
        enough = min(sizes) >= ESS_A_CHAIN * max(1, len(results.chains))
        words.append("enough draws" if enough else f"below {ESS_A_CHAIN} effective draws a chain")
    if values.reason:
        words.append(values.reason)
    return sentence("; ".join(words)).removesuffix(".")
