"""Flows and the text of them that other records hold, here or in other files, joined by the uid of their connection.

One Join is shared by all adapters of a Follower (`live`) or of one `flowkin ingest`, which reads texts before flows.
Zeek's flows wait for their texts; EVE's need not (`take`): a flow record comes last, and older files are read first.

Always true
  - At most `pending_max` flows wait, and at most as many connections' texts, of JOIN_BYTES_MAX and from the last
    JOIN_LAG_BYTES_MAX of the logs that hold them; beyond that the oldest flow goes without its text, the oldest text is
    dropped and counted.
  - A flow waits only while a text may still come. It goes when a text came and all files were read to their ends after
    the flow was (or half of what may wait does); when they were, and the logs that could hold its text do not exist or
    have gone LATE_NS beyond the flow's end; or after `wait_s`.
  - Offsets tell what a restart must read again. A file of flows says the earliest one that waits, a file of texts the
    earliest text that no flow has taken; also a file that was read to its end, renamed or compressed. A text that comes
    after its flow went out is dropped at once and counted, so that no offset waits for it (the last `pending_max` flows
    are known).
  - Of a file that was cut and whose content nobody kept, the texts are in memory only: they join while this process
    lives.

Why nothing is lost or doubled when the process dies
  A text's mark is removed when its flow takes it, and that flow is in the batch that is being made. States are made
  one after the other and stored in that order, each in one commit with its events. So every state of a text file
  without the mark is stored after the flow, or never. If the process dies before the flow is stored, the flow's line
  and its text lie behind both files' stored offsets and are read again; if after, the flow comes again at most with
  the same id, and is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from engine.normalize import TEXT_MAX
from ipc.event import FeaturedEvent

JOIN_BYTES_MAX = 64 << 20
JOIN_LAG_BYTES_MAX = 128 << 20  # of logs of texts, between the first that waits and the last: a restart reads it again
LATE_NS = 30_000_000_000  # a record is written so much later than its time, at most, where its log is busy

Uid = str | int  # of a connection


class Marks(dict[Uid, int]):
    """Of one file of texts: uid -> offset of its first text that no flow has taken, in order. at: its latest record."""

    at = -1


class Text(Struct):
    """What was said of one connection. marks: of the files that said it; since: Join._passed at its first record."""

    words: list[str]
    size: int
    marks: list[Marks]
    since: int = 0


class Waiting(Struct):
    """A flow that waits for its text. logs: which could hold it; end: of the flow, ns."""

    uid: Uid
    item: FeaturedEvent
    text: Text
    logs: tuple[str, ...]
    end: int
    since_s: float | None = None  # when all files were first looked at after it came


class Join:
    def __init__(self, pending_max: int = 65_536, wait_s: float = 60.0, live: bool = False) -> None:
        """live: files grow, and are read in any order."""
        self.pending_max, self.wait_s, self.live = pending_max, wait_s, live
        self.newest: dict[str, int] = {}  # log -> its latest time so far, ns
        self.dropped = 0  # texts that waited too long
        self.ignored: Counter[str] = Counter()  # records of logs that are no events, by log
        self.flows = 0  # that wait, in all queues
        self._texts: dict[Uid, Text] = {}  # no flow has taken them; oldest first
        self._awaited: dict[Uid, Text] = {}  # of flows that wait
        self._gone: dict[Uid, None] = {}  # whose flow went out; a text that comes later is nobody's
        self._size = 0
        self._passed = 0  # bytes of all files of texts, from the first record of each

    def tell(self, uid: Uid, words: Iterable[str], marks: Marks, offset: int) -> None:
        """A text of that connection, in that place. marks: the file's own."""
        self.advance(marks, offset)
        if uid in self._gone:
            self.dropped += 1
            return
        text = self._awaited.get(uid) or self._texts.get(uid)
        if text is None:
            text = self._texts[uid] = Text([], 0, [], self._passed)
        if uid not in marks:
            marks[uid] = offset
            text.marks.append(marks)
        for word in words:
            word = word[:2048]
            if word and word not in text.words and text.size < TEXT_MAX and self._size < 2 * JOIN_BYTES_MAX:
                text.words.append(word)
                self._size += len(word)
                text.size += len(word)
        while self._texts and (len(self._texts) > self.pending_max or self._size > JOIN_BYTES_MAX):
            self._drop_oldest()

    def advance(self, marks: Marks, offset: int) -> None:
        """A file of texts was read up to there: what has waited for too many bytes is dropped."""
        if marks.at >= 0:
            self._passed += offset - marks.at
        marks.at = offset
        while self._texts and self._passed - next(iter(self._texts.values())).since > JOIN_LAG_BYTES_MAX:
            self._drop_oldest()

    def exists(self, log: str, at: int = 0) -> None:
        """There is such a log, and it has come to that time."""
        self.newest[log] = max(at, self.newest.get(log, 0))

    def _drop_oldest(self) -> None:
        uid = next(iter(self._texts))
        self._taken(uid, self._texts.pop(uid))
        self.dropped += 1

    def _taken(self, uid: Uid, text: Text) -> None:
        self._size -= text.size
        for marks in text.marks:
            marks.pop(uid, None)
        text.size, text.marks = 0, []

    def take(self, uid: Uid) -> list[str]:
        """The words for a flow that goes out at once."""
        self._goes(uid)
        text = self._texts.pop(uid, None)
        if text is None:
            return []
        self._taken(uid, text)
        return text.words

    def _goes(self, uid: Uid) -> None:
        if not self.live:  # no offset is stored
            return
        self._gone[uid] = None
        if len(self._gone) > self.pending_max:
            del self._gone[next(iter(self._gone))]

    def wait(self, uid: Uid, item: FeaturedEvent, logs: tuple[str, ...]) -> Waiting:
        text = self._awaited.get(uid) or self._texts.pop(uid, None) or Text([], 0, [])
        self._awaited[uid] = text
        self.flows += 1
        return Waiting(uid, item, text, logs, item.event.ts)

    def release(self, waiting: Waiting) -> list[str]:
        """The words for a flow that has waited."""
        self._goes(waiting.uid)
        self.flows -= 1
        if self._awaited.get(waiting.uid) is waiting.text:
            del self._awaited[waiting.uid]
        self._taken(waiting.uid, waiting.text)
        return waiting.text.words

    def is_over(self, waiting: Waiting, caught_up: bool, now_s: float) -> bool:
        """Need this flow wait no longer? caught_up: all files were read as far as they go; now_s: monotonic."""
        seen_before = waiting.since_s is not None
        if waiting.since_s is None:
            waiting.since_s = now_s
        if now_s - waiting.since_s >= self.wait_s:
            return True
        if seen_before and waiting.text.words and (caught_up or self.flows_full):
            return True
        late = waiting.end + LATE_NS
        return caught_up and all(self.newest.get(log, late + 1) > late for log in waiting.logs)

    @property
    def unclaimed(self) -> int:
        """Connections with a text that no flow has taken so far."""
        return len(self._texts)

    @property
    def flows_full(self) -> bool:
        return 2 * self.flows >= self.pending_max

    @property
    def texts_full(self) -> bool:
        return 2 * len(self._texts) >= self.pending_max
