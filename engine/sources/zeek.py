r"""Zeek's logs, as tables with their #fields header, as JSON lines, and conn.log as CSV (IoT-23).

Always true
  - conn becomes flows, notice notices; dns, http and ssl are the text of their flow, joined by uid
    (engine/sources/join.py). Every other log is recognised and passed over, counted in Join.ignored.
  - ts_start is Zeek's ts, ts that plus the duration, both in its microseconds; TSV and JSON give the same event.
  - A table is read by the header above each line, wherever it begins anew; \xNN in a table is that byte.
"""

from __future__ import annotations

import csv
import re
from functools import lru_cache
from operator import itemgetter
from pathlib import PurePath
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from engine.errors import BadRecordError
from engine.families import NORMAL, UNKNOWN
from engine.features import INDEX, empty, pack
from engine.normalize import TEXT_MAX, address, icmp_answer
from engine.sources.base import Parsed, SourceSpec
from engine.sources.eve import protocol
from engine.sources.join import Join, Marks, Waiting
from engine.sources.lines import BOM, Line, LineAdapter, event_id
from engine.sources.times import NS, fraction_ns, iso_ns, zone
from engine.sources.zeek_flow import ICMP, ICMP6, NAN, TCP, Numbers, Proof, featured, proof, seconds_of
from ipc.event import Classification, Event, FeaturedEvent

BLOCK_ROWS = 1_024
COUNT_MAX = (1 << 63) - 1
SECONDS_MAX = 1e9
US = 1_000  # ns

ENDS = ("ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto")
FIELDS: dict[str, tuple[str, ...]] = {
    "conn": (
        *ENDS, "service", "duration", "orig_bytes", "resp_bytes", "conn_state", "missed_bytes", "history", "orig_pkts",
        "orig_ip_bytes", "resp_pkts", "resp_ip_bytes", "local_orig", "local_resp", "tunnel_parents", "vlan", "ip_proto",
        "label", "detailedlabel",
    ),
    "notice": (*ENDS, "note", "msg", "sub", "src", "dst", "p", "n", "dropped"),
    "dns": ("ts", "uid", "query", "qtype_name", "rcode_name"),
    "http": ("ts", "uid", "method", "host", "uri", "user_agent", "status_code"),
    "ssl": ("ts", "uid", "server_name", "version", "subject", "issuer"),
}  # fmt: skip
TEXTS = frozenset({"dns", "http", "ssl"})
TEXT_OF_SERVICE = {"dns": "dns", "http": "http", "ssl": "ssl", "dtls": "ssl"}
# A log without a name is the first of these that has one of its fields.
MARKS = {
    "conn": ("conn_state",), "notice": ("note",), "http": ("trans_depth", "status_code"),
    "dns": ("trans_id", "rcode_name", "qtype_name"), "ssl": ("cipher", "established", "server_name"),
}  # fmt: skip
# Logs that are known by their file's name only, where they are JSON.
OTHER_LOGS = frozenset({
    "capture_loss", "dhcp", "known_certs", "known_hosts", "known_services", "loaded_scripts", "ocsp", "packet_filter",
    "reporter", "software", "stats", "telemetry", "weird", "x509", "analyzer", "cluster", "print",
})  # fmt: skip

# What a notice says for certain about the family.
FAMILIES = {
    "Scan::Port_Scan": "PortScan", "Scan::Address_Scan": "PortScan", "Scan::Random_Scan": "PortScan",
    "ICMP::ICMPAddressScan": "PortScan", "ICMP::TimestampScan": "PortScan", "ICMP::AddressMaskScan": "PortScan",
    "SSH::Password_Guessing": "BruteForce", "SSH::Login_By_Password_Guesser": "BruteForce",
    "FTP::Bruteforcing": "BruteForce", "HTTP::SQL_Injection_Attacker": "WebAttack",
    "HTTP::SQL_Injection_Victim": "WebAttack", "Heartbleed::SSL_Heartbeat_Attack": "Exploit",
    "Heartbleed::SSL_Heartbeat_Attack_Success": "Exploit", "Heartbleed::SSL_Heartbeat_Many_Requests": "Exploit",
    "FTP::Site_Exec_Success": "Exploit", "TeamCymruMalwareHashRegistry::Match": "Malware",
    "ATTACK::Lateral_Movement": "Infiltration", "ATTACK::Lateral_Movement_Multiple_Attempts": "Infiltration",
    "ATTACK::Discovery": "PortScan",
}  # fmt: skip
VERDICTS: dict[str, Classification] = {
    "malicious": "MALICIOUS", "benign": "BENIGN", "normal": "BENIGN", "suspicious": "SUSPICIOUS",
}  # fmt: skip

_EPOCH = re.compile(r"(\d{1,10})(?:\.(\d{1,18}))?")
_ESCAPE = re.compile(r"(?:\\x[0-9a-fA-F]{2})+|\\\\")
_SPACES = re.compile(r" {3,}")
_MARK_FIELDS = tuple(dict.fromkeys(field for fields in MARKS.values() for field in fields))
_ALL_FIELDS = tuple(dict.fromkeys(("_path", *(f for fields in FIELDS.values() for f in fields), *_MARK_FIELDS)))
_Record = msgspec.defstruct(
    "_Record",
    [(f"f{i}", Raw if name == "ts" else Any, Raw() if name == "ts" else None) for i, name in enumerate(_ALL_FIELDS)],
    rename={f"f{i}": name for i, name in enumerate(_ALL_FIELDS)},
)
_PLACE = {name: i for i, name in enumerate(_ALL_FIELDS)}
_PICK = {path: itemgetter(*(_PLACE[field] for field in fields)) for path, fields in FIELDS.items()}


class Header(NamedTuple):
    """Of a table. pick: of a line's cells and one None, those of FIELDS[path]; blank: cells that say nothing."""

    path: str
    columns: int
    pick: Any
    separator: str
    blank: dict[str, str | None]
    spaced: int  # names in the last column beyond one: IoT-23 wrote three columns into it, three spaces apart


class _Row(NamedTuple):
    """A line of conn.log, before it has features."""

    item: FeaturedEvent
    numbers: Numbers
    proof: Proof
    uid: str
    logs: tuple[str, ...]  # that should hold its text
    offset: int


class ZeekAdapter(LineAdapter):
    format = "zeek"
    joins = True

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self._zone = zone(spec.timezone)
        self._decode = Decoder(_Record).decode
        self._join = spec.join if isinstance(spec.join, Join) else Join(spec.join_pending_max, spec.join_wait_s)
        self._meta: dict[str, str] = {}  # the header under way
        self._header: Header | None = None
        self._waiting: dict[int, Waiting] = {}  # flows, by offset, in order
        self._marks = Marks()  # texts that no flow has taken
        self.ignored = self._join.ignored

    @classmethod
    def sniff(cls, head: bytes, file_name: str) -> bool:
        head = head.removeprefix(BOM).lstrip()
        first = head.partition(b"\n")[0]
        if head[:1] == b"#":
            return b"#separator" in head or b"#fields" in head
        if head[:1] != b"{":
            return first.startswith(b"ts,") and b",uid,id.orig_h," in first
        if b'"ts"' in first and any(key in first for key in (b'"uid"', b'"_path"', b'"id.orig_h"', b'"note"')):
            return True
        return PurePath(file_name).name.partition(".")[0] in OTHER_LOGS and b'"event_id"' not in first

    def prime(self, head: bytes) -> None:
        self._join.exists(self.log_of(head))

    def log_of(self, head: bytes) -> str:
        """Which log begins so; '' where it is not said. Learns the header on the way."""
        for line in head.removeprefix(BOM).split(b"\n"):
            if line[:1] == b"{":
                try:
                    return self._object(line)[0]
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    return ""
            if not self._is_header(line.removesuffix(b"\r")):
                break
        return "" if self._header is None else self._header.path

    def skip(self, data: bytes, offset: int) -> None:
        for line in self._split(data, offset, []):
            self._is_header(line.record)

    @property
    def resume_offset(self) -> int:
        own = super().resume_offset
        return min((own, *(next(iter(first), own) for first in (self._waiting, self._marks.values()))))

    # ---- joining --------------------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    @property
    def is_full(self) -> bool:
        return bool((self._waiting and self._join.flows_full) or (self._marks and self._join.texts_full))

    def settle(self, caught_up: bool, now_s: float) -> Parsed:
        over = [at for at, waiting in self._waiting.items() if self._join.is_over(waiting, caught_up, now_s)]
        return Parsed([self._joined(at) for at in over], [])

    def release(self) -> Parsed:
        return Parsed([self._joined(at) for at in list(self._waiting)], [])

    def _joined(self, offset: int) -> FeaturedEvent:
        """A flow that has waited, with what text came."""
        waiting = self._waiting.pop(offset)
        return _with_text(waiting.item, self._join.release(waiting), waiting.logs)

    # ---- reading --------------------------------------------------------------------------------------------------

    def read(self, lines: list[Line], out: Parsed) -> None:
        rows: list[_Row] = []
        for line in lines:
            try:
                self._line(line, out, rows)
            except BadRecordError as e:
                out.rejects.append(self.reject(line.offset, e.reason, line.record))
            except (msgspec.MsgspecError, RecursionError) as e:
                out.rejects.append(self.reject(line.offset, f"not a Zeek record: {e}", line.record))
            if len(rows) >= BLOCK_ROWS:
                self._emit(rows, out)
        self._emit(rows, out)

    def _line(self, line: Line, out: Parsed, rows: list[_Row]) -> None:
        record = line.record
        if record[:1] == b"{":
            path, cells, is_table = *self._object(record), False
        elif self._is_header(record):
            return
        else:
            if self._header is None:
                raise BadRecordError("no #fields header above this line")
            path, cells, is_table = self._header.path, _cells(self._header, record.decode()), True
        if path == "conn":
            rows.append(self._flow(cells, line))
            return
        self._emit(rows, out)  # one file may hold several logs
        if path == "notice":
            out.events.append(self._notice(cells, line, is_table))
        elif path in TEXTS:
            self._text(path, cells, line.offset, is_table)
        else:
            self.ignored[path[:64] or "unknown"] += 1

    def _object(self, record: bytes) -> tuple[str, tuple[Any, ...]]:
        values = msgspec.structs.astuple(self._decode(record))
        path = values[0]
        if not isinstance(path, str):
            path = next((p for p, names in MARKS.items() if any(values[_PLACE[n]] is not None for n in names)), "")
        if path not in FIELDS:
            return path, ()
        ts, *rest = _PICK[path](values)
        return path, (bytes(ts).decode().strip('"'), *rest)

    def _is_header(self, record: bytes) -> bool:
        """Does this line say how the next ones are to be read? Then that is learnt."""
        start = record[:1]
        if start == b"t" and record.startswith(b"ts,"):
            names = record.decode("utf-8", "replace").split(",")
            if "id.orig_h" not in names:
                return False
            self._header = _header(_path(names), names, ",", {"": None, "-": None, "(empty)": ""})
            return True
        if start not in (b"#", b"\t", b" ") or not (record := record.lstrip(b"\t ")).startswith(b"#"):
            return False
        key, _, value = record.decode("utf-8", "replace").partition(" " if record.startswith(b"#separator") else "\t")
        if key == "#separator":
            self._meta = {key: _unescaped(value.strip()) or "\t"}
        separator = self._meta.get("#separator", "\t")
        if separator != "\t" and key != "#separator":
            key, _, value = record.decode("utf-8", "replace").partition(separator)
        if key == "#fields":
            names = value.split(separator)
            unset, empty = self._meta.get("#unset_field", "-"), self._meta.get("#empty_field", "(empty)")
            path = self._meta.get("#path") or _path(names)
            self._join.exists(path)
            self._header = _header(path, names, separator, {empty: "", unset: None})
        elif key != "#separator":
            self._meta[key] = value
        return True

    # ---- records --------------------------------------------------------------------------------------------------

    def _flow(self, cells: tuple[Any, ...], line: Line) -> _Row:
        (
            ts, uid, orig_h, orig_p, resp_h, resp_p, proto, service, duration, orig_bytes, resp_bytes, state, missed,
            history, orig_pkts, orig_ip, resp_pkts, resp_ip, local_orig, local_resp, parents, vlan, ip_proto, label,
            detail,
        ) = cells  # fmt: skip
        start = stamp_ns(ts, self._zone)
        took = duration_ns(duration)
        event = self._event("flow", line, start, start + (took or 0), orig_h, orig_p, resp_h, resp_p, proto, ip_proto)
        event.vlan = whole("vlan", vlan, 4095)
        event.tunnel = words_of(parents)[:128]
        event.classification, event.family, event.family_raw = judged(words_of(label), words_of(detail))
        services = words_of(service)
        event.text = services
        n_orig, n_resp = count("orig_pkts", orig_pkts), count("resp_pkts", resp_pkts)
        ip_orig, ip_resp = count("orig_ip_bytes", orig_ip), count("resp_ip_bytes", resp_ip)
        numbers = Numbers(
            NAN if event.proto is None else event.proto, float(":" in event.src_ip), seconds_of(took, n_orig, n_resp),
            n_orig, n_resp, ip_orig, ip_resp, count("orig_bytes", orig_bytes), count("resp_bytes", resp_bytes),
            count("missed_bytes", missed),
        )  # fmt: skip
        event.extra = {"orig_ip_bytes": ip_orig, "resp_ip_bytes": ip_resp}
        for name, value in (("local_orig", local_orig), ("local_resp", local_resp)):
            if value is not None:
                event.extra[name] = float(value in ("T", True))
        proven = proof(words_of(history), words_of(state) if event.proto == TCP else "")
        return _Row(FeaturedEvent(event, raw=line.record), numbers, proven, words_of(uid), _logs(services), line.offset)

    def _notice(self, cells: tuple[Any, ...], line: Line, is_table: bool) -> FeaturedEvent:
        ts, _, orig_h, orig_p, resp_h, resp_p, proto, note, msg, sub, src, dst, port, n, dropped = cells
        at = stamp_ns(ts, self._zone)
        event = self._event("notice", line, at, at, src or orig_h, orig_p, dst or resp_h, resp_p or port, proto, None)
        note = words_of(note)
        event.classification, event.family, event.family_raw = "SUSPICIOUS", FAMILIES.get(note, UNKNOWN), note
        event.text = _text([note, words_of(msg), words_of(sub)], is_table)
        event.decision = "DROP" if dropped in ("T", True) else "ALERT"
        if n is not None:
            event.extra = {"n": count("n", n)}
        return FeaturedEvent(event, _protocol_only(event.proto), line.record)

    def _text(self, log: str, cells: tuple[Any, ...], offset: int, is_table: bool) -> None:
        ts, uid, *words = cells
        if uid is None:
            self.ignored[f"{log} without uid"] += 1
            return
        texts = [_text([words_of(word)], is_table) for word in words if word is not None]
        self._join.exists(log, stamp_ns(ts, self._zone))
        self._join.tell(words_of(uid), texts, self._marks, offset)

    def _event(
        self, kind: Any, line: Line, start: int, end: int,
        orig_h: Any, orig_p: Any, resp_h: Any, resp_p: Any, proto: Any, ip_proto: Any,
    ) -> Event:  # fmt: skip
        src, dst = address(words_of(orig_h))[0], address(words_of(resp_h))[0]
        number = whole("ip_proto", ip_proto, 255)
        if number is None:
            number = protocol(words_of(proto))
        src_port, dst_port = whole("id.orig_p", orig_p, 65_535), whole("id.resp_p", resp_p, 65_535)
        if number in (ICMP, ICMP6):
            number = ICMP6 if ":" in (src or dst) else ICMP
            if src_port is not None and icmp_answer(number, src_port) is not None:
                dst_port = 0  # Zeek has the type of the answer there; the code of both is 0
        spec = self.spec
        return Event(
            event_id=event_id(spec.sensor, kind, line.record, line.ordinal), source=spec.name, sensor=spec.sensor,
            kind=kind, ts=end, ts_start=start, src_ip=src, dst_ip=dst, src_port=src_port, dst_port=dst_port,
            proto=number,
        )  # fmt: skip

    def _emit(self, rows: list[_Row], out: Parsed) -> None:
        """Give the rows their features, and let go those that need not wait; `rows` is empty afterwards."""
        if not rows:
            return
        features = featured([row.numbers for row in rows], [row.proof for row in rows])
        join = self._join
        for row, values in zip(rows, features, strict=True):
            row.item.features = pack(values)
            if not join.live or not row.logs or not row.uid:
                out.events.append(_with_text(row.item, join.take(row.uid) if row.uid else [], row.logs))
                continue
            self._waiting[row.offset] = join.wait(row.uid, row.item, row.logs)
            if join.flows > join.pending_max:
                out.events.append(self._joined(next(iter(self._waiting))))
        rows.clear()


@lru_cache(maxsize=256)
def _protocol_only(number: int | None) -> bytes:
    row = empty(1)[0]
    if number is not None:
        row[INDEX["protocol_number"]] = number
    return pack(row)


def _with_text(item: FeaturedEvent, words: list[str], logs: tuple[str, ...]) -> FeaturedEvent:
    event = item.event
    if words:
        event.text = " | ".join(dict.fromkeys(word for word in (event.text, *words) if word))[:TEXT_MAX]
    elif logs:
        event.extra["text_missing"] = 1.0
    return item


def order(path: PurePath, head: bytes) -> tuple[str, str, bool, str]:
    """How finished files are read: directory by directory, each rotated period's texts before its flows."""
    period = path.name.partition(".")[2]
    is_text = ZeekAdapter(SourceSpec("zeek")).log_of(head) in TEXTS
    return str(path.parent), period if period[:1].isdigit() else "", not is_text, path.name


# ---- tables -------------------------------------------------------------------------------------------------------
def _header(path: str, names: list[str], separator: str, blank: dict[str, str | None]) -> Header:
    columns, spaced = len(names), len(names[-1].split())
    names = [*names[:-1], *names[-1].split()]
    place = {"detailedlabel" if name == "detailed-label" else name: i for i, name in enumerate(names)}
    pick = itemgetter(*(place.get(name, -1) for name in FIELDS.get(path, ("ts", "uid"))))
    return Header(path, columns, pick, separator, blank, spaced - 1)


def _cells(header: Header, line: str) -> tuple[Any, ...]:
    cells: list[str | None]
    if header.separator == "," and '"' in line:
        try:
            cells = [*next(csv.reader([line]))]
        except (csv.Error, StopIteration) as e:
            raise BadRecordError("a quoted column does not end") from e
    else:
        cells = [*line.split(header.separator)]
    if len(cells) != header.columns:
        raise BadRecordError(f"{len(cells)} columns, the header has {header.columns}")
    if header.spaced:
        last = _SPACES.split(cells.pop() or "")
        cells += (last + [""] * header.spaced)[: header.spaced + 1]
    cells.append(None)
    get = header.blank.get
    return tuple([get(cell, cell) if cell is not None else None for cell in header.pick(cells)])


def _path(names: list[str]) -> str:
    return next((path for path, marks in MARKS.items() if not set(marks).isdisjoint(names)), "")


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(_bytes_of, text) if "\\" in text else text


def _bytes_of(found: re.Match[str]) -> str:
    text = found[0]
    return "\\" if text == "\\\\" else bytes.fromhex(text.replace("\\x", "")).decode("utf-8", "replace")


def _text(words: list[str], is_table: bool) -> str:
    joined = " | ".join(dict.fromkeys(word for word in words if word))
    return (_unescaped(joined) if is_table else joined)[:TEXT_MAX]


# ---- values: text of a table, or what JSON has --------------------------------------------------------------------
def words_of(value: Any) -> str:
    if value is None or type(value) is str:
        return value or ""
    if isinstance(value, list):
        return ",".join(word for word in value[:32] if isinstance(word, str))
    return str(value)[:64] if isinstance(value, int | float) else ""


def count(name: str, value: Any) -> float:
    """A whole number, NaN where it is unset. Raises BadRecordError."""
    if value is None or value == "":
        return NAN
    if type(value) is str and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise BadRecordError(f"{name} is not a whole number")
    return float(value)


def whole(name: str, value: Any, largest: int) -> int | None:
    number = count(name, value)
    if number > largest:
        raise BadRecordError(f"{name} is not in 0..{largest}")
    return None if number != number else int(number)


def stamp_ns(text: str | None, local: Any) -> int:
    """Seconds since 1970 (or since the capture began), digit by digit, or ISO 8601. Raises BadRecordError."""
    found = _EPOCH.fullmatch(text or "")
    if found is None:
        return iso_ns(text or "", local)
    seconds = int(found[1])
    if seconds > COUNT_MAX // NS - 1:
        raise BadRecordError(f"{text!r} is not between 1970 and 2262")
    return seconds * NS + fraction_ns(found[2])


def duration_ns(value: Any) -> int | None:
    """In whole microseconds, as the tables have it; None where it is unset, or a clock went back."""
    if value is None or value == "":
        return None
    try:
        seconds = float(value) if type(value) in (str, int, float) else NAN
    except (ValueError, OverflowError) as e:
        raise BadRecordError("duration is not a number") from e
    if not abs(seconds) <= SECONDS_MAX:
        raise BadRecordError("duration is not a number of seconds")
    return None if seconds < 0.0 else round(seconds * 1e6) * US


@lru_cache(maxsize=4_096)
def judged(label: str, detail: str) -> tuple[Classification, str, str]:
    """Classification, family ('': the source's word says it) and the source's word of a labelled log."""
    classification = VERDICTS.get(label.lower(), "UNKNOWN")
    word = detail if detail not in ("", "-", "(empty)") else ""
    if classification == "BENIGN":
        return classification, NORMAL, word or label
    if classification == "UNKNOWN":
        return classification, UNKNOWN if label else "", word or label
    return classification, "" if word else UNKNOWN, word or label


@lru_cache(maxsize=4_096)
def _logs(services: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(TEXT_OF_SERVICE[s] for s in services.split(",") if s in TEXT_OF_SERVICE))
