"""The event as it crosses the socket and as it is stored: the one definition of its fields.

Always true
  - An event is a msgpack map by field name; a field at its default is left out. A new field has a default.
  - Times are i64 nanoseconds since 1970 UTC. An address is text in its shortest form, "" where there is none.
  - The 105 features travel beside the event as 420 bytes, little-endian float32, NaN = missing (engine/features.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

FEATURE_COUNT = 105
FEATURE_BYTES = FEATURE_COUNT * 4

Classification = Literal["BENIGN", "SUSPICIOUS", "MALICIOUS", "UNKNOWN"]
Kind = Literal["flow", "alert", "notice"]
Decision = Literal["", "ALLOW", "DROP", "ALERT"]

EventId = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00]+$")]
SourceName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00/]+$")]
Word = Annotated[str, Meta(max_length=128)]
Text = Annotated[str, Meta(max_length=8192)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Nanoseconds = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class Verdict(Struct, frozen=True, omit_defaults=True):
    """One engine's opinion.

    reason_code: SIG_MATCH, STAT_ANOMALY, PCA_OUTLIER, PROT_VIOLATION, ENGINE_CONFLICT or UNKNOWN.
    """

    engine: Word
    classification: Classification
    confidence: Share
    reason_code: Word = "UNKNOWN"


class Event(Struct, omit_defaults=True, kw_only=True):
    """One thing a detector emitted. Identity is (source, event_id).

    Adapters fill what their source says; engine/normalize.py completes the rest (family, scores, discrepancy, trace_id,
    community_id, coverage) in one place, for ingest and for query_event alike.
    """

    event_id: EventId
    source: SourceName
    ts: Nanoseconds  # end of the flow; an alert: its own time
    ts_start: Nanoseconds
    sensor: Word = ""
    kind: Kind = "flow"
    src_ip: Annotated[str, Meta(max_length=45)] = ""  # initiator
    dst_ip: Annotated[str, Meta(max_length=45)] = ""  # responder
    src_port: Port | None = None
    dst_port: Port | None = None
    proto: Annotated[int, Meta(ge=0, le=255)] | None = None  # IANA number
    vlan: Annotated[int, Meta(ge=0, le=4095)] | None = None
    tunnel: Word = ""
    classification: Classification = "UNKNOWN"
    family: Word = ""  # canonical word; "" until normalized, then "Unknown" where nobody said
    family_raw: Word = ""  # the source's own word
    fast_score: Share | None = None
    ml_score: Share | None = None
    final_score: Share | None = None
    verdicts: Annotated[list[Verdict], Meta(max_length=32)] = []
    discrepancy: Share = 0.0
    decision: Decision = ""
    trace_id: Word = ""
    community_id: Word = ""
    text: Text = ""  # every free text the source gave, joined by " | "
    technique: Annotated[list[Word], Meta(max_length=32)] = []  # MITRE ATT&CK ids
    extra: Annotated[dict[Word, float], Meta(max_length=64)] = {}  # the source's own numbers outside the 105
    coverage: Annotated[int, Meta(ge=0, le=FEATURE_COUNT)] = 0  # how many of the 105 features are present


class FeaturedEvent(Struct, array_like=True):
    """An event with its features and the original record.

    features: FEATURE_BYTES bytes, or empty where the source has none. raw: the source record, verbatim; it alone
    decides whether two events of the same identity have the same content.
    """

    event: Event
    features: Annotated[bytes, Meta(max_length=FEATURE_BYTES)] = b""
    raw: Annotated[bytes, Meta(max_length=1 << 20)] = b""


class FirewallAction(Struct, array_like=True, frozen=True):
    """What a firewall did, to be joined to the events that it was done about (engine/store/actions.py).

    ts: when, ns. family: the source's word for the threat, as in an event's family_raw.
    """

    ts: Nanoseconds
    src_ip: Annotated[str, Meta(max_length=45)]
    dst_ip: Annotated[str, Meta(max_length=45)]
    family: Word
    action: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\x00]+$")]  # BLOCK, ...
    confidence: Share | None = None


class Annotation(Struct, omit_defaults=True, kw_only=True):
    """What was said of an event after it was stored. Never part of the record; history is append-only, in the order in
    which it was said; `at` of a firewall's action is when the firewall acted."""

    label: Word = ""
    labelled_by: Word = ""
    labelled_at: int = 0  # ns
    firewall_action: Word = ""
    firewall_ts: int = 0  # ns
    history: list[tuple[int, str, str, str]] = []  # (at ns, by, field, value)


class Hit(Struct, array_like=True):
    """One answer: distance (L2 in the space's own unit; fused: weighted percentile), percentile of that distance among
    random pairs (0..100), how many near-identical events it stands for, the stored event, and its annotation."""

    seq: int
    distance: float
    percentile: float
    count: int
    event: Event | Raw
    annotation: Annotation | Raw | None = None
