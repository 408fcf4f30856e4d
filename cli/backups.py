"""Backups as documents. No printing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.checkup import Report

if TYPE_CHECKING:
    from cli.render import Meter
    from cli.session import Session
    from engine.maintain.backup import Backup
    from ipc.messages import Filter


def _document(path: Path, backup: Backup) -> dict[str, Any]:
    import msgspec

    said = {k: v for k, v in msgspec.structs.asdict(backup).items() if k not in ("files", "checksum")}
    more = {"lost": backup.lost, "files": len(backup.files), "bytes": backup.bytes}
    return {"name": path.name, "path": str(path)} | said | more


def create(session: Session, home: Path, name: str, meter: Meter) -> dict[str, Any]:
    """What is in the new backup, and how it came to be."""
    from engine.maintain.take import create as taken
    from engine.run.process import raise_limits
    from engine.store.recover import map_size

    raise_limits()  # all files of a generation are open at once
    start = time.monotonic()
    layout, config = session.existing(), session.config()
    made = taken(layout, home.absolute(), name, map_size=map_size(config), advance=meter.advance)
    seconds = round(time.monotonic() - start, 3)
    return _document(made.path, made.backup) | {"linked_files": made.linked, "seconds": seconds}


def listed(home: Path) -> list[dict[str, Any]]:
    """Each backup as it describes itself; instead of one that cannot be read, `error`."""
    from engine.maintain.backup import Backup, found

    return [
        _document(home / name, one) | {"error": None} if isinstance(one, Backup)
        else {"name": name, "path": str(home / name), "error": str(one)}
        for name, one in found(home.absolute()).items()
    ]  # fmt: skip


def purged(
    session: Session, homes: Sequence[Path], filter: Filter | None, ids: Sequence[str], meter: Meter
) -> list[dict[str, Any]]:
    """What became of each backup in these directories."""
    import msgspec

    from engine.maintain.purge_backups import purge_backups
    from engine.run.process import raise_limits

    raise_limits()
    return [
        msgspec.to_builtins(one) | {"path": str(home / one.name)}
        for home in homes
        for one in purge_backups(home.absolute(), session.config(), filter, ids, meter.advance)
    ]


def verify(path: Path, meter: Meter) -> Report:
    """As the doctor reports."""
    import msgspec

    from engine.maintain.backup import verify as looked_at

    found = looked_at(path.absolute(), meter.advance)
    problems = sum(f.severity == "problem" for f in found)
    return Report([msgspec.to_builtins(f) for f in found], problems, {"backup": str(path), "problems": problems})


def restore(path: Path, target: Path, meter: Meter) -> dict[str, Any]:
    """What is in the new data directory."""
    from engine.maintain.backup import restore as restored

    backup = restored(path.absolute(), target.absolute(), meter.advance)
    return _document(path, backup) | {"data_dir": str(target)}
