"""Process of a background task; ``python -m segunlearn.app.child KIND``, the request as input.

Standard input is seen by nobody else, while every account of the machine may read the words of a
command.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from segunlearn.errors import CancelledError, SegUnlearnError
from segunlearn.replacing import full_disk

#: Environment variable in which a task's process finds the server's process id.
STARTER: Final = "SEGUNLEARN_STARTER"
#: Exit code of a task that was asked to stop, as of a command that is.
CANCELLED: Final = 130


def main() -> None:
    """Read the request and let the platform run it, after whatever answers people."""
    os.nice(10)
    logging.getLogger("monailabel").setLevel(logging.WARNING)  # it logs options and results whole
    kind = sys.argv[1]
    if kind != "train":  # which sees by itself that it is alone, and undoes what it did
        threading.Thread(target=end_with_starter, daemon=True).start()
    sys.argv = ["segunlearn", "-m", kind, "-r", sys.stdin.read()]
    from monailabel.interfaces.utils.app import run_main

    try:
        run_main()
    except SegUnlearnError as error:  # an ordinary end, and people read what was written last
        sys.stderr.write(f"{error}\n")
        sys.exit(CANCELLED if isinstance(error, CancelledError) else 1)
    except OSError as error:
        if not (why := full_disk(error)):
            raise
        sys.stderr.write(f"{why}\n")
        sys.exit(1)


def end_with_starter() -> None:
    """End this process once the server is gone, however it ended: nobody could stop it any more.

    What it writes is renamed when it is whole, so no file is left half written.
    """
    gone = starter_gone()
    while not gone():
        time.sleep(1.0)
    os._exit(1)


def starter_gone() -> Callable[[], bool]:
    """Make the function that tells whether the process that started this one has ended.

    A server names itself, as it may be gone before its child asks for the first time.
    """
    starter = int(os.environ.get(STARTER) or os.getppid())
    return lambda: os.getppid() != starter


if __name__ == "__main__":
    main()
