"""A bar on stderr while something lasts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from cli.render.style import DIM
from cli.text import clean


class Meter(Protocol):
    def advance(self, n: int) -> None: ...


class _Silent:
    def advance(self, n: int) -> None:
        pass


@contextmanager
def progress(title: str, total: int | None = None, unit: str = "events") -> Iterator[Meter]:
    """A bar on stderr while it lasts, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,} " + unit),
        TextColumn("{task.fields[rate]}", style=DIM),
        TimeElapsedColumn(),
    ]
    if total is not None:
        columns[2:2] = [BarColumn()]
        columns.append(TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(clean(title), total=total, rate="")

        class Bar:
            def advance(self, n: int) -> None:
                bar.advance(task, n)
                if speed := bar.tasks[0].speed:
                    bar.update(task, rate=f"{speed:,.0f}/s")

        yield Bar()
