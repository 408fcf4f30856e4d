"""What every adapter promises: bytes of a source in, events and rejects out.

Always true
  - An adapter is fed consecutive bytes, cut anywhere; the same bytes cut otherwise give the same events.
  - It opens nothing, knows no clock and no engine. A bad record becomes a Reject with its offset and stops nothing.
  - `resume_offset` is the low-water mark: feeding a fresh adapter from there (after `prime` with the head of the
    file) yields every event not yet returned, and at most repeats returned ones with the same ids.
  - It fills what its source says; engine/normalize.py completes an event, engine/context its window and history
    features. Missing is NaN, never 0 and never a sentinel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from msgspec import Struct

from ipc.event import FeaturedEvent, FirewallAction
from ipc.messages import Reject

if TYPE_CHECKING:
    from engine.flows.split import Limits
    from engine.sources.join import Join


class SourceSpec(NamedTuple):
    """Where bytes come from. name: the event's `source`; file: what a reject names; timezone: IANA name for sources
    that give local times without an offset; labels: parsed label rules for captures (engine/sources/labels.py);
    hmac_key: 32 bytes that sign rows, b"" where none are; flows: how a capture is cut into flows, None: the defaults;
    join_*: how many records wait for others of their flow, and how long; join: shared with the other files' adapters,
    None where a file is read on its own; interface_mode (0 unknown, 1 host, 2 gateway) and ifindex: what the operator
    knows of a capture's interface where the capture itself does not say."""

    name: str
    file: str = "-"
    sensor: str = ""
    timezone: str = "UTC"
    fingerprint: str = ""  # of the file's first bytes, for ids of records without a time
    labels: object | None = None
    hmac_key: bytes = b""
    flows: Limits | None = None
    join_pending_max: int = 65_536
    join_wait_s: int = 60
    join: Join | None = None
    interface_mode: int | None = None
    ifindex: int | None = None


class Parsed(Struct):
    events: list[FeaturedEvent]
    rejects: list[Reject]
    actions: list[FirewallAction] = []  # what was done about events, here or elsewhere (engine/store/actions.py)
    not_ip: int = 0  # packets of a capture that has ended: no IP, so of no flow

    def add(self, more: Parsed) -> None:
        """What came after it."""
        self.events += more.events
        self.rejects += more.rejects
        self.actions += more.actions
        self.not_ip += more.not_ip


class Adapter(ABC):
    """One format. Subclasses set `format` and implement the rest; engine/sources/__init__.py lists them."""

    format: ClassVar[str]
    binary: ClassVar[bool] = False  # True: not lines (pcap)
    joins: ClassVar[bool] = False  # True: by spec.join, so that `settle` and `resume_offset` depend on other files, too

    def __init__(self, spec: SourceSpec) -> None:
        self.spec = spec

    @classmethod
    @abstractmethod
    def sniff(cls, head: bytes, file_name: str) -> bool:
        """Is this my format? head: up to 64 KiB of the decompressed beginning. Must not raise."""

    def prime(self, head: bytes) -> None:  # noqa: B027  (most formats have no header)
        """Learn the header from the beginning of the file before feeding from an offset > 0."""

    @abstractmethod
    def feed(self, data: bytes, offset: int) -> Parsed:
        """Parse the next bytes; `offset` is that of data[0] in the decompressed file. An incomplete tail is kept."""

    @abstractmethod
    def finish(self) -> Parsed:
        """The source has ended: what is pending comes out."""

    @property
    def waits(self) -> bool:
        """Are there events that wait for records of other files?"""
        return False

    @property
    def is_full(self) -> bool:
        """Do so many records wait that other files should be read first?"""
        return False

    def settle(self, caught_up: bool, now_s: float) -> Parsed:
        """What need not wait any longer, after a look at all files. caught_up: they were read to their ends; now_s:
        monotonic."""
        return Parsed([], [])

    def release(self) -> Parsed:
        """All that waits, as it is."""
        return Parsed([], [])

    @property
    @abstractmethod
    def resume_offset(self) -> int:
        """Decompressed offset from which a restart must read again."""
