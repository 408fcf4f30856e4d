"""One event in full, its features, and tables of events."""

from __future__ import annotations

from collections.abc import Sequence

from cli.answers import annotation_of, event_document, event_of
from cli.render.style import (
    BOLD,
    CLASS_STYLES,
    DECISION_STYLES,
    DIM,
    FAMILY_STYLES,
    WARN,
    class_span,
    ends,
    family_span,
    gist,
    label_span,
    named_features,
    raw_number,
    units_of_features,
)
from cli.tables import Cell, Column, Piece, Span, Writer
from cli.text import duration, number, protocol, quantity, when
from ipc.event import FEATURE_COUNT, Annotation, Event
from ipc.messages import Stored


def headline(to: Writer, event: Event) -> None:
    pieces: list[Piece] = [Span(event.event_id, BOLD), "  ", class_span(event.classification)]
    pieces += ["  ", family_span(event.family)]
    pieces += ["  discrepancy ", Span(number(event.discrepancy, 2), WARN if event.discrepancy >= 0.3 else "")]
    if event.decision:
        pieces += ["  ", Span(event.decision, DECISION_STYLES.get(event.decision, ""))]
    to.line(Span("query  ", DIM), *pieces)
    line = f"{when(event.ts)}  {ends(event)}  {protocol(event.proto)}  from {event.source}"
    scores = [
        f"{name} {number(value, 2)}"
        for name, value in (("fast", event.fast_score), ("ml", event.ml_score), ("final", event.final_score))
        if value is not None
    ]
    to.line(line + ("  " + ", ".join(scores) if scores else ""), indent=7)
    if event.text:
        to.line(Span(event.text if len(event.text) <= 200 else event.text[:199] + "…", "italic"), indent=7)


def table(to: Writer, stored: Sequence[Stored]) -> None:
    events = [event_of(s.event) for s in stored]
    sources = {e.source for e in events}
    rows = []
    for rank, (one, event) in enumerate(zip(stored, events, strict=True), 1):
        rows.append(
            [
                Span(str(rank), DIM),
                event.event_id,
                when(event.ts),
                class_span(event.classification),
                family_span(event.family),
                ends(event),
                protocol(event.proto),
                number(event.final_score, 2) if event.final_score is not None else "",
                number(event.discrepancy, 2) if event.discrepancy else "",
                event.kind if event.kind != "flow" else "",
                event.source if len(sources) > 1 else "",
                Span(event.decision, DECISION_STYLES.get(event.decision, "")),
                label_span(annotation_of(one.annotation)),
                gist(event),
            ]
        )
    to.table(
        [
            Column("#", right=True),
            Column("ID", keep=True),
            Column("WHEN (UTC)", spare=1),
            Column("CLASS", spare=2),
            Column("FAMILY"),
            Column("SOURCE -> DESTINATION"),
            Column("PROTO", spare=4),
            Column("SCORE", right=True, spare=3),
            Column("DISCR", right=True, spare=6),
            Column("KIND", spare=5),
            Column("FROM", spare=7),
            Column("DECISION", spare=3),
            Column("LABEL"),
            Column("SAYS", spare=8),
        ],
        rows,
    )


def whole(to: Writer, seq: int, event: Event, said: Annotation) -> None:
    fields = event_document(event, said)
    to.line(
        Span(event.event_id, BOLD), "  ", class_span(event.classification), "  ", family_span(event.family),
        f"  {ends(event)}  {protocol(event.proto)}",
    )  # fmt: skip
    to.line()
    rows: list[list[Cell]] = [[Span("seq", DIM), str(seq)]]
    for name, value in fields.items():
        if name in ("verdicts", "extra") or value in (None, "", [], {}):
            continue
        if name.startswith("labelled_") and not said.label:  # who took it away stands in the history
            continue
        cell: Cell = str(value)
        if name == "classification":
            cell = class_span(event.classification)
        elif name == "family":
            cell = family_span(event.family)
        elif name == "label":
            cell = Span(said.label, BOLD)
        elif name == "proto":
            cell = f"{value} ({protocol(event.proto)})"
        elif name == "coverage":
            cell = f"{value}/{FEATURE_COUNT} features"
        elif isinstance(value, float):
            cell = number(value)
        elif isinstance(value, list):
            cell = ", ".join(map(str, value))
        rows.append([Span(name, DIM), cell])
    duration_s = (event.ts - event.ts_start) / 1e9
    if duration_s > 0:
        rows.append([Span("lasted", DIM), duration(duration_s)])
    to.table([Column("", keep=True), Column("")], rows)
    if event.verdicts:
        to.line()
        to.table(
            [Column("ENGINE"), Column("VERDICT"), Column("CONFIDENCE", right=True), Column("REASON")],
            [[v.engine, class_span(v.classification), number(v.confidence, 2), v.reason_code] for v in event.verdicts],
        )
    if event.extra:
        to.line()
        to.table(
            [Column("BEYOND THE 105", keep=True), Column("VALUE", right=True)],
            [[name, quantity(value)] for name, value in event.extra.items()],
        )
    if said.history:
        to.line()
        to.table(
            [Column("WHEN (UTC)"), Column("BY"), Column("FIELD"), Column("VALUE")],
            [[when(at), by, field, value] for at, by, field, value in said.history],
        )


def features(to: Writer, blob: bytes) -> None:
    values, units = named_features(blob), units_of_features()
    rows: list[list[Cell]] = []
    last = ""
    groups = list(dict.fromkeys(units[name].group for name in values))
    for name, value in sorted(values.items(), key=lambda item: groups.index(units[item[0]].group)):
        if value is None:
            continue
        unit = units[name]
        rows.append(
            [Span(unit.group if unit.group != last else "", BOLD), name, raw_number(value),
             Span("" if unit.unit == "-" else unit.unit, DIM)]
        )  # fmt: skip
        last = unit.group
    to.table([Column("GROUP"), Column("FEATURE", keep=True), Column("VALUE", right=True), Column("UNIT")], rows)
    missing = [name for name, value in values.items() if value is None]
    to.line(Span(f"{len(values) - len(missing)} of {len(values)} features present", DIM))
    if missing:
        to.line(Span("missing: " + ", ".join(missing), DIM))


def line(to: Writer, event: Event) -> None:
    """A line of fixed widths, so that lines come at once."""
    to.line(
        f"{when(event.ts)}  ",
        Span(f"{event.classification:10}", CLASS_STYLES.get(event.classification, "")),
        "  ",
        Span(f"{event.family or '-':12}", FAMILY_STYLES.get(event.family, "cyan")),
        f"  {ends(event):45}  {protocol(event.proto):6}  {event.event_id}",
    )
