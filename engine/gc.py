"""Unlinks what no kept manifest names.

Always true
  - Only files in rows/ and indexes/ whose names have the shape of ours are touched; anything else is left and reported.
  - Open mappings survive an unlink; a reader that comes too late for a file takes the newest manifest and goes on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from engine.files import TMP_SUFFIX
from engine.layout import Layout
from engine.manifest import Manifest

log = logging.getLogger(__name__)

_OURS = re.compile(r"(\d{4}-\d{8}(\.\d+)?|(chronos|sbert|attack)-\d{4}-\d{12}-\d{12}-[0-9a-f]{8})")


def named(layout: Layout, manifest: Manifest) -> set[str]:
    """Names of the files that a manifest names, those of the model before (for a rollback) included."""
    rows = {layout.row_file(*manifest.row_file(n)).name for n in range(manifest.row_files + 1)}
    return rows | {i.file for i in manifest.indexes}


def collect(layout: Layout, manifest: Manifest, *, epochs: Iterable[int] = (), boot: bool = False) -> list[str]:
    """Remove unnamed files, but no row files of `epochs` (being built); at boot also what was left half written.
    Returns the names removed."""
    keep = named(layout, manifest)
    epochs_kept = {f"{epoch:04d}-" for epoch in epochs}
    if manifest.previous:
        epochs_kept.add(f"{manifest.previous[1]:04d}-")
    removed = []
    for folder in (layout.rows, layout.indexes):
        for path in folder.iterdir():
            if path.name in keep or (folder == layout.rows and path.name[:5] in epochs_kept):
                continue
            if (path.name.endswith(TMP_SUFFIX) and boot) or _OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)
                removed.append(path.name)
            elif not path.name.endswith(TMP_SUFFIX):
                log.warning("%s is not a file of the engine; it is left alone", path)
    return removed
