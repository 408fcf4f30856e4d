"""Versions of the embedders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.render.style import BAD, BOLD, DIM, GOOD
from cli.tables import Cell, Column, Span, Writer
from cli.text import count, duration, size


def versions(to: Writer, given: Mapping[str, Any]) -> None:
    """A line each, then the switch that is under way."""
    rows: list[list[Cell]] = []
    kept, switch, disk = given.get("kept") or {}, given.get("switch") or {}, given.get("disk_bytes") or {}
    for version, card in given.get("versions", {}).items():
        data = card.get("data") or {}
        metrics = ", ".join(f"{name} {value:.2f}" for name, value in (card.get("metrics") or {}).items())
        state: Cell = ""
        if version == given.get("current"):
            state = Span("in use", GOOD)
        elif version == switch.get("version"):
            state = "coming"
        elif version == kept.get("version"):
            state = "kept"
        rows.append(
            [
                Span(version, BOLD), state, size(disk[version]) if version in disk else Span("-", DIM),
                str(card.get("created") or ""), f"{data.get('events', 0):,}",
                str(data.get("description") or card.get("error") or ""), metrics,
            ]
        )  # fmt: skip
    to.table(
        [
            Column("VERSION", keep=True),
            Column(""),
            Column("ON DISK", right=True, spare=3),
            Column("CREATED", spare=2),
            Column("EVENTS", right=True),
            Column("FITTED ON"),
            Column("HELD OUT", spare=1),
        ],
        rows,
    )
    if switch:
        left = f", {duration(switch['eta_s'])} left" if switch["eta_s"] is not None else ""
        to.line(
            f"switch to {switch['version']}: {count(switch['events_done'])} of {count(switch['events'])} events, "
            f"{switch['events_per_s']:,.0f}/s{left}"
        )
    if kept:
        to.line(f"`flowkin models rollback` returns to {kept['version']}; `flowkin models gc` frees its disk")


def comparison(to: Writer, found: Mapping[str, Any]) -> None:
    """Two versions: the macro figures of each space, the families, the costs, and the switch to the second."""
    data, a, b = found["data"], found["a"], found["b"]
    to.line(
        Span(a["version"], BOLD), " and ", Span(b["version"], BOLD),
        f" on {count(data['asked'])} of {count(data['sampled'])} events drawn by seed {data['seed']} from "
        f"{count(data['known'])} of known family, each looking back at those before it",
    )  # fmt: skip
    to.line()
    to.table(_SPACES, [_space(name, space) for name, space in found["spaces"].items()])
    for name, space in found["spaces"].items():
        to.line()
        to.line(Span(name, BOLD))
        to.table(_FAMILIES, [_family(row) for row in space["families"]], indent=2)
    to.line()
    to.table([Column("", keep=True), Column(a["version"], right=True), Column(b["version"], right=True)], _costs(a, b))
    if switch := found["switch"]:
        to.line()
        to.line(
            f"a switch to {switch['version']}: {count(switch['events'])} events to embed, about "
            f"{duration(switch['seconds'])} without the indexes; {size(switch['disk_bytes'])} of disk, "
            f"{size(switch['free_bytes'])} are free"
        )


_SPACES = [
    Column("SPACE", keep=True),
    Column("SAME FAMILY OF 5", right=True),
    Column("OF 10", right=True),
    Column("SAME 10", right=True),
    Column("BETTER", right=True, spare=1),
    Column("WORSE", right=True, spare=1),
    Column("NEAREST, PERCENTILE", right=True, spare=2),
]
_FAMILIES = [
    Column("FAMILY", keep=True),
    Column("ASKED", right=True),
    Column("OF 5", right=True),
    Column("OF 10", right=True),
    Column("CHANGE", right=True),
    Column("SAME 10", right=True),
    Column("BETTER", right=True, spare=1),
    Column("WORSE", right=True, spare=1),
]


def _space(name: str, space: Mapping[str, Any]) -> list[Cell]:
    macro, distances = space["macro"], space["distances"]
    nearest = " -> ".join(f"{distances[side]['nearest_percentile'][1]:.2f}" for side in "ab")
    if macro is None:
        return [Span(name, BOLD), "", "", "", "", "", nearest]
    return [Span(name, BOLD), _both(macro, 5), _both(macro, 10), *map(_share, _moved(macro)), nearest]


def _family(row: Mapping[str, Any]) -> list[Cell]:
    change = row["b_at_10"] - row["a_at_10"]
    shown = Span(f"{change:+.3f}", GOOD if change > 0 else BAD if change < 0 else DIM)
    return [row["family"], count(row["asked"]), _both(row, 5), _both(row, 10), shown, *map(_share, _moved(row))]


def _moved(row: Mapping[str, Any]) -> tuple[float, ...]:
    return row["overlap"], row["better"], row["worse"]


def _share(value: float) -> str:
    return f"{value:.3f}"


def _both(row: Mapping[str, Any], k: int) -> str:
    return f"{row[f'a_at_{k}']:.3f} -> {row[f'b_at_{k}']:.3f}"


def _costs(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[list[Cell]]:
    rows: list[list[Cell]] = [
        [f"{space}, us an event", *(f"{side['us_per_event'][space]:.1f}" for side in (a, b))]
        for space in a["us_per_event"]
    ]
    rows.append(["files", *(size(side["file_bytes"]) for side in (a, b))])
    rows.append(["fitted on events", *(count(side["fitted_events"]) for side in (a, b))])
    for name in sorted({*a["metrics"], *b["metrics"]}):
        told = (side["metrics"].get(name) for side in (a, b))
        rows.append([Span(f"card: {name}", DIM), *("-" if value is None else f"{value:.3f}" for value in told)])
    return rows
