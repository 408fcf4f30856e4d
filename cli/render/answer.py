"""An answer: hits, verdict, reasons, what became of them; or a line for each event of a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cli.answers import annotation_of, event_of, identity, outcome
from cli.render import reason
from cli.render.event import headline
from cli.render.style import (
    BAD,
    BOLD,
    CLASS_STYLES,
    DECISION_STYLES,
    DIM,
    FAMILY_STYLES,
    GOOD,
    WARN,
    class_span,
    ends,
    family_span,
    gist,
    label_span,
    percent,
    tally,
    units_of_features,
)
from cli.tables import Cell, Column, Piece, Span, Writer
from cli.text import count, duration, number, plural, protocol, when
from engine.limits import KNOWN_MIN
from ipc.event import Event, Hit
from ipc.messages import Alert, Answer

ALERTS = 5  # lines of them
RANKS = 10  # hits that are named in a line


def whole(to: Writer, answer: Answer, generation: int, *, plan: bool = False) -> None:
    query = None if answer.query is None else event_of(answer.query)
    if query is not None:
        headline(to, query)
        for flow in answer.query_flows:
            pieces: list[Piece] = [Span("flow: ", DIM), identity(flow), "  ", family_span(flow.family)]
            to.line(*pieces, f"  {plural(flow.coverage, 'feature')}", indent=7)
        for alert in answer.query_alerts:
            times = f"  x{alert.count}" if alert.count > 1 else ""
            to.line(Span(f"{alert.kind}: ", DIM), Span(alert.text, "italic"), f"  from {alert.source}{times}", indent=7)
        to.line()
    if answer.hits:
        hits(to, answer.hits)
    elif query is not None and _unknown(answer, query):
        known = f"{plural(query.coverage, 'feature')} of 105"
        to.line(Span("too little is known of its behaviour", WARN), f" ({known}): --space sbert compares what is said")
        best = answer.query_flows[0] if answer.query_flows else None
        if best is not None and best.coverage >= KNOWN_MIN:
            from shlex import quote

            command = f"flowkin query_similar {quote(identity(best))}"
            to.line("more is known of its connection: ", Span(command, BOLD))
    else:
        to.line(Span("no event matches", WARN))
    _verdict(to, answer, query)
    if answer.explain:
        units = units_of_features()
        for rank, explanation in enumerate(answer.explain, 1):
            to.line()
            reason.explanation(to, rank, explanation, units)
        reason.legend(to, answer.explain, units)
    if answer.counter_example is not None:
        units = units_of_features() if answer.counter_example.contributions else {}
        to.line()
        words = answer.space == "sbert" or answer.weights.keys() == {"sbert"}
        ranks = {hit.seq: rank for rank, hit in enumerate(answer.hits, 1)}
        seq = answer.counter_example.seq
        reason.counter_example(to, answer.counter_example, units, words=words, rank=ranks.get(seq))
    if answer.hits:
        to.line()
        _outcome(to, answer)
    _footer(to, answer, generation, plan)


def _unknown(answer: Answer, query: Event) -> bool:
    """Has it no hits because too little is known of its behaviour?"""
    return query.coverage < KNOWN_MIN and answer.space not in ("sbert", "fused")


def hits(to: Writer, hits: Sequence[Hit]) -> None:
    events = [event_of(hit.event) for hit in hits]
    sources = {e.source for e in events}
    rows = []
    for rank, (hit, event) in enumerate(zip(hits, events, strict=True), 1):
        rows.append(
            [
                Span(str(rank), DIM),
                event.event_id,
                Span(number(hit.distance), BOLD),
                number(hit.percentile, 2),
                f"x{hit.count:,}" if hit.count > 1 else "",
                family_span(event.family),
                class_span(event.classification),
                when(event.ts),
                ends(event),
                protocol(event.proto),
                event.source if len(sources) > 1 else "",
                Span(event.decision, DECISION_STYLES.get(event.decision, "")),
                label_span(annotation_of(hit.annotation)),
                gist(event),
            ]
        )
    to.table(
        [
            Column("#", right=True),
            Column("ID", keep=True),
            Column("DISTANCE", right=True),
            Column("PCTL", right=True, spare=6),
            Column("COUNT", right=True, spare=2),
            Column("FAMILY"),
            Column("CLASS", spare=3),
            Column("WHEN (UTC)", spare=1),
            Column("SOURCE -> DESTINATION"),
            Column("PROTO", spare=5),
            Column("FROM", spare=7),
            Column("DECISION", spare=4),
            Column("LABEL"),
            Column("SAYS", spare=8),
        ],
        rows,
    )


def _verdict(to: Writer, answer: Answer, query: Event | None) -> None:
    if not answer.hits:  # nothing is near, and nothing is far
        return
    if answer.no_close_precedent or answer.same_family is not None:
        to.line()
    if answer.same_family is not None:
        same = round(answer.same_family * len(answer.hits))
        family = query.family if query else ""
        style = GOOD if answer.same_family >= 0.7 else WARN if answer.same_family >= 0.3 else BAD
        to.line(
            Span(percent(answer.same_family), style),
            f" of the hits are {family or 'of its family'} ({same} of {len(answer.hits)})",
        )
    if answer.no_close_precedent:
        to.line(
            Span("no close precedent", BAD),
            ": the nearest event is farther away than the calibrated bound",
        )


def _alerts(alerts: Sequence[Sequence[Alert]]) -> list[list[Cell]]:
    """A line for each thing that was said of the hits' connections, that of most hits first."""
    ranks: dict[tuple[str, str], list[str]] = {}
    for rank, of_hit in enumerate(alerts, 1):
        for alert in of_hit:
            ranks.setdefault((alert.text, alert.source), []).append(f"#{rank}")
    most = sorted(ranks.items(), key=lambda item: -len(item[1]))
    rows: list[list[Cell]] = [
        ["", Span("" if i else "alerts", DIM), f"{words}  from {source}: {_some(of)}"]
        for i, ((words, source), of) in enumerate(most[:ALERTS])
    ]
    if len(most) > ALERTS:
        rows.append(["", "", f"and {len(most) - ALERTS} others"])
    return rows


def _some(ranks: Sequence[str]) -> str:
    shown = " ".join(ranks[:RANKS])
    return shown if len(ranks) <= RANKS else f"{shown} and {len(ranks) - RANKS} more"


def _outcome(to: Writer, answer: Answer) -> None:
    o = outcome(answer.hits)
    judged = f"{tally(o.labels)} (of {o.hits})" if o.labels else f"none of {o.hits} labelled"
    rows: list[list[Cell]] = [[Span("what became of them", DIM), Span("labels", DIM), judged]]
    if o.decisions:
        rows.append(["", Span("decisions", DIM), tally(o.decisions)])
    if o.firewall_actions:
        rows.append(["", Span("firewall", DIM), tally(o.firewall_actions)])
    rows += _alerts(answer.alerts)
    if o.first_seen is not None and o.last_seen is not None:
        span = duration((o.last_seen - o.first_seen) / 1e9) if o.last_seen > o.first_seen else "at once"
        rows.append(["", Span("first seen", DIM), when(o.first_seen)])
        rows.append(["", Span("last seen", DIM), f"{when(o.last_seen)}  ({span})"])
    if o.events > o.hits:
        rows.append(["", Span("events", DIM), f"{plural(o.hits, 'hit')} for {plural(o.events, 'event')}"])
    to.table([Column(""), Column(""), Column("")], rows)


def _footer(to: Writer, answer: Answer, generation: int, plan: bool) -> None:
    how = "exact" if answer.exact else "approximate"
    parts = [
        f"{answer.space} space",
        f"model {answer.model}" if answer.model else "",
        how,
        f"{count(answer.scanned)} scanned",
        f"{count(answer.matched)} matched",
        duration(answer.took_us / 1e6),
        f"generation {generation}",
    ]
    to.line(Span(" · ".join(p for p in parts if p), DIM))
    if answer.weights:
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in answer.weights.items())
        to.line(Span(f"weights: {weights}", DIM))
    if plan:
        to.line(Span(f"plan: {answer.plan or 'not given by this engine'}", DIM))


def lines(to: Writer, answers: Iterable[tuple[Answer, int]]) -> None:
    """A line for each event of a file: what it is most like. The widths are fixed, so that lines come at once."""
    to.line(
        Span(
            f"{'WHEN (UTC)':23}  {'SOURCE -> DESTINATION':45}  {'CLASS':10}  {'FAMILY':12}  "
            f"{'DISTANCE':>8}  {'PCTL':>6}  {'SAME':>5}  NEAREST",
            DIM,
        )
    )
    for answer, _ in answers:
        query = event_of(answer.query) if answer.query is not None else None
        if query is None:
            continue
        pieces: list[Piece] = [
            f"{when(query.ts):23}  {ends(query):45}  ",
            Span(f"{query.classification:10}", CLASS_STYLES.get(query.classification, "")),
            "  ",
            Span(f"{query.family or '-':12}", FAMILY_STYLES.get(query.family, "cyan")),
            "  ",
        ]
        if answer.hits:
            hit, nearest = answer.hits[0], event_of(answer.hits[0].event)
            same = "-" if answer.same_family is None else percent(answer.same_family)
            pieces += [
                f"{number(hit.distance):>8}  {number(hit.percentile, 2):>6}  {same:>5}  {nearest.event_id}  ",
                family_span(nearest.family),
            ]
            if label := annotation_of(hit.annotation).label:
                pieces += ["  ", Span(label, BOLD)]
            if answer.no_close_precedent:
                pieces.append(Span("  no close precedent", BAD))
        else:
            pieces.append(Span("too little is known of it" if _unknown(answer, query) else "no event matches", WARN))
        to.line(*pieces)
        to.stream.flush()
