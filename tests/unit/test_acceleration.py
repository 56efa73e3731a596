"""How `trainer.precision`, `channels_last` and `compile` are chosen where they say auto."""

from __future__ import annotations

from bayeslora.engine.acceleration import Acceleration, Timing, choose
from tests.cases import each

OPEN = {"precision": "auto", "channels_last": "auto", "compile": "auto"}


def chosen(asked: dict[str, object], seconds: dict[Acceleration, Timing], steps: int = 1000, **kwargs: bool):
    """What is chosen where each candidate takes so long; candidates that are not listed must not be tried."""
    settings = {"has_bf16": True, "images": True} | kwargs
    return choose(asked, steps=steps, measure=seconds.__getitem__, **settings)[0]


PLAIN, BF16 = Acceleration(), Acceleration("bf16-mixed")
LAST, BOTH = Acceleration(channels_last=True), Acceleration("bf16-mixed", channels_last=True)
COMPILED = Acceleration("bf16-mixed", channels_last=True, compile=True)


def test_the_fastest_is_chosen_and_compiled_where_that_pays() -> None:
    seconds = {
        PLAIN: Timing(1.0, 0), LAST: Timing(1.1, 0), BF16: Timing(0.6, 0), BOTH: Timing(0.5, 0),
        COMPILED: Timing(0.3, 60.0),
    }  # fmt: skip
    assert chosen(OPEN, seconds) == COMPILED
    assert chosen(OPEN, seconds, steps=500) == BOTH, "0.2 s saved 500 times are not worth twice the 60 s of compiling"


def test_differences_within_the_noise_change_nothing() -> None:
    seconds = dict.fromkeys((PLAIN, LAST, BF16, BOTH), Timing(1.0, 0)) | {BF16: Timing(0.97, 0)}
    assert chosen(OPEN | {"compile": False}, seconds) == PLAIN


@each(
    ("asked", "kwargs", "tried"),
    [
        (OPEN | {"compile": False}, {"has_bf16": False, "images": False}, [PLAIN]),
        ({"precision": "32-true", "channels_last": "auto", "compile": False}, {}, [PLAIN, LAST]),
        ({"precision": "auto", "channels_last": False, "compile": False}, {}, [PLAIN, BF16]),
    ],
)
def test_only_what_is_left_open_is_tried(asked: dict, kwargs: dict, tried: list[Acceleration]) -> None:
    seconds = {one: Timing(1.0 / (i + 1), 0) for i, one in enumerate(tried)}
    assert chosen(asked, seconds, **kwargs) == tried[-1]
