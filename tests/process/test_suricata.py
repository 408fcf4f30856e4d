"""A real Suricata: its EVE from a file, and over the socket that the engine listens on."""

from __future__ import annotations

import os
import signal
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipc.messages import Stored
from tests.data import content
from tests.engine_fixture import Engine, Starter, all_events
from tests.suricata import Suricata
from tests.wait import eventually

READERS = 1

BEACONS = "pcap_stratosphere/test-cc-capture-1.pcap.gz"
FLOOD = "pcap_stopddos/pkt.TCP.DOMINATE.syn.ecn.cwr.pcapng.gz"

Run = Callable[..., Suricata]


@pytest.fixture
def suricata(tmp_path: Path) -> Iterator[Run]:
    """suricata(packets, (filetype, file), ...) -> a running one; none is left."""
    runs: list[Suricata] = []

    def run(packets: Path, *outputs: tuple[str, Path]) -> Suricata:
        runs.append(Suricata(tmp_path / "suricata", packets, outputs))
        return runs[-1]

    yield run
    for one in runs:
        one.kill()


@pytest.fixture
def packets(tmp_path: Path) -> Callable[[str], Path]:
    """packets("dir/file.pcap.gz") -> the same, decompressed."""

    def unpack(name: str) -> Path:
        path = tmp_path / "packets"
        path.write_bytes(content(name))
        return path

    return unpack


def records_of(log: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in log.read_bytes().splitlines()]


def stored(engine: Engine, source: str) -> list[Stored]:
    """All events of a source, with their records."""
    client = engine.client()
    ids = [f"{source}/{s.event.event_id}" for s in all_events(client) if s.event.source == source]  # type: ignore[union-attr]
    return [found for i in range(0, len(ids), 100) for found in client.get(ids[i : i + 100], raw=True).events]


def shape(record: dict[str, Any]) -> str:
    """What is the same in all outputs of one run: a flow's record bears the time at which each was written."""
    kept = {k: v for k, v in record.items() if record["event_type"] != "flow" or k != "timestamp"}
    return msgspec.json.encode(kept).decode()


def shapes(records: list[dict[str, Any]]) -> Counter[str]:
    """Of the records that are events."""
    return Counter(shape(record) for record in records if record["event_type"] in ("flow", "alert"))


def of_engine(engine: Engine) -> Counter[str]:
    return shapes([msgspec.json.decode(s.raw) for s in stored(engine, "eve")])


def first_packets(pcap: bytes, count: int) -> bytes:
    at = 24
    for _ in range(count):
        at += 16 + int(struct.unpack_from("<I", pcap, at + 8)[0])
    return pcap[:at]


def listening(engine: Engine) -> dict[str, Any]:
    (found,) = engine.facts()["listening"]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "capture",
    [
        "cicflowmeter_official/test.pcap.gz", "pcap_zeek/wikipedia.pcap", BEACONS,
        "pcap_ndpi/attack_or_risk/dns-tunnel-iodine.pcap", "pcap_ndpi/attack_or_risk/WebattackSQLinj.pcap",
    ],
)  # fmt: skip
def test_every_flow_and_alert_of_a_file_is_an_event_with_its_text(
    engine: Engine, suricata: Run, packets: Callable[[str], Path], tmp_path: Path, capture: str
) -> None:
    log = tmp_path / "eve.json"
    suricata(packets(capture), ("regular", log)).wait()
    records = records_of(log)
    kinds = Counter(record["event_type"] for record in records)
    source = Path(capture).stem
    done = engine.json("ingest", log, "--source", source)
    assert done["accepted"] == kinds["flow"] + kinds["alert"] > 0
    assert done["duplicates"] == done["rejected"] == 0
    found = stored(engine, source)
    assert Counter(s.event.kind for s in found) == {"flow": kinds["flow"], "alert": kinds["alert"]}  # type: ignore[union-attr]
    assert shapes([msgspec.json.decode(s.raw) for s in found]) == shapes(records)
    texts = {msgspec.json.decode(s.raw)["flow_id"]: s.event.text for s in found if s.event.kind == "flow"}  # type: ignore[union-attr]
    for record in records:
        kind, text = record["event_type"], texts[record["flow_id"]]
        words = {
            "dns": ("dns", "rrname"), "http": ("http", "hostname"), "tls": ("tls", "sni"),
            "fileinfo": ("fileinfo", "filename"),
        }.get(kind)  # fmt: skip
        if words and words[1] in record[words[0]] and len(text) < 4_000:
            assert record[words[0]][words[1]] in text
    assert engine.json("ingest", log, "--source", source)["duplicates"] == done["accepted"]


def test_nothing_of_a_stream_is_lost_while_nothing_is_killed(start: Starter, suricata: Run, tmp_path: Path) -> None:
    """The same run writes a file and the socket: what is stored is what the file says, event by event."""
    config = tmp_path / "flowkin.toml"
    config.write_text('[sources.eve]\nlisten = "eve.sock"\nformat = "eve"\n')
    engine = start("--config", str(config))
    log, packets = tmp_path / "eve.json", tmp_path / "packets"
    expected: Counter[str] = Counter()
    lines = 0
    for data in (first_packets(content(FLOOD), 3_000), content(BEACONS)):  # one after the other: a connection each
        packets.write_bytes(data)
        log.unlink(missing_ok=True)
        suricata(packets, ("regular", log), ("unix_stream", engine.layout.run / "eve.sock")).wait()
        expected += shapes(records_of(log))
        lines += len(records_of(log))
    eventually(lambda: listening(engine)["stored"] == lines, within_s=60, every_s=0.1)
    assert of_engine(engine) == expected
    found = listening(engine)
    assert (found["open"], found["dropped"], found["lost"], found["gaps"]) == (0, 0, 0, 0)
    assert (found["connections"], found["records"]) == (2, lines)


def test_a_stream_goes_on_after_a_kill_and_what_is_lost_is_counted(
    start: Starter, suricata: Run, tmp_path: Path
) -> None:
    config = tmp_path / "flowkin.toml"
    config.write_text('[sources.eve]\nlisten = "eve.sock"\nformat = "eve"\n')
    engine = start("--config", str(config))
    data = content(BEACONS)
    pipe, log = tmp_path / "pipe", tmp_path / "eve.json"
    os.mkfifo(pipe)
    run = suricata(pipe, ("regular", log), ("unix_stream", engine.layout.run / "eve.sock"))
    victim = engine.pid("ingest")
    with pipe.open("wb", buffering=0) as out:
        third = len(data) // 3
        out.write(data[:third])
        eventually(lambda: listening(engine)["stored"] > 50, within_s=20)
        out.write(data[third : 2 * third])
        os.kill(victim, signal.SIGKILL)
        engine.replaced("ingest", victim)
        out.write(data[2 * third :])
    run.wait()
    records = records_of(log)

    def settled() -> dict[str, Any]:
        found = listening(engine)
        assert found["open"] == 0 and found["connections"] == 2
        assert found["records"] == found["stored"] + found["lost"]
        return found

    found = eventually(settled, within_s=30)
    assert found["gaps"] == 1 and found["dropped"] == 0
    got, written = of_engine(engine), shapes(records)
    assert got <= written  # nothing twice, nothing else
    assert shape(records[-1]) in got  # it went on
    # What is missing was read and not stored, which is counted, or was written while nobody read: records that never
    # came. (Suricata counts those that it could not send.)
    never_came = len(records) - found["records"]
    assert 0 <= written.total() - got.total() <= found["lost"] + never_came
