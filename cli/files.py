"""Commands that write files: generate and export. No printing.

Always true
  - A file appears whole or not at all: it is written beside its place and renamed. '-' is stdout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from cli.render import Meter
    from cli.session import Session
    from ipc.messages import Filter


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its place at the end; stdout for '-'."""
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError as e:
        if e.filename in (None, str(beside)):
            e.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def generate(events: int, seed: int, path: Path, meter: Meter) -> int:
    """Synthetic events as NDJSON; how many."""
    from engine.features import unpack
    from engine.sources.ndjson import dump
    from engine.sources.synthetic import generate as made

    written = 0
    with whole(path) as file:
        for item in made(events, seed):
            features = unpack([item.features])[0] if item.features else None
            file.write(dump(item.event, features, raw=item.raw))
            written += 1
            if written % 256 == 0:
                meter.advance(256)
    return written


def export(session: Session, kind: str, path: Path, wanted: Filter | None, meter: Meter) -> dict[str, Any]:
    """Facts about what was written. kind: legacy takes no filter."""
    from engine import export as engine_export

    if kind == "legacy":
        events = engine_export.export_legacy(session.existing(), path, meter.advance, cipher=session.cipher())
    elif kind == "parquet":
        events = engine_export.export_parquet(session.client(), path, wanted, meter.advance)
    else:
        with whole(path) as file:
            events = engine_export.export_ndjson(session.client(), file, wanted, meter.advance)
    return {"events": events, "format": kind, "path": str(path)}
