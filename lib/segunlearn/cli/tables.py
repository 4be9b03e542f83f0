"""Tables of the commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.table import Table

from segunlearn.cli.common import found_width, print_found

#: Ids of requests, runs and audits: what other commands want, to be copied in one piece.
_ID = re.compile(r"\b[0-9a-f]{32}\b")
#: Letters that a column keeps at least; where there is less room, each row is a block of lines.
_LEAST = 6


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows to standard output; long cells are folded, but never an id.

    Where a table would leave columns without room, each row is printed as a block of lines.

    Parameters
    ----------
    columns
        Headings.
    rows
        A cell for each column.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    table, needed = Table(box=None, pad_edge=False), 0
    for number, heading in enumerate(columns):
        whole = any(_ID.search(row[number]) for row in cells)
        table.add_column(heading, overflow="fold", no_wrap=whole)
        lines = [line for row in cells for line in row[number].splitlines()]
        longest = max(map(len, (heading, *lines)))
        needed += 2 + (longest if whole else min(longest, _LEAST))
    if needed > found_width():
        for row in cells:
            block = Table(box=None, show_header=False)
            block.add_column(no_wrap=True)
            block.add_column(overflow="fold")
            for heading, cell in zip(columns, row, strict=True):
                block.add_row(heading, cell)
            print_found(block)
            print_found("")
        return
    for row in cells:
        table.add_row(*row)
    print_found(table)
