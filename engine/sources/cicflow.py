"""CICFlowMeter tables (CIC-IDS-2017, its improved edition, CSE-CIC-IDS2018, Java 3 and 4, the Python ports).

Always true
  - Columns are found by normalised name, wherever they stand; a line is read by the header above it.
  - What a dialect is known to compute otherwise than engine/features.py stays missing (UNSOUND), or is computed anew
    from sound columns (engine/flows/derived.py); it never enters under a name that promises something else.
  - ts_start is the column Timestamp (d/m/y where it has slashes), ts that plus the duration.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np

from engine.errors import BadRecordError
from engine.families import NORMAL, is_attempt
from engine.features import INDEX, empty, pack_rows
from engine.flows.derived import F64, IDLE_US, derive
from engine.normalize import address
from engine.sources.base import Parsed, SourceSpec
from engine.sources.lines import Line
from engine.sources.table import Header, TableAdapter, cells_of, header, normalised, whole
from engine.sources.times import epoch_ns, fraction_ns, iso_ns, zone
from ipc.event import Classification, Event, FeaturedEvent

TCP, UDP, ICMP = 6, 17, 1

# feature: the normalised names of its column. Not read, because they follow from these: rates, ratios, lengths over
# both directions (Java counts the first packet twice there), segment sizes (the mean length under another name).
COLUMNS: dict[str, tuple[str, ...]] = {
    "protocol_number": ("protocol",),
    "flow_duration": ("flowduration",),
    "total_forward_packets": ("totalfwdpacket", "totalfwdpackets", "totfwdpkts"),
    "total_backward_packets": ("totalbwdpackets", "totalbackwardpackets", "totbwdpkts"),
    "total_forward_bytes": ("totallengthoffwdpacket", "totallengthoffwdpackets", "totlenfwdpkts"),
    "total_backward_bytes": ("totallengthofbwdpacket", "totallengthofbwdpackets", "totlenbwdpkts"),
    "fin_flag_count": ("finflagcount", "finflagcnt"),
    "syn_flag_count": ("synflagcount", "synflagcnt"),
    "rst_flag_count": ("rstflagcount", "rstflagcnt"),
    "psh_flag_count": ("pshflagcount", "pshflagcnt"),
    "ack_flag_count": ("ackflagcount", "ackflagcnt"),
    "urg_flag_count": ("urgflagcount", "urgflagcnt"),
    "cwr_flag_count": ("cwrflagcount", "cweflagcount"),
    "ece_flag_count": ("eceflagcount", "eceflagcnt"),
    "idle_mean": ("idlemean",),
    "idle_max": ("idlemax",),  # not a feature: tells whether a timeout was counted as an idle period
    "flow_packets_per_second": ("flowpacketss", "flowpktss"),  # tells the unit of the Python ports' times
    **{
        f"{side}_packet_length_{stat}": (f"{short}packetlength{stat}", f"{short}pktlen{stat}")
        for side, short in (("forward", "fwd"), ("backward", "bwd"))
        for stat in ("max", "min", "mean", "std")
    },
    **{
        f"{side}_inter_arrival_time_{stat}": (f"{short}iat{stat}",)
        for side, short in (("flow", "flow"), ("forward", "fwd"), ("backward", "bwd"))
        for stat in ("mean", "std", "max", "min")
    },
    **{
        f"{side}_{name}": tuple(short + word for word in words)
        for side, short in (("forward", "fwd"), ("backward", "bwd"))
        for name, words in {
            "inter_arrival_time_total": ("iattotal", "iattot"),
            "psh_flags": ("pshflags",),
            "urg_flags": ("urgflags",),
            "header_length": ("headerlength", "headerlen"),
            "average_bytes_bulk": ("bytesbulkavg", "avgbytesbulk", "bytsbavg"),
            "average_packets_bulk": ("packetbulkavg", "avgpacketsbulk", "pktsbavg"),
            "average_bulk_rate": ("bulkrateavg", "avgbulkrate", "blkrateavg"),
        }.items()
    },
}
# What is read as words: time, protocol, ends, the label and the improved edition's category of attempts.
WORDS = (
    ("timestamp",), ("protocol",), ("srcip", "sourceip"), ("dstip", "destinationip"), ("srcport", "sourceport"),
    ("dstport", "destinationport"), ("icmptype",), ("icmpcode",), ("label",), ("attemptedcategory",),
)  # fmt: skip
REQUIRED = {"flow_duration", "total_forward_packets", "total_backward_packets", "forward_packet_length_max"}
NOT_FEATURES = ("idle_max", "flow_packets_per_second")

FLAGS = tuple(name for name in COLUMNS if name.endswith("_flag_count"))
SIDE_FLAGS = tuple(name for name in COLUMNS if name.endswith(("_psh_flags", "_urg_flags")))
BULK = tuple(name for name in COLUMNS if "_bulk" in name)
LENGTHS = tuple(n for n in COLUMNS if "_packet_length_" in n or n in ("total_forward_bytes", "total_backward_bytes"))
HEADERS = ("forward_header_length", "backward_header_length")
GAPS_US = tuple(name for name in COLUMNS if "_inter_arrival_time_" in name)
GAP_STDS = tuple(name for name in GAPS_US if name.endswith("_std"))

# dialect: what it computes otherwise.
UNSOUND: dict[str, tuple[str, ...]] = {
    # Liu, Engelen et al. 2022; known by its column "Fwd RST Flags".
    "improved": (),
    # Java 4 looks at the first packet only for the flags of a direction, and compares addresses by reference in bulks,
    # so that every bulk is a backward one.
    "java4": (*SIDE_FLAGS, *BULK),
    # Before that ("CWE Flag Count": 2017, 2018, Java 3) all flags were those of the first packet, and bulks always 0.
    "java3": (*FLAGS, *SIDE_FLAGS, *BULK),
    # The Python ports (lower-case names) count whole frames, 20 header bytes a packet, and idle periods of their own;
    # their deviations are those of a population, a single gap counts as 0, and CWR is a copy of another column.
    "python": (*LENGTHS, *HEADERS, *BULK, *GAP_STDS, "idle_mean", "cwr_flag_count"),
    # A port of those to seconds that got most of it right; its lengths are those of IP packets.
    "netflower": (*LENGTHS, *BULK, "idle_mean"),
}
PORTS = ("python", "netflower")
# Since the other ports write seconds, they also take the first packet twice.
UNSOUND_IN_SECONDS = (*FLAGS, *SIDE_FLAGS, *(name for name in GAPS_US if not name.startswith("backward")))
UNJUDGED = frozenset({"", "needmanuallabel", "nolabel", "unknown", "cic"})
_DMY = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4}) (\d{1,2}):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)? ?([AaPp][Mm])?")


def header_of(line: bytes) -> Header | None:
    """The header that this line is, or None."""
    cells = [cell.strip() for cell in cells_of(line)]
    names = tuple(map(normalised, cells))
    if "fwdrstflags" in names:
        dialect = "improved"
    elif "tot_fwd_pkts" in cells:
        dialect = "netflower" if names[-1] == "cwrflagcount" else "python"
    else:
        dialect = "java4" if "cwrflagcount" in names else "java3"
    columns = COLUMNS if dialect in PORTS else {k: v for k, v in COLUMNS.items() if k != "flow_packets_per_second"}
    found = header(names, dialect, columns, WORDS)
    return found if found and REQUIRED.issubset(found.numbers) else None


class CicFlowAdapter(TableAdapter):
    format = "cicflow"
    title = "CICFlowMeter"
    is_utf8 = False  # the labels of CIC-IDS-2017's web attacks have a dash of Windows-1252

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self._zone = zone(spec.timezone)

    @classmethod
    def header_of(cls, record: bytes) -> Header | None:
        return header_of(record)

    def event(self, header: Header, words: tuple[str, ...], numbers: list[float], line: Line) -> Event:
        stamp, protocol, src, dst, src_end, dst_end, icmp_type, icmp_code, label, attempted = words
        stamp = stamp.strip()
        start = timestamp_ns(stamp, self._zone) if stamp else 0
        proto = whole("protocol", protocol.strip(), 255) or None  # 0: neither TCP nor UDP, more is not known
        src_port = whole("source port", src_end.strip(), 65_535)
        dst_port = whole("destination port", dst_end.strip(), 65_535)
        if proto == ICMP and icmp_type.strip() not in ("", "-1"):
            src_port, dst_port = whole("type", icmp_type.strip(), 255), whole("code", icmp_code.strip(), 255)
        row_id = self.id_of(line, has_time=bool(stamp))
        src_of, dst_of = (address(src)[0], src_port), (address(dst)[0], dst_port)
        return self.flow(row_id, (start, start), src_of, dst_of, proto, judged(label.strip(), attempted.strip()))

    def emit(self, header: Header, events: list[Event], numbers: F64, records: list[bytes], out: Parsed) -> None:
        blobs = pack_rows(featured(header, numbers))
        duration_us = numbers[:, header.numbers.index("flow_duration")] * _us(header, numbers)
        for event, record, blob, us in zip(events, records, blobs, duration_us.tolist(), strict=True):
            if event.ts_start and 0.0 <= us < 1e15:
                event.ts = event.ts_start + round(us * 1_000)
            out.events.append(FeaturedEvent(event, blob, record))


def featured(header: Header, numbers: F64) -> Any:
    """float32 [n, 105] from float64 [n, len(header.numbers)]."""
    with np.errstate(invalid="ignore"):
        numbers = np.where(numbers >= 0.0, numbers, np.nan)
        column = dict(zip(header.numbers, numbers.T, strict=True))
        scale = _us(header, numbers)
        column["flow_duration"] = column["flow_duration"] * scale / 1e6
        for name in GAPS_US:
            if name in column:
                column[name] = column[name] * scale
        fewest = 2.0
        if header.dialect == "python":
            fewest = 3.0
            column["total_forward_packets"] = column["total_forward_packets"] - (scale > 1.0)
            for name in UNSOUND_IN_SECONDS:
                if name in column:
                    column[name] = np.where(scale > 1.0, np.nan, column[name])
        forward, backward = column["total_forward_packets"], column["total_backward_packets"]
        for side, n in (("flow", forward + backward), ("forward", forward), ("backward", backward)):
            for name in GAPS_US:
                if name.startswith(f"{side}_") and name in column:
                    column[name] = np.where(n < fewest, np.nan, column[name])
        if "idle_mean" in column:
            # Some flows count the wait for their own timeout as idle; without idle periods the mean is of nothing.
            longest = column.get("flow_inter_arrival_time_max", np.full(len(numbers), np.nan))
            sound = (column["idle_mean"] > IDLE_US) & (column.get("idle_max", longest) <= longest)
            column["idle_mean"] = np.where(sound, column["idle_mean"], np.nan)
        for name in (n for n in BULK if n in column and not n.endswith("rate")):
            column[name] = np.where(column[name] > 0.0, column[name], np.nan)  # no bulk: the mean of nothing
        for name in UNSOUND[header.dialect]:
            column[name] = np.full(len(numbers), np.nan)
        if "protocol_number" in column:
            protocol = column["protocol_number"]
            layered = (protocol == TCP) | (protocol == UDP)  # only there does CICFlowMeter find the payload
            for name in (*LENGTHS, *HEADERS, *BULK):
                if name in column:
                    column[name] = np.where(layered, column[name], np.nan)
            for name in (*FLAGS, *SIDE_FLAGS):
                column[name] = np.where(protocol == UDP, 0.0, column.get(name, np.nan))
            column["protocol_number"] = np.where(protocol > 0.0, protocol, np.nan)
        features = empty(len(numbers))
        for name, values in column.items():
            if name not in NOT_FEATURES:
                features[:, INDEX[name]] = values
    derive(features)
    return features


def _us(header: Header, numbers: F64) -> Any:
    """float64 [n]: microseconds in one of the source's units of time. Only the Python ports changed theirs, without a
    sign of it in the header; each row tells by its rate."""
    if "flow_packets_per_second" not in header.numbers:
        return np.ones(len(numbers))
    rate, duration, forward, backward = (
        numbers[:, header.numbers.index(name)]
        for name in ("flow_packets_per_second", "flow_duration", "total_forward_packets", "total_backward_packets")
    )
    with np.errstate(all="ignore"):
        in_seconds = np.abs(rate * duration / (forward + backward) - 1.0) < 1e-3
    return np.where(in_seconds, 1e6, 1.0)


@lru_cache(maxsize=4096)
def judged(label: str, attempted: str = "") -> tuple[str, Classification]:
    """The source's word and the verdict in it. attempted: the improved edition's category, -1 of a real attack."""
    if normalised(label) in UNJUDGED:
        return "", "UNKNOWN"
    if normalised(label) in ("benign", "normal"):
        return NORMAL if label == NORMAL else label, "BENIGN"
    if is_attempt(label) or attempted.strip() not in ("", "-1", "-1.0"):
        return label, "SUSPICIOUS"
    return label, "MALICIOUS"


def timestamp_ns(text: str, local: Any) -> int:
    """Nanoseconds of '14/02/2018 10:44:51', '31/03/2015 11:32:18 AM', '7/7/2017 3:30' or ISO 8601.

    netflower writes seconds since 1970. Java 3 wrote hours 1 to 12 without AM or PM; what is lost there stays lost.
    """
    if "/" not in text[:3]:
        return iso_ns(text, local) if "-" in text else epoch_ns(text)
    second, fraction = _dmy(text, local)
    return second + fraction


@lru_cache(maxsize=8192)
def _dmy(text: str, local: Any) -> tuple[int, int]:
    found = _DMY.fullmatch(text)
    if found is None:
        raise BadRecordError(f"{text[:40]!r} is not a date and time")
    day, month, year, hour, minute, second, fraction, half = found.groups()
    hours = int(hour)
    if half is not None:
        if not 1 <= hours <= 12:
            raise BadRecordError(f"{text[:40]!r} is not a date and time")
        hours = hours % 12 + (12 if half.lower() == "pm" else 0)
    at = f"{year}-{int(month):02}-{int(day):02} {hours:02}:{minute}:{second or '00'}"
    return iso_ns(at, local), fraction_ns(fraction)
