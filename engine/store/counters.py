"""What a catalog counts, and the words that columns store as numbers; both stored in its `meta`.

Always true
  - They are committed with the events that they are about. Names are only ever added.
"""

from __future__ import annotations

import msgspec

from engine.limits import SOURCE_BYTES_MAX, SOURCES_MAX


class Names(msgspec.Struct):
    """Words that columns store as numbers: place in the list = number. Append-only. family 0 is "Unknown"."""

    families: list[str]
    sources: list[tuple[str, str]]  # (source, format)

    @property
    def count(self) -> int:
        return len(self.families) + len(self.sources)


class SourceCounters(msgspec.Struct):
    events: int = 0
    duplicates: int = 0
    rejected: int = 0
    not_ip: int = 0  # packets of captures that are no IP


class Counters(msgspec.Struct):
    """What stats report; committed with the events they count."""

    families: dict[str, int] = {}
    sources: dict[str, SourceCounters] = {}
    conflicts: int = 0  # other content under a known identity
    record_bytes: int = 0
    actions_joined: int = 0  # to events, each counted once
    actions_waiting: int = 0  # that have met no event yet
    actions_unmet: int = 0  # that waited in vain
    actions_cut: int = 0  # events that were too many for one commit
    late: int = 0  # flows too late for a context
    unplaced: int = 0  # flows whose windows were no longer held
    counted: int = 0  # events, from the first on, that the stored coverage counts
    uncounted: int = 0  # of these, removed before they were counted
    letter_bytes: int = -1  # of the dead-letter file that belong to commits; below 0: older than the counting


def counted_as(counters: Counters, source: str) -> str:
    """The name a source is counted under: its own, unless there are too many or it is too long to be stored."""
    known = source in counters.sources
    if not known and (len(counters.sources) >= SOURCES_MAX or len(source.encode()) > SOURCE_BYTES_MAX):
        return "(other)"
    return source
