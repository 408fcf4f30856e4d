"""What an answer means: documents for programs, the outcome of the hits, and which features agree. No printing.

Always true
  - The documents are the contract with programs (docs/CLI.md): a key is always there, None where nothing is known.
  - An event in a document has all its fields, in the order of ipc/event.py, then what was said of it afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from cli.text import iso
from ipc.event import Annotation, Event, Hit, Verdict
from ipc.messages import Alert, Answer, Contribution, CounterExample, Explanation, Flow, Judgement, Precedent, Stored

if TYPE_CHECKING:
    from engine.store.dead_letters import Letter

Document = dict[str, Any]

_EVENT_FIELDS = Event.__struct_fields__
_VERDICT_FIELDS = Verdict.__struct_fields__
_decode_event = msgspec.msgpack.Decoder(Event).decode
_decode_annotation = msgspec.msgpack.Decoder(Annotation).decode


def event_of(event: Event | msgspec.Raw) -> Event:
    return _decode_event(event) if isinstance(event, msgspec.Raw) else event


def annotation_of(annotation: Annotation | msgspec.Raw | None) -> Annotation:
    if isinstance(annotation, msgspec.Raw):
        return _decode_annotation(annotation) if bytes(annotation) else Annotation()
    return annotation or Annotation()


def identity(event: Event | Flow) -> str:
    """source/id: names this event and no other."""
    return f"{event.source}/{event.event_id}"


def event_document(event: Event | msgspec.Raw, annotation: Annotation | msgspec.Raw | None = None) -> Document:
    event, said = event_of(event), annotation_of(annotation)
    document: Document = {name: getattr(event, name) for name in _EVENT_FIELDS}
    document["ts"], document["ts_start"] = iso(event.ts), iso(event.ts_start)
    document["verdicts"] = [{name: getattr(v, name) for name in _VERDICT_FIELDS} for v in event.verdicts]
    document["label"] = said.label or None
    document["labelled_by"] = said.labelled_by or None
    document["labelled_at"] = iso(said.labelled_at) if said.labelled_at else None
    document["firewall_action"] = said.firewall_action or None
    document["firewall_ts"] = iso(said.firewall_ts) if said.firewall_ts else None
    return document


def history_document(annotation: Annotation | msgspec.Raw | None) -> list[Document]:
    """Oldest first."""
    return [
        {"at": iso(at), "by": by, "field": field, "value": value}
        for at, by, field, value in annotation_of(annotation).history
    ]


def stored_document(stored: Stored) -> Document:
    return {"seq": stored.seq} | event_document(stored.event, stored.annotation)


def hit_document(rank: int, hit: Hit) -> Document:
    document = event_document(hit.event, hit.annotation)
    first = ("event_id", "classification", "family", "label", "ts")
    return {
        "rank": rank,
        "event_id": document["event_id"],
        "distance": hit.distance,
        "percentile": hit.percentile,
        "count": hit.count,
        **{name: document[name] for name in first[1:]},
        **{name: value for name, value in document.items() if name not in first},
        "seq": hit.seq,
    }


def contribution_document(c: Contribution) -> Document:
    return {"feature": c.feature, "query": c.query, "hit": c.hit, "z": c.z, "contribution": c.contribution}


def explanation_document(e: Explanation) -> Document:
    document: Document = {
        "event_id": e.event_id,
        "space": e.space,
        "distance": e.distance,
        "percentile": e.percentile,
        "contributions": [contribution_document(c) for c in e.contributions],
        "agree": e.agree,
        "disagree": e.disagree,
    }
    if e.words:
        document["words"] = [{"word": word, "weight": weight} for word, weight in e.words]
    if e.spaces:
        document["spaces"] = {
            name: {"distance": distance, "percentile": percentile, "weight": weight}
            for name, (distance, percentile, weight) in e.spaces.items()
        }
    if e.parts:
        document["parts"] = [explanation_document(part) for part in e.parts]
    return document


def counter_example_document(c: CounterExample | None) -> Document | None:
    if c is None:
        return None
    return {
        "seq": c.seq,
        "distance": c.distance,
        "event": event_document(c.event),
        "contributions": [contribution_document(x) for x in c.contributions],
    }


def beside_document(told: Alert | Flow) -> Document:
    """What else is stored of a connection."""
    document: Document = {name: getattr(told, name) for name in told.__struct_fields__}
    return document | {"ts": iso(told.ts)}


def stats_document(facts: Mapping[str, Any], generation: int) -> Document:
    """The figures. Where features were asked for: of the sources that have events, each with its list."""
    document: Document = {"generation": generation} | dict(facts)
    columns: Mapping[str, Any] = document.pop("features", {})
    if columns:
        document["sources"] = [
            row | {"features": feature_documents(columns[row["name"]], row["events"])}
            for row in facts["sources"]
            if row["name"] in columns
        ]
    if "dead_letters" in facts:
        reasons = [{**r, "latest_at": iso(r["latest_at"])} for r in facts["dead_letters"]["reasons"]]
        document["dead_letters"] = {**facts["dead_letters"], "reasons": reasons}
    if "quality" in facts:
        document["quality"] = quality_document(facts["quality"])
    return document


def quality_document(facts: Mapping[str, Any]) -> Document:
    at = facts["measured_at"]
    return {**facts, "measured_at": None if at is None else iso(at)}


def feature_documents(columns: Mapping[str, Sequence[Any]], events: int) -> list[Document]:
    """What one source fills of each feature. Shares are of its events; of a feature that is never there, None."""
    from engine.features import FEATURES

    rows = zip(FEATURES, columns["present"], columns["zeros"], columns["min"], columns["max"], strict=True)
    return [
        {
            "feature": f.name,
            "group": f.group,
            "unit": f.unit,
            "present": present,
            "missing_share": 1 - present / events if events else None,
            "zeros": zeros,
            "min": low,
            "max": high,
            "constant": present > 1 and low == high,
        }
        for f, present, zeros, low, high in rows
    ]


def letter_document(letter: Letter) -> Document:
    """A dead letter; its record as text and, byte for byte, as base64."""
    import base64

    try:
        record = base64.b64decode(letter.record)
    except ValueError:
        record = b""
    return {
        "at": letter.at,
        "file": letter.file,
        "offset": letter.offset,
        "reason": letter.reason,
        "record": record.decode("utf-8", "replace"),
        "record_base64": letter.record,
    }


class Outcome(NamedTuple):
    """What became of the hits. Counted by hit; `events` counts the near-identical ones that a hit stands for too."""

    hits: int
    events: int
    families: dict[str, int]
    classifications: dict[str, int]
    labels: dict[str, int]
    unlabelled: int
    decisions: dict[str, int]
    firewall_actions: dict[str, int]
    alerts: dict[str, int]  # hits of whose connection this was said, by what it was
    first_seen: int | None  # ns
    last_seen: int | None  # ns


def _tally(words: Iterable[str]) -> dict[str, int]:
    """Without the empty word, most frequent first."""
    return dict(Counter(word for word in words if word).most_common())


def outcome(hits: Sequence[Hit], alerts: Sequence[Sequence[Alert]] = ()) -> Outcome:
    """alerts: of each hit's connection, where they were asked for."""
    events = [event_of(hit.event) for hit in hits]
    times = [event.ts for event in events if event.ts]  # some tables have none
    notes = [annotation_of(hit.annotation) for hit in hits]
    labels = _tally(a.label for a in notes)
    return Outcome(
        hits=len(hits),
        events=sum(hit.count for hit in hits),
        families=_tally(e.family for e in events),
        classifications=_tally(e.classification for e in events),
        labels=labels,
        unlabelled=len(hits) - sum(labels.values()),
        decisions=_tally(e.decision for e in events),
        firewall_actions=_tally(a.firewall_action for a in notes),
        alerts=_tally(words for of_hit in alerts for words in {alert.text for alert in of_hit}),
        first_seen=min(times, default=None),
        last_seen=max(times, default=None),
    )


def outcome_document(o: Outcome) -> Document:
    document = o._asdict()
    document["first_seen"] = None if o.first_seen is None else iso(o.first_seen)
    document["last_seen"] = None if o.last_seen is None else iso(o.last_seen)
    return document


def answer_document(answer: Answer, generation: int) -> Document:
    document: Document = {
        "generation": generation,
        "space": answer.space,
        "model": answer.model,
        "metric": answer.metric,
        "exact": answer.exact,
        "scanned": answer.scanned,
        "matched": answer.matched,
        "took_ms": answer.took_us / 1000,
        "query": None if answer.query is None else event_document(answer.query),
        "hits": [hit_document(rank, hit) for rank, hit in enumerate(answer.hits, 1)],
        "same_family": answer.same_family,
        "no_close_precedent": answer.no_close_precedent,
        "explain": [explanation_document(e) for e in answer.explain],
        "counter_example": counter_example_document(answer.counter_example),
        "query_flows": [beside_document(flow) for flow in answer.query_flows],
        "query_alerts": [beside_document(alert) for alert in answer.query_alerts],
        "alerts": [[beside_document(alert) for alert in of_hit] for of_hit in answer.alerts],
        "outcome": outcome_document(outcome(answer.hits, answer.alerts)),
    }
    if answer.weights:
        document["weights"] = answer.weights
    if answer.plan:
        document["plan"] = answer.plan
    return document


def precedent_document(rank: int, precedent: Precedent) -> Document:
    hit = hit_document(rank, precedent.hit)
    voted = {"family": precedent.family, "labelled": precedent.labelled, "weight": precedent.weight}
    first = ("rank", "event_id", "distance", "percentile", "count")
    detector = {"classification": hit["classification"], "detector_family": hit["family"]}
    rest = {name: value for name, value in hit.items() if name not in (*first, "classification", "family")}
    return {name: hit[name] for name in first} | voted | detector | rest


def judgement_document(j: Judgement, generation: int) -> Document:
    return {
        "generation": generation,
        "query": None if j.query is None else event_document(j.query),
        "family": j.family or None,
        "probability": j.probability,
        "runners_up": [{"family": family, "probability": probability} for family, probability in j.runners_up],
        "novelty": j.novelty,
        "no_close_precedent": j.no_close_precedent,
        "false_alarm": j.false_alarm,
        "calibrated": j.calibrated,
        "precedents": [precedent_document(rank, p) for rank, p in enumerate(j.precedents, 1)],
        "k": j.k,
        "votes": j.votes,
        "doubt": j.doubt,
        "distances": spread_document(j.distances),
        "percentiles": spread_document(j.percentiles),
        "space": j.space,
        "model": j.model,
        "exact": j.exact,
        "scanned": j.scanned,
        "matched": j.matched,
        "took_ms": j.took_us / 1000,
    }


def spread_document(values: Sequence[float]) -> Document | None:
    return dict(zip(("min", "median", "max"), values, strict=True)) if values else None


class Split(NamedTuple):
    """The contributions of one distance that are worth reading."""

    agree: list[Contribution]
    disagree: list[Contribution]


def split(e: Explanation, most: int = 6) -> Split:
    """Features that agree and those that disagree most; the engine names them, otherwise what pulls most either way."""
    by_name = {c.feature: c for c in e.contributions}
    disagree = [by_name[name] for name in e.disagree if name in by_name][:most]
    agree = [by_name[name] for name in e.agree if name in by_name and name not in e.disagree][:most]
    if not disagree:
        taken = {c.feature for c in agree}
        pushing = [c for c in e.contributions if c.contribution > 0 and c.feature not in taken]
        disagree = sorted(pushing, key=lambda c: -c.contribution)[:most]
    if not agree:
        from engine.features import agree as agrees  # the table of features, loaded only when one is shown

        taken = {c.feature for c in disagree}
        both = [c for c in e.contributions if c.feature not in taken and None not in (c.query, c.hit)]
        known = [c for c in both if c.z is None or agrees(c.query, c.hit, c.z)]  # of a word there is no deviation
        agree = sorted(known, key=lambda c: (c.contribution >= 0, abs(c.z or 0.0), -abs(c.query or 0.0)))[:most]
    return Split(agree, disagree)
