"""Argus flows as text (binetflow: CTU-13, Stratosphere, ra): 13 to 16 columns by comma or tab, with or without header.

Always true
  - Forward is from the initiator: a row whose Dir points back ("<-", "<?") or that is one SYN-ACK is turned round.
  - Bytes count whole frames: they go to event.extra. Packets of each side are given where that is certain; else their
    sum is in extra, and what follows from it in the features.
  - A row is one record of Argus, which cuts long flows. Its management records ("man") are no flows: rejected.
  - Background is traffic that nobody judged: UNKNOWN, not BENIGN.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from engine.errors import BadRecordError
from engine.families import UNKNOWN
from engine.features import F32, INDEX, empty, pack_rows
from engine.flows.derived import F64, FLOAT32_MAX, Flags, derive
from engine.normalize import TCP, address
from engine.sources import ra
from engine.sources.base import Parsed, SourceSpec
from engine.sources.lines import Line
from engine.sources.table import NAN, Header, TableAdapter, cells_of, columns, header, judged, normalised, sized
from engine.sources.tcpflags import ACK, SYN, UNSEEN, bits_of, completion, give_absent
from engine.sources.times import NS, epoch_ns, iso_ns, zone
from ipc.event import Classification, Event, FeaturedEvent

# What is read as numbers. Below, features are made of them: none of ra's columns is one of the 105 but Dur.
COLUMNS = {
    "duration_s": ("dur",), "packets": ("totpkts",), "src_packets": ("srcpkts",), "frame_bytes": ("totbytes",),
    "src_frame_bytes": ("srcbytes",), "src_tos": ("stos",), "dst_tos": ("dtos",),
}  # fmt: skip
WORDS = (
    ("starttime",), ("proto",), ("srcaddr",), ("sport",), ("dir",), ("dstaddr",), ("dport",), ("state",), ("label",),
)  # fmt: skip
REQUIRED = {"starttime", "dur", "proto", "srcaddr", "dir", "dstaddr", "state", "totpkts", "totbytes"}
# The order that a table without a header has.
ORDER = ("starttime", "dur", "proto", "srcaddr", "sport", "dir", "dstaddr", "dport", "state", "stos", "dtos",
         "totpkts", "totbytes", "srcbytes", "srcpkts", "label")  # fmt: skip
BACK = ("<-", "<?")
BOTH = ("<->", "<?>")
_DIR = re.compile(r"(?:who|[<?]{0,2}[-?]?>?)?")
_TIME = re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:\.\d+)?|\d{9,10}\.\d+")
_DURATION = re.compile(r"\d+\.\d+")
_PROTO = re.compile(r"[a-z][a-z0-9.+/-]*")
_MAC = re.compile(r"[0-9a-f]{1,2}(?::[0-9a-f]{1,2}){5}")
_COMMAND = re.compile(r"cc\d*")


class BinetflowAdapter(TableAdapter):
    format = "binetflow"
    title = "binetflow"
    worded = ("proto", "turned", "both", "src_flags", "dst_flags", "completion")

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self._zone = zone(spec.timezone)

    @classmethod
    def header_of(cls, record: bytes) -> Header | None:
        cells, delimiter = _cells(record)
        names = tuple(map(normalised, cells))
        return header(names, "", COLUMNS, WORDS, delimiter) if REQUIRED.issubset(names) else None

    @classmethod
    def implied(cls, record: bytes) -> Header | None:
        cells, delimiter = _cells(record)
        if not 13 <= len(cells) <= 16:
            return None
        when, duration, proto, _, _, direction, *_ = cells
        counts = [cell.strip() for cell in cells[11:13]]
        if not (
            _TIME.fullmatch(when)
            and _DURATION.fullmatch(duration)
            and _PROTO.fullmatch(proto)
            and _DIR.fullmatch(direction.strip())
            and all(cell.isascii() and cell.isdigit() for cell in counts)
        ):
            return None
        names = list(ORDER[: len(cells)])
        if len(cells) in (14, 15) and not cells[-1].strip().isdigit():
            names[-1] = "label"
        return header(tuple(names), "", COLUMNS, WORDS, delimiter)

    def event(self, header: Header, words: tuple[str, ...], numbers: list[float], line: Line) -> Event:
        when, protocol, src, src_end, direction, dst, dst_end, state, label = (word.strip() for word in words)
        if protocol == "man":
            raise BadRecordError("a management record of Argus, not a flow")
        start = self._time(when)
        proto = ra.protocol(protocol)
        src_port, dst_port = ra.ports(proto, src_end, dst_end)
        src_seen, dst_seen, completed = _flags(state) if proto == TCP else (0, 0, NAN)
        lone = numbers[header.numbers.index("packets")] == 1.0 and dst_seen == 0
        turned = direction in BACK or (lone and proto == TCP and src_seen & (SYN | ACK) == SYN | ACK)
        both = direction in BOTH or (proto == TCP and src_seen > 0 and dst_seen > 0)
        if not protocol:
            src_seen = dst_seen = UNSEEN
        elif turned:
            src_seen, dst_seen = dst_seen, src_seen
            completed = completion(src_seen, dst_seen) if "_" in state else completed
        numbers += (NAN if proto is None else proto, turned, both, src_seen, dst_seen, completed)
        ends = [(_ip(src), src_port), (_ip(dst), dst_port)]
        src_of, dst_of = reversed(ends) if turned else ends
        family, family_raw, opinion = verdict(label)
        row_id = self.id_of(line, has_time=True)
        return self.flow(row_id, (start, start), src_of, dst_of, proto, (family_raw, opinion), family)

    def emit(self, header: Header, events: list[Event], numbers: F64, records: list[bytes], out: Parsed) -> None:
        flags = dict(zip(self.worded, numbers[:, len(header.numbers) :].T, strict=True))
        column = columns(header.numbers, numbers[:, : len(header.numbers)])
        seconds = sized(len(events), column.get("duration_s"))
        forward, backward = sides(column, flags["turned"] == 1.0, flags["both"] == 1.0, len(events))
        blobs = pack_rows(featured(flags, seconds, column["packets"], forward, backward))
        extras = extra(column, flags["turned"] == 1.0, np.isnan(forward))
        for event, record, blob, numbers_of, s in zip(events, records, blobs, extras, seconds.tolist(), strict=True):
            if 0.0 <= s < 1e9:
                event.ts = event.ts_start + round(s * NS)
            event.extra = numbers_of
            out.events.append(FeaturedEvent(event, blob, record))

    def _time(self, text: str) -> int:
        return iso_ns(text.replace("/", "-"), self._zone) if "/" in text else epoch_ns(text)


def sides(column: dict[str, F64], turned: Flags, both: Flags, n: int) -> tuple[F64, F64]:
    """Packets forward and backward, missing where the row does not say for certain which side sent how many."""
    total, src = column["packets"], sized(n, column.get("src_packets"))
    size, src_size = column["frame_bytes"], sized(n, column.get("src_frame_bytes"))
    src = np.where(np.isnan(src) & (size == src_size), total, src)  # no byte from the other side
    src = np.where(np.isnan(src) & (total == 2.0) & both, 1.0, src)
    src = np.where(np.isnan(src) & (total == 1.0), 1.0, src)
    src = np.where(src <= total, src, np.nan)
    dst = total - src
    return np.where(turned, dst, src), np.where(turned, src, dst)


def featured(flags: dict[str, F64], seconds: F64, packets: F64, forward: F64, backward: F64) -> F32:
    """float32 [n, 105]."""
    features = empty(len(seconds))

    def put(name: str, values: F64) -> None:
        features[:, INDEX[name]] = values

    proto = flags["proto"]
    put("protocol_number", proto)
    put("flow_duration", seconds)
    put("total_forward_packets", forward)
    put("total_backward_packets", backward)
    with np.errstate(all="ignore"):
        rate = np.where(seconds > 0.0, packets / seconds, np.where(seconds == 0.0, packets * 0.0, np.nan))
        put("flow_packets_per_second", np.where(rate <= FLOAT32_MAX, rate, np.nan))
        put("flow_inter_arrival_time_mean", np.where(packets > 1.0, seconds * 1e6 / (packets - 1.0), np.nan))
    # Of other protocols than TCP: 1 where both sides spoke.
    put(
        "flow_completion_rate", np.where(proto == TCP, flags["completion"], np.where(flags["both"] == 1.0, 1.0, np.nan))
    )
    give_absent(features, flags["src_flags"], flags["dst_flags"])
    derive(features)
    return features


def extra(column: dict[str, F64], turned: Flags, unsplit: Flags) -> list[dict[str, float]]:
    """The source's own numbers of each row, as far as it has them."""
    total = column["frame_bytes"]
    src = sized(len(total), column.get("src_frame_bytes"))
    dst = np.where(total >= src, total - src, np.nan)
    tos = [sized(len(total), column.get(name)) for name in ("src_tos", "dst_tos")]
    named = {
        "frame_bytes_toserver": np.where(turned, dst, src),
        "frame_bytes_toclient": np.where(turned, src, dst),
        "frame_bytes": np.where(np.isnan(src), total, np.nan),
        "packets": np.where(unsplit, column["packets"], np.nan),
        "tos_toserver": np.where(turned, tos[1], tos[0]),
        "tos_toclient": np.where(turned, tos[0], tos[1]),
    }
    rows = zip(*(values.tolist() for values in named.values()), strict=True)
    return [{name: value for name, value in zip(named, row, strict=True) if value == value} for row in rows]


@lru_cache(maxsize=4096)
def verdict(label: str) -> tuple[str, str, Classification]:
    """family, family_raw, classification of 'flow=From-Botnet-V42-TCP-CC6-Plain-HTTP' and its like."""
    if not label.startswith("flow="):
        raw, classification = judged(label, "")
        return "", raw, classification
    words = label.removeprefix("flow=").lower().split("-")
    kind = words[1] if words[0] in ("from", "to") and len(words) > 1 else words[0]
    if kind in ("normal", "benign", "legitimate"):
        return "Normal", label, "BENIGN"
    if kind not in ("botnet", "malware"):
        return UNKNOWN, label, "UNKNOWN"
    if any(map(_COMMAND.fullmatch, words)):
        return "C2", label, "MALICIOUS"
    if "spam" in words:
        return "Spam", label, "MALICIOUS"
    if "ddos" in words:
        return "DDoS", label, "MALICIOUS"
    return kind.title(), label, "MALICIOUS"


@lru_cache(maxsize=4096)
def _flags(state: str) -> tuple[int, int, float]:
    """The flags that each side's packets had, UNSEEN where the state is a word, and flow_completion_rate."""
    src, between, dst = state.partition("_")
    if not between:
        return UNSEEN, UNSEEN, ra.STATES.get(state, NAN)
    seen = bits_of(src), bits_of(dst)
    return (*seen, completion(*seen)) if UNSEEN not in seen else (UNSEEN, UNSEEN, NAN)


def _cells(record: bytes) -> tuple[list[str], str]:
    """The cells of a line, and what is between them."""
    delimiter = "\t" if b"\t" in record else ","
    return cells_of(record, delimiter), delimiter


def _ip(text: str) -> str:
    """'' of a hardware address: ARP and LLC have no other."""
    return "" if _MAC.fullmatch(text) else address(text)[0]
