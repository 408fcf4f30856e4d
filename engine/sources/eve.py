"""Suricata EVE JSON: flows and alerts become events; the text of dns, http, tls and fileinfo joins its flow.

Always true
  - A flow record comes last; what was said of its flow_id before, in this file or an older one, waits for it within
    the bounds of engine/sources/join.py. A flow whose text is gone says so in extra.text_missing.
  - Flow ids are a Suricata process's own, of 51 bits, nearly random. Where records name their sensor (`host`), it
    belongs to the id, so that logs of several sensors may lie in one directory.
  - `resume_offset` is the first record that still waits, so that a restart joins the same text again.
  - An alert is about its flow, so its ends are those of the flow, initiator first; what fired it may be an answer
    (extra.to_client). Suricata 7 names the flow's ends or the direction; without either they are the packet's.
  - Bytes in EVE count whole frames, not payload: they go to event.extra, and the byte features stay missing.
  - Flags are those of packets that Suricata's TCP engine followed. Where it made no session (no `state`) it saw none,
    and "00" says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import tzinfo
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct
from msgspec.json import Decoder

from engine.errors import BadRecordError
from engine.features import INDEX, empty, pack_rows
from engine.flows.derived import derive
from engine.limits import RECORD_BYTES_MAX
from engine.normalize import TEXT_MAX, address
from engine.sources.base import Parsed, SourceSpec
from engine.sources.join import Join, Marks, Uid
from engine.sources.lines import Line, LineAdapter, event_id
from engine.sources.tcpflags import UNSEEN, give_absent
from engine.sources.tcpflags import completion as completion_of
from engine.sources.times import NS, iso_ns, zone
from ipc.event import Classification, Decision, Event, FeaturedEvent, Verdict
from ipc.messages import Reject

ARRAY_BYTES_MAX = 64 << 20  # one JSON array instead of lines is held whole
ARRAY_REJECTS_MAX = 65_536  # of one array
BLOCK_ROWS = 1_024

PROTOCOLS = {
    "TCP": 6, "UDP": 17, "ICMP": 1, "ICMPV4": 1, "IPV6-ICMP": 58, "ICMPV6": 58, "SCTP": 132, "GRE": 47, "ESP": 50,
    "AH": 51, "IPV6": 41, "IGMP": 2, "IP": 0, "IPV4": 4, "IPIP": 4, "PIM": 103, "OSPF": 89, "VRRP": 112,
}  # fmt: skip
TEXT_KINDS = frozenset({"dns", "http", "tls", "fileinfo"})
DECISIONS: dict[str, Decision] = {"allowed": "ALERT", "blocked": "DROP", "drop": "DROP", "reject": "DROP"}
SEVERITIES: dict[int, tuple[Classification, float]] = {
    1: ("MALICIOUS", 0.9),
    2: ("SUSPICIOUS", 0.7),
    3: ("SUSPICIOUS", 0.4),
}

# What a category (Suricata's classification.config) says for certain about the family; the others say too little.
CATEGORIES = {
    "detectionofanetworkscan": "PortScan",
    "attempteddenialofservice": "DoS",
    "denialofservice": "DoS",
    "detectionofadenialofserviceattack": "DoS",
    "webapplicationattack": "WebAttack",
    "malwarecommandandcontrolactivitydetected": "C2",
    "domainobservedusedforc2detected": "C2",
    "anetworktrojanwasdetected": "Malware",
    "executablecodewasdetected": "Shellcode",
    "cryptocurrencyminingactivitydetected": "Cryptomining",
    "possiblesocialengineeringattempted": "Phishing",
    "exploitkitactivitydetected": "Exploit",
    "attempttologinbyadefaultusernameandpassword": "BruteForce",
    "attemptedadministratorprivilegegain": "Exploit",
    "attempteduserprivilegegain": "Exploit",
}
# The class of an Emerging Threats signature is its second word.
SIGNATURE_CLASSES = {
    "SCAN": "PortScan", "DOS": "DoS", "WORM": "Worm", "SHELLCODE": "Shellcode", "PHISHING": "Phishing",
    "COINMINER": "Cryptomining", "EXPLOIT": "Exploit", "EXPLOIT_KIT": "Exploit", "SQL": "WebAttack",
    "WEB_SERVER": "WebAttack", "WEB_SPECIFIC_APPS": "WebAttack", "CNC": "C2", "TROJAN": "Malware", "MALWARE": "Malware",
}  # fmt: skip


# Of an array of objects: what begins it, what comes after an object, and the next brace outside of strings. Possessive,
# so that hostile bytes make them take neither memory nor a second look.
_FIRST = re.compile(rb"(?:\xef\xbb\xbf)?+\s*+\[\s*+([{\]])")
_NEXT = re.compile(rb"\s*+(?:,\s*+{|\])")
_BRACE = re.compile(rb'[^"{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}]*+)*+([{}])', re.DOTALL)
_TIMESTAMP = re.compile(rb'"timestamp"\s*:\s*"([^"]{1,64})"')
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class FlowPart(Struct):
    pkts_toserver: Count | None = None
    pkts_toclient: Count | None = None
    bytes_toserver: Count | None = None
    bytes_toclient: Count | None = None
    start: str = ""
    end: str = ""
    alerted: bool = False
    src_ip: str = ""  # of an alert's flow, as the flow began
    dest_ip: str = ""
    src_port: int | None = None
    dest_port: int | None = None


class TcpPart(Struct):
    state: str = ""
    tcp_flags: str = ""
    tcp_flags_ts: str = ""  # of each side: to server, to client
    tcp_flags_tc: str = ""


class AlertPart(Struct):
    action: str = ""
    signature_id: Count = 0
    signature: str | None = ""
    category: str | None = ""
    severity: int = 0
    metadata: Any = None


class Record(Struct):
    """What is read of a record; everything else is passed over."""

    event_type: str
    timestamp: str = ""
    flow_id: int | None = None
    src_ip: str = ""
    dest_ip: str = ""
    src_port: int | None = None
    dest_port: int | None = None
    proto: str | int = ""
    vlan: list[int] | int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    app_proto: str = ""
    direction: str = ""  # of the packet that an alert is about: to_server or to_client
    host: Any = None
    flow: FlowPart | None = None
    tcp: TcpPart | None = None
    alert: AlertPart | None = None
    dns: Any = None
    http: Any = None
    tls: Any = None
    fileinfo: Any = None


class EveAdapter(LineAdapter):
    format = "eve"
    joins = True

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self._zone = zone(spec.timezone)
        self._decode = Decoder(Record, strict=False).decode  # what a log went through may have put numbers in quotes
        self._join = spec.join if isinstance(spec.join, Join) else Join(spec.join_pending_max)
        self._marks = Marks()  # texts that no flow has taken
        self._array: bytearray | None = None  # the file is one JSON array: its bytes so far
        self._array_checked = False
        self._array_read = False
        self.ignored = self._join.ignored  # records by event_type

    @classmethod
    def sniff(cls, head: bytes, file_name: str) -> bool:
        head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        return head[:1] in (b"{", b"[") and b'"event_type"' in head and b'"timestamp"' in head

    def feed(self, data: bytes, offset: int) -> Parsed:
        if self._array is None and not self._array_checked:
            begin = data.removeprefix(b"\xef\xbb\xbf").lstrip()
            self._array_checked = bool(begin) or offset > 0
            if offset == 0 and begin[:1] == b"[":
                self._array = bytearray()
        if self._array is None:
            return super().feed(data, offset)
        if len(self._array) <= ARRAY_BYTES_MAX:
            self._array += data
        return Parsed([], [])

    def end(self, out: Parsed) -> None:
        if self._array is not None and not self._array_read:
            self._array_read = True
            for lines in self._elements(bytes(self._array), out.rejects):
                self.read(lines, out)
            out.rejects.sort(key=lambda reject: reject.offset)

    @property
    def resume_offset(self) -> int:
        if self._array is not None:  # is read as a whole or not at all
            return len(self._array) if self._array_read and not self._marks else 0
        return next(iter(self._marks.values()), super().resume_offset)

    def read(self, lines: list[Line], out: Parsed) -> None:
        flows: list[tuple[FeaturedEvent, Record]] = []
        for line in lines:
            try:
                record = self._decode(line.record)
                self._record(record, line, out, flows)
            except BadRecordError as e:
                out.rejects.append(self.reject(line.offset, e.reason, line.record))
            except (msgspec.DecodeError, RecursionError) as e:
                out.rejects.append(self.reject(line.offset, f"not an EVE record: {e}", line.record))
        for start in range(0, len(flows), BLOCK_ROWS):
            _give_features(flows[start : start + BLOCK_ROWS])

    def _record(self, record: Record, line: Line, out: Parsed, flows: list[tuple[FeaturedEvent, Record]]) -> None:
        kind = record.event_type
        if kind == "flow" and record.flow is not None:
            item = self._flow(record, record.flow, line)
            flows.append((item, record))
        elif kind == "alert" and record.alert is not None:
            item = self._alert(record, record.alert, line)
            flows.append((item, record))
        elif kind in TEXT_KINDS and record.flow_id is not None:
            if words := _words(record):
                self._join.tell(_uid(record), words, self._marks, line.offset)
            return
        else:
            self.ignored[kind[:64]] += 1
            return
        out.events.append(item)

    def _flow(self, record: Record, flow: FlowPart, line: Line) -> FeaturedEvent:
        start = iso_ns(flow.start or record.timestamp, self._zone)
        end = max(start, iso_ns(flow.end, self._zone)) if flow.end else start
        event = self._event("flow", record, line, start, end)
        event.extra = _frame_counts(flow)
        if self._marks:
            self._join.advance(self._marks, line.offset)
        words = self._join.take(_uid(record)) if record.flow_id is not None else []
        if words:
            event.text = _joined(words)
        elif record.app_proto in ("http", "tls"):  # there should have been a record of it
            event.extra["text_missing"] = 1.0
        if flow.alerted:
            event.extra["alerted"] = 1.0
        return FeaturedEvent(event, raw=line.record)

    def _alert(self, record: Record, alert: AlertPart, line: Line) -> FeaturedEvent:
        at = iso_ns(record.timestamp, self._zone)
        event = self._event("alert", record, line, at, at)
        signature, category = alert.signature or "", alert.category or ""
        classification, confidence = SEVERITIES.get(alert.severity, ("SUSPICIOUS", 0.3))
        event.classification = classification
        event.verdicts = [Verdict("suricata", classification, confidence, "SIG_MATCH")]
        event.family_raw = family_of(signature, category)
        event.decision = DECISIONS.get(alert.action, "ALERT")
        event.text = _joined([signature, category, *_words(record)])
        event.technique = _techniques(alert.metadata)
        if record.flow is not None:
            event.extra = _frame_counts(record.flow)
        event.extra["signature_id"] = float(alert.signature_id)
        if record.direction == "to_client":
            event.extra["to_client"] = 1.0
        return FeaturedEvent(event, raw=line.record)

    def _event(self, kind: Any, record: Record, line: Line, start: int, end: int) -> Event:
        spec = self.spec
        proto = protocol(record.proto)
        (src_ip, src_port), (dst_ip, dst_port) = _ends(record)
        if proto in (1, 58):  # as Zeek and Community ID have it: type and code for ports
            src_port, dst_port = record.icmp_type, record.icmp_code
        for port in (src_port, dst_port):
            if port is not None and not 0 <= port <= 65_535:
                raise BadRecordError("port is not in 0..65535")
        vlan = record.vlan[0] if isinstance(record.vlan, list) and record.vlan else record.vlan
        sensor = spec.sensor or (record.host if isinstance(record.host, str) else "")
        return Event(
            event_id=event_id(spec.sensor, kind, line.record, line.ordinal),
            source=spec.name,
            sensor=sensor[:128],
            kind=kind,
            ts=end,
            ts_start=start,
            src_ip=address(src_ip)[0],
            dst_ip=address(dst_ip)[0],
            src_port=src_port,
            dst_port=dst_port,
            proto=proto,
            vlan=vlan if isinstance(vlan, int) and 0 <= vlan <= 4095 else None,
        )

    def _elements(self, data: bytes, rejects: list[Reject]) -> Iterator[list[Line]]:
        """The objects of a JSON array, BLOCK_ROWS at a time. Each stands for itself, as a line does: what comes before
        something that is no object, or before the place where the array is cut off, is read; from there on all is one
        reject. So is what comes after ARRAY_REJECTS_MAX of them, since all that an array gives is held at once."""
        if len(data) > ARRAY_BYTES_MAX:
            rejects.append(self.reject(0, f"one JSON array of more than {ARRAY_BYTES_MAX} bytes; write lines", data))
            return
        lines: list[Line] = []
        end = 0
        try:
            for begin, end in _objects(data):
                self._take(data[begin:end], begin, lines, rejects)
                if len(lines) == BLOCK_ROWS:
                    yield lines
                    lines = []
                if len(rejects) >= ARRAY_REJECTS_MAX:
                    raise BadRecordError(f"{ARRAY_REJECTS_MAX} of one JSON array were refused; its rest is not read")
        except BadRecordError as e:
            rejects.append(self.reject(end, e.reason, data[end : end + RECORD_BYTES_MAX]))
        yield lines


def _objects(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each object of a JSON array begins and ends; what is in it is not looked at. Raises BadRecordError where
    something else comes, after the objects before it."""
    found = _FIRST.match(data)
    while found is not None and found[0].endswith(b"{"):
        begin, end, depth = found.end() - 1, found.end(), 1
        while depth:
            brace = _BRACE.match(data, end)
            if brace is None:
                raise BadRecordError("not a JSON array: it ends within an object")
            end = brace.end()
            depth += 1 if brace[1] == b"{" else -1
        yield begin, end
        found = _NEXT.match(data, end)
    if found is None or data[found.end() :].strip():
        raise BadRecordError("not a JSON array of objects: its rest is not read")


def order(head: bytes, local: tzinfo) -> int:
    """How finished files are read, a flow's text before the flow: by the time of their first record."""
    found = _TIMESTAMP.search(head)
    try:
        return iso_ns(found[1].decode("ascii", "replace"), local) if found else 0
    except BadRecordError:
        return 0


def _give_features(items: list[tuple[FeaturedEvent, Record]]) -> None:
    features = empty(len(items))
    table = np.array([_numbers(item.event, record) for item, record in items], np.float64)
    features[:, _COLUMNS] = table[:, :-2]
    give_absent(features, table[:, -2], table[:, -1])
    derive(features)
    for (item, _), blob in zip(items, pack_rows(features), strict=True):
        item.features = blob


_COLUMNS = [
    INDEX[name]
    for name in (
        "protocol_number", "flow_duration", "total_forward_packets", "total_backward_packets", "flow_completion_rate",
    )
]  # fmt: skip
_NAN = float("nan")
UNFOLLOWED = (UNSEEN, UNSEEN)


def _numbers(event: Event, record: Record) -> tuple[float, ...]:
    """The cells of _COLUMNS, and the flags that were seen to server and to client: in how many packets is not said."""
    proto, flow = event.proto, record.flow
    number = _NAN if proto is None else proto
    if flow is None or event.kind != "flow":  # an alert's counts are those of the flow so far
        return number, _NAN, _NAN, _NAN, _NAN, UNSEEN, UNSEEN
    seen = (0, 0) if proto != 6 else UNFOLLOWED if record.tcp is None else _seen(record.tcp)
    duration_s = (event.ts - event.ts_start) / NS
    forward, backward = (_NAN if n is None else n for n in (flow.pkts_toserver, flow.pkts_toclient))
    return number, duration_s, forward, backward, completion(record), *seen


def _seen(tcp: TcpPart) -> tuple[int, int]:
    """The flags of each side; those of both where they are not told apart."""
    both = _flags(tcp.tcp_flags)
    if not tcp.state and not both:
        return UNFOLLOWED
    sides = _flags(tcp.tcp_flags_ts), _flags(tcp.tcp_flags_tc)
    return (both, both) if UNSEEN in sides else sides


@lru_cache(maxsize=1024)
def _flags(seen: str) -> int:
    try:
        return int(seen, 16) & 0xFF
    except ValueError:
        return UNSEEN


def completion(record: Record) -> float:
    """flow_completion_rate of TCP from Suricata's state; of other protocols it follows from the packets."""
    if record.tcp is None or protocol(record.proto) != 6:
        return _NAN
    state, flags = record.tcp.state, record.tcp.tcp_flags
    if state in ("none", "syn_sent", "syn_recv"):
        return 0.0
    if state in ("established", "fin_wait1", "fin_wait2", "close_wait", "closing", "last_ack"):
        return 0.5
    if state == "time_wait":
        return 1.0
    if state == "closed":
        sides = _flags(record.tcp.tcp_flags_ts), _flags(record.tcp.tcp_flags_tc)
        if UNSEEN not in sides:
            return completion_of(*sides)
        bits = _flags(flags)
        if bits < 0 or record.flow is None or record.flow.pkts_toclient is None:
            return _NAN
        if not bits & 0x10 or not bits & 0x02 or not record.flow.pkts_toclient:
            return 0.0
        return 1.0 if bits & 0x01 and not bits & 0x04 else 0.5
    return _NAN


@lru_cache(maxsize=1024)
def protocol(name: str | int) -> int | None:
    if isinstance(name, int):
        return name if 0 <= name <= 255 else None
    if name.isascii() and name.isdigit():
        return int(name) if len(name) <= 3 and int(name) <= 255 else None
    return PROTOCOLS.get(name.upper())


def family_of(signature: str, category: str) -> str:
    """A cautious guess; '' (Unknown) where neither the signature's class nor the category says it."""
    words = signature.upper().split(maxsplit=2)
    if len(words) > 2 and words[0] in ("ET", "ETPRO", "GPL"):
        if words[1] == "SCAN" and "BRUTE" in signature.upper():
            return "BruteForce"
        if words[1] in ("TROJAN", "MALWARE") and {"CNC", "C2"} & set(words[2].split()):
            return "C2"
        if words[1] in SIGNATURE_CLASSES:
            return SIGNATURE_CLASSES[words[1]]
    return CATEGORIES.get("".join(filter(str.isalnum, category.lower())), "")


def _ends(record: Record) -> tuple[tuple[str, int | None], tuple[str, int | None]]:
    """Address and port of the flow's initiator and of its responder."""
    src, dst, flow = (record.src_ip, record.src_port), (record.dest_ip, record.dest_port), record.flow
    if record.event_type != "alert":
        return src, dst
    if flow is not None and flow.src_ip and flow.dest_ip:
        return (flow.src_ip, flow.src_port), (flow.dest_ip, flow.dest_port)
    return (dst, src) if record.direction == "to_client" else (src, dst)


def _techniques(metadata: Any) -> list[str]:
    ids = metadata.get("mitre_technique_id") if isinstance(metadata, dict) else None
    found = ids if isinstance(ids, list) else [ids]
    return [word[:128] for word in found[:32] if isinstance(word, str)]


def _frame_counts(flow: FlowPart) -> dict[str, float]:
    both = (("frame_bytes_toserver", flow.bytes_toserver), ("frame_bytes_toclient", flow.bytes_toclient))
    return {name: float(count) for name, count in both if count is not None}


def _uid(record: Record) -> Uid:
    """Whose flow it is, and which."""
    host, flow_id = record.host, record.flow_id
    assert flow_id is not None
    return f"{flow_id} {host[:128]}" if isinstance(host, str) else flow_id


def _words(record: Record) -> list[str]:
    """The free text of a record: names, URLs, agents."""
    words: list[str] = []

    def take(part: Any, *names: str) -> None:
        if isinstance(part, dict):
            for name in names:
                value = part.get(name)
                if isinstance(value, str) and value and value not in words:
                    words.append(value[:2048])

    dns = record.dns
    for part in (dns, *_dicts(dns, "query"), *_dicts(dns, "queries"), *_dicts(dns, "answers")):
        take(part, "rrname", "rrtype", "rcode")
    take(record.http, "hostname", "url", "http_user_agent", "http_refer", "http_content_type", "http_method")
    take(record.tls, "sni", "subject", "issuerdn", "version")
    take(record.fileinfo, "filename", "magic")
    return words


def _dicts(part: Any, name: str) -> list[Any]:
    inner = part.get(name) if isinstance(part, dict) else None
    return inner[:16] if isinstance(inner, list) else []


def _joined(words: list[str]) -> str:
    return " | ".join(dict.fromkeys(word for word in words if word))[:TEXT_MAX]
