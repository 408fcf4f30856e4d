"""Unlinks what no kept manifest names.

Always true
  - Only files in rows/ and indexes/ whose names have the shape of ours are touched; anything else is left and reported.
    At boot, before anybody writes, also what a death left half made of a model version and of the catalog.
  - An index that holds what was purged is gone for good when it is unlinked: no power failure brings it back.
  - Open mappings survive an unlink; a reader that comes too late for a file takes the newest manifest and goes on.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence

from engine.embed.models import SCRATCH_PREFIX
from engine.files import TMP_SUFFIX, sync_directory
from engine.layout import Layout
from engine.store.catalog import CURRENT, NEXT
from engine.store.catalog import named as catalog_named
from engine.store.manifest import Embedded, Manifest

log = logging.getLogger(__name__)

_CATALOG = re.compile(rf"(catalog\.\d+(-lock)?|{NEXT})")
OURS = re.compile(r"((chronos|sbert|attack)-)?(?P<epoch>\d{4})-(?(1)\d{12}-\d{12}-[0-9a-f]{8}|\d{8}(\.\d+)?)")


def named(layout: Layout, manifest: Manifest) -> set[str]:
    """Names of the files that a manifest names, those of the model before (for a rollback) and of a switch included."""
    rows = manifest.row_file_rows
    of: list[tuple[Manifest | Embedded, int]] = [(manifest, manifest.row_files + 1)]  # the next one is made ahead
    if manifest.kept is not None:
        of.append((manifest.kept, -(-manifest.kept.count // rows)))
    if manifest.switch is not None:
        of.append((manifest.switch.to, manifest.row_files + 1))
    return {
        name
        for one, files in of
        for name in (
            *(layout.row_file(*one.row_file(n)).name for n in range(manifest.first, files)),
            *(i.file for i in one.indexes),
        )
    }  # fmt: skip


def release(layout: Layout, before: Manifest, after: Manifest) -> int:
    """Remove what one manifest names and the next does not, and nothing that is being built; the bytes it took on
    disk."""
    size = 0
    names = named(layout, before) - named(layout, after)
    for path in (folder / name for folder in (layout.rows, layout.indexes) for name in names):
        if path.exists():
            size += path.stat().st_blocks * 512
            path.unlink()
    if not names.isdisjoint(before.stale):
        sync_directory(layout.indexes)
    return size


def abandoned(layout: Layout, manifest: Manifest) -> list[str]:
    """Names of files of a version that the manifest does not know: `collect` removes them when nothing is being
    built."""
    known = {f"{one.epoch:04d}" for one in (manifest, manifest.kept, manifest.switch and manifest.switch.to) if one}
    names = [path.name for folder in (layout.rows, layout.indexes) for path in folder.iterdir()]
    return [name for name in names if (ours := OURS.fullmatch(name)) and ours["epoch"] not in known]


def remove(layout: Layout, names: Sequence[str]) -> None:
    """Row files and indexes of these names, for good."""
    for path in (folder / name for folder in (layout.rows, layout.indexes) for name in names):
        path.unlink(missing_ok=True)
    if names:
        sync_directory(layout.rows)
        sync_directory(layout.indexes)


def remove_half(layout: Layout, pid: int) -> None:
    """What a process that has ended was writing: `files.write_new` and `rebuild` put its pid into the name."""
    for folder in (layout.rows, layout.indexes, layout.catalog):
        for path in folder.glob(f"*.{pid}.*{TMP_SUFFIX}"):
            path.unlink(missing_ok=True)


def catalogs(layout: Layout) -> list[str]:
    """Remove every catalog but the one that CURRENT names, and what is half written of one; nobody may have another
    open to write to it. Raises BootError, OSError."""
    current, removed = catalog_named(layout.catalog / CURRENT), []
    if not (layout.catalog / current).exists():  # then the others are all there is
        return []
    for path in layout.catalog.iterdir():
        other = _CATALOG.fullmatch(path.name) and path.name not in (current, f"{current}-lock")
        if TMP_SUFFIX in path.name or other:
            path.unlink()
            removed.append(path.name)
    return removed


def settle_letters(layout: Layout) -> list[str]:
    """Dead letters that a migration put beside (engine/maintain/migrate.py): those of the catalog that CURRENT names
    take their place, others go, as does what a purge had half written; nobody may read or write any meanwhile. Raises
    BootError, OSError."""
    half = [*layout.data_dir.glob(f"{layout.dead_letters.name}.*{TMP_SUFFIX}")]
    for path in half:
        path.unlink()
    if half:
        sync_directory(layout.data_dir)
    if not (beside := layout.letters_beside()):
        return []
    ours = layout.letters_of(int(catalog_named(layout.catalog / CURRENT).removeprefix("catalog.")))
    for path in beside:
        if path == ours:
            path.replace(layout.dead_letters)
        else:
            path.unlink()
    sync_directory(layout.data_dir)
    return [path.name for path in beside]


def collect(layout: Layout, manifest: Manifest, *, boot: bool = False) -> list[str]:
    """Remove unnamed files; at boot also what was left half written. Nothing may be under way that builds files.
    Returns the names removed."""
    keep = named(layout, manifest)
    removed: list[str] = []
    for folder in (layout.rows, layout.indexes):
        before = len(removed)
        for path in folder.iterdir():
            if path.name in keep:
                continue
            if (path.name.endswith(TMP_SUFFIX) and boot) or OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)
                removed.append(path.name)
            elif not path.name.endswith(TMP_SUFFIX):
                log.warning("%s is not a file of the engine; it is left alone", path)
        if len(removed) > before:  # a death between a commit and its release may have left what was purged
            sync_directory(folder)
    if boot:
        removed += catalogs(layout)
        if layout.migrating.exists():  # a copy of what is about to change
            shutil.rmtree(layout.migrating)
            removed.append(layout.migrating.name)
        for path in layout.models.glob(f"{SCRATCH_PREFIX}*"):
            shutil.rmtree(path)
            removed.append(path.name)
    return removed
