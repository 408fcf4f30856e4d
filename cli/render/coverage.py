"""What sources fill of the 105 features, and why records were refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cli.answers import Document
from cli.render.style import BOLD, DIM, WARN, percent_exact, raw_number
from cli.tables import Cell, Column, Span, Writer
from cli.text import count, number, plural, size

REASONS_SHOWN = 20
RECORD_CHARS_SHOWN = 240


def sources(to: Writer, sources: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [
            Span(row["name"], BOLD), row["format"], count(row["events"]), count(row["duplicates"]),
            Span(count(row["rejected"]), WARN if row["rejected"] else ""), _filled(row),
            number(row["coverage_mean"], 1), percent_exact(row.get("missing_share")),
            percent_exact(row.get("constant_share")),
        ]
        for row in sources
    ]  # fmt: skip
    to.line()
    to.table(
        [
            Column("SOURCE", keep=True),
            Column("FORMAT", spare=3),
            Column("EVENTS", right=True),
            Column("DUPLICATES", right=True, spare=4),
            Column("REJECTED", right=True),
            Column("COVERAGE", right=True),
            Column("MEAN", right=True, spare=1),
            Column("MISSING", right=True),
            Column("CONSTANT", right=True, spare=2),
        ],
        rows,
    )
    if not_ip := [f"{count(row['not_ip'])} of {row['name']}" for row in sources if row.get("not_ip")]:
        to.line(Span("packets that are no IP: " + ", ".join(not_ip), DIM))
    to.line()
    to.line(Span("features filled, by group", BOLD))
    groups = [
        [row["name"], ", ".join(f"{name} {n}/{of}" for name, (n, of) in row["groups"].items())]
        for row in sources
        if row.get("groups")  # an older engine says nothing of them
    ]
    to.table([Column("", keep=True), Column("")], groups, indent=2)


def source_features(to: Writer, row: Mapping[str, Any]) -> None:
    events, features = row["events"], row.get("features", [])
    to.line(
        Span(row["name"], BOLD), f"  {plural(events, 'event')}, {_filled(row)} features filled, ",
        f"{row['features_constant'] or 0} of them constant",
    )  # fmt: skip
    rows: list[list[Cell]] = []
    last = ""
    groups = list(dict.fromkeys(f["group"] for f in features))
    for f in sorted(features, key=lambda f: groups.index(f["group"])):
        if not f["present"]:
            continue
        rows.append(
            [
                Span(f["group"] if f["group"] != last else "", BOLD), f["feature"],
                percent_exact(f["present"] / events), percent_exact(f["zeros"] / f["present"]),
                raw_number(f["min"]), raw_number(f["max"]),
                Span("" if f["unit"] == "-" else f["unit"], DIM), Span("constant", WARN) if f["constant"] else "",
            ]
        )  # fmt: skip
        last = f["group"]
    to.table(
        [
            Column("GROUP", spare=2),
            Column("FEATURE", keep=True),
            Column("PRESENT", right=True),
            Column("ZERO", right=True),
            Column("MIN", right=True),
            Column("MAX", right=True),
            Column("UNIT", spare=1),
            Column(""),
        ],
        rows,
    )
    if never := [f["feature"] for f in features if not f["present"]]:
        to.line(Span("never: " + ", ".join(never), DIM))


def reasons(to: Writer, letters: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]]) -> None:
    to.line()
    to.line(Span(plural(letters["count"], "dead letter"), BOLD), f" ({size(letters['bytes'])})")
    to.table(
        [
            Column("COUNT", right=True),
            Column("REASON"),
            Column("SOURCE", spare=1),
            Column("LATEST (UTC)", spare=2),
            Column("THERE", spare=3),
        ],
        [
            [count(r["count"]), r["reason"], r["source"], r["latest_at"][:19].replace("T", " "), _place(r)]
            for r in reasons[:REASONS_SHOWN]
        ],
        indent=2,
    )
    if (more := len(reasons) + letters["reasons_more"] - REASONS_SHOWN) > 0:
        to.line(Span(f"{plural(more, 'reason')} more", DIM), indent=2)


def _filled(row: Mapping[str, Any]) -> str:
    """11/105"""
    filled = row.get("features_filled")  # an older engine does not say
    return f"{'-' if filled is None else filled}/{row['coverage_of']}"


def _place(letter: Mapping[str, Any]) -> str:
    """Where a dead letter was; what was refused when it was stored has no offset."""
    return letter["file"] if letter["offset"] < 0 else f"{letter['file']} at {letter['offset']:,}"


def letters(to: Writer, given: Iterable[Document]) -> None:
    """Each a line that says where and why, then the record, cut."""
    shown = 0
    for letter in given:
        to.line(Span(letter["at"][:19].replace("T", " "), DIM), f"  {_place(letter)}  ",
                     Span(letter["reason"], WARN))  # fmt: skip
        record = letter["record"]
        if record:
            cut = record if len(record) <= RECORD_CHARS_SHOWN else record[: RECORD_CHARS_SHOWN - 1] + "…"
            to.line(cut, indent=4)
        shown += 1
    if not shown:
        to.line(Span("no dead letter", DIM))
