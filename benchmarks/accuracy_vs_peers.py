"""Ours beside posteriors, blackjax, lightning-uq-box at equal gradient cost: `python benchmarks/accuracy_vs_peers.py`.

Conjugate linear regression and two-parameter logistic regression, full batch and minibatch, every sampler that another
library has too. All start at the same points, see the same minibatches and take the same number of gradients, in
several hundred chains. Needs `pip install 'bayeslora[bench]'`; a library that is missing gets a row that says so.
Under five minutes on one core: `python benchmarks/accuracy_vs_peers.py`, which writes results/accuracy_vs_peers.md and
.json.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import torch
from peers import runners
from peers.measure import Measured, measure, verdict
from peers.problem import Problem
from peers.results import origin, pm, table, write

from bayeslora.laws.regression_posteriors import LinearRegression, LogisticRegression

LINEAR, LOGISTIC = {"num_data": 1000, "dim": 10}, {"num_data": 100, "dim": 2}
FULL, TENTH, FIFTH = {"batch_size": None}, {"batch_size": 100}, {"batch_size": 20}
PROBLEMS = [
    Problem("linear regression, full batch", LinearRegression, LINEAR | FULL, step=0.1),
    Problem("linear regression, batch 100 of 1000", LinearRegression, LINEAR | TENTH, step=0.04),
    Problem("logistic regression, full batch", LogisticRegression, LOGISTIC | FULL, step=0.1, chains=1024),
    Problem("logistic regression, batch 20 of 100", LogisticRegression, LOGISTIC | FIFTH, step=0.1, chains=1024),
]
MODULES = {"posteriors": "posteriors", "blackjax": "blackjax", "lightning-uq-box": "lightning_uq_box"}
OURS = "bayeslora"


@dataclass(frozen=True)
class Entry:
    """One row: a sampler of a library, and how it is set."""

    sampler: str
    library: str
    how: str
    run: runners.Run
    minibatch_only: bool = False


LM = "leimkuhler_matthews"
ENTRIES = [
    Entry("SGLD", OURS, "Euler", runners.ours("SGLD")),
    Entry("SGLD", OURS, "Leimkuhler–Matthews", runners.ours("SGLD", integrator=LM)),
    Entry("SGLD", OURS, "the same, control variates", runners.ours("SGLD", integrator=LM, control_variates=True), True),
    Entry("SGLD", "posteriors", "", runners.posteriors("sgld")),
    Entry("SGLD", "blackjax", "", runners.blackjax("sgld")),
    Entry("SGLD", "blackjax", "control variates", runners.blackjax("sgld", control_variates=True), True),
    Entry("SGLD", "lightning-uq-box", "noise_factor = √kT", runners.uq_box()),
    Entry("SGHMC", OURS, "", runners.ours("SGHMC")),
    Entry("SGHMC", "posteriors", "", runners.posteriors("sghmc")),
    Entry("SGHMC", "blackjax", "10 gradients a minibatch (default)", runners.blackjax("sghmc", leaps=10)),
    Entry("SGNHT", OURS, "", runners.ours("SGNHT")),
    Entry("SGNHT", "posteriors", "T = 1/N", runners.posteriors("sgnht")),
    Entry("SGNHT", "posteriors", "θ in units of 1/√N", runners.posteriors("sgnht", unit="sd")),
    Entry("SGNHT", "blackjax", "", runners.blackjax("sgnht")),
    Entry("SGNHT", "blackjax", "θ in units of 1/√N", runners.blackjax("sgnht", unit="sd")),
    Entry("BAOAB", OURS, "", runners.ours("BAOAB")),
    Entry("BAOAB", "posteriors", "baoa", runners.posteriors("baoa")),
    Entry("SGLRW", OURS, "", runners.ours("SGLRW")),
    Entry("SGLRW", "posteriors", "", runners.posteriors("sglrw")),
]


@dataclass(frozen=True)
class Row:
    """An entry on a problem; `found` is None where the library is missing."""

    problem: str
    sampler: str
    library: str
    how: str
    found: Measured | None
    seconds: float = 0.0

    def cells(self) -> list[str]:
        head = [self.sampler, self.library, self.how]
        if self.found is None:
            return [*head, "not installed: pip install 'bayeslora[bench]'", "", "", "", "", ""]
        m = self.found
        lost = f" ({m.diverged} chains diverged)" if m.diverged else ""
        return [
            *head, pm(m.sd, m.sd_se) + lost, pm(m.worst, m.worst_se), pm(m.error, m.error_se),
            pm(m.mean_error, m.mean_se), f"{m.correlation_error:.3f}", f"{m.ess_per_gradient:.4f}",
        ]  # fmt: skip


HEADER = [
    "sampler",
    "library",
    "how",
    "sd ratio",
    "worst coordinate",
    "sd error",
    "mean error",
    "corr.",
    "ESS/gradient",
]


def rows_of(problem: Problem) -> Iterator[Row]:
    for entry in ENTRIES:
        if entry.minibatch_only and problem.table is None:
            continue
        begun, found = time.perf_counter(), None
        if entry.library == OURS or find_spec(MODULES[entry.library]):
            found = measure(entry.run(problem), problem)
        seconds = time.perf_counter() - begun
        yield Row(problem.name, entry.sampler, entry.library, entry.how, found, seconds)


def compared(rows: list[Row]) -> list[list[str]]:
    """Our best row of every sampler beside the best of the others, without chains lost."""
    out = []
    for problem, sampler in dict.fromkeys((row.problem, row.sampler) for row in rows):
        mine, others = [], []
        for row in rows:
            if (row.problem, row.sampler) == (problem, sampler) and row.found and not row.found.diverged:
                (mine if row.library == OURS else others).append(row)
        if not mine or not others:
            continue
        best, rival = (min(group, key=lambda row: row.found.error) for group in (mine, others))
        out.append(
            [problem, sampler, *(_named(row) for row in (best, rival)), verdict(best.found, rival.found)]
        )  # fmt: skip
    return out


def _named(row: Row) -> str:
    name = f"{row.library} {row.how}".strip()
    return f"{name}: {pm(row.found.error, row.found.error_se)}"


TEXT = """\
# Accuracy beside other libraries, at equal gradient cost

Every row: {gradients} gradient evaluations a chain ({burn} of them burn-in), the same start, the same minibatches, 256
chains (linear) or 1024 (logistic). SGLD and SGLRW take ε·λmax = 0.1, and 0.04 on the minibatch linear regression;
samplers with momentum μ = 0.9 take ε(1 − μ), which moves θ as far a step. ± is one standard error over chains.

- sd ratio: sampled over exact sd, averaged over coordinates, and of the worst coordinate. 1 is right.
- sd error: root mean square of (sd ratio − 1) over coordinates, less what noise gives; rows are ranked by it.
- mean error: largest over coordinates, in posterior sds; corr.: largest error of a correlation.
- ESS/gradient: bulk mean, smallest coordinate (arviz). A sampler that is too hot or too cold has it no worse.

How our ε, μ and kT = 1/N map to each library (U the negative log posterior, Ũ = U/N):

- posteriors: log posterior −Ũ at temperature kT. lr = ε (SGLD, SGLRW) or √ε; alpha = (1 − μ)/√ε, for baoa −ln μ/√ε.
- blackjax: log posterior −U at temperature 1. Step ε/N (SGLD) or √(ε/N), alpha = (1 − μ)/step.
- lightning-uq-box: its SGLD optimizer on the loss Ũ, lr = ε, noise_factor = √kT.
"θ in units of 1/√N" samples √N·θ instead: the same recursion but for the mass of SGNHT's thermostat.

{tables}

## Ours beside the best other row

By sd error, the best of our rows beside the best of all others; "level" is closer than two standard errors. Rows that
lost chains are not ranked. Control variates, ours and blackjax's, are anchored at the posterior mean, taken as known;
the one full gradient there is not counted.

{compared}

{why}"""

WHY = """\
Why:

- SGLD, Euler: the same recursion in all four libraries, and the same law to within noise. Ours is ahead by what the
  others lack: the Leimkuhler–Matthews noise removes the discretisation's share of the error and control variates the
  minibatch's. blackjax has control variates too, and keeps Euler's error.
- SGHMC: ours moves θ with the new momentum (symplectic Euler), posteriors and blackjax with the old one, which heats
  at first order of the step. blackjax further takes 10 gradients on one minibatch before it draws another, which makes
  gradient noise ten steps long. All SGHMC rows on minibatches are hot: friction does not absorb gradient noise.
- SGNHT: the thermostats of posteriors (at T = 1/N) and blackjax have a mass that depends on the unit of θ; where sds
  are 1/√N they move N times slower than ours: at N = 1000 a run of this length is over before they have settled. In
  units of 1/√N they keep up, and in ten dimensions leave θ too cold by half the friction, which ours corrects (`SGNHT`,
  Kₜ). There posteriors updates the thermostat with the momentum of one step before, which in two dimensions is
  unstable: most chains diverge. In two dimensions ours is 1 % too hot and blackjax's 1 % too cold (why was not
  studied), so level. On the minibatch regression our sd ratios average to 1 but spread over coordinates: one
  thermostat balances noise that differs between directions on average only.
- BAOAB: the same recursion as posteriors' baoa, so level. On minibatches both are hot, as SGHMC is.
- SGLRW: the same recursion as posteriors', so level; ours also reports how much is clipped. On the minibatch linear
  regression 1 to 2 % is, of skewed gradients, which is what moves the means by 0.06 sd (see sglrw_heating.md)."""


def main() -> None:
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    begun, rows, tables = time.perf_counter(), [], []
    for problem in PROBLEMS:
        part = list(rows_of(problem))
        tables.append(f"## {problem.name}\n\n{table(HEADER, [row.cells() for row in part])}")
        print(tables[-1] + "\n", flush=True)
        rows += part
    ranks = table(["target", "sampler", "ours, best row", "best other row", "more accurate"], compared(rows))
    print(ranks)
    first = PROBLEMS[0]
    text = TEXT.format(
        gradients=first.gradients, burn=first.burn_in, tables="\n\n".join(tables), compared=ranks, why=WHY
    )
    source = origin([*MODULES, "jax", "arviz"], time.perf_counter() - begun, seed=first.seed)
    write("accuracy_vs_peers", text, [asdict(row) for row in rows], source)


if __name__ == "__main__":
    main()
