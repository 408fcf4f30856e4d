"""Backups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cli.render.style import BAD, BOLD, GOOD, WARN
from cli.tables import Cell, Column, Span, Writer
from cli.text import count, duration, plural, size


def made(to: Writer, given: Mapping[str, Any]) -> None:
    """What a new backup holds, and what is not as it should be."""
    linked = f", {size(given['linked_bytes'])} linked to earlier ones" if given["linked_bytes"] else ""
    events, generation = Span(plural(given["events"], "event"), GOOD), f" · generation {given['generation']} · "
    to.line(events, generation, Span(given["path"], BOLD))
    to.line(f"{size(given['copied_bytes'])} copied{linked} in {duration(given['seconds'])}, read back and verified")
    if derived := [path for path in given["left_out"] if path not in given["lost"]]:
        to.line(Span("left out", WARN), f", damaged or gone, built again at a start: {', '.join(derived)}")
    if given["lost"]:
        to.line(Span("not in it", BAD), f", cannot be read: {', '.join(given['lost'])}")
    for wrong in given["damaged"]:
        to.line(Span("damaged", BAD), f"  {wrong}")


def table(to: Writer, given: Sequence[Mapping[str, Any]]) -> None:
    """A line each."""
    if not given:
        to.line(Span("there is no backup", WARN))
        return
    columns = [
        Column("BACKUP", keep=True), Column("TAKEN"), Column("GENERATION", right=True), Column("EVENTS", right=True),
        Column("MODEL", spare=2), Column("SIZE", right=True), Column("COPIED", right=True, spare=1), Column(""),
    ]  # fmt: skip
    to.table(columns, [_row(one) for one in given])


def _row(one: Mapping[str, Any]) -> list[Cell]:
    if one["error"]:
        return [Span(one["name"], BOLD), "", "", "", "", "", "", Span(one["error"], BAD)]
    state: Cell = Span(f"{plural(len(one['left_out']), 'file')} left out", WARN) if one["left_out"] else ""
    if one["damaged"]:
        state = Span("holds damaged records", BAD)
    return [
        Span(one["name"], BOLD), one["created_at"], str(one["generation"]), count(one["events"]), one["model"],
        size(one["bytes"]), size(one["copied_bytes"]), state,
    ]  # fmt: skip
