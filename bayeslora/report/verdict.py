"""A run's results in sentences: against MAP, on convergence, on its criteria."""

from __future__ import annotations

from bayeslora.evaluation.criteria import failed
from bayeslora.evaluation.results import Results
from bayeslora.evaluation.scores import MapEnsemble, Scores, TemperedMap, score
from bayeslora.report.chain_rows import LABELS, RHAT_BAD, deciding, rhat_limit
from bayeslora.report.table import ScoreColumn, columns, criterion_reason, map_ensemble_label, tie
from bayeslora.report.words import finite_or_none, listed, sentence

AGAINST_MAP = {
    "beats": "beats MAP",
    "is worse": "is worse than MAP",
    "ties": "ties with MAP",
    "cannot be compared": "cannot be compared with MAP",
}
"""How the ensemble can stand against MAP: the outcome, and its words where MAP must be named."""


def verdict(results: Results, draws: int) -> str:
    """One sentence comparing the ensemble of `draws` draws with MAP; within two standard errors is a tie."""
    subject = f"The ensemble of {draws:,} draws" if draws != 1 else "The only draw"
    if results.ensemble is None:
        return "No draw has been evaluated, so there is nothing to compare."
    if results.map is None:
        reached = [f"{c.name} {_shown(c, results.ensemble)}" for c in columns(results)]
        return f"{subject} reaches {listed(reached)}; there is no MAP baseline to compare it with."
    outcomes: dict[str, list[str]] = {outcome: [] for outcome in AGAINST_MAP}
    for column in columns(results):
        outcome, numbers = _compare(column, results, "map")
        outcomes[outcome].append(f"{column.name} ({numbers})")
    having = [(outcome, names) for outcome, names in outcomes.items() if names]
    clauses = [
        f"{outcome if at else AGAINST_MAP[outcome]} on {listed(names)}" for at, (outcome, names) in enumerate(having)
    ]
    of_one = any(one.of_one_example for one in results.differences.get("map", {}).values())
    single = " Differences on one example have no standard error, so none counts." if of_one else ""
    return f"{subject} {', '.join(clauses[:-1])}{', and ' if clauses[1:] else ''}{clauses[-1]}.{single}"


def baselines_verdict(results: Results) -> str | None:
    """Sentences comparing the ensemble with the harder baselines: MAP × K, MAP at its fitted temperature."""
    sentences = []
    for name, words in {
        "map_ensemble": f"{map_ensemble_label(results)}, the deep ensemble of the chains' warm-up ends,",
        "map_tempered": "MAP with a temperature fitted on the validation set",
    }.items():
        if results.ensemble is None or _baseline(results, name) is None:
            continue
        clauses = []
        compared = [c for c in columns(results) if name != "map_tempered" or not c.of_predicted_class]
        for outcome, stands in {"beats": "better", "is worse": "worse", "ties": "as good"}.items():
            names = [c.name for c in compared if _compare(c, results, name)[0] == outcome]
            if names:
                clauses.append(f"{stands} on {listed(names)}")
        sentences.append(f"Against {words} it {f'is {listed(clauses)}' if clauses else 'cannot be compared'}.")
    return " ".join(sentences) or None


def temperature_verdict(results: Results, temperature: float | None) -> str | None:
    """A sentence where the Bayes posterior (T = 1) predicts worse than MAP; else None.

    Source: Wenzel, Roth, Veeling et al. (2020), "How good is the Bayes posterior in deep neural networks really?".
    """
    ensemble, baseline = results.ensemble, results.map
    if temperature != 1.0 or baseline is None or ensemble is None:
        return None
    worse = [c.name for c in columns(results) if _compare(c, results, "map")[0] == "is worse"]
    if not worse:
        return None
    cause = (
        "As the chains agree, this is the posterior's doing and not its sampling's: it takes another prior or"
        " likelihood, or a colder posterior (T < 1), which is another target."
        if chains_agree(results)
        else "As the chains are not shown to agree, it may be the sampling's doing and not the posterior's."
    )
    return f"At T = 1, the Bayes posterior, predictions are worse than those of MAP on {listed(worse)}. {cause}"


def convergence_verdict(results: Results) -> str:
    """One sentence on whether the chains agree: on potential, norm, NLL, prior and 95 % of the predictions."""
    rhats_of = deciding(results)
    rhats = {name: rhat for name, (rhat, _) in rhats_of.items() if rhat is not None}
    unknown = {name: reason or "no reason was recorded" for name, (rhat, reason) in rhats_of.items() if rhat is None}
    if not rhats:
        return f"Convergence was not assessed: {'; '.join(sorted(set(unknown.values()))) or 'nothing was recorded'}."
    worst = max(rhats, key=lambda name: (rhats[name] > rhat_limit(results, name), rhats[name]))
    if rhats[worst] > rhat_limit(results, worst):
        words = "disagree" if rhats[worst] > RHAT_BAD else "are not shown to agree yet"
        return (
            f"The chains {words} (R-hat up to {rhats[worst]:.3f}, that of {_of(worst)}): this is an ensemble, not a"
            " sample of the posterior."
        )
    if unknown:
        names = listed([_of(name) for name in unknown])
        return f"The chains are not shown to agree: {names} not assessed ({'; '.join(sorted(set(unknown.values())))})."
    return f"The chains agree on what was compared (R-hat at most {max(rhats.values()):.3f}, that of {_of(worst)})."


def chains_agree(results: Results) -> bool:
    """Whether all that decides has an R-hat, within its limit."""
    rhats = deciding(results)
    return bool(rhats) and all(rhat is not None and rhat <= rhat_limit(results, n) for n, (rhat, _) in rhats.items())


def criteria_verdict(results: Results) -> tuple[bool | None, str, list[str]]:
    """Whether all criteria are met (None without any), how many are in words, and a sentence on each that is not."""
    criteria = results.criteria
    if not criteria:
        return None, "No criterion was set, so nothing passes or fails.", []
    problems = failed(criteria)
    reasons = [
        criterion_reason(results, name) if finite_or_none(one.value) is None else None
        for name, one in criteria.items()
        if not one.passed
    ]
    sentences = [
        sentence(f"{problem} ({reason})" if reason else problem)
        for problem, reason in zip(problems, reasons, strict=True)
    ]
    count = f"{len(criteria) - len(problems)} of {len(criteria)} criteria met"
    return not problems, count, sentences


def _baseline(results: Results, name: str) -> Scores | None:
    """The scores of `map`, `map_tempered` or `map_ensemble`."""
    part = getattr(results, name)
    return part.scores if isinstance(part, TemperedMap | MapEnsemble) else part


def _compare(column: ScoreColumn, results: Results, name: str) -> tuple[str, str]:
    """How a score of the ensemble stands against a baseline's, and both in digits."""
    value = finite_or_none(score(results.ensemble, column.key))
    against = finite_or_none(score(_baseline(results, name), column.key))
    if value is None or against is None:
        return "cannot be compared", "a value is missing"
    shown, other = _digits(column, value), _digits(column, against)
    if tie(results, column, "ensemble", name):
        return "ties", shown if shown == other else f"{shown} vs {other}"
    apart = next((digits for digits in range(3, 7) if column.show(value, digits) != column.show(against, digits)), 3)
    numbers = f"{_digits(column, value, apart)} vs {_digits(column, against, apart)}"
    return "beats" if (value > against) == column.higher_is_better else "is worse", numbers


def _shown(column: ScoreColumn, scores: Scores) -> str:
    value = finite_or_none(score(scores, column.key))
    return "unknown" if value is None else _digits(column, value)


def _digits(column: ScoreColumn, value: float, digits: int = 3) -> str:
    """A score in so many digits that do not break across lines."""
    return column.show(value, digits).replace(" ", "\N{NO-BREAK SPACE}")


def _of(name: str) -> str:
    """A quantity within a sentence."""
    return {"potential": "the potential", "l2_norm": "the parameter norm", "prior": "the prior energy"}.get(
        name, f"the {LABELS[name]}" if name == "nll" else LABELS[name]
    )
