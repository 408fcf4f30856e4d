"""Flows against other tools' on real captures: on flows of equal boundaries the features are the same, or
engine/flows/reference.py says what differs, and the tool's formula, computed from our packets, gives its numbers.

What differs in the flows themselves:
  - CICFlowMeter ends a flow 120 s after its start and, by edition, at the first FIN, or at the responder's first FIN or
    a RST; last ACKs make flows of their own. It leaves out flows of one packet, knows TCP and UDP over IPv4 only
    (others are protocol 0, without lengths), opens no tunnels, tells a direction by the address alone, and cuts times
    to microseconds.
  - NFStream leaves later fragments out, opens tunnels, does not flip a SYN-ACK, and cuts times to milliseconds.
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.features import FEATURES, INDEX, Feature
from engine.flows.features import compute
from engine.flows.reference import NFSTREAM, differing
from ipc.event import FeaturedEvent
from tests.captures import flow_keys, flows_of
from tests.cicflowmeter import BASE, Edition, Pair, Row, cut, pairs, read_table
from tests.data import SHARED, content, shared
from tests.nfstream_rows import nfstream
from tests.packets import parse

CAPTURES = {
    "cicflowmeter_official_test.pcap": "cicflowmeter_official/test.pcap.gz",
    "pcap_ndpi_attack_or_risk_WebattackSQLinj.pcap": "pcap_ndpi/attack_or_risk/WebattackSQLinj.pcap",
    "pcap_zeek_ftp_bruteforce.pcap": "pcap_zeek/ftp/bruteforce.pcap",
    "pcap_zeek_ssh_ssh.pcap": "pcap_zeek/ssh/ssh.pcap.gz",
    "pcap_zeek_ssh_sshguess.pcap": "pcap_zeek/ssh/sshguess.pcap",
    "pcap_zeek_wikipedia.pcap": "pcap_zeek/wikipedia.pcap",
}
LIVE = (  # no tunnels, no later fragments, no IP length of 0 (segmentation offload): NFStream leaves those packets out
    *(f"pcap_ndpi/attack_or_risk/{name}" for name in (
        "dns-tunnel-iodine.pcap", "dos_win98_smb_netbeui.pcap", "icmp-tunnel.pcap.gz", "malware.pcap", "monero.pcap",
        "tcp_scan.pcapng", "tls_malicious_sha1.pcapng", "ultrasurf.pcap.gz",
    )),
    *(f"pcap_ndpi/benign/{name}" for name in (
        "android.pcap", "bittorrent.pcap.gz", "coap_mqtt.pcap", "dnp3.pcap", "dropbox.pcap", "http_connect.pcap",
        "netbios.pcap", "openvpn.pcap", "pgsql.pcap", "sip.pcap", "tftp.pcap",
    )),
    *(f"pcap_zeek/{name}" for name in (
        "dhcp/dhcp_flood.pcap", "ftp/ipv6.pcap", "irc-more-commands.pcap", "pppoe.pcap", "smtp.pcap",
        "tls/heartbleed-encrypted-success.pcap",
    )),
    "pcap_stopddos/pkt.TCP.DOMINATE.syn.ecn.cwr.pcapng.gz", "pcap_stratosphere/test-cc-capture-1.pcap.gz",
    "pcap_stratosphere/test12-icmp-portscan.pcap",
)  # fmt: skip
FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "cwr", "ece")
WAYS = (("flow", "bidirectional"), ("forward", "src2dst"), ("backward", "dst2src"))
SIZES = {
    "mean": "packet_length_mean",
    "std": "packet_length_std",
    "max": "maximum_packet_length",
    "min": "minimum_packet_length",
}
STATS = (("mean", "mean"), ("std", "stddev"), ("max", "max"), ("min", "min"))
SHARE_MIN = 0.98
EXACT = ("id", "count", "flags", "header")  # groups of features

Key = tuple[Any, ...]


def same(mine: float, theirs: float, feature: Feature) -> bool:
    """Counts: equal; else within 0.1 % or 1 us. Missing equals nothing."""
    if feature.group in EXACT:
        return mine == theirs
    least = {"us": 1.0, "s": 1e-6}.get(feature.unit, 1e-9)
    return abs(mine - theirs) <= max(least, 1e-3 * abs(theirs))


# ---- CICFlowMeter ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def java() -> dict[str, list[Row]]:
    """Rows of the Java tool's table by capture, of captures that are there."""
    rows: dict[str, list[Row]] = defaultdict(list)
    with gzip.open(shared("cicflowmeter_java_flows/flows.csv.gz"), "rt") as file:
        for row in read_table(file):
            rows[row.capture].append(row)
    there = {name: next((n for n in (name, f"{name}.gz") if (SHARED / n).exists()), "") for name in rows}
    return {path: rows[name] for name, path in there.items() if path}


def official(name: str) -> list[Row]:
    """The authors wrote local time."""
    return list(read_table(shared(f"cicflowmeter_official/{name}").read_text().splitlines(), hours=3))


def judge(found: list[Pair], edition: Edition) -> None:
    """Every base column by ours or, where the closed table has it, by the tool's formula."""
    closed = differing(edition.value)
    assert all(pair.formulas.keys() == closed for pair in found)
    wrong = {}
    for f in BASE:
        given = [(p.formulas[f.name] if f.name in closed else p.ours[f.name], p.theirs[f.name]) for p in found]
        share = sum(same(mine, theirs, f) for mine, theirs in given) / len(given)
        if share < SHARE_MIN:
            wrong[f.name] = share
    assert not wrong


@pytest.fixture(scope="module")
def cut_like_java(java: dict[str, list[Row]]) -> list[Pair]:
    """Flows that end where the tool ends them."""
    found: list[Pair] = []
    for path, rows in java.items():
        found += pairs(cut(flows_of(content(path), "outer"), Edition.JAVA), rows, Edition.JAVA)
    return found


def test_cicflowmeter_features_on_its_own_flows(java: dict[str, list[Row]], cut_like_java: list[Pair]) -> None:
    wanted = sum(map(len, java.values()))
    print(f"CICFlowMeter 4: {len(cut_like_java)} of {wanted} flows on {len(java)} captures")
    assert len(cut_like_java) >= 1_400 and len(cut_like_java) >= 0.98 * wanted
    judge(cut_like_java, Edition.JAVA)


@pytest.mark.parametrize("name", ["expected_v3_2018-02_test.pcap.csv", "expected_v4_2018-02_test.csv"])
def test_cicflowmeter_features_on_its_official_flows(name: str) -> None:
    flows = cut(flows_of(content("cicflowmeter_official/test.pcap.gz")), Edition.OFFICIAL)
    rows = official(name)
    found = list(pairs(flows, rows, Edition.OFFICIAL))
    assert len(found) == len(rows) == len(flows.counts) == 96
    judge(found, Edition.OFFICIAL)


def test_cicflowmeter_features_on_our_flows(java: dict[str, list[Row]]) -> None:
    """Where our own boundaries are the tool's: mostly where no FIN closed the flow."""
    found: list[Pair] = []
    for path, rows in java.items():
        for flows in flows_of(content(path), "outer"):
            found += pairs(flows, rows, Edition.JAVA)
    print(f"CICFlowMeter 4: {len(found)} flows with our own boundaries")
    assert len(found) >= 650
    judge(found, Edition.JAVA)


def test_no_entry_of_the_closed_table_is_idle(cut_like_java: list[Pair]) -> None:
    """By our formulas the columns in it miss the mark, and only those. (No capture has urgent data in both ways.)"""
    for f in BASE:
        share = sum(same(p.ours[f.name], p.theirs[f.name], f) for p in cut_like_java) / len(cut_like_java)
        if not f.name.endswith("_urg_flags"):
            assert (share < SHARE_MIN) == (f.name in differing(Edition.JAVA.value)), (f.name, share)


# ---- NFStream -------------------------------------------------------------------------------------------------------


def key(event: FeaturedEvent, tick_ns: int) -> Key:
    e, row = event.event, np.frombuffer(event.features, "<f4")
    ports = (0, 0) if e.proto in (1, 58) else (e.src_port or 0, e.dst_port or 0)
    return e.src_ip, ports[0], e.dst_ip, ports[1], e.proto, e.ts_start // tick_ns, int(row[4]), int(row[5])


def key_of(row: dict[str, Any]) -> Key:
    """`key` of one of its flows, in ms."""
    ends = row["src_ip"], int(row["src_port"]), row["dst_ip"], int(row["dst_port"]), int(row["protocol"])
    counts = int(row["src2dst_packets"]), int(row["dst2src_packets"])
    return *ends, int(row["bidirectional_first_seen_ms"]), *counts


def by_conversation(flows: Iterable[tuple[Any, ...]]) -> dict[Key, list[int]]:
    """Packets and bytes of each endpoint, over all flows. flows: src, its port, dst, its port, protocol; then packets
    and bytes, forward and backward."""
    out: dict[Key, list[int]] = {}
    for src, src_port, dst, dst_port, proto, *totals in flows:
        lower, upper = (src, src_port), (dst, dst_port)
        swap = lower > upper
        sums = out.setdefault((min(lower, upper), max(lower, upper), proto), [0, 0, 0, 0])
        for i, total in enumerate(totals):
            sums[i ^ swap] += int(total)
    return out


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """NFStream's flows of the captures of LIVE that are there."""
    folder, names = tmp_path_factory.mktemp("nfstream"), [name for name in LIVE if (SHARED / name).exists()]
    if not names:
        pytest.skip("needs the captures of ../shared/data, which are not part of the project")
    paths = [folder / f"{i}.pcap" for i in range(len(names))]
    for name, path in zip(names, paths, strict=True):
        path.write_bytes(content(name))
    return dict(zip(names, nfstream(paths), strict=True))


def test_nfstream_conversations(live: dict[str, list[dict[str, Any]]]) -> None:
    """Packets and payload bytes of each direction, whatever flows a conversation was cut into."""
    agree = conversations = 0
    columns = [INDEX[f"total_{way}_{what}"] for what in ("packets", "bytes") for way in ("forward", "backward")]
    for name, rows in live.items():
        events = parse(content(name)).events
        ours = by_conversation((*key(e, 1)[:5], *np.frombuffer(e.features, "<f4")[columns]) for e in events)
        totals = ("src2dst_packets", "dst2src_packets", "src2dst_bytes", "dst2src_bytes")
        theirs = by_conversation((*key_of(row)[:5], *(row[total] for total in totals)) for row in rows)
        equal = sum(ours.get(ends) == sums for ends, sums in theirs.items())
        assert equal >= 0.99 * len(ours.keys() | theirs.keys()), name
        agree, conversations = agree + equal, conversations + len(ours.keys() | theirs.keys())
    print(f"NFStream: {agree} of {conversations} conversations agree on {len(live)} captures")
    assert len(live) < 10 or agree >= 0.99 * conversations


def test_nfstream_features(live: dict[str, list[dict[str, Any]]]) -> None:
    """On flows of equal boundaries; what the closed table has is computed on a clock of whole ms, as NFStream's is."""
    closed, judged = differing(NFSTREAM), {f.name: f for f in FEATURES}
    wrong: Counter[str] = Counter()
    matched = flows = 0
    for name, rows in live.items():
        ours = dict(on_both_clocks(name))
        for row in rows:
            src, src_port, dst, dst_port, *rest = key_of(row)
            found = ours.get((int(ip_address(src)), src_port, int(ip_address(dst)), dst_port, *rest))
            if found is None:
                continue
            matched += 1
            for column, theirs in nfstream_columns(row).items():
                mine = found[column in closed][INDEX[column]]
                wrong[column] += not same(mine, theirs, judged[column])
        flows += len(rows)
    print(f"NFStream: {matched} of {flows} flows have our boundaries")
    assert matched >= 0.99 * flows
    assert {column for column, count in wrong.items() if count > (1 - SHARE_MIN) * matched} == set(), wrong
    assert closed <= nfstream_columns(rows[0]).keys()


def on_both_clocks(name: str) -> Iterator[tuple[Key, tuple[list[float], list[float]]]]:
    """Features of each flow of a capture, 0 where missing: by the capture's clock, and by that clock cut to ms."""
    for batch in flows_of(content(name)):
        packets, flows = batch.packets.copy(), batch.flows.copy()
        for times in (packets["ts"], flows["start"], flows["end"]):
            times -= times % 10**6
        clocks = (batch, batch._replace(flows=flows, packets=packets))
        features = zip(*(np.nan_to_num(compute(clock)).tolist() for clock in clocks), strict=True)
        yield from zip(flow_keys(batch, 10**6), features, strict=True)


def nfstream_columns(row: dict[str, Any]) -> dict[str, float]:
    """By our names and in our units."""
    out = {f"{flag}_flag_count": row[f"bidirectional_{flag}_packets"] for flag in FLAGS}
    out["flow_duration"] = row["bidirectional_duration_ms"] / 1e3
    for way, theirs in WAYS:
        for stat, word in STATS:
            out[f"{way}_inter_arrival_time_{stat}"] = row[f"{theirs}_{word}_piat_ms"] * 1e3
            out[SIZES[stat] if way == "flow" else f"{way}_packet_length_{stat}"] = row[f"{theirs}_{word}_ps"]
        if way != "flow":
            out[f"total_{way}_bytes"] = row[f"{theirs}_bytes"]
            out |= {f"{way}_{flag}_flags": row[f"{theirs}_{flag}_packets"] for flag in ("psh", "urg")}
    return out


def table(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", CAPTURES)
def test_nfstream_tables(name: str) -> None:
    """Tables that it made, with frame bytes."""
    theirs = table(shared(f"ground_truth_flows/nfstream_6.6.0/{name}.csv.gz"))
    ours = {key(event, 10**6): event for event in parse(content(CAPTURES[name])).events}
    found = [(row, ours[key_of(row)]) for row in theirs if key_of(row) in ours]
    for row, event in found:
        features = np.frombuffer(event.features, "<f4")
        for flag in FLAGS:
            assert features[INDEX[f"{flag}_flag_count"]] == float(row[f"bidirectional_{flag}_packets"])
        for way, short in WAYS[1:]:
            assert event.event.extra[f"{way}_frame_bytes"] == float(row[f"{short}_bytes"])
            assert features[INDEX[f"{way}_psh_flags"]] == float(row[f"{short}_psh_packets"])
        for stat, word in STATS:
            for way, long in WAYS:
                mine = np.nan_to_num(features[INDEX[f"{way}_inter_arrival_time_{stat}"]])
                assert abs(mine / 1e3 - float(row[f"{long}_{word}_piat_ms"])) <= 1.1
    assert len(found) >= len(theirs) - 1 and len(ours) == len(theirs)


def test_nfstream_counts_and_bytes() -> None:
    """Its own expected results: captures that are the same and not fragmented agree flow for flow, in tunnels too."""
    same = 0
    for path in sorted(shared("pcap_ndpi/expected_nfstream").glob("*.csv")):
        for found in (*path.parents[1].glob(f"*/{path.stem}"), *path.parents[1].glob(f"*/{path.stem}.gz")):
            ours: Counter[tuple[float, float]] = Counter()
            for event in parse(content(found.relative_to(SHARED).as_posix())).events:
                row, extra = np.frombuffer(event.features, "<f4"), event.event.extra
                ours[row[4] + row[5], extra["forward_frame_bytes"] + extra["backward_frame_bytes"]] += 1
            with path.open() as file:
                rows = csv.DictReader(file)
                theirs = Counter((float(r["bidirectional_packets"]), float(r["bidirectional_bytes"])) for r in rows)
            same += (ours & theirs).total()
    assert same >= 235
