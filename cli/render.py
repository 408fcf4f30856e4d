"""The only place in the tree that prints results: tables and JSON for what came back. Data on stdout, words on stderr.

Always true
  - `Out` is made once for each command. "json" prints exactly one document, "ndjson" one line for each thing.
  - Text of an event is escaped in tables and lines (cli/tables.py does it for all); JSON escapes on its own.
  - A program's keys come from cli/answers.py; what is printed for people may change with any version.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from cli.answers import (
    Document,
    annotation_of,
    answer_document,
    event_document,
    event_of,
    history_document,
    judgement_document,
    outcome,
    split,
    stored_document,
)
from cli.tables import Cell, Column, Piece, Span, Writer
from cli.text import clean, count, duration, end, iso, number, plural, protocol, quantity, size, when
from ipc.event import FEATURE_BYTES, FEATURE_COUNT, Annotation, Event, Hit
from ipc.messages import Answer, Contribution, CounterExample, Explanation, Found, Judgement, Precedent, Stored

Format = Literal["text", "json", "ndjson"]

CLASS_STYLES = {"MALICIOUS": "bold red", "SUSPICIOUS": "yellow", "BENIGN": "green", "UNKNOWN": "dim"}
FAMILY_STYLES = {
    "Normal": "green", "Unknown": "dim", "DDoS": "magenta", "DoS": "magenta", "PortScan": "blue",
    "BruteForce": "yellow", "Ransomware": "bold red", "C2": "bright_red", "Botnet": "bright_red",
    "Exfiltration": "bright_magenta", "WebAttack": "cyan", "Infiltration": "bright_magenta",
}  # fmt: skip
DECISION_STYLES = {"DROP": "red", "ALERT": "yellow", "ALLOW": "green"}
DIM, BOLD, GOOD, WARN, BAD = "dim", "bold", "green", "yellow", "bold red"
BAR = "█▉▊▋▌▍▎▏"
REASONS_SHOWN = 20
UNDIVIDED_MIN = 0.0005  # of a distance; less is rounding
RECORD_CHARS_SHOWN = 240


def json_line(document: Any) -> str:
    """NaN and infinities become null."""
    return msgspec.json.encode(document).decode()


def message(text: str) -> None:
    """A sentence for the person at the terminal, on stderr."""
    sys.stderr.write(clean(text) + "\n")
    sys.stderr.flush()


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


class Unit(NamedTuple):
    group: str
    unit: str


def _units() -> dict[str, Unit]:
    """Group and unit of each feature (the table of features, loaded only when one is shown to a person)."""
    from engine.features import FEATURES

    return {f.name: Unit(f.group, f.unit) for f in FEATURES}


def _class(word: str) -> Span:
    return Span(word, CLASS_STYLES.get(word, ""))


def _family(word: str) -> Span:
    return Span(word or "-", FAMILY_STYLES.get(word, "cyan"))


def _label(annotation: Annotation) -> Span:
    return Span(annotation.label, BOLD)


def _ends(event: Event) -> str:
    if not event.src_ip and not event.dst_ip:
        return "-"
    return f"{end(event.src_ip, event.src_port)} -> {end(event.dst_ip, event.dst_port)}"


def _share(value: float) -> str:
    return f"{value * 100:.0f} %"


def _bar(value: float, most: float, cells: int = 12) -> Span:
    eighths = round(abs(value) / most * cells * 8) if most > 0 else 0
    whole, part = divmod(eighths, 8)
    return Span("█" * whole + (BAR[8 - part] if part else ""), "green" if value < 0 else "red")


def _tally(words: Mapping[str, int]) -> str:
    return ", ".join(f"{word} {n:,}" for word, n in words.items())


class Out:
    """One command's output."""

    def __init__(self, fmt: Format = "text", writer: Writer | None = None) -> None:
        self.format: Format = fmt
        self.to = writer or Writer()
        self._open_list = False
        self._last_header = ""

    @property
    def text(self) -> bool:
        return self.format == "text"

    # ---- documents ------------------------------------------------------------------------------------------------
    def document(self, document: Any) -> None:
        """One JSON document (indented on a terminal)."""
        text = json_line(document)
        if self.format == "json" and self.to.stream.isatty():
            text = msgspec.json.format(text, indent=2)
        self.to.raw(text + "\n")

    def documents(self, documents: Iterable[Document]) -> None:
        """ndjson: lines as they come; json: one list, written as it comes."""
        if self.format == "ndjson":
            for document in documents:
                self.to.raw(json_line(document) + "\n")
                self.to.stream.flush()
            return
        self.to.raw("[")
        for i, document in enumerate(documents):
            self.to.raw(("," if i else "") + "\n" + json_line(document))
        self.to.raw("\n]\n")

    # ---- answers --------------------------------------------------------------------------------------------------
    def answers(self, answers: Iterable[tuple[Answer, int]], *, several: bool, plan: bool = False) -> None:
        """(answer, generation) of one query, or of several: a list in JSON, a line each in NDJSON."""
        if not self.text:
            documents = (answer_document(answer, generation) for answer, generation in answers)
            if several or self.format == "ndjson":
                self.documents(documents)
            else:
                for document in documents:
                    self.document(document)
            return
        for i, (answer, generation) in enumerate(answers):
            if i:
                self.to.line()
            self.answer(answer, generation, plan=plan)
            self.to.stream.flush()

    def answer(self, answer: Answer, generation: int, *, plan: bool = False) -> None:
        query = None if answer.query is None else event_of(answer.query)
        if query is not None:
            self._headline(query)
            self.to.line()
        if answer.hits:
            self.hits(answer.hits)
        else:
            self.to.line(Span("no event matches", WARN))
        self._verdict(answer, query)
        if answer.explain:
            units = _units()
            for rank, explanation in enumerate(answer.explain, 1):
                self.to.line()
                self._explanation(rank, explanation, answer.hits, units)
        if answer.counter_example is not None:
            units = _units() if answer.counter_example.contributions else {}
            self.to.line()
            self._counter_example(answer.counter_example, units)
        if answer.hits:
            self.to.line()
            self._outcome(answer.hits)
        self._footer(answer, generation, plan)

    def _headline(self, event: Event) -> None:
        pieces: list[Piece] = [Span(event.event_id, BOLD), "  ", _class(event.classification)]
        pieces += ["  ", _family(event.family)]
        pieces += ["  discrepancy ", Span(number(event.discrepancy, 2), WARN if event.discrepancy >= 0.3 else "")]
        if event.decision:
            pieces += ["  ", Span(event.decision, DECISION_STYLES.get(event.decision, ""))]
        self.to.line(Span("query  ", DIM), *pieces)
        line = f"{when(event.ts)}  {_ends(event)}  {protocol(event.proto)}  from {event.source}"
        scores = [
            f"{name} {number(value, 2)}"
            for name, value in (("fast", event.fast_score), ("ml", event.ml_score), ("final", event.final_score))
            if value is not None
        ]
        self.to.line(line + ("  " + ", ".join(scores) if scores else ""), indent=7)
        if event.text:
            self.to.line(Span(event.text if len(event.text) <= 200 else event.text[:199] + "…", "italic"), indent=7)

    def hits(self, hits: Sequence[Hit]) -> None:
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
                    _family(event.family),
                    _class(event.classification),
                    when(event.ts),
                    _ends(event),
                    protocol(event.proto),
                    event.source if len(sources) > 1 else "",
                    Span(event.decision, DECISION_STYLES.get(event.decision, "")),
                    _label(annotation_of(hit.annotation)),
                ]
            )
        self.to.table(
            [
                Column("#", right=True),
                Column("ID", keep=True),
                Column("DISTANCE", right=True),
                Column("PCTL", right=True, spare=6),
                Column("COUNT", right=True, spare=3),
                Column("FAMILY"),
                Column("CLASS", spare=1),
                Column("WHEN (UTC)", spare=2),
                Column("SOURCE -> DESTINATION"),
                Column("PROTO", spare=5),
                Column("FROM", spare=7),
                Column("DECISION", spare=4),
                Column("LABEL"),
            ],
            rows,
        )

    def _verdict(self, answer: Answer, query: Event | None) -> None:
        if answer.no_close_precedent or (answer.same_family is not None and answer.hits):
            self.to.line()
        if answer.same_family is not None and answer.hits:
            same = round(answer.same_family * len(answer.hits))
            family = query.family if query else ""
            style = GOOD if answer.same_family >= 0.7 else WARN if answer.same_family >= 0.3 else BAD
            self.to.line(
                Span(_share(answer.same_family), style),
                f" of the hits are {family or 'of its family'} ({same} of {len(answer.hits)})",
            )
        if answer.no_close_precedent:
            self.to.line(
                Span("no close precedent", BAD),
                ": the nearest event is farther away than the calibrated bound",
            )

    def _contributions(
        self, title: str, style: str, contributions: Sequence[Contribution], most: float, units: Mapping[str, Unit]
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
                    _bar(c.contribution, most) if self.to.terminal else "",
                    Span("pulls together", DIM) if c.contribution < 0 else "",
                ]
            )
        return rows

    def _parts_of(self, explanation: Explanation, units: Mapping[str, Unit], indent: int) -> None:
        if explanation.words:
            words = ", ".join(f"{word} {weight:+.2f}" for word, weight in explanation.words[:12])
            self.to.line(Span("words that match  ", DIM), words, indent=indent)
        if not any(c.contribution for c in explanation.contributions):
            if explanation.contributions:
                self.to.line(Span("nothing known of both sets them apart", DIM), indent=indent)
            return
        parts = split(explanation)
        most = max((abs(c.contribution) for c in (*parts.agree, *parts.disagree)), default=0.0)
        rows = self._contributions("agree", GOOD, parts.agree, most, units)
        rows += self._contributions("disagree", BAD, parts.disagree, most, units)
        rows += self._sums(explanation.contributions, [*parts.agree, *parts.disagree], explanation.distance)
        self.to.table(_contribution_columns("HIT"), rows, indent=indent)

    def _sums(self, every: Sequence[Contribution], shown: Sequence[Contribution], distance: float) -> list[list[Cell]]:
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

    def _explanation(self, rank: int, explanation: Explanation, hits: Sequence[Hit], units: Mapping[str, Unit]) -> None:
        nearer = max(0.0, 100.0 - explanation.percentile)
        self.to.line(
            Span(f"#{rank} ", DIM),
            Span(explanation.event_id, BOLD),
            f"  {explanation.space} distance {number(explanation.distance)}",
            Span(f"  nearer than {nearer:.2f} % of random pairs", DIM),
        )
        if explanation.spaces:
            self.to.table(
                [
                    Column("SPACE"),
                    Column("DISTANCE", right=True),
                    Column("PCTL", right=True),
                    Column("WEIGHT", right=True),
                    Column("ADDS", right=True),
                ],
                [
                    [name, number(distance), number(percentile, 2), number(weight, 2), number(weight * percentile, 2)]
                    for name, (distance, percentile, weight) in explanation.spaces.items()
                ],
                indent=3,
            )
        self._parts_of(explanation, units, 3)
        for part in explanation.parts:
            if part.contributions or part.words:
                self.to.line(
                    Span(part.space, BOLD),
                    f"  distance {number(part.distance)}, percentile {number(part.percentile, 2)}",
                    indent=3,
                )
                self._parts_of(part, units, 5)

    def _counter_example(self, c: CounterExample, units: Mapping[str, Unit]) -> None:
        event = event_of(c.event)
        self.to.line(
            Span("counter-example  ", DIM),
            "nearest of another family: ",
            Span(event.event_id, BOLD),
            "  ",
            _family(event.family),
            "  ",
            _class(event.classification),
            f"  distance {number(c.distance)}  {when(event.ts)}  {_ends(event)}",
        )
        if not any(x.contribution for x in c.contributions):
            if c.contributions:
                self.to.line(Span("nothing known of both sets them apart", DIM), indent=3)
            return
        apart = sorted((x for x in c.contributions if x.contribution > 0), key=lambda x: -x.contribution)[:6]
        most = max((x.contribution for x in apart), default=0.0)
        rows = self._contributions("set apart by", BAD, apart, most, units)
        rows += self._sums(c.contributions, apart, c.distance)
        self.to.table(_contribution_columns(event.family.upper()[:16] or "IT"), rows, indent=3)

    def _outcome(self, hits: Sequence[Hit]) -> None:
        o = outcome(hits)
        judged = f"{_tally(o.labels)} (of {o.hits})" if o.labels else f"none of {o.hits} labelled"
        rows: list[list[Cell]] = [[Span("what became of them", DIM), Span("labels", DIM), judged]]
        if o.decisions:
            rows.append(["", Span("decisions", DIM), _tally(o.decisions)])
        if o.firewall_actions:
            rows.append(["", Span("firewall", DIM), _tally(o.firewall_actions)])
        if o.first_seen is not None and o.last_seen is not None:
            span = duration((o.last_seen - o.first_seen) / 1e9) if o.last_seen > o.first_seen else "at once"
            rows.append(["", Span("first seen", DIM), when(o.first_seen)])
            rows.append(["", Span("last seen", DIM), f"{when(o.last_seen)}  ({span})"])
        if o.events > o.hits:
            rows.append(["", Span("events", DIM), f"{plural(o.hits, 'hit')} for {plural(o.events, 'event')}"])
        self.to.table([Column(""), Column(""), Column("")], rows)

    def _footer(self, answer: Answer, generation: int, plan: bool) -> None:
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
        self.to.line(Span(" · ".join(p for p in parts if p), DIM))
        if answer.weights:
            weights = ", ".join(f"{name} {weight:.2f}" for name, weight in answer.weights.items())
            self.to.line(Span(f"weights: {weights}", DIM))
        if plan:
            self.to.line(Span(f"plan: {answer.plan or 'not given by this engine'}", DIM))

    def summaries(self, answers: Iterable[tuple[Answer, int]]) -> None:
        """A line for each event of a file: what it is most like. The widths are fixed, so that lines come at once."""
        self.to.line(
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
                f"{when(query.ts):23}  {_ends(query):45}  ",
                Span(f"{query.classification:10}", CLASS_STYLES.get(query.classification, "")),
                "  ",
                Span(f"{query.family or '-':12}", FAMILY_STYLES.get(query.family, "cyan")),
                "  ",
            ]
            if answer.hits:
                hit, nearest = answer.hits[0], event_of(answer.hits[0].event)
                same = "-" if answer.same_family is None else _share(answer.same_family)
                pieces += [
                    f"{number(hit.distance):>8}  {number(hit.percentile, 2):>6}  {same:>5}  {nearest.event_id}  ",
                    _family(nearest.family),
                ]
                if label := annotation_of(hit.annotation).label:
                    pieces += ["  ", Span(label, BOLD)]
                if answer.no_close_precedent:
                    pieces.append(Span("  no close precedent", BAD))
            else:
                pieces.append(Span("no event matches", WARN))
            self.to.line(*pieces)
            self.to.stream.flush()

    # ---- judgements -----------------------------------------------------------------------------------------------
    def judgements(self, judgements: Iterable[tuple[Judgement, int]], *, several: bool, listed: bool) -> None:
        """One in full, several a line each; JSON: a list where `listed`, NDJSON: a line each."""
        if not self.text:
            documents = (judgement_document(judgement, generation) for judgement, generation in judgements)
            if listed or self.format == "ndjson":
                self.documents(documents)
            else:
                for document in documents:
                    self.document(document)
            return
        if several:
            self._judgement_lines(judgements)
            return
        for judgement, generation in judgements:
            self.judgement(judgement, generation)

    def judgement(self, j: Judgement, generation: int) -> None:
        query = None if j.query is None else event_of(j.query)
        if query is not None:
            self._headline(query)
            self.to.line()
        if not j.precedents:
            self.to.line(Span("no event may vote", WARN), ": none is of a known family, or the filter leaves none")
        else:
            self._probabilities(j)
            self.to.line()
            self._precedents(j.precedents)
        parts = [
            f"{j.space} space", f"model {j.model}", "exact" if j.exact else "approximate",
            f"{count(j.scanned)} scanned", f"{count(j.matched)} may vote", duration(j.took_us / 1e6),
            f"generation {generation}",
        ]  # fmt: skip
        self.to.line()
        self.to.line(Span(" · ".join(parts), DIM))

    def _probabilities(self, j: Judgement) -> None:
        rest = max(0.0, 1.0 - j.probability - sum(p for _, p in j.runners_up))
        rows: list[list[Cell]] = [
            [_family(family), Span(_share(probability), BOLD if i == 0 else ""),
             Span(f"{_share(j.votes.get(family, 0.0))} of the vote", DIM)]
            for i, (family, probability) in enumerate([(j.family, j.probability), *j.runners_up])
        ]  # fmt: skip
        rows.append([Span("none of these", DIM), _share(rest), Span(f"{_share(j.doubt)} doubt", DIM)])
        self.to.table([Column("FAMILY", keep=True), Column("PROBABILITY", right=True), Column("")], rows)
        if not j.calibrated:
            self.to.line(Span("not calibrated: this model was not measured with such a vote", WARN))
        nearest, _, farthest = j.distances
        pieces: list[Piece] = [Span("no close precedent", BAD), ": "] if j.no_close_precedent else []
        pieces.append(f"farther from its nearest precedent than {_share(j.novelty)} of events that had one")
        self.to.line(*pieces, Span(f"  {j.k} voted, at distance {number(nearest)} to {number(farthest)}", DIM))

    def _precedents(self, precedents: Sequence[Precedent]) -> None:
        rows: list[list[Cell]] = []
        for rank, p in enumerate(precedents, 1):
            event = event_of(p.hit.event)
            rows.append(
                [
                    Span(str(rank), DIM), event.event_id, Span(number(p.hit.distance), BOLD),
                    number(p.hit.percentile, 2), f"x{p.hit.count:,}" if p.hit.count > 1 else "", _share(p.weight),
                    _family(p.family), Span("an analyst", BOLD) if p.labelled else event.source, when(event.ts),
                    _ends(event),
                ]
            )  # fmt: skip
        self.to.table(
            [
                Column("#", right=True), Column("ID", keep=True), Column("DISTANCE", right=True),
                Column("PCTL", right=True, spare=6), Column("COUNT", right=True, spare=3), Column("VOTE", right=True),
                Column("FAMILY"), Column("SAYS", spare=4), Column("WHEN (UTC)", spare=2),
                Column("SOURCE -> DESTINATION"),
            ],
            rows,
        )  # fmt: skip

    def _judgement_lines(self, judgements: Iterable[tuple[Judgement, int]]) -> None:
        """The widths are fixed, so that lines come at once."""
        columns = f"{'FAMILY':14}  {'PROB':>5}  {'NEW':>5}  NEAREST"
        self.to.line(Span(f"{'WHEN (UTC)':23}  {'SOURCE -> DESTINATION':45}  {columns}", DIM))
        for j, _ in judgements:
            query = event_of(j.query) if j.query is not None else None
            if query is None:
                continue
            pieces: list[Piece] = [f"{when(query.ts):23}  {_ends(query):45}  "]
            if j.precedents:
                nearest = event_of(j.precedents[0].hit.event)
                pieces += [
                    Span(f"{j.family:14}", FAMILY_STYLES.get(j.family, "cyan")),
                    f"  {_share(j.probability):>5}  {_share(j.novelty):>5}  {nearest.event_id}",
                ]
                if j.no_close_precedent:
                    pieces.append(Span("  no close precedent", BAD))
            else:
                pieces.append(Span("no event may vote", WARN))
            self.to.line(*pieces)
            self.to.stream.flush()

    # ---- events ---------------------------------------------------------------------------------------------------
    def events(self, pages: Iterable[Found]) -> None:
        """list and recent: a table; JSON: {"generation", "events", "next_seq"}; NDJSON: an event a line."""
        if self.format == "ndjson":
            for page in pages:
                self.to.raw("".join(json_line(stored_document(stored)) + "\n" for stored in page.events))
                self.to.stream.flush()
            return
        generation, next_seq, events = 0, -1, []
        for page in pages:
            generation, next_seq = page.generation, page.next_seq
            events += page.events
        if self.format == "json":
            documents = [stored_document(stored) for stored in events]
            self.document({"generation": generation, "events": documents, "next_seq": next_seq})
            return
        if not events:
            self.to.line(Span("no event matches", WARN))
            return
        self._event_table(events)
        more = f" · more: --after {next_seq}" if next_seq >= 0 else ""
        self.to.line(Span(f"{plural(len(events), 'event')} · generation {generation}{more}", DIM))

    def _event_table(self, stored: Sequence[Stored]) -> None:
        events = [event_of(s.event) for s in stored]
        sources = {e.source for e in events}
        rows = []
        for rank, (one, event) in enumerate(zip(stored, events, strict=True), 1):
            rows.append(
                [
                    Span(str(rank), DIM),
                    event.event_id,
                    when(event.ts),
                    _class(event.classification),
                    _family(event.family),
                    _ends(event),
                    protocol(event.proto),
                    number(event.final_score, 2) if event.final_score is not None else "",
                    number(event.discrepancy, 2) if event.discrepancy else "",
                    event.kind if event.kind != "flow" else "",
                    event.source if len(sources) > 1 else "",
                    Span(event.decision, DECISION_STYLES.get(event.decision, "")),
                    _label(annotation_of(one.annotation)),
                ]
            )
        self.to.table(
            [
                Column("#", right=True),
                Column("ID", keep=True),
                Column("WHEN (UTC)", spare=1),
                Column("CLASS"),
                Column("FAMILY"),
                Column("SOURCE -> DESTINATION"),
                Column("PROTO", spare=4),
                Column("SCORE", right=True, spare=3),
                Column("DISCR", right=True, spare=6),
                Column("KIND", spare=5),
                Column("FROM", spare=7),
                Column("DECISION", spare=2),
                Column("LABEL"),
            ],
            rows,
        )

    def passing(self, stored: Sequence[Stored]) -> None:
        """watch: a line for each new event, at once."""
        for one in stored:
            if not self.text:
                self.to.raw(json_line(stored_document(one)) + "\n")
                continue
            event = event_of(one.event)
            self.to.line(
                f"{when(event.ts)}  ",
                Span(f"{event.classification:10}", CLASS_STYLES.get(event.classification, "")),
                "  ",
                Span(f"{event.family or '-':12}", FAMILY_STYLES.get(event.family, "cyan")),
                f"  {_ends(event):45}  {protocol(event.proto):6}  {event.event_id}",
            )
        self.to.stream.flush()

    def stored(self, stored: Stored, generation: int, *, raw: bool = False) -> None:
        """show: everything about one event."""
        if raw:
            data = stored.raw.decode("utf-8", "replace")
            if self.text:
                for line in data.splitlines() or [""]:
                    self.to.line(line)
            else:
                self.document({"generation": generation, "seq": stored.seq, "raw": data})
            return
        if not self.text:
            document: Document = {"generation": generation} | stored_document(stored)
            document["history"] = history_document(stored.annotation)
            document["features"] = _named_features(stored.features)
            self.document(document)
            return
        event, said = event_of(stored.event), annotation_of(stored.annotation)
        self._event(stored.seq, event, said)
        if len(stored.features) == FEATURE_BYTES:
            self.to.line()
            self._features(stored.features)

    def _event(self, seq: int, event: Event, said: Annotation) -> None:
        fields = event_document(event, said)
        self.to.line(
            Span(event.event_id, BOLD), "  ", _class(event.classification), "  ", _family(event.family),
            f"  {_ends(event)}  {protocol(event.proto)}",
        )  # fmt: skip
        self.to.line()
        rows: list[list[Cell]] = [[Span("seq", DIM), str(seq)]]
        for name, value in fields.items():
            if name in ("verdicts", "extra") or value in (None, "", [], {}):
                continue
            cell: Cell = str(value)
            if name == "classification":
                cell = _class(event.classification)
            elif name == "family":
                cell = _family(event.family)
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
        self.to.table([Column("", keep=True), Column("")], rows)
        if event.verdicts:
            self.to.line()
            self.to.table(
                [Column("ENGINE"), Column("VERDICT"), Column("CONFIDENCE", right=True), Column("REASON")],
                [[v.engine, _class(v.classification), number(v.confidence, 2), v.reason_code] for v in event.verdicts],
            )
        if event.extra:
            self.to.line()
            self.to.table(
                [Column("BEYOND THE 105", keep=True), Column("VALUE", right=True)],
                [[name, quantity(value)] for name, value in event.extra.items()],
            )
        if said.history:
            self.to.line()
            self.to.table(
                [Column("WHEN (UTC)"), Column("BY"), Column("FIELD"), Column("VALUE")],
                [[when(at), by, field, value] for at, by, field, value in said.history],
            )

    def _features(self, blob: bytes) -> None:
        values, units = _named_features(blob), _units()
        rows: list[list[Cell]] = []
        last = ""
        groups = list(dict.fromkeys(units[name].group for name in values))
        for name, value in sorted(values.items(), key=lambda item: groups.index(units[item[0]].group)):
            if value is None:
                continue
            unit = units[name]
            rows.append(
                [Span(unit.group if unit.group != last else "", BOLD), name, _raw_number(value),
                 Span("" if unit.unit == "-" else unit.unit, DIM)]
            )  # fmt: skip
            last = unit.group
        self.to.table(
            [Column("GROUP"), Column("FEATURE", keep=True), Column("VALUE", right=True), Column("UNIT")], rows
        )
        missing = [name for name, value in values.items() if value is None]
        self.to.line(Span(f"{len(values) - len(missing)} of {len(values)} features present", DIM))
        if missing:
            self.to.line(Span("missing: " + ", ".join(missing), DIM))

    # ---- facts and summaries --------------------------------------------------------------------------------------
    def facts(self, facts: Mapping[str, Any], **more: Any) -> None:
        """Info, stats, models: JSON as it came; for people nested facts as aligned lines and tables."""
        if not self.text:
            self.document({**more, **facts})
            return
        self._tree({**more, **facts}, 0)

    def _tree(self, facts: Mapping[str, Any], indent: int) -> None:
        simple = {k: v for k, v in facts.items() if not isinstance(v, dict | list) or v in ({}, []) or _flat(v)}
        rows: list[list[Cell]] = [[Span(_title(k), DIM), _fact(k, v)] for k, v in simple.items()]
        if rows:
            self.to.table([Column("", keep=True), Column("")], rows, indent=indent)
        for name, value in facts.items():
            if name in simple:
                continue
            self.to.line()
            if table := _as_table(name, value):
                if isinstance(value, list):
                    self.to.line(Span(_title(name), BOLD), indent=indent)
                self.to.table(*table, indent=indent)
            elif isinstance(value, dict):
                self.to.line(Span(_title(name), BOLD), indent=indent)
                self._tree(value, indent + 2)
            else:
                self.to.line(Span(_title(name), BOLD), indent=indent)
                for item in value:
                    self.to.line(str(item), indent=indent + 2)

    def stats(self, document: Mapping[str, Any]) -> None:
        """For people: the figures, then the sources and the dead letters; where features were asked for, those only."""
        if not self.text:
            self.document(document)
            return
        sources = document.get("sources", [])
        if any("features" in row for row in sources):
            for i, row in enumerate(sources):
                if i:
                    self.to.line()
                self._source_features(row)
            return
        self._tree({k: v for k, v in document.items() if k not in ("sources", "dead_letters")}, 0)
        if sources:
            self._sources(sources)
        if letters := document.get("dead_letters", {}).get("reasons"):
            self._reasons(document["dead_letters"], letters)

    def _sources(self, sources: Sequence[Mapping[str, Any]]) -> None:
        rows = [
            [
                Span(row["name"], BOLD), row["format"], count(row["events"]), count(row["duplicates"]),
                Span(count(row["rejected"]), WARN if row["rejected"] else ""), _coverage(row),
                number(row["coverage_mean"], 1), _part(row.get("missing_share")), _part(row.get("constant_share")),
            ]
            for row in sources
        ]  # fmt: skip
        self.to.line()
        self.to.table(
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
        self.to.line()
        self.to.line(Span("features filled, by group", BOLD))
        groups = [
            [row["name"], ", ".join(f"{name} {n}/{of}" for name, (n, of) in row["groups"].items())]
            for row in sources
            if row.get("groups")  # an older engine says nothing of them
        ]
        self.to.table([Column("", keep=True), Column("")], groups, indent=2)

    def _reasons(self, letters: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]]) -> None:
        self.to.line()
        self.to.line(Span(plural(letters["count"], "dead letter"), BOLD), f" ({size(letters['bytes'])})")
        self.to.table(
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
            self.to.line(Span(f"{plural(more, 'reason')} more", DIM), indent=2)

    def _source_features(self, row: Mapping[str, Any]) -> None:
        events, features = row["events"], row.get("features", [])
        self.to.line(
            Span(row["name"], BOLD), f"  {plural(events, 'event')}, {_coverage(row)} features filled, ",
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
                    Span(f["group"] if f["group"] != last else "", BOLD), f["feature"], _part(f["present"] / events),
                    _part(f["zeros"] / f["present"]), _raw_number(f["min"]), _raw_number(f["max"]),
                    Span("" if f["unit"] == "-" else f["unit"], DIM), Span("constant", WARN) if f["constant"] else "",
                ]
            )  # fmt: skip
            last = f["group"]
        self.to.table(
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
            self.to.line(Span("never: " + ", ".join(never), DIM))

    def letters(self, letters: Iterable[Document]) -> None:
        """Dead letters: a line that says where and why, then the record, cut."""
        if not self.text:
            self.documents(letters)
            return
        shown = 0
        for letter in letters:
            self.to.line(Span(letter["at"][:19].replace("T", " "), DIM), f"  {_place(letter)}  ",
                         Span(letter["reason"], WARN))  # fmt: skip
            record = letter["record"]
            if record:
                cut = record if len(record) <= RECORD_CHARS_SHOWN else record[: RECORD_CHARS_SHOWN - 1] + "…"
                self.to.line(cut, indent=4)
            shown += 1
        if not shown:
            self.to.line(Span("no dead letter", DIM))

    def models(self, facts: Mapping[str, Any], generation: int) -> None:
        """The versions there are: a line each for people."""
        if not self.text:
            self.facts(facts, generation=generation)
            return
        rows: list[list[Cell]] = []
        for version, card in facts.get("versions", {}).items():
            data = card.get("data") or {}
            metrics = ", ".join(f"{name} {value:.2f}" for name, value in (card.get("metrics") or {}).items())
            rows.append(
                [
                    Span(version, BOLD),
                    Span("in use", GOOD) if version == facts.get("current") else "",
                    str(card.get("created") or ""),
                    f"{data.get('events', 0):,}",
                    str(data.get("description") or ""),
                    metrics,
                ]
            )
        columns = [Column("VERSION", keep=True), Column(""), Column("CREATED", spare=2), Column("EVENTS", right=True)]
        self.to.table([*columns, Column("FITTED ON"), Column("HELD OUT", spare=1)], rows)

    def ingested(self, summary: Mapping[str, Any]) -> None:
        if not self.text:
            self.document(summary)
            return
        seconds = float(summary["seconds"])
        total = summary["accepted"] + summary["duplicates"]
        rate = f", {total / seconds:,.0f}/s" if seconds > 0 and total else ""
        self.to.line(
            Span(plural(summary["accepted"], "event"), GOOD if summary["accepted"] else ""), " stored, ",
            f"{plural(summary['duplicates'], 'duplicate')}, ",
            Span(f"{summary['rejected']:,} rejected", BAD if summary["rejected"] else ""),
            f" in {duration(seconds)}{rate} · generation {summary['generation']}",
        )  # fmt: skip
        if summary["joined"] or summary["waiting"]:
            self.to.line(
                f"firewall actions: {summary['joined']:,} said of events, {summary['waiting']:,} have met no event yet"
            )
        if summary["rejected"] and summary["dead_letters"]:
            self.to.line(f"what could not be read is in {summary['dead_letters']}")

    def done(self, document: Mapping[str, Any], sentence: str) -> None:
        """A command that changed something: facts for programs, a sentence for people."""
        if self.text:
            self.to.line(sentence)
        else:
            self.document(document)

    def findings(self, findings: Sequence[Document], summary: Mapping[str, Any]) -> None:
        if self.format == "ndjson":
            self.documents(findings)
            return
        if self.format == "json":
            self.document({**summary, "findings": list(findings)})
            return
        styles = {"problem": BAD, "note": WARN, "fixed": GOOD, "ok": GOOD}
        for finding in findings:
            level = "fixed" if finding["fixed"] else finding["severity"]
            self.to.line(Span(f"{level:8}", styles.get(level, "")), f"  {finding['object']}: {finding['detail']}")
        problems = int(summary.get("problems", 0))
        self.to.line(Span(plural(problems, "problem") if problems else "no problem found", BAD if problems else GOOD))


def _contribution_columns(other: str) -> list[Column]:
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


def _named_features(blob: bytes) -> dict[str, float | None]:
    """{name: value or None}; empty where the event has none stored."""
    if len(blob) != FEATURE_BYTES:
        return {}
    from engine.features import FEATURES

    values = struct.unpack(f"<{FEATURE_COUNT}f", blob)
    return {f.name: None if value != value else value for f, value in zip(FEATURES, values, strict=True)}


def _raw_number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e15 else f"{value:,.6g}"


def _title(name: str) -> str:
    return str(name).replace("_", " ")


def _flat(value: Any) -> bool:
    """A list of plain values fits on a line, or is named by its ends."""
    return isinstance(value, list) and not any(isinstance(item, dict | list) for item in value)


def _fact(name: str, value: Any) -> Cell:
    if value is None or value in ({}, [], ""):
        return Span("-", DIM)
    if isinstance(value, bool):
        return Span("yes" if value else "no", GOOD if value else "")
    if isinstance(value, list):
        return ", ".join(map(str, value)) if len(value) <= 16 else f"{len(value):,} values, {value[0]} to {value[-1]}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name.endswith(("_ns", "_at")) and value > 10**17:
            return iso(int(value))
        if name.endswith("_bytes") or name in ("bytes", "size"):
            return size(value)
        if name.endswith("_s") or name in ("seconds", "uptime"):
            return duration(float(value))
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return str(value)


def _coverage(row: Mapping[str, Any]) -> str:
    """11/105"""
    filled = row.get("features_filled")  # an older engine does not say
    return f"{'-' if filled is None else filled}/{row['coverage_of']}"


def _part(value: float | None) -> str:
    """A share in percent; 0 % and 100 % are exactly that."""
    if value is None:
        return "-"
    text = f"{value * 100:.1f}"
    if text == "0.0" and value > 0:
        return "<0.1 %"
    if text == "100.0" and value < 1:
        return ">99.9 %"
    return text.removesuffix(".0") + " %"


def _place(letter: Mapping[str, Any]) -> str:
    """Where a dead letter was; what was refused when it was stored has no offset."""
    return letter["file"] if letter["offset"] < 0 else f"{letter['file']} at {letter['offset']:,}"


def _as_table(name: str, value: Any) -> tuple[list[Column], list[list[Cell]]] | None:
    """Dicts of dicts, and lists of dicts, of plain values with mostly the same keys."""
    if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
        rows = [{_title(name): key} | v for key, v in value.items()]
    elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        rows = list(value)
    else:
        return None
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if len(keys) > 14 or any(isinstance(v, dict) for row in rows for v in row.values()):
        return None
    right = {key for key in keys if all(isinstance(row.get(key), int | float | None) for row in rows if key in row)}
    columns = [Column(_title(key).upper(), right=key in right, keep=i == 0) for i, key in enumerate(keys)]
    return columns, [[_fact(key, row[key]) if key in row else "" for key in keys] for row in rows]
