"""What `classify` says: probabilities, precedents; or a line for each event of a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cli.answers import event_of
from cli.render.event import headline
from cli.render.style import BAD, BOLD, DIM, FAMILY_STYLES, WARN, ends, family_span, percent
from cli.tables import Cell, Column, Piece, Span, Writer
from cli.text import count, duration, number, plural, when
from engine.limits import KNOWN_MIN
from ipc.event import Event
from ipc.messages import Judgement, Precedent


def whole(to: Writer, j: Judgement, generation: int) -> None:
    query = None if j.query is None else event_of(j.query)
    if query is not None:
        headline(to, query)
        to.line()
    if query is not None and _by_text(j, query):
        known = f"{plural(query.coverage, 'feature')} of 105"
        to.line(Span("by what is said of it", BOLD), f": too little is known of its behaviour ({known})")
    if query is not None and not query.ts:
        to.line(Span("its time is not known", BOLD), ": events of any time may vote")
    if not j.precedents:
        to.line(Span("no event may vote", WARN), ": none is of a known family, or the filter leaves none")
    else:
        _probabilities(to, j)
        to.line()
        _precedents(to, j.precedents)
    parts = [
        f"{j.space} space", f"model {j.model}", "exact" if j.exact else "approximate",
        f"{count(j.scanned)} scanned", f"{count(j.matched)} may vote", duration(j.took_us / 1e6),
        f"generation {generation}",
    ]  # fmt: skip
    to.line()
    to.line(Span(" · ".join(parts), DIM))


def _by_text(j: Judgement, query: Event) -> bool:
    """Was the vote held in sbert because too little is known of its behaviour?"""
    return query.coverage < KNOWN_MIN and j.space == "sbert"


def _probabilities(to: Writer, j: Judgement) -> None:
    rest = max(0.0, 1.0 - j.probability - sum(p for _, p in j.runners_up))
    rows: list[list[Cell]] = [
        [family_span(family), Span(percent(probability), BOLD if i == 0 else ""),
         Span(f"{percent(j.votes.get(family, 0.0))} of the vote", DIM)]
        for i, (family, probability) in enumerate([(j.family, j.probability), *j.runners_up])
    ]  # fmt: skip
    rows.append([Span("none of these", DIM), percent(rest), Span(f"{percent(j.doubt)} doubt", DIM)])
    to.table([Column("FAMILY", keep=True), Column("PROBABILITY", right=True), Column("")], rows)
    if not j.calibrated:
        to.line(Span("not calibrated: this model was not measured with such a vote", WARN))
    nearest, _, farthest = j.distances
    pieces: list[Piece] = [Span("no close precedent", BAD), ": "] if j.no_close_precedent else []
    pieces.append(f"{percent(j.novelty)} of events with a precedent had a nearer one")
    to.line(*pieces, Span(f"  {j.k} voted, at distance {number(nearest)} to {number(farthest)}", DIM))


def _precedents(to: Writer, precedents: Sequence[Precedent]) -> None:
    rows: list[list[Cell]] = []
    for rank, p in enumerate(precedents, 1):
        event = event_of(p.hit.event)
        rows.append(
            [
                Span(str(rank), DIM), event.event_id, Span(number(p.hit.distance), BOLD),
                number(p.hit.percentile, 2), f"x{p.hit.count:,}" if p.hit.count > 1 else "", percent(p.weight),
                family_span(p.family), Span("an analyst", BOLD) if p.labelled else event.source, when(event.ts),
                ends(event),
            ]
        )  # fmt: skip
    to.table(
        [
            Column("#", right=True), Column("ID", keep=True), Column("DISTANCE", right=True),
            Column("PCTL", right=True, spare=6), Column("COUNT", right=True, spare=3), Column("VOTE", right=True),
            Column("FAMILY"), Column("WHO", spare=4), Column("WHEN (UTC)", spare=2),
            Column("SOURCE -> DESTINATION"),
        ],
        rows,
    )  # fmt: skip


def lines(to: Writer, judgements: Iterable[tuple[Judgement, int]]) -> None:
    """The widths are fixed, so that lines come at once."""
    columns = f"{'FAMILY':14}  {'PROB':>5}  {'NEW':>5}  NEAREST"
    to.line(Span(f"{'WHEN (UTC)':23}  {'SOURCE -> DESTINATION':45}  {columns}", DIM))
    for j, _ in judgements:
        query = event_of(j.query) if j.query is not None else None
        if query is None:
            continue
        pieces: list[Piece] = [f"{when(query.ts):23}  {ends(query):45}  "]
        if j.precedents:
            nearest = event_of(j.precedents[0].hit.event)
            pieces += [
                Span(f"{j.family:14}", FAMILY_STYLES.get(j.family, "cyan")),
                f"  {percent(j.probability):>5}  {percent(j.novelty):>5}  {nearest.event_id}",
            ]
            if j.no_close_precedent:
                pieces.append(Span("  no close precedent", BAD))
            if _by_text(j, query):
                pieces.append(Span("  by its text", DIM))
        else:
            pieces.append(Span("no event may vote", WARN))
        to.line(*pieces)
        to.stream.flush()
