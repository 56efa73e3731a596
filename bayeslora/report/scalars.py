"""Convergence of a run's scalars and predictions as rows and pairs: what the chains agree on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bayeslora.report.words import MISSING, Metrics, known, listed, number, percent, sentence

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


def convergence_rows(metrics: Metrics) -> list[tuple[str, str, str, str, str]]:
    """For each scalar its name, R-hat, bulk ESS, tail ESS, and in words what they say or why they are missing."""
    return [(row.label, row.rhat, row.bulk, row.tail, row.reading) for row in scalar_rows(metrics)]


def scalar_rows(metrics: Metrics, grouped: bool = True) -> list[ScalarRow]:
    """The scalars in the order of `LABELS`, then all others; groups in weight space by their worst, if `grouped`."""
    found = scalars(metrics)
    alone = [name for name in found if name.partition("/")[0] not in WEIGHT_SPACE]
    order = [*(name for name in LABELS if name in alone), *(name for name in alone if name not in LABELS)]
    table = [_row(metrics, name, found[name]) for name in order]
    if not grouped:
        return table + [_row(metrics, name, found[name]) for name in found if name not in alone]
    groups = {group: [found[name] for name in found if name.startswith(f"{group}/")] for group in WEIGHT_SPACE}
    return table + [_worst(group, members) for group, members in groups.items() if members]


def scalars(metrics: Metrics) -> dict[str, Metrics]:
    """The diagnostics that are of one scalar (those that have an R-hat, be it None)."""
    found = (metrics.get("diagnostics") or {}).items()
    return {name: values for name, values in found if isinstance(values, Mapping) and "rhat" in values}


def diagnostic(metrics: Metrics, name: str) -> Metrics:
    """The diagnostics of one name, empty if there are none."""
    return (metrics.get("diagnostics") or {}).get(name) or {}


def rhat_limit(metrics: Metrics, name: str) -> float:
    """R-hat up to which chains are said to agree on something: the run's criterion, never above `RHAT_BAD`."""
    limit = known(((metrics.get("criteria") or {}).get(LIMITED_BY.get(name, "")) or {}).get("limit"))
    return RHAT_LIMIT if limit is None else min(limit, RHAT_BAD)


def deciding(metrics: Metrics) -> dict[str, tuple[float | None, str | None]]:
    """R-hat, or the reason why there is none, of what decides whether chains agree, by name; of what was looked at."""
    found = {name: (known(values["rhat"]), values.get("reason")) for name, values in scalars(metrics).items()}
    probes = diagnostic(metrics, "function_space")
    if probes:
        rhat = known(probes.get("rhat_q95", probes.get("rhat_median")))
        constant = "more than 5 % of the predictions do not vary" if known(probes.get("rhat_median")) else None
        found["function_space"] = rhat, probes.get("reason") or constant
    return {name: found[name] for name in LIMITED_BY if name in found}


def part_rows(metrics: Metrics) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """R-hat from the first part of the draws: headings, and for each quantity its name and cells."""
    parts = diagnostic(metrics, "prefixes")
    labels = {"potential": "Potential", "l2_norm": "Parameter norm", "function_space": "Predictions, median"}
    rows = [(label, [number(value, ".3f") for value in parts.get(key) or []]) for key, label in labels.items()]
    return [percent(share, 0) for share in parts.get("shares") or []], [
        (label, cells) for label, cells in rows if cells
    ]


def function_pairs(metrics: Metrics) -> list[tuple[str, str]]:
    """What is known of predictions: their R-hat and ESS, how far chains agree, and how fast draws come."""
    return [*_probe_pairs(metrics), *_agreement_pairs(metrics), *_efficiency_pairs(metrics)]


def _probe_pairs(metrics: Metrics) -> Iterator[tuple[str, str]]:
    probes = diagnostic(metrics, "function_space")
    if probes and known(probes.get("rhat_median")) is None:
        yield "R-hat of predictions", f"{MISSING} {probes.get('reason') or 'no reason was recorded'}"
    elif probes:
        yield "R-hat of predictions", f"{number(probes['rhat_median'], '.3f')} in the median"
        yield "Worst 5 %", f"R-hat above {number(probes.get('rhat_q95'), '.3f')}"
        shares = [("1.01", "fraction_below_1_01"), ("1.05", "fraction_below_1_05")]
        words = [f"{percent(probes.get(key), 0)} of them at most {limit}" for limit, key in shares]
        yield "R-hat within limits", ", ".join(words)
        worst = f", {number(probes['ess_q05'], ',.0f')} or more for 95 %" if "ess_q05" in probes else ""
        yield "ESS of predictions", f"{number(probes.get('ess_median'), ',.0f')} in the median{worst}"


def _agreement_pairs(metrics: Metrics) -> Iterator[tuple[str, str]]:
    between = diagnostic(metrics, "agreement")
    if between and known(between.get("kl")) is None:
        yield "Between chains", f"{MISSING} {between.get('reason') or 'no reason was recorded'}"
    elif between:
        yield "Same class predicted", f"{percent(between.get('same_top'))} of the examples, by any two chains"
        yield (
            "Between two chains",
            f"KL {number(between['kl'], '.4f')} nats, total variation {number(between.get('total_variation'), '.4f')}",
        )


def _efficiency_pairs(metrics: Metrics) -> Iterator[tuple[str, str]]:
    spent = diagnostic(metrics, "efficiency")
    a_second = known((metrics.get("provenance") or {}).get("ess_per_second"))
    a_gradient = known(spent.get("ess_per_gradient"))
    words = []
    if a_second is not None:
        words.append(f"{a_second:.3g} a second of burn-in and sampling")
    if a_gradient is not None:
        words.append(f"{1000 * a_gradient:.3g} in 1,000 gradients")
    if spent:
        reason = diagnostic(metrics, "potential").get("reason") or "neither time nor ESS is known"
        yield "ESS of the potential", ", ".join(words) or f"{MISSING} {reason}"


def _row(metrics: Metrics, name: str, values: Metrics) -> ScalarRow:
    """The line of one scalar."""
    weight_space = name.partition("/")[0] in WEIGHT_SPACE
    label = LABELS.get(name, name.replace("_", " ").capitalize())
    return _shown(label, values, _weight_reading(values) if weight_space else _reading(metrics, name, values))


def _worst(group: str, members: list[Metrics]) -> ScalarRow:
    """The line of a group: the largest R-hat and the smallest ESS."""
    values: dict[str, Any] = {
        key: pick((v for member in members if (v := known(member.get(key))) is not None), default=None)
        for key, pick in (("rhat", max), ("ess_bulk", min), ("ess_tail", min))
    }
    missing = sum(known(member.get("rhat")) is None for member in members)
    reasons = sorted({str(member["reason"]) for member in members if member.get("reason")})
    if missing:
        values["reason"] = f"R-hat of {missing} of {len(members)} is not known ({listed(reasons) or 'no reason'})"
    return _shown(f"{WEIGHT_SPACE[group]}, worst of {len(members)}", values, _weight_reading(values))


def _shown(label: str, values: Mapping[str, Any], reading: str) -> ScalarRow:
    formats = {"rhat": ".3f", "ess_bulk": ",.0f", "ess_tail": ",.0f", "mcse_mean": ".3g"}
    rhat, bulk, tail, mcse = (number(values.get(key), spec) for key, spec in formats.items())
    return ScalarRow(label, rhat, bulk, tail, mcse, reading)


def _weight_reading(values: Mapping[str, Any]) -> str:
    """What diagnostics in weight space say: nothing that decides."""
    rhat, reason = known(values.get("rhat")), values.get("reason")
    words = [] if rhat is None else ["chains agree here too" if rhat <= RHAT_LIMIT else "weights differ between chains"]
    return sentence("; ".join([*words, *([str(reason)] if reason else [])])).removesuffix(".")


def _reading(metrics: Metrics, name: str, values: Mapping[str, Any]) -> str:
    """What a scalar's diagnostics say, in words."""
    words = []
    rhat = known(values.get("rhat"))
    sizes = [size for key in ("ess_bulk", "ess_tail") if (size := known(values.get(key))) is not None]
    if rhat is not None:
        apart = "chains disagree" if rhat > RHAT_BAD else "chains not shown to agree"
        words.append("chains agree" if rhat <= rhat_limit(metrics, name) else apart)
    if sizes:
        enough = min(sizes) >= ESS_A_CHAIN * len(metrics.get("chains") or [None])
        words.append("enough draws" if enough else f"below {ESS_A_CHAIN} effective draws a chain")
    if values.get("reason"):
        words.append(values["reason"])
    return sentence("; ".join(words)).removesuffix(".")
