"""UNSW-NB15 tables: the training and testing sets (45 columns), and the four raw files (49 columns, no header).

Always true
  - sbytes and dbytes are Argus's: whole frames. They go to event.extra, and the byte features stay missing; smean and
    the loads follow from them and are not read. Jitter is no deviation of gaps: extra, too.
  - sinpkt is the mean gap of the source's packets in ms: where only the source sent it is nearly always the flow's own,
    which is taken then. Argus counts some gaps twice: where they add up to more than the flow lasted it is missing.
  - Rows with Stime begin then; ts is that plus dur, whole seconds and the fraction of dur. Rows without a time have
    ts 0, and ids by their place in the file.
"""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np

from engine.errors import BadRecordError
from engine.features import F32, INDEX, empty, pack_rows
from engine.flows.derived import F64, derive
from engine.normalize import TCP, address
from engine.sources import ra
from engine.sources.base import Parsed
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
)
from engine.sources.tcpflags import UNSEEN, give_absent
from engine.sources.times import NS, epoch_ns
from ipc.event import Event, FeaturedEvent

# feature: the normalised names of its column.
FEATURES: dict[str, Names] = {"flow_duration": ("dur",), "total_forward_packets": ("spkts",),
                              "total_backward_packets": ("dpkts",)}  # fmt: skip
GAPS_MS: dict[str, Names] = {"forward": ("sinpkt", "sintpkt"), "backward": ("dinpkt", "dintpkt")}  # the mean of a side
# The source's own numbers outside the 105, by our name.
EXTRA: dict[str, Names] = {
    "frame_bytes_toserver": ("sbytes",), "frame_bytes_toclient": ("dbytes",), "ttl_toserver": ("sttl",),
    "ttl_toclient": ("dttl",), "lost_packets_toserver": ("sloss",), "lost_packets_toclient": ("dloss",),
    "jitter_ms_toserver": ("sjit",), "jitter_ms_toclient": ("djit",), "tcp_window_toserver": ("swin",),
    "tcp_window_toclient": ("dwin",), "tcp_rtt_s": ("tcprtt",), "syn_ack_s": ("synack",), "ack_data_s": ("ackdat",),
    "transaction_depth": ("transdepth",), "response_body_bytes": ("responsebodylen", "resbdylen"),
}  # fmt: skip
COLUMNS = {**FEATURES, **GAPS_MS, **EXTRA}
WORDS = (
    ("proto",), ("state",), ("service",), ("attackcat",), ("label",), ("srcip",), ("sport",), ("dstip",), ("dsport",),
    ("stime",),
)  # fmt: skip
REQUIRED = {"proto", "state", "dur", "spkts", "dpkts", "sbytes", "dbytes", "sttl", "dttl"}
RAW = (
    "srcip,sport,dstip,dsport,proto,state,dur,sbytes,dbytes,sttl,dttl,sloss,dloss,service,sload,dload,spkts,dpkts,swin,"
    "dwin,stcpb,dtcpb,smeansz,dmeansz,transdepth,resbdylen,sjit,djit,stime,ltime,sintpkt,dintpkt,tcprtt,synack,ackdat,"
    "issmipsports,ctstatettl,ctflwhttpmthd,isftplogin,ctftpcmd,ctsrvsrc,ctsrvdst,ctdstltm,ctsrcltm,ctsrcdportltm,"
    "ctdstsportltm,ctdstsrcltm,attackcat,label"
)


class UnswAdapter(TableAdapter):
    format = "unsw"
    title = "UNSW-NB15"
    worded = ("proto", "flags", "completion")

    @classmethod
    def header_of(cls, record: bytes) -> Header | None:
        names = tuple(map(normalised, cells_of(record)))
        return header(names, "", COLUMNS, WORDS) if REQUIRED.issubset(names) else None

    @classmethod
    def implied(cls, record: bytes) -> Header | None:
        names, cells = tuple(RAW.split(",")), cells_of(record)
        if len(cells) != len(names):
            return None
        row = dict(zip(names, cells, strict=True))
        try:
            ip_address(row["srcip"].strip()), ip_address(row["dstip"].strip())
            sure = epoch_ns(row["stime"]) <= epoch_ns(row["ltime"]) and row["label"].strip() in ("0", "1")
        except (BadRecordError, ValueError):
            return None
        return header(names, "", COLUMNS, WORDS) if sure else None

    def event(self, header: Header, words: tuple[str, ...], numbers: list[float], line: Line) -> Event:
        protocol, state, service, attack, label, src, src_end, dst, dst_end, stime = words
        proto, tcp = ra.protocol(protocol), protocol.strip().lower() == "tcp"
        numbers += (
            NAN if proto is None else proto,
            UNSEEN if tcp or proto is None else 0,
            ra.STATES.get(state.strip().upper(), NAN) if tcp else NAN,
        )
        start = epoch_ns(stime) if stime.strip() not in MISSING else 0
        src_port, dst_port = ra.ports(proto, src_end, dst_end)
        row_id = self.id_of(line, has_time=bool(start))
        src_of, dst_of = (address(src)[0], src_port), (address(dst)[0], dst_port)
        text = "" if service.strip() in MISSING else service.strip()
        return self.flow(row_id, (start, start), src_of, dst_of, proto, judged(attack, label), text=text)

    def emit(self, header: Header, events: list[Event], numbers: F64, records: list[bytes], out: Parsed) -> None:
        column = columns(header.numbers, numbers[:, : len(header.numbers)])
        proto, flags, completion = numbers[:, len(header.numbers) :].T
        features = featured(column, proto, flags, completion)
        extras = [(name, column[name].tolist()) for name in EXTRA if name in column]
        seconds = column["flow_duration"].tolist()
        for i, (event, record, blob) in enumerate(zip(events, records, pack_rows(features), strict=True)):
            if event.ts_start and 0.0 <= seconds[i] < 1e9:
                event.ts = event.ts_start + round(seconds[i] * NS)
            event.extra = {name: values[i] for name, values in extras if values[i] == values[i]}
            out.events.append(FeaturedEvent(event, blob, record))


def featured(column: dict[str, F64], proto: F64, flags: F64, completion: F64) -> F32:
    """float32 [n, 105]."""
    features = empty(len(proto))
    features[:, INDEX["protocol_number"]] = proto
    for name in FEATURES:
        features[:, INDEX[name]] = column[name]
    with np.errstate(divide="ignore", invalid="ignore"):
        duration_us = column["flow_duration"] * 1e6
        for side, other in (("forward", "backward"), ("backward", "forward")):
            packets, alone = column[f"total_{side}_packets"], column[f"total_{other}_packets"] == 0.0
            given_us = sized(len(proto), column.get(side)) * 1e3
            gap_us = np.where(alone & (packets > 1.0), duration_us / (packets - 1.0), given_us)
            total_us = gap_us * (packets - 1.0)
            # Printed to the ns and the us: the sum may be that much too long.
            sound = (packets > 1.0) & (total_us <= duration_us * 1.001 + 1.0) & ((gap_us > 0.0) | (duration_us == 0.0))
            features[:, INDEX[f"{side}_inter_arrival_time_mean"]] = np.where(sound, gap_us, np.nan)
            features[:, INDEX[f"{side}_inter_arrival_time_total"]] = np.where(sound, total_us, np.nan)
        # A state says nothing of other protocols that their packets do not say.
        features[:, INDEX["flow_completion_rate"]] = np.where(proto == TCP, completion, np.nan)
    give_absent(features, flags, flags)
    derive(features)
    return features
