"""python -m bayeslora.doctor: does everything that bayeslora needs work on this machine? One line a check, and the fix.

What each line means, and what to do, is in docs/troubleshooting.md, in the order of the checks.
"""

from bayeslora.doctor.command import main

__all__ = ["main"]
