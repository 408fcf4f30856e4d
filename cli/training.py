"""fit and train: files to a new model version. Parsed, completed and featurised here, as the engine would. No printing.

Always true
  - The context of an event comes from the events before it in the files, in the order of time, never from the engine.
  - The engine is changed only by the last two messages: AddModel, and UseModel where it holds no events. train asks no
    engine: it writes a directory that `models use` takes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import DENIED, USAGE, CommandError
from cli.feed import How, checked, found, parts

if TYPE_CHECKING:
    from cli.render import Meter
    from engine.embed.models import DataFile
    from engine.features import F32
    from ipc.client import Client
    from ipc.event import Event

TIMEOUT_MS = 60_000


def fit(client: Client, paths: Sequence[Path], how: How, name: str, seed: int, meter: Meter) -> dict[str, Any]:
    """Facts about the new version. Raises what the engine refuses, ModelError for too few events."""
    started_s = time.monotonic()
    version = named(name)
    if version in client.models().facts["versions"]:
        raise CommandError(f"the engine has a model {version} already; nothing was changed; give another --name", USAGE)
    internal = client.info().facts["internal"]  # as the engine has it: sentences and features say so
    events, files = made(paths, how, internal, version, seed, created(), False, meter)
    generation, used = handed_over(client, version, files)
    return {
        "version": version,
        "events": events,
        "used": used,
        "generation": generation,
        "seconds": round(time.monotonic() - started_s, 3),
    }


def train(
    paths: Sequence[Path], how: How, internal: Sequence[str], name: str, seed: int, out: Path, meter: Meter
) -> dict[str, Any]:
    """Facts about the new version, a directory in `out` then; no engine is asked. One that was named bears no date, so
    that the same command gives the same bytes. Raises CommandError where it cannot be put there, before any work;
    ModelError, OSError."""
    from engine.embed import models

    started_s = time.monotonic()
    version = named(name)
    if os.path.lexists(out / version):
        raise CommandError(f"{out / version} exists; it was not changed; give another --name or --out", USAGE)
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK | os.X_OK):
        raise CommandError(f"{out}: you may not write there", DENIED)
    events, files = made(paths, how, internal, version, seed, "" if name else created(), True, meter)
    path = models.save(out, files)
    return {
        "version": version,
        "events": events,
        "path": str(path.resolve()),
        "bytes": sum(map(len, files.values())),
        "sha256": {name: sha256(blob).hexdigest() for name, blob in sorted(files.items())},
        "metrics": models.card_of(files).metrics,
        "seconds": round(time.monotonic() - started_s, 3),
    }


def named(name: str) -> str:
    """The name of a new version, from the time where none was given. Raises CommandError."""
    from engine.embed.models import valid_version

    version = name or datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    if not valid_version(version):
        raise CommandError(f"--name {version!r}: lower-case letters, digits, '.', '_' and '-', at most 64", USAGE)
    return version


def created() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def made(
    paths: Sequence[Path], how: How, internal: Sequence[str], version: str, seed: int, created: str, trained: bool,
    meter: Meter,
) -> tuple[int, dict[str, bytes]]:  # fmt: skip
    """How many events the files hold, and the files of a version made of them. trained: with networks."""
    from engine.embed import fit as fitting
    from engine.embed.models import Data

    found(paths)
    checked(how)
    events, features = featured(paths, how, internal, meter)
    data = Data(description=", ".join(path.name for path in paths), files=hashed([*paths, *filter(None, [how.labels])]))
    files = fitting.fit(
        events, features, version=version, seed=seed, data=data, created=created, internal=internal, trained=trained
    )
    return len(events), files


def handed_over(client: Client, version: str, files: Mapping[str, bytes]) -> tuple[int, bool]:
    """(generation, is it in use): the engine stores a version, and uses it at once where it holds no events."""
    added = client.add_model(version, dict(files), timeout_ms=TIMEOUT_MS)
    if client.recent(limit=1, timeout_ms=TIMEOUT_MS).events:
        return added.generation, False
    return client.use_model(version, timeout_ms=TIMEOUT_MS).generation, True


def added(client: Client, path: Path) -> str:
    """The name of the version in directory `path`, which the engine has then. Raises ModelError, what it refuses."""
    from engine.embed import models

    files = models.read(path)
    version = models.card_of(files).version
    client.add_model(version, files, timeout_ms=TIMEOUT_MS)
    return version


def featured(paths: Sequence[Path], how: How, internal: Sequence[str], meter: Meter) -> tuple[list[Event], F32]:
    """The events that can be read, in the order of time of each format, and float32 [n, 105]."""
    import numpy as np

    from engine.context import Tracker
    from engine.errors import BadRecordError
    from engine.features import empty, unpack
    from engine.featurize import featurize
    from engine.normalize import complete

    tracker = Tracker(internal)
    events: list[Event] = []
    blocks: list[F32] = [empty(0)]
    for part in parts(paths, how):
        kept, blobs = [], []
        for item in part.events:
            try:
                kept.append(complete(item))
                blobs.append(item.features)
            except BadRecordError:
                continue
        if kept:
            block = unpack(blobs)
            featurize(kept, block, tracker)
            blocks.append(block)
            events += kept
            meter.advance(len(kept))
    return events, np.concatenate(blocks)


def hashed(paths: Sequence[Path]) -> list[DataFile]:
    """Each file with its sha256; stdin and pipes are read already, and have none. Its path is that beneath what was
    given, so that it is the same wherever the data lies, and two of the same name stay two."""
    from engine.embed.models import DataFile
    from engine.sources.files import walk

    entries = []
    for path in paths:
        for file in filter(Path.is_file, walk(path) if str(path) != "-" else []):
            with file.open("rb") as stream:
                digest = file_digest(stream, "sha256").hexdigest()
                size = stream.tell()
            entries.append(DataFile(str(Path(path.name) / file.relative_to(path)), digest, size))
    return entries
