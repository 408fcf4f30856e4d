"""A filter as a mask over the rows of a snapshot.

Always true
  - A mask is bool, of the seqs from first_seq to count; True where all that the filter names holds. A word that no
    event bears matches nothing.
  - Columns answer all but annotations, which resolve through their index in the catalog.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from engine.errors import BadRequestError
from engine.limits import OTHER_EPISODE_S
from engine.search.snapshot import Snapshot
from engine.store.catalog import View
from engine.store.columns import CLASSIFICATIONS, DECISIONS, KINDS, Columns, address
from engine.store.index import Mask
from ipc.event import Event
from ipc.messages import Filter

Test = Callable[[Columns], Mask]
Marks = Mapping[str, Sequence[str]]
_U64 = (1 << 64) - 1


def _numbers(given: Sequence[str], known: Sequence[str], column: str) -> Test:
    numbers = [known.index(word) for word in given if word in known]
    return lambda c: np.isin(c[column], numbers)


def _closed(given: Sequence[str], known: Sequence[str], column: str) -> Test:
    for word in given:
        if word not in known:
            raise BadRequestError(f"no {column} {word!r}; there are {', '.join(w or '(none)' for w in known)}")
    return _numbers(given, known, column)


def _networks(given: Sequence[str], ends: Sequence[str]) -> Test:
    """Either of `ends` ("src", "dst") lies in one of the networks."""
    ranges: list[tuple[int, int]] = []
    for text in given:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError as e:
            raise BadRequestError(f"no address or network: {text!r}; write 192.0.2.1 or 192.0.2.0/24") from e
        base = 0xFFFF_0000_0000 if network.version == 4 else 0
        ranges.append((int(network.network_address) + base, int(network.broadcast_address) + base))

    def test(c: Columns) -> Mask:
        out = np.zeros(len(c), np.bool_)
        for end in ends:
            hi, lo = np.ascontiguousarray(c[f"{end}_hi"]), np.ascontiguousarray(c[f"{end}_lo"])  # compared many times
            for first, last in ranges:
                if first >> 64 == last >> 64:
                    here = (lo >= np.uint64(first & _U64)) & (lo <= np.uint64(last & _U64))
                    out |= here & (hi == np.uint64(first >> 64))
                    continue
                above = (hi > first >> 64) | ((hi == first >> 64) & (lo >= np.uint64(first & _U64)))
                below = (hi < last >> 64) | ((hi == last >> 64) & (lo <= np.uint64(last & _U64)))
                out |= above & below
        return out

    return test


def _ports(ranges: Sequence[tuple[int, int]], column: str) -> Test:
    def test(c: Columns) -> Mask:
        out = np.zeros(len(c), np.bool_)
        for first, last in ranges:
            out |= (c[column] >= first) & (c[column] <= last)
        return out

    return test


def _bound(column: str, least: float | None, most: float | None) -> Test:
    def test(c: Columns) -> Mask:
        out: Mask = np.isfinite(c[column])
        if least is not None:
            out &= c[column] >= least
        if most is not None:
            out &= c[column] <= most
        return out

    return test


def tests(wanted: Filter, snapshot: Snapshot) -> list[Test]:
    """What each cell must pass. Raises BadRequestError naming what is not understood."""
    names = snapshot.names
    sources = [name for name, _ in names.sources]
    out: list[Test] = []
    if wanted.classifications:
        out.append(_closed(wanted.classifications, CLASSIFICATIONS, "classification"))
    if wanted.kinds:
        out.append(_closed(wanted.kinds, KINDS, "kind"))
    if wanted.decisions:
        out.append(_closed(wanted.decisions, DECISIONS, "decision"))
    if wanted.families:
        out.append(_numbers(wanted.families, names.families, "family"))
    if wanted.sources:
        out.append(_numbers(wanted.sources, sources, "source"))
    if wanted.since is not None:
        since = wanted.since
        out.append(lambda c: c["ts"] >= since)
    if wanted.until is not None:
        until = wanted.until
        out.append(lambda c: c["ts"] < until)
    for given, ends in ((wanted.src, ("src",)), (wanted.dst, ("dst",)), (wanted.addr, ("src", "dst"))):
        if given:
            out.append(_networks(given, ends))
    for ranges, column in ((wanted.src_ports, "src_port"), (wanted.dst_ports, "dst_port")):
        if ranges:
            out.append(_ports(ranges, column))
    if wanted.protos:
        out.append(lambda c: np.isin(c["proto"], wanted.protos))
    if wanted.score_min is not None or wanted.score_max is not None:
        out.append(_bound("final_score", wanted.score_min, wanted.score_max))
    if wanted.discrepancy_min is not None or wanted.discrepancy_max is not None:
        out.append(_bound("discrepancy", wanted.discrepancy_min, wanted.discrepancy_max))
    return out


def before(event: Event) -> Test:
    """Only events that ended before this one did; all, where its time is not known (0)."""
    return lambda c: c["ts"] < event.ts if event.ts else np.ones(len(c), np.bool_)


def hosts(c: Columns, src: tuple[int, int], dst: tuple[int, int]) -> Mask:
    """From one address to the other, each as `address` gives it."""
    ends = (("src", src), ("dst", dst))
    src_is, dst_is = ((c[f"{end}_hi"] == np.uint64(hi)) & (c[f"{end}_lo"] == np.uint64(lo)) for end, (hi, lo) in ends)
    return np.asarray(src_is & dst_is)


def ports(c: Columns, src: int, dst: int) -> Mask:
    """From one port to the other; -1: none."""
    return np.asarray((c["src_port"] == src) & (c["dst_port"] == dst))


def other_episodes(event: Event, snapshot: Snapshot, *, any_family: bool = False) -> Test:
    """Not what the same two hosts (either way round) did within OTHER_EPISODE_S, unless both are known to be of
    different families; never the same connection, whatever it was taken for. any_family: the same two hosts alone."""
    src, dst = address(event.src_ip), address(event.dst_ip)
    names = snapshot.names.families
    family = names.index(event.family) if event.family in names else -1
    span = OTHER_EPISODE_S * 1_000_000_000

    def test(c: Columns) -> Mask:
        near = np.abs(c["ts"] - event.ts) <= span
        if not near.any():
            return np.ones(len(c), np.bool_)

        there, back = hosts(c, src, dst), hosts(c, dst, src)
        same = np.full(len(c), any_family or family == 0) | (c["family"] == family) | (c["family"] == 0)
        if event.src_port is not None and event.dst_port is not None:
            same |= there & ports(c, event.src_port, event.dst_port)
            same |= back & ports(c, event.dst_port, event.src_port)
        return np.asarray(~((there | back) & same & near))

    return test


def nothing(c: Columns) -> Mask:
    """No event."""
    return np.zeros(len(c), np.bool_)


def other_family(family: int) -> Test:
    """Events of a known family that is not this number."""
    return lambda c: ~np.isin(c["family"], [0, family])


def marks(wanted: Filter | None) -> Marks:
    """What an event's annotation must say: one of the words of each field; "" where it says nothing."""
    if wanted is None:
        return {}
    said = {"label": wanted.labels, "firewall_action": wanted.firewall_actions}
    return {field: words for field, words in said.items() if words}


def mask(snapshot: Snapshot, wanted: Sequence[Test], said: Marks | None = None, view: View | None = None) -> Mask:
    """bool [snapshot.span]: the events that pass all tests and of which all that `marks` gave is said."""
    out = snapshot.everything()
    for first, columns in snapshot.columns():
        part = out[first - snapshot.first_seq :][: len(columns)]
        for test in wanted:
            part &= test(columns)
    for field, words in (said or {}).items():
        assert view is not None
        out &= _marked(snapshot, field, words, view)
    return out


def _marked(snapshot: Snapshot, field: str, words: Sequence[str], view: View) -> Mask:
    first, out = snapshot.first_seq, np.zeros(snapshot.span, np.bool_)
    for word in words:
        if word:
            out[[seq - first for seq in view.marked(field, word) if snapshot.has(seq)]] = True
        else:
            bare = np.ones(snapshot.span, np.bool_)
            for key, _ in view.scan("marks", prefix=f"{field}\0".encode()):
                seq = int.from_bytes(key[-8:], "big")
                if snapshot.has(seq):
                    bare[seq - first] = False
            out |= bare
    return out
