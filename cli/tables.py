"""Lines and tables made of styled pieces: rich on a terminal, aligned plain text in a pipe.

Always true
  - Whatever is written here passed cli.text.clean: no caller has to remember it.
  - rich is imported only for a terminal. NO_COLOR and TERM=dumb leave the layout and drop the colours (rich does that).
  - In a pipe a row is one line and no cell is cut; the columns are two spaces apart.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO

from cli.text import clean, width

if TYPE_CHECKING:
    from rich.console import Console


class Span(NamedTuple):
    """A piece of text and its style (rich's words, '' for none)."""

    text: str
    style: str = ""


Piece = Span | str
Cell = Piece | Sequence[Piece]


class Column(NamedTuple):
    """keep: never cut on a terminal (ids are copied from there). spare: above 0, the column goes where the terminal is
    too narrow, the highest first."""

    title: str
    right: bool = False
    keep: bool = False
    spare: int = 0


def _pieces(cell: Cell) -> list[Span]:
    if isinstance(cell, str):
        return [Span(clean(cell))]
    if isinstance(cell, Span):
        return [Span(clean(cell.text), cell.style)]
    return [span for piece in cell for span in _pieces(piece)]


def _plain(cell: Cell) -> str:
    return "".join(span.text for span in _pieces(cell))


class Writer:
    """Where lines and tables go. One for each command; `terminal` says which way they are drawn."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stdout
        self.terminal = self.stream.isatty() or bool(os.environ.get("FORCE_COLOR"))
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self.stream, highlight=False, markup=False, emoji=False)
        return self._console

    def raw(self, text: str) -> None:
        """As it is: JSON, records. The caller answers for it."""
        self.stream.write(text)

    def line(self, *pieces: Piece, indent: int = 0) -> None:
        """One line; on a terminal folded at its edge, continued under the indent."""
        spans = _pieces(pieces)
        if not self.terminal:
            self.stream.write((" " * indent + "".join(s.text for s in spans)).rstrip() + "\n")
            return
        from rich.padding import Padding
        from rich.text import Text

        text = Text()
        for span in spans:
            text.append(span.text, span.style)
        self.console.print(Padding(text, (0, 0, 0, indent), expand=False) if indent else text)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], indent: int = 0) -> None:
        """Columns that are empty in every row are left out."""
        body = [[_pieces(cell) for cell in row] for row in rows]
        used = [i for i in range(len(columns)) if any("".join(s.text for s in row[i]).strip() for row in body)]
        columns = [columns[i] for i in used]
        body = [[row[i] for i in used] for row in body]
        if not columns:
            return
        if self.terminal:
            self._rich(columns, body, indent)
        else:
            self._aligned(columns, body, indent)

    def _aligned(self, columns: Sequence[Column], body: list[list[list[Span]]], indent: int) -> None:
        texts = [["".join(s.text for s in cell) for cell in row] for row in body]
        if any(c.title for c in columns):
            texts.insert(0, [c.title for c in columns])
        widths = [max(width(row[i]) for row in texts) for i in range(len(columns))]
        for row in texts:
            cells = [
                " " * (w - width(text)) + text if column.right else text + " " * (w - width(text))
                for text, w, column in zip(row, widths, columns, strict=True)
            ]
            self.stream.write((" " * indent + "  ".join(cells)).rstrip() + "\n")

    def _rich(self, columns: Sequence[Column], body: list[list[list[Span]]], indent: int) -> None:
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        cells = [[Text.assemble(*((span.text, span.style) for span in cell)) for cell in row] for row in body]
        widths = [max([len(c.title), *(row[i].cell_len for row in cells)]) for i, c in enumerate(columns)]
        shown = _fitting(columns, widths, self.console.width - indent)
        table = Table(
            box=None,
            show_header=any(c.title for c in columns),
            header_style="dim",
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        for i in shown:
            column = columns[i]
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=bool(column.title) or column.right,
                overflow="fold" if column.keep or not column.title else "ellipsis",
                min_width=widths[i] if column.keep or column.right or not column.title else None,
            )
        for row in cells:
            table.add_row(*(row[i] for i in shown))
        self.console.print(Padding(table, (0, 0, 0, indent), expand=False) if indent else table)
        if left_out := [c.title for i, c in enumerate(columns) if i not in shown and c.title]:
            self.line(Span(f"too narrow for {', '.join(left_out)}", "dim"), indent=indent)


def _fitting(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """Which columns to draw."""
    shown = list(range(len(columns)))
    while sum(widths[i] + 2 for i in shown) - 2 > room:
        spare = max(shown, key=lambda i: columns[i].spare)
        if not columns[spare].spare:
            break
        shown.remove(spare)
    return shown
