"""Commands that write files: generate and export. No printing.

Always true
  - A plain file appears whole or not at all: it is written beside its place and renamed. A link stays, and what it
    points to is replaced. A device or a FIFO is opened and written, never replaced. '-' is stdout.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cli.errors import USAGE, CommandError

if TYPE_CHECKING:
    from cli.render import Meter
    from cli.session import Session
    from ipc.messages import Filter

STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")  # opened anew, a file that is appended to would be cut


def is_stdout(path: Path) -> bool:
    return str(path) in STDOUT


def _is_plain(path: Path) -> bool:
    """A plain file, a link to one, or to be created. Raises OSError."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True


@contextmanager
def whole(path: Path, *, only: bool = False) -> Iterator[BinaryIO]:
    """A file to write that takes its place at the end; what is no plain file is written as it comes.

    only: that is refused. Raises CommandError, OSError.
    """
    plain = not is_stdout(path) and _is_plain(path)
    if not plain and only:
        raise CommandError(f"{path} is no plain file: name one, this is written whole or not at all", USAGE)
    if is_stdout(path):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif plain:
        with _renamed(path) as file:
            yield file
    else:
        try:
            with path.open("wb") as file:
                yield file
        except BrokenPipeError as e:  # not of our stdout, where it would be no failure
            raise CommandError(f"{path}: who read it left before the end") from e
        except OSError as e:
            e.filename = e.filename or str(path)
            raise


@contextmanager
def _renamed(path: Path) -> Iterator[BinaryIO]:
    place = path.resolve()
    beside = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.rename(place)
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
        with whole(path, only=True) as file:
            events = engine_export.export_parquet(session.client(), file, wanted, meter.advance)
    else:
        with whole(path) as file:
            events = engine_export.export_ndjson(session.client(), file, wanted, meter.advance)
    return {"events": events, "format": kind, "path": str(path)}
