"""A real engine follows a directory of Zeek's: logs grow, are rotated, and the ingest worker is killed with -9."""

from __future__ import annotations

import gzip
import os
import signal
from pathlib import Path

from tests.engine_fixture import Starter, all_events
from tests.unit.test_follow import append
from tests.unit.test_zeek_follow import CONN, DNS, conn, dns, opened, text
from tests.wait import eventually

READERS = 1

FLOWS = 600


def test_text_joins_its_flow_over_rotation_and_kill(start: Starter, tmp_path: Path) -> None:
    root = tmp_path / "zeek"
    root.mkdir()
    config = tmp_path / "flowkin.toml"
    config.write_text(f'[sources.zeek]\npath = "{root}"\npoll_ms = 10\n')
    logs = {"conn": (root / "conn.log", CONN), "dns": (root / "dns.log", DNS)}
    for name, (file, record) in logs.items():
        append(file, opened(name, record))
    engine = start("--config", str(config))

    def stored(count: int) -> None:
        def look() -> bool:
            with engine.client() as client:
                return bool(client.stats().facts["events"] >= count)

        eventually(look, within_s=60)

    for i in range(FLOWS):
        # The texts of every third flow come in two records, before the flow; of the others after it.
        parts = [dns(i), conn(i)] if i % 3 == 0 else [conn(i), dns(i)]
        for part in parts:
            file = logs["conn" if part.startswith(f"{1_000 + i}.5".encode()) else "dns"][0]
            append(file, part[:30])
            append(file, part[30:])
        if i in (150, 420):
            stored(100)
            victim = engine.pid("ingest")
            os.kill(victim, signal.SIGKILL)
            eventually(lambda victim=victim: engine.pid("ingest") not in (0, victim), within_s=30)
        if i in (200, 400):
            stored(i)
            for name, (file, record) in logs.items():
                old = root / f"{name}.{i}.log"
                file.rename(old)
                append(file, opened(name, record, f"{i // 100:02}"))
                old.with_name(old.name + ".gz").write_bytes(gzip.compress(old.read_bytes()))
    stored(FLOWS)
    engine.kill()
    append(logs["dns"][0], dns(FLOWS))
    engine.start("--config", str(config))
    append(logs["conn"][0], conn(FLOWS))
    stored(FLOWS + 1)
    found = [stored.event for stored in all_events(engine.client())]  # type: ignore[union-attr]
    assert sorted((event.src_port or 0) - 1_000 for event in found) == list(range(FLOWS + 1))
    assert {(event.src_port or 0) - 1_000: event.text for event in found} == text(*range(FLOWS + 1))
    facts = engine.facts()
    assert facts["conflicts"] == 0 and facts["sources"][0]["rejected"] == 0
