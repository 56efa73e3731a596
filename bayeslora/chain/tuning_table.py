"""What a pilot found, as lines of text."""

from __future__ import annotations

from bayeslora.chain.tuning import TIMES
from bayeslora.counts import counted
from bayeslora.diagnostics.values import TOLERANCE, Tuning


def pilot_table(found: Tuning) -> str:
    """What a pilot found, as lines of text."""
    noisy = any(one.heat is not None for one in found.blocks.values())
    located = any(one.noise is not None for one in found.blocks.values())
    width = max(5, *map(len, found.blocks))
    head = f"{'block':{width}}  coordinates  curvature  step size  relaxation" + noisy * "  heat at most"
    head += located * "  where noise lies"
    lines = [
        f"step sizes from a pilot of {counted(found.steps, 'step')}; every chain of this run keeps them:",
        f"  {head}",
    ]
    for block, one in found.blocks.items():
        relaxed = "-" if one.relaxation is None else f"{one.relaxation:,.0f}"
        heat = "" if one.heat is None else f"  {100 * one.heat:10.1f} %"
        if one.noise is not None:
            heat += f"  {100 * one.noise.share:,.0f} ± {100 * one.noise.se:,.0f} %".rjust(18)
        lines.append(
            f"  {block:{width}}  {one.size:11,}  {one.curvature:9.3g}  {one.step_size:9.3g}  {relaxed:>10}{heat}"
        )
    mu = "" if found.momentum is None else f"momentum {found.momentum:.3f}, "
    slowest = counted(round(found.relaxation), "step")
    tau = f"slowest relaxation {slowest}, {TIMES:g} times that {TIMES * found.relaxation:,.0f}"
    lines.append(f"  {mu}{tau}")
    if noisy:
        lines.append(f"  heat is that of independent batches of {found.batch_size:,}; reshuffled epochs bring less")
        if found.batch_size != found.cheapest_batch:
            best = "null" if found.cheapest_batch is None else found.cheapest_batch
            lines.append(f"  the slowest block would relax on the fewest examples with chain.batch_size={best}")
    lines += [f"  {line}" for line in _where_noise_lies(found)]
    return "\n".join(lines)


def _where_noise_lies(found: Tuning) -> list[str]:
    """What noise does in the block that it heats most beside what the mean over coordinates shows."""
    hidden = {
        block: one.noise
        for block, one in found.blocks.items()
        if one.noise and one.noise.share > 2 * one.noise.mean and one.noise.share - 2 * one.noise.se > TOLERANCE
    }
    if not hidden:
        return []
    worst = max(hidden, key=lambda block: hidden[block].share)
    return [
        f"it is a mean over coordinates: the noise lies in {hidden[worst].where} of {worst},",
        "and what the data determine is too hot there; a larger chain.batch_size makes that less, sampler=sglrw is not"
        " heated",
    ]
