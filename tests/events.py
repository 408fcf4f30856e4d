"""Small deterministic events for tests: a few hosts, families that lie apart, a flood of near-duplicates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from engine.features import INDEX, pack
from engine.sources.ndjson import dump
from ipc.event import Event, FeaturedEvent, FirewallAction, Verdict

T0 = 1_700_000_000_000_000_000  # ns
S = 1_000_000_000
FAMILIES = ("DDoS", "PortScan", "C2", "Normal")
CLASSES = {"DDoS": "MALICIOUS", "PortScan": "MALICIOUS", "C2": "SUSPICIOUS", "Normal": "BENIGN"}
PORTS = {"DDoS": 80, "PortScan": 22, "C2": 443, "Normal": 53}


def features(number: int, family: str) -> bytes:
    """105 features around the family's own centre, all but the context ones."""
    rng = np.random.default_rng((FAMILIES.index(family), number))
    row = np.full(105, np.nan, np.float32)
    row[:65] = np.exp(rng.normal(1 + FAMILIES.index(family), 0.3, 65))
    row[INDEX["flow_duration"]] = 0.1 + number % 7
    return pack(row)


def make(number: int, *, source: str = "test", **more: object) -> FeaturedEvent:
    """Event `number`; the same number gives the same event."""
    family = FAMILIES[number % len(FAMILIES)]
    fields: dict[str, object] = {
        "event_id": f"e{number:06d}",
        "source": source,
        "ts": T0 + number * S,
        "ts_start": T0 + number * S - S // 2,
        "src_ip": f"10.0.{number % 3}.{1 + number % 4}",
        "dst_ip": f"192.0.2.{1 + number % 5}",
        "src_port": 1024 + number % 50_000,
        "dst_port": PORTS[family],
        "proto": 17 if family == "Normal" else 6,
        "classification": CLASSES[family],
        "family": family,
        "fast_score": (number % 10) / 10,
        "ml_score": (number % 4) / 4,
        "decision": ("", "ALLOW", "DROP", "ALERT")[number % 4],
        "kind": "alert" if number % 13 == 0 else "flow",
        "text": f"signature {number % 6}",
        "verdicts": [Verdict("fast", CLASSES[family], 0.5 + (number % 5) / 10)],
    }  # fmt: skip
    fields |= more
    event = Event(**fields)  # type: ignore[arg-type]
    word = fields["family"]
    return FeaturedEvent(event, features(number, word if word in FAMILIES else "Normal"))  # type: ignore[arg-type]


def several(count: int, first: int = 0, **more: object) -> list[FeaturedEvent]:
    return [make(number, **more) for number in range(first, first + count)]  # type: ignore[arg-type]


def blocked(number: int, *, after_s: float = 1.0, **more: object) -> FirewallAction:
    """What a firewall did about event `number`, so long after it."""
    event = make(number).event
    fields: dict[str, object] = {
        "ts": event.ts + round(after_s * S), "src_ip": event.src_ip, "dst_ip": event.dst_ip, "family": event.family,
        "action": "BLOCK", "confidence": 0.9,
    }  # fmt: skip
    return FirewallAction(**(fields | more))  # type: ignore[arg-type]


def line(item: FeaturedEvent) -> bytes:
    """As NDJSON."""
    return dump(item.event, np.frombuffer(item.features, "<f4"), raw=item.raw)


def ndjson(items: Iterable[FeaturedEvent]) -> bytes:
    return b"".join(line(item) for item in items)


def write(path: Path, items: Iterable[FeaturedEvent]) -> Path:
    path.write_bytes(ndjson(items))
    return path


def ids(items: Sequence[FeaturedEvent]) -> list[str]:
    return [item.event.event_id for item in items]


def changed(path: Path, target: Path) -> Path:
    """The same events by identity with another content."""
    lines = []
    for text in path.read_text().splitlines():
        tree = json.loads(text)
        tree["dst_port"] = tree["dst_port"] + 1
        lines.append(json.dumps(tree))
    target.write_text("\n".join(lines) + "\n")
    return target
