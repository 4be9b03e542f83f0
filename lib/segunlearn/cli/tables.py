"""Tables of the commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.table import Table

from segunlearn.cli.common import print_found

#: Ids of requests, runs and audits: what other commands want, to be copied in one piece.
_ID = re.compile(r"\b[0-9a-f]{32}\b")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows to standard output; long cells are folded, but never an id.

    Parameters
    ----------
    columns
        Headings.
    rows
        A cell for each column.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(columns):
        whole = any(_ID.search(row[number]) for row in cells)
        table.add_column(heading, overflow="fold", no_wrap=whole)
    for row in cells:
        table.add_row(*row)
    print_found(table)
