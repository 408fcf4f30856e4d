"""Why a hit is near, and what sets a counter-example apart: contributions that add up to the distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cli.answers import event_of, split
from cli.render.style import BAD, BOLD, DIM, GOOD, Unit, bar, class_span, ends, family_span
from cli.tables import Cell, Column, Span, Writer
from cli.text import number, plural, quantity, when
from ipc.messages import Contribution, CounterExample, Explanation

STOP_WORDS = frozenset(["a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"])
NO_UNIT = Unit("", "-")
UNDIVIDED_MIN = 0.0005  # of a distance; less is rounding


def explanation(to: Writer, rank: int, given: Explanation, units: Mapping[str, Unit]) -> None:
    to.line(
        Span(f"#{rank} ", DIM),
        Span(given.event_id, BOLD),
        f"  {given.space} distance {number(given.distance)}",
        Span(f"  {_how_near(given)}", DIM),
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


def _how_near(given: Explanation) -> str:
    if given.spaces:  # no rank among pairs: of each space there is one
        return "the mean of these percentiles"
    nearer = max(0.0, 100.0 - given.percentile)
    return f"nearer than {'over 99.99' if 99.995 <= nearer < 100 else f'{nearer:.2f}'} % of random pairs"


def _parts_of(to: Writer, explanation: Explanation, units: Mapping[str, Unit], indent: int) -> None:
    if explanation.words:
        said = [(word, weight) for word, weight in explanation.words if word not in STOP_WORDS] or explanation.words
        words = ", ".join(f"{word} {weight:+.2f}" for word, weight in said[:12])
        to.line(Span("words that match  ", DIM), words, indent=indent)
    if not any(c.contribution for c in explanation.contributions):
        _alike(to, explanation.contributions, "word" if explanation.words else "feature", indent)
        return
    parts = split(explanation)
    if explanation.words:
        parts = parts._replace(agree=_spoken(parts.agree), disagree=_spoken(parts.disagree))
    most = max((abs(c.contribution) for c in (*parts.agree, *parts.disagree)), default=0.0)
    rows = _contributions(to, "agree", GOOD, parts.agree, most, units)
    rows += _contributions(to, "disagree", BAD, parts.disagree, most, units)
    rows += _sums(explanation.contributions, [*parts.agree, *parts.disagree], explanation.distance)
    to.table(_columns("HIT"), rows, indent=indent)


def _spoken(words: Sequence[Contribution]) -> list[Contribution]:
    """Without those that say nothing; all of them where nothing else is said."""
    return [c for c in words if c.feature not in STOP_WORDS] or list(words)


def _alike(to: Writer, contributions: Sequence[Contribution], what: str, indent: int) -> None:
    """Instead of a table: nothing adds to the distance. How many both have says whether that means anything."""
    if contributions:
        common = sum(c.query is not None and c.hit is not None for c in contributions)
        to.line(Span(f"{plural(common, what)} in common, no difference", DIM), indent=indent)


def _contributions(
    to: Writer, title: str, style: str, contributions: Sequence[Contribution], most: float, units: Mapping[str, Unit]
) -> list[list[Cell]]:
    """First what is of the flow itself, then what was around it; each under its title."""
    rows: list[list[Cell]] = []
    of = [(c, units.get(c.feature, NO_UNIT)) for c in contributions]
    for context, said in ((False, title), (True, f"{title}, around")):
        for c, unit in (one for one in of if one[1].context is context):
            rows.append(
                [
                    Span(said, style),
                    c.feature,
                    quantity(c.query, unit.unit),
                    quantity(c.hit, unit.unit),
                    "" if c.z is None else f"{c.z:+.1f}",
                    f"{c.contribution:+.4f}",
                    bar(c.contribution, most) if to.terminal else "",
                    Span(_remark(c), DIM),
                ]
            )
            said = ""
    return rows


def _remark(c: Contribution) -> str:
    if (c.query is None) != (c.hit is None):
        return "told of the query only" if c.hit is None else "told of the hit only"
    return "pulls together" if c.contribution < 0 else ""


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


def counter_example(to: Writer, c: CounterExample, units: Mapping[str, Unit], *, words: bool, rank: int | None) -> None:
    """words: it is nearest by its text. rank: that of the hit that it is, if it is one that was explained above."""
    event = event_of(c.event)
    if rank is not None:
        to.line(
            Span("counter-example  ", DIM), f"nearest of another family: hit #{rank}, above  ",
            family_span(event.family), f"  distance {number(c.distance)}",
        )  # fmt: skip
        return
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
