"""aRGus / ML Defender CSV v1.0: 127 columns and no header, one file a day, each row signed.

Always true
  - COLUMNS is the one table of what each number is; a row with more or fewer columns, or a cell that is no number
    where one belongs, is a Reject. -9999 and whatever is not finite means missing.
  - Where a key is configured, a row counts only if its last column is the HMAC-SHA256 of the bytes before it.
  - timestamp_ns is the end of the flow (it is written when the flow is judged); ts_start is that minus its duration.
  - A confidence is that of the prediction beside it. `divergence` is the source's own and goes to event.extra; the
    event's discrepancy follows from the verdicts (engine/normalize.py).
"""

from __future__ import annotations

import hmac
from functools import lru_cache
from math import isfinite
from operator import itemgetter
from typing import Any

import numpy as np

from engine.errors import BadRecordError
from engine.families import FAMILIES, NORMAL, UNKNOWN, canonical, key
from engine.features import INDEX, NAMES, empty, pack
from engine.flows.derived import DURATION_US_MAX, F64, FLOAT32_MAX, IDLE_US, derive
from engine.normalize import ICMP, ICMP6, MISSING_SENTINEL, address, score
from engine.sources.base import Parsed
from engine.sources.eve import protocol
from engine.sources.lines import BOM, Line, LineAdapter, event_id
from engine.sources.table import split
from ipc.event import Classification, Decision, Event, FeaturedEvent, Verdict

BLOCK_ROWS = 1_024
COLUMN_COUNT = 127
SNIFF_LINES = 8
TS_NS_MAX = (1 << 63) - 1
SENTINEL = str(int(MISSING_SENTINEL))
HMAC_MISMATCH = "its HMAC does not match"

# Columns 0 to 13.
(TIME, ID, SRC, DST, SRC_PORT, DST_PORT, PROTOCOL, CLASS, CONFIDENCE, CATEGORY, FAST, ML, DIVERGENCE, DECISION) = range(
    14
)
# Columns 14 to 115: the feature of each. 14-74 are those from total_forward_packets to idle_mean, 76-115 the groups
# DDoS, Ransomware, Traffic and Internal, all in the order of features.tsv; 75 is the duration in us.
FIRST = 14
COLUMNS: tuple[str, ...] = (*NAMES[4:65], "flow_duration", *NAMES[65:105])
DURATION = COLUMNS.index("flow_duration")
MEASURED = COLUMNS[:62]  # of these none can be negative; the groups are the source's own scores
# Columns 116 to 125.
ENGINES: tuple[tuple[str, int], ...] = (
    ("level1", 116), ("ddos", 118), ("ransomware", 120), ("traffic", 122), ("internal", 124),
)  # fmt: skip
# What is read as a number, in this order: COLUMNS, the scores of a row, how sure each engine is.
SCORES: tuple[tuple[str, int], ...] = (
    ("fast_score", FAST), ("ml_score", ML), ("confidence", CONFIDENCE), ("divergence", DIVERGENCE),
)  # fmt: skip
NUMBERS = (
    *((name, FIRST + i) for i, name in enumerate(COLUMNS)), *SCORES,
    *((f"confidence of {name}", at + 1) for name, at in ENGINES),
)  # fmt: skip
_pick = itemgetter(*(at for _, at in NUMBERS))

assert FIRST + len(COLUMNS) == ENGINES[0][1] and len(set(COLUMNS)) == len(COLUMNS) == 102

GAPS = {side: tuple(n for n in MEASURED if n.startswith(f"{side}_inter_arrival")) for side in
        ("flow", "forward", "backward")}  # fmt: skip
BULKS = tuple(n for n in MEASURED if "_bulk" in n and not n.endswith("rate"))

BENIGN_WORDS = frozenset({"benign", "normal", "legitimate", "clean", "noattack", "nopressure", "noanomaly", "0"})
SUSPICIOUS_WORDS = frozenset({"suspicious", "suspiciousactivity", "potentialattack", "anomaly", "anomalous"})
MALICIOUS_WORDS = frozenset({"malicious", "attack", "threat", "1"})
THREATS = frozenset(family.name for family in FAMILIES) - {NORMAL, UNKNOWN}
DECISIONS: dict[str, Decision] = {
    "allow": "ALLOW", "allowed": "ALLOW", "accept": "ALLOW", "pass": "ALLOW", "permit": "ALLOW",
    "drop": "DROP", "dropped": "DROP", "block": "DROP", "blocked": "DROP", "deny": "DROP", "reject": "DROP",
    "quarantine": "DROP", "isolate": "DROP",
    "alert": "ALERT", "monitor": "ALERT", "log": "ALERT", "investigate": "ALERT",
}  # fmt: skip


class ArgusAdapter(LineAdapter):
    format = "argus"

    @classmethod
    def sniff(cls, head: bytes, file_name: str) -> bool:
        return any(_looks_so(line) for line in head.removeprefix(BOM).split(b"\n", SNIFF_LINES)[:SNIFF_LINES])

    def read(self, lines: list[Line], out: Parsed) -> None:
        for start in range(0, len(lines), BLOCK_ROWS):
            self._block(lines[start : start + BLOCK_ROWS], out)

    def _block(self, lines: list[Line], out: Parsed) -> None:
        events: list[tuple[Event, bytes]] = []
        numbers: list[list[float]] = []
        for line in lines:
            try:
                cells = cells_of(line.record, COLUMN_COUNT, self.spec.hmac_key)
                values = _floats(cells)
                event = self._event(cells, values, line)
            except BadRecordError as e:
                out.rejects.append(self.reject(line.offset, e.reason, line.record))
                continue
            events.append((event, line.record))
            numbers.append(values)
        if not events:
            return
        features = featured(np.array(numbers, np.float64)[:, : len(COLUMNS)], [event.proto for event, _ in events])
        durations_s = features[:, INDEX["flow_duration"]].tolist()
        for (event, record), row, values, seconds in zip(events, features, numbers, durations_s, strict=True):
            if isfinite(seconds):
                event.ts_start = max(0, event.ts - round(values[DURATION] * 1_000))
            out.events.append(FeaturedEvent(event, pack(row), record))

    def _event(self, cells: list[str], numbers: list[float], line: Line) -> Event:
        spec = self.spec
        fast, ml, confidence, divergence, *sure = numbers[len(COLUMNS) :]
        ts = whole("timestamp", cells[TIME], TS_NS_MAX)
        if ts is None:
            raise BadRecordError("no timestamp")
        proto = protocol(cells[PROTOCOL].strip())
        src_port = whole("source port", cells[SRC_PORT], 65_535)
        dst_port = whole("destination port", cells[DST_PORT], 65_535)
        if proto in (ICMP, ICMP6) and not (src_port or dst_port):
            src_port = dst_port = None  # not told: type and code are what stands there elsewhere
        verdicts = (verdict(name, cells[at], share) for (name, at), share in zip(ENGINES, sure, strict=True))
        extra = {"confidence": confidence, "divergence": divergence}
        return Event(
            event_id=cells[ID].strip() or event_id(spec.sensor, "flow", line.record, line.ordinal),
            source=spec.name,
            sensor=spec.sensor,
            ts=ts,
            ts_start=ts,
            src_ip=address(cells[SRC])[0],
            dst_ip=address(cells[DST])[0],
            src_port=src_port,
            dst_port=dst_port,
            proto=proto,
            classification=judged(cells[CLASS]),
            family_raw=cells[CATEGORY].strip(),
            fast_score=_share("fast_score", fast),
            ml_score=_share("ml_score", ml),
            verdicts=[v for v in verdicts if v is not None],
            decision=DECISIONS.get(key(cells[DECISION]), ""),
            extra={name: value for name, value in extra.items() if isfinite(value) and value != MISSING_SENTINEL},
        )


def featured(numbers: F64, protocols: list[int | None]) -> Any:
    """float32 [n, 105] from float64 [n, len(COLUMNS)] in the source's units."""
    with np.errstate(all="ignore"):
        numbers = np.where((np.abs(numbers) <= FLOAT32_MAX) & (numbers != MISSING_SENTINEL), numbers, np.nan)
        column = dict(zip(COLUMNS, numbers.T, strict=True))
        for name in MEASURED:
            column[name] = np.where(column[name] >= 0.0, column[name], np.nan)
        us = column["flow_duration"]
        column["flow_duration"] = np.where(us <= DURATION_US_MAX, us / 1e6, np.nan)
        # The mean of nothing is missing, not 0.
        forward, backward = column["total_forward_packets"], column["total_backward_packets"]
        for side, n in (("flow", forward + backward), ("forward", forward), ("backward", backward)):
            for name in GAPS[side]:
                column[name] = np.where(n < 2.0, np.nan, column[name])
        for name in BULKS:
            column[name] = np.where(column[name] > 0.0, column[name], np.nan)
        column["idle_mean"] = np.where(column["idle_mean"] > IDLE_US, column["idle_mean"], np.nan)
        active = column["active_mean"]
        column["active_mean"] = np.where((active == 0.0) & (column["flow_duration"] > 0.0), np.nan, active)
        features = empty(len(numbers))
        features[:, INDEX["protocol_number"]] = [np.nan if p is None else p for p in protocols]
        for name, values in column.items():
            features[:, INDEX[name]] = values
        derive(features)
    return features


def cells_of(record: bytes, count: int, hmac_key: bytes) -> list[str]:
    """The `count` columns of a row, the last of which signs it. Raises BadRecordError."""
    text = record.decode()
    cells = split(text)
    if len(cells) != count:
        raise BadRecordError(f"{len(cells)} columns, a row has {count}")
    if hmac_key:
        said, _, sign = record.rpartition(b",")
        expected = hmac.digest(hmac_key, said, "sha256").hex().encode()
        if not hmac.compare_digest(expected, sign.strip().lower()):
            raise BadRecordError(HMAC_MISMATCH)
    return cells


def verdict(engine: str, prediction: str, confidence: float) -> Verdict | None:
    """What one model said; None where it did not run, or said nothing of how sure it is."""
    prediction = prediction.strip()
    share = _share("confidence", confidence)
    if share is None or not prediction or prediction.startswith(SENTINEL):
        return None
    opinion = judged(prediction)
    if engine == "traffic" and prediction[:1].isdigit():
        opinion = "UNKNOWN"  # the number of a kind of traffic, not of a threat
    return Verdict(engine, opinion, share, "STAT_ANOMALY" if opinion in ("MALICIOUS", "SUSPICIOUS") else "UNKNOWN")


@lru_cache(maxsize=4096)
def judged(word: str) -> Classification:
    """The verdict in a word: of a class, a family of attacks, or 0 and 1; UNKNOWN where it says nothing of a threat."""
    word = word.strip()
    plain = key(word.partition(".")[0] if word[:1].isdigit() else word)
    if plain in BENIGN_WORDS:
        return "BENIGN"
    if plain in SUSPICIOUS_WORDS:
        return "SUSPICIOUS"
    if plain in MALICIOUS_WORDS or canonical(word) in THREATS:
        return "MALICIOUS"
    return "UNKNOWN"


def whole(name: str, cell: str, largest: int) -> int | None:
    """A whole number, None of an empty cell or the sentinel. Raises BadRecordError."""
    cell = cell.strip()
    if not cell or cell == SENTINEL:
        return None
    if not (cell.isascii() and cell.isdigit() and len(cell) <= 19 and int(cell) <= largest):
        raise BadRecordError(f"{name} is not a whole number in 0..{largest}")
    return int(cell)


def _looks_so(line: bytes) -> bool:
    cells = line.rstrip(b"\r").split(b",")
    sign = cells[-1].strip().lower()
    return (
        len(cells) == COLUMN_COUNT
        and cells[TIME].isdigit()
        and 16 <= len(cells[TIME]) <= 19
        and (not sign or (len(sign) == 64 and not sign.strip(b"0123456789abcdef")))
    )


def _floats(cells: list[str]) -> list[float]:
    picked = _pick(cells)
    try:
        return list(map(float, picked))
    except ValueError:
        return [_float(name, cell) for (name, _), cell in zip(NUMBERS, picked, strict=True)]


def _float(name: str, cell: str) -> float:
    try:
        return float(cell) if cell.strip() else float("nan")
    except ValueError as e:
        raise BadRecordError(f"the column of {name} is not a number") from e


def _share(name: str, value: float) -> float | None:
    return score(name, value) if isfinite(value) else None
