"""fit: files to a new model version. Parsed, completed and featurised here, as the engine would. No printing.

Always true
  - The context of an event comes from the events before it in the files, in the order of time, never from the engine.
  - The engine is changed only by the last two messages: AddModel, and UseModel where it holds no events.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import USAGE, CommandError
from cli.feed import How, checked, found, parts

if TYPE_CHECKING:
    from cli.render import Meter
    from engine.features import F32
    from ipc.client import Client
    from ipc.event import Event

TIMEOUT_MS = 60_000


def fit(client: Client, paths: Sequence[Path], how: How, name: str, seed: int, meter: Meter) -> dict[str, Any]:
    """Facts about the new version. Raises what the engine refuses, ModelError for too few events."""
    from engine.embed import fit as fitting
    from engine.embed.models import Data, valid_version

    now = datetime.now(UTC)
    version = name or now.strftime("%Y%m%d-%H%M%S")
    if not valid_version(version):
        raise CommandError(f"--name {version!r}: lower-case letters, digits, '.', '_' and '-', at most 64", USAGE)
    found(paths)
    checked(how)
    internal = client.info().facts["internal"]  # as the engine has it: sentences and features say so
    started_s = time.monotonic()
    events, features = featured(paths, how, internal, meter)
    data = Data(description=", ".join(path.name for path in paths), sha256=hashes(paths))
    files = fitting.fit(
        events,
        features,
        version=version,
        seed=seed,
        data=data,
        created=now.isoformat(timespec="seconds"),
        internal=internal,
    )
    added = client.add_model(version, files, timeout_ms=TIMEOUT_MS)
    generation, used = added.generation, False
    if not client.recent(limit=1, timeout_ms=TIMEOUT_MS).events:
        generation, used = client.use_model(version, timeout_ms=TIMEOUT_MS).generation, True
    return {
        "version": version,
        "events": len(events),
        "used": used,
        "generation": generation,
        "seconds": round(time.monotonic() - started_s, 3),
    }


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


def hashes(paths: Sequence[Path]) -> dict[str, str]:
    """sha256 of each file, by name; stdin has none."""
    from engine.sources.files import walk

    digests = {}
    for path in paths:
        for file in walk(path) if str(path) != "-" else []:
            digest = sha256()
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
            digests[file.name] = digest.hexdigest()
    return digests
