"""Why a hit is near, and what sets a counter-example apart: contributions that add up to the distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cli.answers import event_of, split
from cli.render.style import BAD, BOLD, DIM, GOOD, Unit, bar, class_span, ends, family_span
from cli.tables import Cell, Column, Span, Writer
from cli.text import number, plural, quantity, when
from ipc.messages import Contribution, CounterExample, Explanation

STOP_WORDS = frozenset(["a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"])
UNDIVIDED_MIN = 0.0005  # of a distance; less is rounding


def explanation(to: Writer, rank: int, given: Explanation, units: Mapping[str, Unit]) -> None:
    nearer = max(0.0, 100.0 - given.percentile)
    to.line(
        Span(f"#{rank} ", DIM),
        Span(given.event_id, BOLD),
        f"  {given.space} distance {number(given.distance)}",
        Span(f"  nearer than {nearer:.2f} % of random pairs", DIM),
    )
    if given.spaces:
        to.table(
            [
                Column("SPACE"),
                Column("DISTANCE", right=True),
                Column("PCTL", right=True),
                Column("WEIGHT", right=True),
                Column("ADDS", right=True),
            ],
            [
                [name, number(distance), number(percentile, 2), number(weight, 2), number(weight * percentile, 2)]
                for name, (distance, percentile, weight) in given.spaces.items()
            ],
            indent=3,
        )
    _parts_of(to, given, units, 3)
    for part in given.parts:
        if part.contributions or part.words:
            to.line(
                Span(part.space, BOLD),
                f"  distance {number(part.distance)}, percentile {number(part.percentile, 2)}",
                indent=3,
            )
            _parts_of(to, part, units, 5)


def _parts_of(to: Writer, explanation: Explanation, units: Mapping[str, Unit], indent: int) -> None:
    if explanation.words:
        said = [(word, weight) for word, weight in explanation.words if word not in STOP_WORDS] or explanation.words
        words = ", ".join(f"{word} {weight:+.2f}" for word, weight in said[:12])
        to.line(Span("words that match  ", DIM), words, indent=indent)
    if not any(c.contribution for c in explanation.contributions):
        _alike(to, explanation.contributions, "word" if explanation.words else "feature", indent)
        return
    parts = split(explanation)
    most = max((abs(c.contribution) for c in (*parts.agree, *parts.disagree)), default=0.0)
    rows = _contributions(to, "agree", GOOD, parts.agree, most, units)
    rows += _contributions(to, "disagree", BAD, parts.disagree, most, units)
    rows += _sums(explanation.contributions, [*parts.agree, *parts.disagree], explanation.distance)
    to.table(_columns("HIT"), rows, indent=indent)


def _alike(to: Writer, contributions: Sequence[Contribution], what: str, indent: int) -> None:
    """Instead of a table: nothing adds to the distance. How many both have says whether that means anything."""
    if contributions:
        common = sum(c.query is not None and c.hit is not None for c in contributions)
        to.line(Span(f"{plural(common, what)} in common, no difference", DIM), indent=indent)


def _contributions(
    to: Writer, title: str, style: str, contributions: Sequence[Contribution], most: float, units: Mapping[str, Unit]
) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for i, c in enumerate(contributions):
        unit = units.get(c.feature, Unit("", "-")).unit
        rows.append(
            [
                Span(title if i == 0 else "", style),
                c.feature,
                quantity(c.query, unit),
                quantity(c.hit, unit),
                "" if c.z is None else f"{c.z:+.1f}",
                f"{c.contribution:+.4f}",
                bar(c.contribution, most) if to.terminal else "",
                Span("pulls together", DIM) if c.contribution < 0 else "",
            ]
        )
    return rows


def _sums(every: Sequence[Contribution], shown: Sequence[Contribution], distance: float) -> list[list[Cell]]:
    """What is not shown, how far the division of a trained space is off, and the distance."""
    total = sum(c.contribution for c in every)
    rest = total - sum(c.contribution for c in shown)
    others = Span(plural(len(every) - len(shown), "other"), DIM)
    rows: list[list[Cell]] = []
    if len(every) > len(shown):
        rows.append(["", others, "", "", "", Span(f"{rest:+.4f}", DIM), "", ""])
    if abs(distance - total) > UNDIVIDED_MIN * distance:
        rows.append(["", Span("not divided", DIM), "", "", "", Span(f"{distance - total:+.4f}", DIM), "", ""])
    rows.append(["", Span("distance", BOLD), "", "", "", Span(f"{distance:.4f}", BOLD), "", ""])
    return rows


OPAQUE = ("ddos", "ransomware", "traffic", "internal")  # groups whose names say less than their definitions


def legend(to: Writer, given: Sequence[Explanation], units: Mapping[str, Unit]) -> None:
    """What the names shown mean, where they do not say it. S: the source of the flow, D: its destination."""
    shown = [c.feature for e in given for part in (e.parts or [e]) for side in split(part) for c in side]
    names = [name for name in dict.fromkeys(shown) if name in units and units[name].group in OPAQUE]
    rows = [(name, units[name].definition) for name in names]
    if rows:
        to.line()
        to.line(Span("what the names mean", BOLD), Span("  (S: the flow's source, D: its destination)", DIM))
        to.table([Column("", keep=True), Column("")], rows, indent=3)


def counter_example(to: Writer, c: CounterExample, units: Mapping[str, Unit], *, words: bool) -> None:
    """words: it is nearest by its text."""
    event = event_of(c.event)
    to.line(
        Span("counter-example  ", DIM),
        "nearest of another family: ",
        Span(event.event_id, BOLD),
        "  ",
        family_span(event.family),
        "  ",
        class_span(event.classification),
        f"  distance {number(c.distance)}  {when(event.ts)}  {ends(event)}",
    )
    if not any(x.contribution for x in c.contributions):
        _alike(to, c.contributions, "word" if words else "feature", 3)
        return
    apart = sorted((x for x in c.contributions if x.contribution > 0), key=lambda x: -x.contribution)[:6]
    most = max((x.contribution for x in apart), default=0.0)
    rows = _contributions(to, "set apart by", BAD, apart, most, units)
    rows += _sums(c.contributions, apart, c.distance)
    to.table(_columns(event.family.upper()[:16] or "IT"), rows, indent=3)


def _columns(other: str) -> list[Column]:
    return [
        Column(""),
        Column("FEATURE", keep=True),
        Column("QUERY", right=True),
        Column(other, right=True),
        Column("DEVIATIONS", right=True),
        Column("CONTRIBUTION", right=True),
        Column("", spare=2),
        Column("", spare=1),
    ]
