"""Process of a background task; ``python -m segunlearn.app.child KIND``, the request as input.

Standard input is seen by nobody else, while every account of the machine may read the words of a
command.
"""

from __future__ import annotations

import logging
import os
import sys


def main() -> None:
    """Read the request and let the platform run it, after whatever answers people."""
    os.nice(10)
    logging.getLogger("monailabel").setLevel(logging.WARNING)  # it logs options and results whole
    sys.argv = ["segunlearn", "-m", sys.argv[1], "-r", sys.stdin.read()]
    from monailabel.interfaces.utils.app import run_main

    run_main()


if __name__ == "__main__":
    main()
