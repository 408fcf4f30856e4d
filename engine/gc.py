"""Unlinks what no kept manifest names.

Always true
  - Only files in rows/ and indexes/ whose names have the shape of ours are touched; anything else is left and reported.
    At boot, before anybody writes, also what a death left half made of a model version and of the catalog.
  - Open mappings survive an unlink; a reader that comes too late for a file takes the newest manifest and goes on.
"""

from __future__ import annotations

import logging
import re
import shutil

from engine.catalog import CURRENT, NEXT
from engine.catalog import named as catalog_named
from engine.embed.models import SCRATCH_PREFIX
from engine.files import TMP_SUFFIX
from engine.layout import Layout
from engine.manifest import Embedded, Manifest

log = logging.getLogger(__name__)

_CATALOG = re.compile(rf"(catalog\.\d+(-lock)?|{NEXT})")
OURS = re.compile(r"(\d{4}-\d{8}(\.\d+)?|(chronos|sbert|attack)-\d{4}-\d{12}-\d{12}-[0-9a-f]{8})")


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
    return size


def collect(layout: Layout, manifest: Manifest, *, boot: bool = False) -> list[str]:
    """Remove unnamed files; at boot also what was left half written. Nothing may be under way that builds files.
    Returns the names removed."""
    keep = named(layout, manifest)
    removed = []
    for folder in (layout.rows, layout.indexes):
        for path in folder.iterdir():
            if path.name in keep:
                continue
            if (path.name.endswith(TMP_SUFFIX) and boot) or OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)
                removed.append(path.name)
            elif not path.name.endswith(TMP_SUFFIX):
                log.warning("%s is not a file of the engine; it is left alone", path)
    if boot:
        current = catalog_named(layout.catalog / CURRENT)
        for path in layout.catalog.iterdir():
            other = _CATALOG.fullmatch(path.name) and path.name not in (current, f"{current}-lock")
            if TMP_SUFFIX in path.name or other:
                path.unlink()
                removed.append(path.name)
        for path in layout.models.glob(f"{SCRATCH_PREFIX}*"):
            shutil.rmtree(path)
            removed.append(path.name)
    return removed
