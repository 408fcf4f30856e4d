"""The labelled sets of the shared research data and the lab recording, through the real adapters.

Always true
  - `load` gives all events of a set in order of time, those without a label, too: they are context for the others.
  - An event is judged by `label`: its canonical family; Malicious where a source says only that much; none where
    nobody judged it. An event without a label teaches nothing, is no neighbour, and is not asked about.
  - Data that is not there ends the bench with one sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.config import CIDRS_INTERNAL
from engine.embed.fit import Families
from engine.embed.ship import LAB, LAB_INTERNAL, read
from engine.families import UNKNOWN
from engine.normalize import complete
from engine.sources import adapter_for
from engine.sources.base import SourceSpec
from engine.sources.labels import LabelRules
from ipc.event import Event, FeaturedEvent

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
NAMELESS = "Malicious"  # bad, and no more is known


class Kind(NamedTuple):
    """Where a set is, the format of its files, and how it is split (bench/quality/splits.py)."""

    pattern: str
    format: str
    split: str


class Labelled(NamedTuple):
    """One set. items: completed, in order of time; captures: the file of each; halves: of the lab recording 1 for first
    episodes and 2 for second, else 0."""

    name: str
    items: list[FeaturedEvent]
    captures: list[str]
    halves: NDArray[np.int64]
    internal: Sequence[str]
    split: str


SETS = {
    "cicids2017": Kind("cicids2017_improved/*.csv.gz", "cicflow", "time"),
    "cse_cic_ids2018": Kind("cse_cic_ids2018/*.csv.gz", "cicflow", "time"),
    "unsw_nb15": Kind("unsw_nb15/unsw_nb15_82k_*.csv.gz", "unsw", "groups"),
    "unsw_nb15_stime": Kind("unsw_nb15/*_with_stime.csv.gz", "unsw", "time"),
    "iot23": Kind("iot23/*-labeled.csv.gz", "zeek", "captures"),
    "nf_bot_iot_v2": Kind("nf_bot_iot_v2/*.csv.gz", "netflow", "groups"),
    "zeek_stratosphere": Kind("zeek_stratosphere/*.labeled.gz", "zeek", "captures"),
    "lab": Kind("lab.pcap.gz", "pcap", "episodes"),
}


def load(name: str) -> Labelled:
    """The set of that name. SystemExit where its files are not here."""
    kind = SETS[name]
    lab = kind.split == "episodes"
    home = Path(__file__).resolve().parents[2] / LAB if lab else SHARED
    paths = sorted(home.glob(kind.pattern))
    if not paths:
        sys.exit(f"{home / kind.pattern} is not here: this bench needs the shared research data")
    rules = LabelRules.load(home / "labels.ndjson") if lab else None
    found: list[tuple[FeaturedEvent, str]] = []
    for path in paths:
        capture = path.name.partition(".")[0]
        spec = SourceSpec(name=capture, file=path.name, labels=rules)
        found += ((item, capture) for item in read(adapter_for(kind.format)(spec), path))
    for item, _ in found:
        complete(item)
    found.sort(key=lambda pair: (pair[0].event.ts, pair[0].event.event_id))
    items, captures = [item for item, _ in found], [capture for _, capture in found]
    matched = [rules.match(item.event) if rules else None for item in items]
    halves = np.array([rule.half if rule else 0 for rule in matched], np.int64)
    return Labelled(name, items, captures, halves, LAB_INTERNAL if lab else CIDRS_INTERNAL, kind.split)


def label(event: Event) -> str:
    """What the event is; '' where nobody said."""
    if event.classification == "UNKNOWN":
        return ""
    if event.family not in ("", UNKNOWN):
        return event.family
    return "" if event.classification == "BENIGN" else NAMELESS


def numbered(events: Sequence[Event], of: Callable[[Event], str] = label) -> tuple[Families, list[str]]:
    """The number of each event's label, -1 where it has none, and the labels in order."""
    labels = [of(event) for event in events]
    names = sorted(set(labels) - {""})
    number = {name: i for i, name in enumerate(names)}
    return np.array([number.get(name, -1) for name in labels], np.int64), names
