"""Fit the version that ships: `python -m engine.embed.ship [--version NAME]`, from the root of a checkout.

Always true
  - It is fitted on our own recording (examples/lab) and our own generator only, through the path of ingest: adapter,
    normalize.complete, order of time, context tracker. Nothing under research-only terms teaches it.
  - The same recording, generator and seed give the same files, on the same machine.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np

from engine.config import CIDRS_INTERNAL
from engine.context import Tracker
from engine.embed.base import F32
from engine.embed.fit import fit
from engine.embed.models import Data, DataFile, save
from engine.features import unpack
from engine.featurize import featurize
from engine.normalize import complete
from engine.sources.base import Adapter, SourceSpec
from engine.sources.eve import EveAdapter
from engine.sources.labels import LabelRules
from engine.sources.pcap import PcapAdapter
from engine.sources.synthetic import generate
from ipc.event import Event, FeaturedEvent

LAB = Path("examples/lab")
LAB_INTERNAL = (*CIDRS_INTERNAL, "192.0.2.0/24", "2001:db8:1::/64")
SYNTHETIC_EVENTS = 6_000
SEED = 20
CREATED = "2026-11-27"

Featured = tuple[list[Event], F32]


def read(adapter: Adapter, path: Path) -> list[FeaturedEvent]:
    """All events of a file, gzip or not; rejects are left out."""
    blob = path.read_bytes()
    parsed = adapter.feed(gzip.decompress(blob) if path.suffix == ".gz" else blob, 0)
    return parsed.events + adapter.finish().events


def observed(items: Iterable[FeaturedEvent], tracker: Tracker) -> Featured:
    """Events completed and in order of time, and their features with those of their context."""
    items = list(items)
    for item in items:
        complete(item)
    items.sort(key=lambda item: (item.event.ts, item.event.event_id))
    events = [item.event for item in items]
    features = unpack([item.features for item in items])
    featurize(events, features, tracker)
    return events, features


def lab(directory: Path = LAB) -> list[Featured]:
    """The recording twice, labelled by the same rules: as our own flow features, and as Suricata says it (fewer
    features, and text)."""
    rules = LabelRules.load(directory / "labels.ndjson")
    made = []
    for adapter, name in ((PcapAdapter, "lab.pcap.gz"), (EveAdapter, "eve.json.gz")):
        items = read(adapter(SourceSpec(name="lab", file=name)), directory / name)
        for event in (item.event for item in items):
            if rule := rules.match(event):
                event.family_raw, event.classification = rule.family, rule.classification
        made.append(observed(items, Tracker(LAB_INTERNAL)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit the model version that ships with the package.")
    parser.add_argument("--version", default="v4")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "shipped")
    args = parser.parse_args()
    parts = [*lab(), observed(generate(SYNTHETIC_EVENTS, SEED), Tracker(CIDRS_INTERNAL))]
    events = [event for some, _ in parts for event in some]
    data = Data(
        description="flowkin's lab recording (examples/lab) as flows and as EVE, and its synthetic generator",
        files=[
            DataFile(path.name, sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
            for path in sorted(LAB.iterdir())
            if path.suffix != ".md"
        ],
    )
    files = fit(
        events,
        np.vstack([features for _, features in parts]),
        version=args.version,
        seed=SEED,
        data=data,
        created=CREATED,
        internal=LAB_INTERNAL,
        trained=True,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(args.out / args.version, ignore_errors=True)
    path = save(args.out, files)
    path.chmod(0o755)
    print(f"{path}: {sum(map(len, files.values())):,} bytes, {len(events):,} events")


if __name__ == "__main__":
    main()
