"""Every message that crosses a socket, its number, its limits, and the error codes.

Always true
  - A frame is a u32 little-endian length, then one msgpack body: an array whose first element is the tag.
  - A tag, a code and a field's place are given out once. A new field goes last and has a default.
  - A field that a newer peer adds is passed over in a read or a reply; a write with one is refused, because what it
    asks for would be lost, with an answer that says it is done.
  - Tags below 32 are reads (query socket), 32 to 63 writes (write socket), 64 and above replies.
  - docs/PROTOCOL.md is generated from this file; a test fails when it is stale.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any

from msgspec import Meta, Raw, Struct
from msgspec.msgpack import Decoder, Encoder

from ipc.event import Annotation, Event, FeaturedEvent, FirewallAction, Hit

PROTOCOL_VERSION = 1
PROTOCOL_VERSION_MIN = 1
FRAME_BYTES_MAX = 4 << 20  # of one request or reply
FRAME_BYTES_HELLO = 4096  # until a connection has said hello
TOP_K_MAX = 1_000
EVENTS_PER_MESSAGE_MAX = 1_024
IDS_PER_MESSAGE_MAX = 1_024
DEADLINE_MS_MAX = 600_000


class ErrorCode(IntEnum):
    """On the wire: add, never renumber. The client raises one class for each (ipc/errors.py)."""

    INTERNAL = 1
    BAD_REQUEST = 2
    NOT_FOUND = 3
    UNKNOWN_SPACE = 4
    NOT_READY = 5
    OVERLOADED = 6
    DEADLINE = 7
    DENIED = 8
    WRONG_SOCKET = 9
    WRONG_MODEL = 10
    VERSION = 11
    CANCELLED = 12
    NO_SPACE = 13


RequestId = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
TopK = Annotated[int, Meta(ge=1, le=TOP_K_MAX)]
Millis = Annotated[int, Meta(ge=1, le=DEADLINE_MS_MAX)]
Id = Annotated[str, Meta(min_length=1, max_length=384)]
Name = Annotated[str, Meta(max_length=128)]
SpaceName = Annotated[str, Meta(max_length=32)]
Names = Annotated[list[Name], Meta(max_length=64)]
Weight = Annotated[float, Meta(ge=0.0, le=1e6)]


class Message(Struct, array_like=True, gc=False):
    """Base of all messages."""


class Order(Message, forbid_unknown_fields=True):
    """Base of all writes."""


class Filter(Struct, frozen=True, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """Which events may be hits. Empty lists and None mean "any"; all that is given must hold. Times are ns, [since, until)."""

    classifications: Names = []
    families: Names = []
    sources: Names = []
    kinds: Names = []
    decisions: Names = []
    labels: Names = []  # an analyst's label; "" matches events without one
    firewall_actions: Names = []  # what a firewall did; "" matches events of which none says anything
    since: int | None = None
    until: int | None = None
    src: Names = []  # addresses or CIDRs
    dst: Names = []
    addr: Names = []  # either end
    src_ports: Annotated[list[tuple[int, int]], Meta(max_length=64)] = []  # inclusive ranges
    dst_ports: Annotated[list[tuple[int, int]], Meta(max_length=64)] = []
    protos: Annotated[list[int], Meta(max_length=64)] = []
    score_min: float | None = None
    score_max: float | None = None
    discrepancy_min: float | None = None
    discrepancy_max: float | None = None


class Options(Struct, frozen=True, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """How to search; shared by all queries."""

    space: SpaceName = "fused"  # chronos | sbert | attack | fused
    top_k: TopK = 10
    filter: Filter | None = None
    before: bool = False  # only events earlier than the query's own time
    other_episodes: bool = False  # not the same pair and family within 10 minutes
    collapse: bool = True  # near-duplicates become one hit with a count
    explain: bool = False
    weights: Annotated[dict[SpaceName, Weight], Meta(max_length=16)] = {}  # fused only; default: the model's
    min_generation: int = 0  # read your own writes: wait for it until the deadline
    deadline_ms: Millis = 5_000


class Voting(Struct, frozen=True, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """How to classify. The events that vote are the k nearest of a known family, or labelled by an analyst."""

    space: SpaceName = "attack"  # chronos | sbert | attack
    k: TopK = 5  # places that vote; probabilities were measured with 5
    filter: Filter | None = None  # which events may vote
    before: bool = True  # only events earlier than the query's own time
    other_episodes: bool = False  # not the same pair within 10 minutes, of whatever family
    collapse: bool = True  # near-duplicates are one place and have one vote; otherwise each event votes
    min_generation: int = 0
    deadline_ms: Millis = 5_000


class Contribution(Struct, array_like=True, frozen=True, gc=False):
    """What one feature (or group of features that state one fact) adds to a distance.

    query, hit: raw units, None = missing. z: (query - hit) in robust deviations, None where either is missing.
    contribution: in the unit of the distance; may be negative ("pulls together"); all of a hit's add up to it.
    """

    feature: str
    query: float | None
    hit: float | None
    z: float | None
    contribution: float


class CounterExample(Struct, array_like=True):
    """The nearest event of another known family than the query's or, where it has none, than that of most hits (none
    where they have none), and what sets it apart from the query."""

    seq: int
    distance: float
    event: Event | Raw
    contributions: list[Contribution] = []


class Explanation(Struct, omit_defaults=True, kw_only=True):
    """Why a hit is near. contributions: largest absolute first, all of them. agree, disagree: the leading features' names,
    first those of the flow itself, then those of what was around it; none is in both.

    words: [word, weight] that match (sbert). spaces: for a fused hit the distance, percentile and weight in each space.
    """

    event_id: str
    space: str
    distance: float
    percentile: float = 0.0
    contributions: list[Contribution] = []
    agree: list[str] = []
    disagree: list[str] = []
    words: list[tuple[str, float]] = []
    spaces: dict[str, tuple[float, float, float]] = {}
    parts: list[Explanation] = []  # fused: one for each space


class Alert(Struct, array_like=True):
    """What a detector said of a connection: the first of `count` alerts or notices of a source with the same first text,
    which may be cut (a kind where there is none). Of a connection 64 are counted, the first in time."""

    seq: int
    event_id: str
    source: str
    kind: str
    ts: int
    classification: str
    family: str
    text: str
    count: int


class Flow(Struct, array_like=True):
    """A flow as which a connection is stored. coverage: how many of its 105 features are known."""

    seq: int
    event_id: str
    source: str
    ts: int
    classification: str
    family: str
    coverage: int


class Answer(Struct, array_like=True):
    """Hits for one query event, all from one generation. query: the event asked about, as stored or as sent."""

    space: str
    model: str
    metric: str
    exact: bool
    scanned: int
    matched: int
    took_us: int
    query: Event | Raw | None
    hits: list[Hit]
    same_family: float | None = None  # share of the hits of the query's family; None where the query has none
    no_close_precedent: bool = False
    explain: list[Explanation] = []  # one for each hit, in order
    counter_example: CounterExample | None = None
    weights: dict[str, float] = {}  # fused: as used
    plan: str = ""
    query_alerts: list[Alert] = []  # explain: what was said of the very connection asked about, at most 4 things
    alerts: list[list[Alert]] = []  # explain: of that of each hit, in order; not of the events that a hit stands for
    query_flows: list[
        Flow
    ] = []  # as which its connection is stored, 4 at most, where an alert or notice was asked about


class Precedent(Struct, array_like=True):
    """An event behind a judgement. family: what it votes for, as an analyst labelled it (labelled) or as its detector
    said; weight: its share of the whole vote. The hit's count: the near-identical events that it speaks for."""

    hit: Hit
    family: str
    labelled: bool
    weight: float


class Judgement(Struct, array_like=True):
    """What one event is, going by its precedents. The detector's own word and the label of the event asked about are
    never looked at.

    family: "" where nobody votes. runners_up: [family, probability] of the others, the largest first; what is missing to 1
    is the probability of none of them. votes: each family's share of the vote; doubt: the share that far neighbours
    leave to nobody; these and doubt add up to 1. distances: nearest, median and farthest voter, percentiles of the same
    among random pairs; both empty where nobody votes. novelty: share of later events, when the model was fitted, that
    had a nearer one among the earlier; no_close_precedent: it is above 1 - false_alarm, the share of those with none as
    near. calibrated: probability and novelty were measured with such a vote: this k, places, and all that came before
    may vote; otherwise they are as of that one, or the probability is the share itself. space: that of the vote, sbert where too few features are known of the event.
    """

    query: Event | Raw | None
    family: str
    probability: float
    runners_up: list[tuple[str, float]]
    novelty: float
    no_close_precedent: bool
    false_alarm: float
    calibrated: bool
    precedents: list[Precedent]  # the nearest first
    k: int  # places that voted
    votes: dict[str, float]
    doubt: float
    distances: list[float]
    percentiles: list[float]
    space: str
    model: str
    exact: bool
    scanned: int
    matched: int
    took_us: int


class Stored(Struct, array_like=True):
    """An event as stored. features: FEATURE_BYTES or empty, raw: the source record or empty, as asked for."""

    seq: int
    event: Event | Raw
    annotation: Annotation | Raw | None = None
    features: bytes = b""
    raw: bytes = b""


# ---- requests, query socket ---------------------------------------------------------------------------------------
# fmt: off
class Hello(Message, tag=0):         protocol: int; client: Name = ""; request_id: RequestId = 0
class Ping(Message, tag=1):          request_id: RequestId
class Info(Message, tag=2):          request_id: RequestId
class Stats(Message, tag=3):         request_id: RequestId; features: Names = []  # sources whose every feature is asked for
class Get(Message, tag=4):           request_id: RequestId; ids: Annotated[list[Id], Meta(max_length=IDS_PER_MESSAGE_MAX)]; features: bool = False; raw: bool = False; min_generation: int = 0; deadline_ms: Millis = 5_000
class List(Message, tag=5):          request_id: RequestId; filter: Filter | None = None; after_seq: int = -1; limit: TopK = 100; features: bool = False; raw: bool = False; min_generation: int = 0; deadline_ms: Millis = 5_000
class Recent(Message, tag=6):        request_id: RequestId; limit: TopK = 20; filter: Filter | None = None; by_event_time: bool = False; min_generation: int = 0; deadline_ms: Millis = 5_000
class QuerySimilar(Message, tag=7):  request_id: RequestId; id: Id; options: Options = Options()
class QueryEvent(Message, tag=8):    request_id: RequestId; events: Annotated[list[FeaturedEvent], Meta(max_length=EVENTS_PER_MESSAGE_MAX)]; options: Options = Options(); session: int = 0
class QueryVector(Message, tag=9):   request_id: RequestId; vector: bytes; model: Name; options: Options = Options()
class SearchText(Message, tag=10):   request_id: RequestId; text: Annotated[str, Meta(min_length=1, max_length=2048)]; options: Options = Options(space="sbert")
class Explain(Message, tag=11):      request_id: RequestId; query: Id; hit: Id; space: SpaceName = "attack"; deadline_ms: Millis = 5_000
class Watch(Message, tag=12):        request_id: RequestId; after_generation: int = 0
class Cancel(Message, tag=13):       request_id: RequestId; target: RequestId
class Models(Message, tag=14):       request_id: RequestId
class Classify(Message, tag=15):     request_id: RequestId; ids: Annotated[list[Id], Meta(max_length=IDS_PER_MESSAGE_MAX)] = []; events: Annotated[list[FeaturedEvent], Meta(max_length=EVENTS_PER_MESSAGE_MAX)] = []; options: Voting = Voting(); session: int = 0

# ---- requests, write socket ---------------------------------------------------------------------------------------
class Reject(Message):               file: Annotated[str, Meta(max_length=4096)]; offset: int; reason: Annotated[str, Meta(max_length=512)]; record: Annotated[bytes, Meta(max_length=1 << 16)] = b""
class Ingest(Order, tag=32):         request_id: RequestId; format: Name; events: Annotated[list[FeaturedEvent], Meta(max_length=EVENTS_PER_MESSAGE_MAX)]; rejects: Annotated[list[Reject], Meta(max_length=EVENTS_PER_MESSAGE_MAX)] = []; source: Name = ""; actions: Annotated[list[FirewallAction], Meta(max_length=EVENTS_PER_MESSAGE_MAX)] = []; not_ip: Annotated[int, Meta(ge=0, le=(1 << 53) - 1)] = 0  # packets of a capture that are no IP
class Label(Order, tag=33):          request_id: RequestId; id: Id; label: Annotated[str, Meta(max_length=128)]; by: Name = ""
class UseModel(Order, tag=34):       request_id: RequestId; version: Name
class AddModel(Order, tag=35):       request_id: RequestId; version: Name; files: Annotated[dict[Name, bytes], Meta(max_length=64)]  # safetensors, networks and card; looked through, stored whole
class RollbackModel(Order, tag=36):  request_id: RequestId  # to the version before, whose rows are kept
class ForgetModel(Order, tag=37):    request_id: RequestId  # remove the rows that are kept for a rollback
class Measure(Order, tag=38):        request_id: RequestId; sample: Annotated[int, Meta(ge=0, le=10_000)] = 0; seed: Annotated[int, Meta(ge=0, le=(1 << 32) - 1)] = 0  # quality, now; sample 0: as set; Done has what stats shows, and the drift of each feature
class Compact(Order, tag=45):        request_id: RequestId  # the catalog into a new file without what was deleted; Done has bytes_before, bytes_after, waits_for
class Purge(Order, tag=46):          request_id: RequestId; filter: Filter | None = None; ids: Annotated[list[Id], Meta(max_length=IDS_PER_MESSAGE_MAX)] = []; dry_run: bool = False  # of the events that a filter or ids name nothing is left; Done says how many
class Scrub(Order, tag=48):          request_id: RequestId  # everything against its checksums, now, and mend what can be; Done has what stats shows of it


# ---- replies ------------------------------------------------------------------------------------------------------
class Welcome(Message, tag=64):      request_id: RequestId; protocol: int; protocol_min: int; server: Name; version: Name; generation: int; frame_bytes_max: int; top_k_max: int
class Pong(Message, tag=65):         request_id: RequestId; generation: int
class Facts(Message, tag=66):        request_id: RequestId; generation: int; facts: dict[str, Any]  # Info, Stats, Models
class Failure(Message, tag=67):      request_id: RequestId; code: ErrorCode; detail: str; retry_after_ms: int = 0
class Found(Message, tag=68):        request_id: RequestId; generation: int; events: list[Stored]; missing: list[str] = []; next_seq: int = -1
class Answers(Message, tag=69):      request_id: RequestId; generation: int; answers: list[Answer]  # one for each event asked about, in order
class Explained(Message, tag=70):    request_id: RequestId; generation: int; explanation: Explanation
class Ingested(Message, tag=73):     request_id: RequestId; generation: int; accepted: int; duplicates: int; rejected: int; dead_letters: str = ""; joined: int = 0; waiting: int = 0  # firewall actions joined by this message; those in the engine that have met no event yet
class Done(Message, tag=74):         request_id: RequestId; generation: int; facts: dict[str, Any] = {}
class Generation(Message, tag=75):   request_id: RequestId; generation: int  # to a watcher, at each new one
class Classified(Message, tag=76):   request_id: RequestId; generation: int; judgements: list[Judgement]  # one for each id, then one for each event, in order
# fmt: on

Read = (
    Hello | Ping | Info | Stats | Get | List | Recent | QuerySimilar | QueryEvent | QueryVector | SearchText
    | Explain | Watch | Cancel | Models | Classify
)  # fmt: skip
Write = Ingest | Label | UseModel | AddModel | RollbackModel | ForgetModel | Measure | Compact | Purge | Scrub
Request = Read | Write
Reply = (
    Welcome | Pong | Facts | Failure | Found | Answers | Explained | Ingested | Done | Generation | Classified
)  # fmt: skip
RETIRED_TAGS: frozenset[int] = frozenset()

encode = Encoder().encode
decode_request = Decoder(Request).decode
decode_reply = Decoder(Reply).decode
