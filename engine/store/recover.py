"""Open a data directory for writing: the birth of a new one, and all that a death may have left to mend.

Always true
  - What is committed is the truth. Derived files that are gone or damaged are made again from the records.
  - A start never refuses because of a damaged derived file; a directory of a newer format is refused by name.
In this order
  1. directories: names that a process made, which died before it synced them; dead letters that a migration did not put
     in place any more
  2. catalog: its structure is looked at (where it is damaged nothing is written, see Catalog.damage); LMDB comes back
     at its last commit, which is not before what the counter was told; a damaged model that ships is written again
  3. context tracker: last checkpoint, then the records since, in order of seq
  4. row files: missing, misshapen, or (the last one) with rows that disagree with their checksums -> built again
  5. coverage: what is not counted, or damaged, is counted from the row files
  6. index files: missing or misshapen -> no longer named; ingest has them built again
  7. a switch of models goes on
  8. files that nothing names are removed
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from engine.config import Config
from engine.context import Tracker
from engine.embed import models
from engine.embed.base import ModelSet
from engine.errors import CorruptionError, ModelError, NoSpaceError
from engine.features import unpack
from engine.files import sync_directory
from engine.layout import Layout
from engine.limits import FORMAT_BORN, FORMAT_ENCRYPTED
from engine.store import checkpoint, gc, quarantine, switch
from engine.store.catalog import CURRENT, RESTORE, Catalog, named
from engine.store.cipher import cipher_of
from engine.store.counter import Counter
from engine.store.counters import Counters, Names
from engine.store.manifest import Manifest
from engine.store.memo import load_models
from engine.store.publish import Publisher
from engine.store.rebuild import CHUNK_ROWS, rebuild
from engine.store.record import Record
from engine.store.rows import RowMap, file_bytes
from engine.store.structure import check
from ipc.event import Event

log = logging.getLogger(__name__)

AUDIT_BYTES_MAX = 256 << 20  # of a catalog whose structure is gone through at a start: about a second

_decode_event = msgspec.msgpack.Decoder(Event).decode


def map_size(config: Config) -> int:
    return config.store.map_size_gib << 30


def open_store(layout: Layout, config: Config, alive: Callable[[], None] = lambda: None) -> Publisher:
    """The publisher of a data directory, born here if it is new. The caller holds writer.lock. `alive` is called in
    long steps. Raises FormatError, KeyFileError, BootError, CorruptionError (the catalog), OSError."""
    cipher = cipher_of(config.store.key_file, layout.data_dir)
    layout.sync()
    damage = ""
    if (layout.catalog / CURRENT).exists():
        gc.settle_letters(layout)
        damage = _structure(layout)
    catalog = Catalog(
        layout.catalog, write=True, map_size=map_size(config), durability=config.ingest.durability, cipher=cipher
    )
    catalog.need_key()
    catalog.damage = damage
    with catalog.read() as view:
        manifest = view.manifest()
    born = manifest is None
    if born:
        _birth(layout, catalog, config)
    with catalog.read() as view:
        manifest = view.manifest()
    assert manifest is not None
    counter = Counter(layout.generation, write=True)
    if not born:
        _check_generation(layout, config, counter, manifest)
    if not damage:
        _keep_internal(catalog, config.network.internal, manifest.generation)
    model = mended_models(layout, catalog, config, manifest.model, alive)
    tracker, _, seen = replayed(catalog, Tracker(config.network.internal), config.network.internal, alive)
    publisher = Publisher(layout, catalog, counter, model, tracker, seen)
    if not damage:
        publisher.know_cards()
    _mend_rows(publisher, alive)
    publisher.count_coverage(alive)
    missing = [
        f.file
        for f in publisher.manifest.indexes
        if not (path := layout.index_file(f.file)).exists() or path.stat().st_size != f.size
    ]
    if missing:
        log.warning("index files gone or misshapen, to be built again: %s", ", ".join(missing))
        drop_indexes(publisher, missing)
    switch.resume(
        publisher, lambda version: load_models(layout.model(version), catalog, config.network.internal, alive)
    )
    for name in gc.collect(layout, publisher.manifest, boot=True):
        log.info("removed %s, which nothing names", name)
    return publisher


def _structure(layout: Layout) -> str:
    """What is wrong with the structure of a catalog that is small enough to be gone through before anybody writes to
    it; of a larger one the first scrub says it."""
    path = layout.catalog / named(layout.catalog / CURRENT)
    if not path.exists() or path.stat().st_size > AUDIT_BYTES_MAX:
        return ""
    found = check(path)
    for what in found:
        log.critical("catalog %s: %s; nothing is stored on top of that; %s", path, what, RESTORE)
    return f"its structure is damaged ({found[0]})" if found else ""


def _check_generation(layout: Layout, config: Config, counter: Counter, manifest: Manifest) -> None:
    """The counter is told of a generation after its commit: where it knows a later one, that commit is gone. Raises
    CorruptionError."""
    if counter.told <= manifest.generation:
        return
    detail = (
        f"its newest generation is {manifest.generation}, but {counter.told} was there: what was stored since is lost"
    )
    if config.ingest.durability == "full":
        raise CorruptionError(
            f"catalog of {layout.data_dir}", f"{detail}; nothing was changed; {RESTORE}; to go on without, remove "
            f"{layout.generation}",
        )  # fmt: skip
    log.error("catalog: %s", detail)


def mended_models(
    layout: Layout, catalog: Catalog, config: Config, version: str, alive: Callable[[], None] = lambda: None
) -> ModelSet:
    """A model version; where it is damaged and comes with the package, its files are written again. Raises
    ModelError."""
    path = layout.model(version)
    try:
        return load_models(path, catalog, config.network.internal, alive)
    except ModelError as e:
        try:
            with catalog.read() as view:
                known = view.card(version)
        except CorruptionError:
            known = b""
        files = models.ships(version, known)
        if not files:
            raise ModelError(f"{e}; it does not come with the package; {RESTORE}") from e
        log.error("%s; written again as it came with the package", e)
    quarantine.put(layout, path)
    models.save(layout.models, files)
    return load_models(path, catalog, config.network.internal, alive)


def _birth(layout: Layout, catalog: Catalog, config: Config) -> None:
    shipped = models.shipped()
    models.save(layout.models, models.read(shipped))
    letters = layout.dead_letters  # there where a catalog was taken away by hand; what is in it stays
    key_id = "" if catalog.cipher is None else catalog.cipher.key_id
    manifest = Manifest(
        format_version=FORMAT_ENCRYPTED if key_id else FORMAT_BORN, generation=1, key_id=key_id,
        row_file_rows=config.store.row_file_rows, model=shipped.name, names_count=1,
    )  # fmt: skip
    with catalog.write() as batch:
        batch.put_names(Names(["Unknown"], []))
        batch.put_counters(Counters(letter_bytes=letters.stat().st_size if letters.exists() else 0))
        batch.put_manifest(manifest)


def _keep_internal(catalog: Catalog, internal: list[str], generation: int) -> None:
    """Remember network.internal, and say so when it is another: what is stored keeps what was said of it."""
    key, now = b"internal", msgspec.msgpack.encode(internal)
    try:
        with catalog.read() as view:
            before = bytes(view.get("meta", key) or b"")
    except CorruptionError as e:  # it only words a line of the log: written anew
        log.error("%s", e)
        before = b""
    if before == now:
        return
    if before:
        log.warning(
            "network.internal was %s and is %s: from generation %d on, features and sentences of new events go by it; "
            "stored features stay, and stored sentences until a row file is built again; ingest all into a new data "
            "directory to have them alike",
            ", ".join(msgspec.msgpack.decode(before)), ", ".join(internal), generation,
        )  # fmt: skip
    with suppress(NoSpaceError), catalog.write() as batch:  # said again at the next start then
        batch.put("meta", key, now)


def _mend_rows(publisher: Publisher, alive: Callable[[], None]) -> None:
    layout, rows = publisher.layout, publisher.manifest.row_file_rows
    sealed = {s.number for s in publisher.manifest.sealed}
    for number in publisher.manifest.numbers:
        manifest = publisher.manifest
        stored = min(rows, manifest.count - number * rows)
        try:
            found = RowMap(layout.row_file(*manifest.row_file(number)), number, rows)
            reason = "" if number in sealed else found.damage(stored)
            if not reason:
                continue
        except (OSError, CorruptionError) as e:
            reason = str(e)
        log.warning("row file %d is built again from the records: %s", number, reason)
        alive()
        mend_rows(publisher, number, alive)
    ahead = layout.row_file(*publisher.manifest.row_file(publisher.manifest.row_files))  # made, but no row committed
    if ahead.exists() and ahead.stat().st_size != file_bytes(rows):
        log.warning("%s is misshapen and holds nothing yet: removed", ahead)
        ahead.unlink()


def drop_indexes(publisher: Publisher, files: Sequence[str]) -> None:
    """No longer name damaged indexes, and keep them aside; not those that hold what was purged since."""
    stale = set(publisher.manifest.stale)
    publisher.drop_indexes(files)
    for file in files:
        path = publisher.layout.index_file(file)
        if file in stale:
            path.unlink(missing_ok=True)
        else:
            quarantine.put(publisher.layout, path)
    if not stale.isdisjoint(files):
        sync_directory(publisher.layout.indexes)  # what was purged is not to come back


def mend_rows(publisher: Publisher, number: int, alive: Callable[[], None] = lambda: None) -> None:
    """Build a row file again under a new revision and name it."""
    manifest = publisher.manifest
    epoch, _, revision = manifest.row_file(number)
    stored = min(manifest.row_file_rows, manifest.count - number * manifest.row_file_rows)
    path = publisher.layout.row_file(epoch, number, revision + 1)
    rebuild(publisher.catalog, publisher.models, path, number, manifest.row_file_rows, stored, alive)
    publisher.replace_rows(number, revision + 1, ())
    quarantine.put(publisher.layout, publisher.layout.row_file(epoch, number, revision))


def replayed(
    catalog: Catalog, fresh: Tracker, internal: list[str], alive: Callable[[], None] = lambda: None
) -> tuple[Tracker, int, int]:
    """The context tracker as of the committed count, that count, and what the stored checkpoint had seen of it: that
    checkpoint, then every record since; every record (and 0) where there is no checkpoint or it is damaged."""
    start = time.monotonic()
    tracker, seq = fresh, 0
    try:
        with catalog.read() as view:
            found = checkpoint.stored(view)
        if found is not None:
            tracker, seq = Tracker.load(found[1], internal), found[0]
    except CorruptionError as e:
        log.error("%s; the context is made again from all records", e)
    first = seq
    while True:
        seq, done = catch_up(catalog, tracker, seq)
        alive()
        if done:
            break
    if seq - first > CHUNK_ROWS:
        log.info("context of %d events replayed in %.1f s", seq - first, time.monotonic() - start)
    return tracker, seq, first


def catch_up(catalog: Catalog, tracker: Tracker, seq: int) -> tuple[int, bool]:
    """Show the tracker up to CHUNK_ROWS stored events from `seq` on. The next seq, and whether it is the end."""
    with catalog.read() as view:
        manifest = view.manifest()
        assert manifest is not None
        seq = max(seq, manifest.first_seq)
        end = min(seq + CHUNK_ROWS, manifest.count)
        records: list[Record] = []
        for at in range(seq, end):
            try:
                record = view.record(at)
            except CorruptionError as e:
                log.error("left out of the context: %s", e)
                continue
            if record is not None:
                records.append(record)
    if records:
        tracker.observe([_decode_event(r.head) for r in records], unpack([r.features for r in records]))
    return max(seq, end), end >= manifest.count
