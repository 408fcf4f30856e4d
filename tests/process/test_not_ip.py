"""Packets of a capture that are no IP are counted: of files that are ingested, and of those that are followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine_fixture import Engine, Starter
from tests.events import T0
from tests.packets import P, ethernet, header, record
from tests.wait import eventually

READERS = 1

ARP = 0x0806


def capture(path: Path, flows: int, arp: int) -> Path:
    """An ARP frame after each packet as long as there are any."""
    frames = [record(T0 + i, P(T0 + i, src_port=2_000 + i).frame, tick_ns=1) for i in range(flows)]
    others = [record(T0 + i, ethernet(bytes(28), ARP), tick_ns=1) for i in range(arp)]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(header(magic=0xA1B23C4D) + b"".join(frames[:1] + others + frames[1:]))
    return path


def counts(engine: Engine) -> dict[str, tuple[int, int]]:
    """(events, not_ip) by source."""
    rows: list[dict[str, Any]] = engine.facts()["sources"]
    return {row["name"]: (row["events"], row["not_ip"]) for row in rows}


def test_what_is_no_ip_is_counted_with_every_reading(engine: Engine, tmp_path: Path) -> None:
    both, alone = capture(tmp_path / "both.pcap", 3, 5), capture(tmp_path / "alone.pcap", 0, 7)
    assert engine.json("ingest", both, "--source", "wire")["accepted"] == 3
    assert counts(engine) == {"wire": (3, 5)}
    assert engine.json("ingest", alone, "--source", "wire")["accepted"] == 0  # no event, and still a message
    assert engine.json("ingest", both, alone, "--source", "wire")["duplicates"] == 3
    assert engine.json("ingest", alone, "--source", "other")["rejected"] == 0
    assert counts(engine) == {"wire": (3, 24), "other": (0, 7)}
    assert "packets that are no IP: 7 of other, 24 of wire" in engine.cli("stats").stdout
    engine.stop()
    engine.start()
    assert counts(engine) == {"wire": (3, 24), "other": (0, 7)}


def test_a_followed_capture_is_counted_when_it_has_ended(start: Starter, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    path = capture(tmp_path / "captures" / "a.pcap", 3, 5)
    (data_dir / "flowkin.toml").write_text(f'[sources.wire]\npath = "{path}"\nformat = "pcap"\npoll_ms = 10\n')
    engine = start(data_dir=data_dir)
    eventually(lambda: counts(engine).get("wire") == (3, 5))
    engine.stop()
    engine.start()
    assert counts(engine) == {"wire": (3, 5)}
