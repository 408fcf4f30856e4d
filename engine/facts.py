"""What stats and info report: read from the catalog, the heartbeats and /proc, at the moment of asking."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.config import Config
from engine.embed import models as embed_models
from engine.embed.base import SPACES
from engine.errors import ModelError, NotReadyError
from engine.files import disk_bytes
from engine.layout import Layout
from engine.limits import FEATURES_VERSION, FORMAT_VERSION
from engine.maintain import gauges, scrubbing
from engine.run import heartbeat, lag
from engine.run.process import memory_bytes
from engine.store import coverage, dead_letters, stages
from engine.store.catalog import View
from engine.store.counters import Counters
from engine.store.manifest import Manifest
from engine.store.switch import progress
from engine.upgrade import RULES, Rule
from engine.version import VERSION
from ipc.event import FEATURE_COUNT


def worker_facts(path: Path) -> dict[str, Any] | None:
    """One worker by its heartbeat; None where it is gone."""
    beat = heartbeat.read(path)
    if beat is None or not beat.pid:
        return None
    return {
        "pid": beat.pid, "connections": beat.connections, "requests": beat.requests, "errors": beat.errors,
        "generation": beat.generation, "restarts": beat.restarts,
        "stamp_age_ms": max(0, time.monotonic_ns() - beat.stamp_ns) // 1_000_000,
        **(memory_bytes(beat.pid) or {"private_bytes": beat.private_bytes, "pss_bytes": beat.pss_bytes}),
        "confined": {"wanted": bool(beat.confine), "landlock": beat.landlock, "seccomp": bool(beat.seccomp)},
    }  # fmt: skip


def _manifest(view: View) -> Manifest:
    manifest = view.manifest()
    if manifest is None:
        raise NotReadyError("the data directory is not born yet; try again")
    return manifest


def info(view: View, config: Config) -> dict[str, Any]:
    """What this engine is: versions, model, spaces, and the settings that a fit must share."""
    manifest = _manifest(view)
    return {
        "version": VERSION, "format_version": FORMAT_VERSION, "features_version": FEATURES_VERSION,
        "features": FEATURE_COUNT, "spaces": list(SPACES), "generation": manifest.generation,
        "events": manifest.events, "model": manifest.model, "switch": progress(manifest),
        "row_file_rows": manifest.row_file_rows,
        "internal": config.network.internal,
        "families": view.names().families[1:], "sources": [s for s, _ in view.names().sources],
    }  # fmt: skip


def stats(
    layout: Layout, view: View, features: Sequence[str] = (), rules: Mapping[str, Rule] = RULES
) -> dict[str, Any]:
    """The figures of docs/PROTOCOL.md; a worker that is gone is left out. features: sources whose every feature is
    wanted; rules: the upgrade triggers."""
    manifest, counters = _manifest(view), view.counters()
    covered = coverage.load(layout, view, counters)
    readers = [worker_facts(p) for p in sorted(layout.run.glob("reader-*.heartbeat"))]
    indexed = sum(i.hi - max(i.lo, manifest.first_seq) for i in manifest.indexes if i.space == SPACES[0])
    environment = view.catalog.env
    return {
        "generation": manifest.generation,
        "events": manifest.events,
        "removed": manifest.count - manifest.events,
        "stale_indexes": len(manifest.stale),
        "model": manifest.model,
        "switch": progress(manifest),
        "readers": [r for r in readers if r],
        "ingest": worker_facts(layout.heartbeat("ingest")) or {},
        "sources": sources(view, counters, covered),
        "features": {name: coverage.columns(covered[name]) for name in features if name in covered},
        "dead_letters": letters(layout, view, counters),
        "families": dict(sorted(counters.families.items(), key=lambda item: -item[1])),
        "conflicts": counters.conflicts,
        "firewall": {
            "joined": counters.actions_joined, "waiting": counters.actions_waiting, "unmet": counters.actions_unmet,
            "cut": counters.actions_cut,
        },
        "context": {"late": counters.late, "unplaced": counters.unplaced},
        "labelled": environment_entries(view, "annotations"),
        "indexes": len(manifest.indexes),
        "rows_indexed": indexed,
        "rows_exact": manifest.events - indexed,
        "disk_bytes": disk_bytes(layout.data_dir),
        "catalog": {
            "used_bytes": environment.info()["last_pgno"] * environment.stat()["psize"],
            "free_pages": _free_pages(view),
            "record_bytes": counters.record_bytes,
            "texts": environment_entries(view, "texts"),
        },
        "scrub": scrubbing.facts(layout.scrub),
        "storing": stages.facts(layout),
        **lag.facts(layout),
        "quality": gauges.facts(layout, gauges.of_model(gauges.read(layout.quality), manifest.model), rules),
    }  # fmt: skip


def sources(view: View, counters: Counters, covered: Mapping[str, coverage.Coverage]) -> list[dict[str, Any]]:
    """What came of each source, and how much of the features it fills."""
    formats = dict(view.names().sources)
    return [
        {
            "name": name, "format": formats.get(name, ""), "events": c.events, "duplicates": c.duplicates,
            "rejected": c.rejected, "not_ip": c.not_ip, **coverage.facts(covered.get(name)),
        }
        for name, c in sorted(counters.sources.items())
    ]  # fmt: skip


def models(layout: Layout, view: View) -> dict[str, Any]:
    """The versions there are, by name, with their cards; which is in use, which a rollback returns to, the switch that
    is under way, and what the rows and indexes of these take on disk."""
    manifest = _manifest(view)
    kept, under_way = manifest.kept, manifest.switch
    epochs = {manifest.model: manifest.epoch}
    if kept is not None:
        epochs[kept.model] = kept.epoch
    if under_way is not None:
        epochs[under_way.to.model] = under_way.to.epoch
    names = embed_models.versions(layout.models)
    return {
        "current": manifest.model,
        "kept": None if kept is None else {"version": kept.model, "events": kept.count},
        "switch": progress(manifest),
        "disk_bytes": {version: _epoch_bytes(layout, epoch) for version, epoch in epochs.items()},
        "versions": {name: _card(layout.model(name)) for name in names},
    }  # fmt: skip


def _card(path: Path) -> dict[str, Any]:
    """A version's card as it is written; why it cannot be read, where that is so."""
    try:
        return msgspec.json.decode(embed_models.read_card(path), type=dict[str, Any])
    except (ModelError, msgspec.DecodeError, UnicodeDecodeError) as e:
        return {"error": str(e)}


def _epoch_bytes(layout: Layout, epoch: int) -> int:
    """What row files and indexes of an epoch take on disk."""
    total = 0
    for path in (*layout.rows.glob(f"{epoch:04d}-*"), *layout.indexes.glob(f"*-{epoch:04d}-*")):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def letters(layout: Layout, view: View, counters: Counters) -> dict[str, Any]:
    """The dead letters by reason, and the size of their file."""
    try:
        size = layout.dead_letters.stat().st_size
    except FileNotFoundError:
        size = 0
    return {"bytes": size, **dead_letters.facts(dead_letters.load(view, counters))}


def environment_entries(view: View, table: str) -> int:
    """Entries of a table."""
    return int(view.txn.stat(view.catalog.tables[table])["entries"])


def _free_pages(view: View) -> int:
    """Pages of the catalog that hold nothing now: a measure of what compacting would give back."""
    return max(0, int(view.env.info()["last_pgno"]) + 1 - view.used_bytes() // int(view.env.stat()["psize"]))
