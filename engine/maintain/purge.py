"""A purge: events that a filter or their ids name are removed for good, wherever they lie.

Always true
  - A mapped row file is never changed: each one that holds such rows is written anew under its next revision, with
    empty rows in their place, which say that they are gone (engine/store/columns.py). Seqs are never given again.
  - A commit removes at most ROUND_EVENTS events of one row file: rows, records, identities, annotations, marks and
    remembered sentences at once. From it on no answer shows them. A purge is a series of such commits; a death between
    two of them leaves the rest there and nothing acknowledged: it is asked for again.
  - An index over such rows is searched without them, until it is replaced by one that does not hold them.
  - What was deleted may lie in free pages of the catalog until it is compacted (engine/maintain/compact.py).
In this order, each step durable before the next
  1. dead letters that name an address of the filter, or came in its times: the file without them
  2. one commit: the context's state and the waiting firewall actions without the addresses; no version is kept to go
     back to
  3. for each row file: it is written anew; one commit as above; the old one is unlinked
  4. the directories are synced, however little was left to do: what was unlinked does not come back
What it does not reach: backups (engine/maintain/purge_backups.py does), logs, source files, what the features of other
events have counted.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

import msgspec
import numpy as np

from engine.errors import BadRequestError, OverloadedError
from engine.failpoint import failpoint
from engine.files import TMP_SUFFIX, sync_directory
from engine.limits import FORMAT_REMOVED
from engine.maintain.retention import forget
from engine.search import filters
from engine.search.snapshot import Seqs, Snapshot
from engine.store import checkpoint, dead_letters, gc, quarantine
from engine.store.dead_letters import Letter
from engine.store.manifest import SealedRows
from engine.store.publish import Publisher
from engine.store.rows import RowMap, emptied
from ipc.messages import Filter

log = logging.getLogger(__name__)

ROUND_EVENTS = 2_048  # of one row file, removed in one commit

Network = IPv4Network | IPv6Network
Named = Callable[[str], bool]  # of an address as text
_ADDRESS = re.compile(rb"(?<![0-9A-Za-z.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f.]{0,15}){2,8})(?![0-9A-Za-z:])")  # noqa: E501  # fmt: skip


class Found(NamedTuple):
    """seqs: ascending; missing: ids of no stored event; addresses: all that the events bear."""

    seqs: Seqs
    missing: list[str]
    addresses: set[str]


def found(publisher: Publisher, wanted: Filter | None, ids: Sequence[str]) -> Found:
    """What a purge removes. Raises BadRequestError, CorruptionError, OSError."""
    if (wanted is None) == (not ids):
        raise BadRequestError("name what is to be purged: by a filter, or by ids; nothing was changed")
    manifest, missing = publisher.manifest, []
    files = [
        RowMap(publisher.layout.row_file(*manifest.row_file(n)), n, manifest.row_file_rows) for n in manifest.numbers
    ]
    snapshot = Snapshot(manifest, publisher.names, files, {})
    with publisher.catalog.read() as view:
        if wanted is not None:
            mask = filters.mask(snapshot, filters.tests(wanted, snapshot), filters.marks(wanted), view)
            seqs = np.flatnonzero(mask) + snapshot.first_seq
        else:
            known = {name: view.find(name) for name in ids}
            missing = [name for name, seq in known.items() if seq is None or not snapshot.has(seq)]
            seqs = np.array(sorted({s for s in known.values() if s is not None and snapshot.has(s)}), np.int64)
    return Found(seqs, missing, set(_addresses(snapshot, seqs)))


def _addresses(snapshot: Snapshot, seqs: Seqs) -> Iterator[str]:
    if not len(seqs):
        return
    for end in ("src", "dst"):
        both = np.stack([snapshot.column(f"{end}_{half}", seqs) for half in ("hi", "lo")], 1)
        for hi, lo in np.unique(both, axis=0).tolist():
            if hi or lo:
                address = IPv6Address(hi << 64 | lo)
                yield str(address.ipv4_mapped or address)


def networks(wanted: Filter | None) -> list[Network]:
    """Those that a filter names."""
    given = [] if wanted is None else [*wanted.src, *wanted.dst, *wanted.addr]
    return [ip_network(text, strict=False) for text in given]


def named(wanted: Filter | None, addresses: set[str]) -> Named:
    """Whose past is forgotten: the addresses that the filter names; where it names none, those of the events."""
    given = networks(wanted)
    if given:
        return lambda text: _within(text, given)
    return lambda text: text in addresses


def _within(text: str, given: Sequence[Network]) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in network for network in given)


def letters_of(wanted: Filter | None) -> Callable[[Letter], bool] | None:
    """Which dead letters go: those that name an address of the filter anywhere, as text, or a single one in binary; of
    a filter of times alone, those that came in them. None where it says neither: an unread record has no family."""
    given = networks(wanted)
    if given:
        packed = [n.network_address.packed for n in given if n.num_addresses == 1]

        def holds(letter: Letter) -> bool:
            data = letter.data
            return any(p in data for p in packed) or any(
                _within(text.decode(), given)
                for part in (data, letter.reason.encode(), letter.file.encode())
                for text in _ADDRESS.findall(part)
            )

        return holds
    if wanted is not None and wanted == Filter(since=wanted.since, until=wanted.until):
        since, until = wanted.since, wanted.until
        return lambda letter: (since is None or letter.at_ns >= since) and (until is None or letter.at_ns < until)
    return None


async def purge(
    publisher: Publisher, wanted: Filter | None, ids: Sequence[str], *, dry_run: bool = False,
    alive: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Remove them; what was. Nobody else may build row files meanwhile. Raises BadRequestError, OverloadedError during
    a switch of models, NoSpaceError, OSError, CorruptionError: what was not removed yet is all there."""
    what = found(publisher, wanted, ids)
    if dry_run:
        return {"events": len(what.seqs), "missing": what.missing, "dry_run": True}
    _check(publisher)
    letters = _purge_letters(publisher, letters_of(wanted), alive)
    actions = _forget(publisher, named(wanted, what.addresses))
    left = what.seqs
    while len(left):
        alive()
        n = await _round(publisher, left)
        left = left[n:]
        await asyncio.sleep(0)
    quarantine.clear(publisher.layout)  # damaged files hold rows, too
    for folder in (publisher.layout.rows, publisher.layout.indexes, publisher.layout.quarantine):
        if folder.exists():
            sync_directory(folder)  # what was unlinked does not come back, also where it was a purge before that failed
    log.info("purged: %d events, %d dead letters, %d waiting firewall actions", len(what.seqs), letters[0], actions)
    return {
        "events": len(what.seqs), "missing": what.missing, "dry_run": False, "dead_letters": letters[0],
        "dead_letters_left": letters[1], "firewall_actions": actions, "stale_indexes": len(publisher.manifest.stale),
    }  # fmt: skip


def _check(publisher: Publisher) -> None:
    publisher.catalog.writable()
    if publisher.manifest.switch is not None:
        raise OverloadedError("a switch of models is under way, which embeds what is to be purged; wait, or give it up")
    if gc.abandoned(publisher.layout, publisher.manifest):  # they hold what is to be purged, too
        raise OverloadedError("files of a switch that was given up are about to be removed; ask again")


def _purge_letters(
    publisher: Publisher, goes: Callable[[Letter], bool] | None, alive: Callable[[], None]
) -> tuple[int, int]:
    """(dead letters removed, left). The file is replaced before its size is committed: a larger size cuts nothing."""
    if not publisher.layout.dead_letters.exists():
        return 0, 0
    removed, left, size = dead_letters.rewritten(publisher.layout.dead_letters, goes, alive, publisher.catalog.cipher)
    if removed:
        counters = msgspec.structs.replace(publisher.counters, letter_bytes=size)
        with publisher.catalog.write() as batch:
            batch.put_counters(counters)
        publisher.counters = counters
    return removed, left


def _forget(publisher: Publisher, named: Named) -> int:
    """Context and waiting actions without these addresses, and no version to go back to; how many actions."""
    publisher.count_coverage(lambda: None, least=1)  # what is gone stays counted
    old = publisher.manifest
    tracker = publisher.tracker.without(named)
    gone = [w for w in publisher.actions.waiting.values() if named(w.action.src_ip) or named(w.action.dst_ip)]
    unmet = sum(not w.met for w in gone)
    counters = msgspec.structs.replace(
        publisher.counters, actions_waiting=max(0, publisher.counters.actions_waiting - unmet)
    )
    manifest = msgspec.structs.replace(
        old, generation=old.generation + 1, kept=None, purges=old.purges + 1,
        format_version=max(old.format_version, FORMAT_REMOVED),
    )  # fmt: skip
    with publisher.catalog.write() as batch:
        checkpoint.put(batch, old.count, tracker.dump())
        publisher.actions.delete(gone, batch)
        batch.put_counters(counters)
        batch.put_manifest(manifest)
    failpoint("purge.forgotten")
    publisher.tracker, publisher.checkpointed, publisher.counters = tracker, old.count, counters
    publisher.actions.drop(gone)
    publisher.adopt(manifest)
    gc.release(publisher.layout, old, manifest)
    return len(gone)


async def _round(publisher: Publisher, left: Seqs) -> int:
    """Remove the first of these seqs, those of one row file; how many of them are done."""
    rows = publisher.manifest.row_file_rows
    number = int(left[0]) // rows
    seqs = left[: int(np.searchsorted(left, (number + 1) * rows))][:ROUND_EVENTS]
    _check(publisher)
    if number not in publisher.manifest.numbers:  # retention was first
        return len(seqs)
    epoch, _, revision = name = publisher.manifest.row_file(number)
    source, target = publisher.layout.row_file(*name), publisher.layout.row_file(epoch, number, revision + 1)
    tmp = target.with_name(f"{target.name}.purge{TMP_SUFFIX}")
    if (number + 1) * rows <= publisher.manifest.count:  # full: nobody writes to it
        sealed = next((s.checksum for s in publisher.manifest.sealed if s.number == number), None)
        checksum = await asyncio.to_thread(emptied, source, tmp, number, rows, seqs, sealed)
        if number not in publisher.manifest.numbers or publisher.manifest.switch is not None:
            tmp.unlink()
            return 0
    else:
        checksum = emptied(source, tmp, number, rows, seqs)
    tmp.rename(target)  # only now: what nothing names under such a name is removed by engine/store/gc.py
    sync_directory(target.parent)
    failpoint("purge.emptied")
    _commit(publisher, number, revision + 1, seqs, checksum)
    return len(seqs)


def _commit(publisher: Publisher, number: int, revision: int, seqs: Seqs, checksum: bytes | None) -> None:
    """checksum: of the row file as a whole; it has one again when it is indexed anew, at the latest."""
    old, rows = publisher.manifest, publisher.manifest.row_file_rows
    lo, hi = number * rows, (number + 1) * rows
    fresh = [] if checksum is None else [SealedRows(number, checksum)]
    over = {i.file for i in old.indexes if i.lo < hi and lo < i.hi}
    # those over parts of the file that is being filled are built again at once, if it pays; none would take their place
    parts = over if hi > old.count else set()
    counters = msgspec.structs.replace(publisher.counters, families=dict(publisher.counters.families))
    counters.uncounted += int((seqs >= counters.counted).sum())
    manifest = msgspec.structs.replace(
        old, generation=old.generation + 1, revisions={**old.revisions, number: revision},
        sealed=[*(s for s in old.sealed if s.number != number), *fresh], stale=sorted({*old.stale, *over} - parts),
        indexes=[i for i in old.indexes if i.file not in parts],
        purged={**old.purged, number: old.purged.get(number, 0) + len(seqs)},
        format_version=max(old.format_version, FORMAT_REMOVED),
    )  # fmt: skip
    with publisher.catalog.write() as batch:
        forget(publisher, batch, seqs.tolist(), counters, extents=False)
        batch.put_counters(counters)
        batch.put_manifest(manifest)
    failpoint("purge.committed")
    publisher.close()
    publisher.counters = counters
    publisher.adopt(manifest)
    gc.release(publisher.layout, old, manifest)
