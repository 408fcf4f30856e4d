"""The same captures in four formats, and which events tell the same flow.

Always true
  - Per capture and format there is one file: the tool's own where the shared data has it, else one written from our
    flows (written.py); `real` says which. EVE is always Suricata's own.
  - A file goes through its adapter, normalize and featurize in order of time on a fresh tracker, as query_event has it
    for a source that is asked about and not stored.
  - Two events tell one flow where their ends and protocol are the same, either way round (ICMP and what is neither TCP
    nor UDP: the addresses alone), and they start within START_S of each other; each is matched once, the nearest in
    start and duration first.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.formats.written import Flow, cic_table, conn_log, flows_of
from bench.quality.data import SHARED
from engine.config import CIDRS_INTERNAL
from engine.context import Tracker
from engine.embed.base import F32
from engine.embed.ship import LAB, LAB_INTERNAL, observed
from engine.sources import adapter_for
from engine.sources.base import SourceSpec
from ipc.event import Event, FeaturedEvent

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ("pcap", "eve", "zeek", "cicflow")
START_S = 1.5  # CICFlowMeter writes whole seconds
LAB_NAME = "lab"


class Told(NamedTuple):
    """A capture in one format: its events in order of time, their 105 features with context. real: the tool's own."""

    events: list[Event]
    features: F32
    real: bool


class Capture(NamedTuple):
    """kind: its class in PCAP_MANIFEST.csv. of: for each format, which of its events tells each flow of the capture,
    int64 [flows], -1 for none."""

    name: str
    kind: str
    told: dict[str, Told]
    of: dict[str, NDArray[np.int64]]


def captures() -> Iterator[Capture]:
    """The lab recording, then those of the shared data, by name."""
    lab = ROOT / LAB
    flows = flows_of(_content(lab / "lab.pcap.gz"), SourceSpec("pcap"))
    yield _capture(LAB_NAME, LAB_NAME, flows, {"eve": _content(lab / "eve.json.gz")}, LAB_INTERNAL)
    tables, logs = _tables(), _logs()
    with (SHARED / "PCAP_MANIFEST.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
    for row in rows:
        path, name = SHARED / row["path"], row["orig"]
        eve = SHARED / "eve_generated" / f"{name}.eve.json.gz"
        if not path.exists() or not eve.exists():
            continue
        flows = flows_of(_content(path), SourceSpec("pcap"))
        files = {"eve": _content(eve)} | ({"cicflow": tables[name]} if name in tables else {})
        if name in logs:
            files["zeek"] = dated(logs[name], flows)
        yield _capture(name, row["pcap_class"], flows, files, CIDRS_INTERNAL)


def _capture(
    name: str, kind: str, flows: list[Flow], files: dict[str, bytes], internal: Sequence[str]
) -> Capture:  # fmt: skip
    real = set(files) | {"pcap"}
    # Shared captures without a row in the tool's table have no flow that the tool writes.
    files = {"zeek": conn_log(flows), "cicflow": cic_table(flows)} | files
    told = {"pcap": _told([flow.item for flow in flows], internal, real=True)}
    for form in FORMATS[1:]:
        adapter = adapter_for(form)(SourceSpec(form))
        parsed = adapter.feed(files[form], 0)
        parsed.add(adapter.finish())
        parsed.add(adapter.release())
        told[form] = _told(parsed.events, internal, real=form in real)
    of = {form: matched(told["pcap"].events, told[form].events) for form in FORMATS}
    return Capture(name, kind, told, of)


def _told(items: list[FeaturedEvent], internal: Sequence[str], *, real: bool) -> Told:
    return Told(*observed([item for item in items if item.event.kind == "flow"], Tracker(internal)), real)


def matched(flows: Sequence[Event], others: Sequence[Event]) -> NDArray[np.int64]:
    """Which of `others` tells each flow: int64 [flows], -1 for none."""
    by_ends: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for j, event in enumerate(others):
        by_ends[ends(event)].append(j)
    near = []
    for i, flow in enumerate(flows):
        for j in by_ends.get(ends(flow), ()):
            if (late := abs(others[j].ts_start - flow.ts_start)) <= START_S * 1e9:
                near.append((late + abs(others[j].ts - others[j].ts_start - flow.ts + flow.ts_start), i, j))
    found, taken = np.full(len(flows), -1, np.int64), set()
    for _, i, j in sorted(near):
        if found[i] < 0 and j not in taken:
            found[i] = j
            taken.add(j)
    return found


def ends(e: Event) -> tuple[object, ...]:
    """Whose flow it is, whichever way round."""
    if e.proto in (6, 17):
        return (e.proto, *sorted([(e.src_ip, e.src_port), (e.dst_ip, e.dst_port)]))
    return tuple(sorted([e.src_ip, e.dst_ip]))


def dated(log: bytes, flows: list[Flow]) -> bytes:
    """A conn.log of Zeek's own tests, whose times are masked: with the starts of our flows of the same ends, one after
    the other. Rows of connections that we have no more flow of are left out."""
    starts: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for flow in sorted(flows, key=lambda flow: -flow.item.event.ts_start):
        starts[ends(flow.item.event)].append(flow.item.event.ts_start)
    lines: list[str] = []
    names: list[str] = []
    for line in log.decode().splitlines():
        cells = line.split("\t")
        if line.startswith("#"):
            names = cells[1:] if cells[0] == "#fields" else names
            lines.append(line)
            continue
        row = dict(zip(names, cells, strict=True))
        proto = {"tcp": 6, "udp": 17}.get(row["proto"])
        at = [(row[f"id.{side}_h"], int(row[f"id.{side}_p"])) for side in ("orig", "resp")]
        waiting = starts[(proto, *sorted(at)) if proto else tuple(sorted(address for address, _ in at))]
        if waiting:
            ns = waiting.pop()
            lines.append("\t".join([f"{ns // 10**9}.{ns % 10**9 // 1000:06d}", *cells[1:]]))
    return ("\n".join(lines[1:]) + "\n").encode()  # the first line is that of the test's tool


def _tables() -> dict[str, bytes]:
    """CICFlowMeter's own rows by capture; the two columns in front are not the tool's."""
    lines = _content(SHARED / "cicflowmeter_java_flows" / "flows.csv.gz").split(b"\n")
    head = lines[0].split(b",", 2)[2]
    out: dict[str, list[bytes]] = {}
    for line in filter(None, lines[1:]):
        capture, _, row = line.split(b",", 2)
        out.setdefault(capture.decode(), [head]).append(row)
    return {name: b"\n".join(rows) + b"\n" for name, rows in out.items()}


def _logs() -> dict[str, bytes]:
    """Zeek's own logs by capture."""
    home = SHARED / "pcap_zeek" / "expected_zeek"
    pairs = (line.split("\t") for line in (home / "MAP.tsv").read_text().splitlines())
    return {f"pcap_zeek/{capture.removesuffix('.gz')}": (home / log).read_bytes() for log, capture in pairs}


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
