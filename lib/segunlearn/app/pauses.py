"""How long a list that was read from an archive is left alone."""

from __future__ import annotations

from typing import Final

#: Reading a list that takes longer than this is work for its source, in seconds.
QUICK_SECONDS: Final = 0.5


def pause_after(took: float, seconds: float) -> float:
    """Seconds to leave a list alone that took ``took`` to read and may be ``seconds`` old.

    What takes long is read one twentieth of the time at most.
    """
    return seconds if took <= QUICK_SECONDS else max(seconds, 20 * took)
