"""Entry point of `python -m bayeslora.doctor`."""

import sys

from bayeslora.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
