"""What makes a tiny chain take longer than a job's time limit."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback

SECONDS_A_STEP = 25.0
"""14 of them take longer than the limit of `check.py`'s job."""


class Slow(Callback):
    """Sleeps after every step."""

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(SECONDS_A_STEP)
