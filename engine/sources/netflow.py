"""NetFlow tables: nProbe's names (NF-*-v1, v2, v3), and the CSV that nfdump writes.

Always true
  - Bytes count IP packets: they go to event.extra. They become payload only where the header bytes are certain: UDP and
    ICMP over IPv4 in packets too short to have been cut into fragments, and TCP in packets of nothing but a header.
  - Flags are the OR over all packets: only "in none" is a number.
  - A row of nfdump without packets back is one direction of a flow: of the other nothing is known.
  - ts and ts_start are the row's times, flow_duration and all rates its duration: nfdump writes times in whole seconds
    and durations in ms. Where they contradict each other both are kept as given, as neither is known to be wrong. A row
    with only one time ends its duration later.
  - Rows without a time (v1, v2) have ts 0, and ids by their place in the file. L7, DNS and FTP numbers are in extra,
    where 0 stands for "none" and is left out.
"""

from __future__ import annotations

import re

import numpy as np

from engine.features import F32, INDEX, empty, pack_rows
from engine.flows.derived import F64, derive
from engine.normalize import ICMP, ICMP6, TCP, TS_NS_MAX, UDP, address
from engine.sources import ra
from engine.sources.base import Parsed, SourceSpec
from engine.sources.lines import Line
from engine.sources.table import (
    MISSING,
    NAN,
    Header,
    Names,
    TableAdapter,
    cells_of,
    columns,
    header,
    judged,
    normalised,
    sized,
    whole,
)
from engine.sources.tcpflags import ACK, UNSEEN, bits_of, completion, give_absent
from engine.sources.times import NS, iso_ns, zone
from ipc.event import Event, FeaturedEvent

# What is read as numbers: packets and bytes of IP a side, times in ms (nfdump: td in s), flags, sizes of IP packets.
COLUMNS: dict[str, Names] = {
    "packets_toserver": ("inpkts", "ipkt"), "packets_toclient": ("outpkts", "opkt"),
    "ip_bytes_toserver": ("inbytes", "ibyt"), "ip_bytes_toclient": ("outbytes", "obyt"),
    "duration_ms": ("flowdurationmilliseconds",), "duration_ms_toserver": ("durationin",),
    "duration_ms_toclient": ("durationout",), "duration_s": ("td",), "flags": ("tcpflags",),
    "flags_toserver": ("clienttcpflags",), "flags_toclient": ("servertcpflags",), "longest": ("longestflowpkt",),
    "shortest": ("shortestflowpkt",), "icmp": ("icmptype",),
}  # fmt: skip
# The source's own numbers outside the 105, by our name.
EXTRA: dict[str, Names] = {
    "ttl_min": ("minttl",), "ttl_max": ("maxttl",), "tcp_window_toserver": ("tcpwinmaxin",),
    "tcp_window_toclient": ("tcpwinmaxout",), "retransmitted_packets_toserver": ("retransmittedinpkts",),
    "retransmitted_packets_toclient": ("retransmittedoutpkts",), "l7_protocol": ("l7proto",),
    "dns_query_type": ("dnsquerytype",), "dns_ttl_s": ("dnsttlanswer",), "ftp_return_code": ("ftpcommandretcode",),
}  # fmt: skip
BYTES = ("ip_bytes_toserver", "ip_bytes_toclient")
WORDS = (
    ("ipv4srcaddr", "ipv6srcaddr", "sa"), ("ipv4dstaddr", "ipv6dstaddr", "da"), ("l4srcport", "sp"),
    ("l4dstport", "dp"), ("protocol", "pr"), ("flowstartmilliseconds", "firstswitched", "ts"),
    ("flowendmilliseconds", "lastswitched", "te"), ("attack",), ("label",), ("flg",),
)  # fmt: skip
REQUIRED = {"protocol", "inpkts", "outpkts", "inbytes", "outbytes"}
REQUIRED_NFDUMP = {"ts", "te", "td", "sa", "da", "pr", "flg", "ipkt", "ibyt", "opkt", "obyt"}
_SUMMARY = re.compile(rb"Summary|flows,bytes,packets,avg_bps,avg_pps,avg_bpp|\d+(?:,\d+){5}")  # below nfdump's rows

UNCUT_BYTES_MAX = 1_400  # a longer packet may be one of several that were one
IP_BYTES, UDP_BYTES, TCP_BYTES = 20, 8, 20  # the smallest headers; ICMP's is that of UDP
# In the published tables nProbe's duration is first minus last in 32 bits of us: 4,294,967 ms less what it should be.
WRAP_MS = (1 << 32) / 1_000
WRAPPED_MS_MAX = 120_000.0  # nProbe ends a flow after that


class NetflowAdapter(TableAdapter):
    format = "netflow"
    title = "NetFlow"
    worded = ("proto", "ipv4", "one_way", "flags_word")

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self._zone = zone(spec.timezone)

    @classmethod
    def header_of(cls, record: bytes) -> Header | None:
        names = tuple(map(normalised, cells_of(record)))
        for dialect, required in (("nprobe", REQUIRED), ("nfdump", REQUIRED_NFDUMP)):
            if required.issubset(names):
                return header(names, dialect, {**COLUMNS, **EXTRA}, WORDS)
        return None

    def read(self, lines: list[Line], out: Parsed) -> None:
        super().read([line for line in lines if not _SUMMARY.fullmatch(line.record)], out)

    def event(self, header: Header, words: tuple[str, ...], numbers: list[float], line: Line) -> Event:
        src, dst, src_end, dst_end, protocol, first, last, attack, label, letters = (word.strip() for word in words)
        number = dict(zip(header.numbers, numbers, strict=True))
        proto = ra.protocol(protocol)
        one_way = header.dialect == "nfdump" and not number["packets_toclient"]
        numbers += (NAN if proto is None else proto, ":" not in src + dst, one_way, bits_of(letters))
        start = self._time(header, first)
        end = max(start, self._time(header, last)) if last not in MISSING else start
        src_port, dst_port = _ends(proto, src_end, dst_end, number.get("icmp", NAN))
        row_id = self.id_of(line, has_time=bool(start))
        src_of, dst_of = (address(src)[0], src_port), (address(dst)[0], dst_port)
        return self.flow(row_id, (start, end), src_of, dst_of, proto, judged(attack, label))

    def emit(self, header: Header, events: list[Event], numbers: F64, records: list[bytes], out: Parsed) -> None:
        column = columns(header.numbers, numbers[:, : len(header.numbers)])
        worded = dict(zip(self.worded, numbers[:, len(header.numbers) :].T, strict=True))
        for name in ("packets_toclient", "ip_bytes_toclient"):
            column[name] = np.where(worded["one_way"] == 1.0, np.nan, column[name])
        column["duration_s"] = seconds = duration_s(column, len(events))
        blobs = pack_rows(featured(column, worded, header.dialect))
        extras = [(name, column[name].tolist()) for name in (*BYTES, *EXTRA) if name in column]
        for i, (event, record, blob, s) in enumerate(zip(events, records, blobs, seconds.tolist(), strict=True)):
            if event.ts_start and event.ts == event.ts_start and 0.0 <= s < 1e9:
                event.ts = event.ts_start + round(s * NS)
            event.extra = {
                name: values[i]
                for name, values in extras
                if values[i] == values[i] and (values[i] or name not in EXTRA)
            }
            out.events.append(FeaturedEvent(event, blob, record))

    def _time(self, header: Header, text: str) -> int:
        """Nanoseconds; 0 where there is none: what counts from when the exporter was started is no time."""
        if text in MISSING:
            return 0
        if header.dialect == "nfdump":
            return iso_ns(text, self._zone)
        value = whole("time", text, TS_NS_MAX // 1_000_000) or 0
        return value * 1_000_000 if value >= 100_000_000_000 else value * NS if value >= 100_000_000 else 0


def duration_s(column: dict[str, F64], n: int) -> F64:
    """Seconds from the first packet to the last."""
    if "duration_s" in column:
        return column["duration_s"]
    ms = sized(n, column.get("duration_ms"))
    with np.errstate(invalid="ignore"):
        return np.where(ms > WRAP_MS - WRAPPED_MS_MAX, np.floor(WRAP_MS) - ms, ms) / 1e3


def featured(column: dict[str, F64], worded: dict[str, F64], dialect: str) -> F32:
    """float32 [n, 105]."""
    n = len(worded["proto"])
    features = empty(n)

    def put(name: str, values: F64) -> None:
        features[:, INDEX[name]] = values

    proto, ipv4 = worded["proto"], worded["ipv4"] == 1.0
    put("protocol_number", proto)
    put("flow_duration", column["duration_s"])
    with np.errstate(invalid="ignore"):
        plain = ((proto == UDP) | (proto == ICMP)) & ipv4
        bare = (proto == TCP) & ipv4
        for side, way in (("forward", "toserver"), ("backward", "toclient")):
            packets, size = column[f"packets_{way}"], column[f"ip_bytes_{way}"]
            put(f"total_{side}_packets", packets)
            longest = np.where(packets == 1.0, size, sized(n, column.get("longest")))
            uncut = plain & ((longest <= UNCUT_BYTES_MAX) | (packets == 0.0))
            header_bytes = np.where(uncut, UDP_BYTES * packets, np.where(bare, TCP_BYTES * packets, np.nan))
            payload = size - IP_BYTES * packets - header_bytes
            known = np.where(bare, payload == 0.0, payload >= 0.0)
            payload = np.where(known, payload, np.nan)
            put(f"total_{side}_bytes", payload)
            put(f"{side}_header_length", np.where(known, header_bytes, np.nan))
            few = np.where((packets <= 1.0) | (payload == 0.0), np.where(packets == 0.0, 0.0, payload), np.nan)
            for stat in ("max", "min"):
                put(f"{side}_packet_length_{stat}", few)
            put(f"{side}_packet_length_std", few * 0.0)
        if "longest" in column and "shortest" in column:
            uncut = plain & (column["longest"] <= UNCUT_BYTES_MAX)
            for name, size in (("maximum", column["longest"]), ("minimum", column["shortest"])):
                rest = size - IP_BYTES - UDP_BYTES
                put(f"{name}_packet_length", np.where(uncut & (rest >= 0.0), rest, np.nan))
    forward, backward = flags(column, worded, dialect)
    if dialect == "nfdump" or {"flags_toserver", "flags_toclient"} <= column.keys():
        sides = zip(forward, backward, strict=True)
        put("flow_completion_rate", np.array([completion(int(a), int(b)) for a, b in sides]))
    else:  # which side had a flag is not said: without an ACK, or an answer, it was not established
        never = (forward >= 0.0) & ((forward.astype(np.int64) & ACK == 0) | (column["packets_toclient"] == 0.0))
        put("flow_completion_rate", np.where(never, 0.0, np.nan))
    # Of other protocols derive() knows it, where it knows the packets of both sides.
    features[~(proto == TCP), INDEX["flow_completion_rate"]] = np.nan
    give_absent(features, forward, backward)
    derive(features)
    return features


def flags(column: dict[str, F64], worded: dict[str, F64], dialect: str) -> tuple[F64, F64]:
    """The flags seen on each side, as engine/sources/tcpflags.py takes them; other protocols have none."""
    n = len(worded["proto"])
    if dialect == "nfdump":
        forward = worded["flags_word"]
        backward = np.full(n, float(UNSEEN))
    else:
        # Where the sides are not told apart, what neither had is known: the OR stands for each.
        whole_flow = sized(n, column.get("flags"))
        sides = (column.get(f"flags_{way}", whole_flow) for way in ("toserver", "toclient"))
        forward, backward = (np.where(side <= 255.0, side, UNSEEN) for side in sides)
    tcp, known = worded["proto"] == TCP, ~np.isnan(worded["proto"])
    return tuple(np.where(tcp, side, np.where(known, 0.0, UNSEEN)) for side in (forward, backward))  # type: ignore[return-value]


def _ends(proto: int | None, src: str, dst: str, icmp: float) -> tuple[int | None, int | None]:
    """The ports; of ICMP type and code: nProbe has both in one number, nfdump as "type.code" for a port."""
    if proto in (ICMP, ICMP6):
        if 0.0 <= icmp <= 65_535.0:
            return int(icmp) >> 8, int(icmp) & 0xFF
        kind, point, code = dst.partition(".")
        return (whole("type", kind, 255), whole("code", code, 255)) if point else (None, None)
    if proto not in ra.PORTED:
        return None, None
    return whole("source port", src, 65_535), whole("destination port", dst, 65_535)
