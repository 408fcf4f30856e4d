"""aRGus firewall CSV: what the firewall did. Its rows are no events, they are joined to some (engine/store/actions.py).

Always true
  - Seven columns: timestamp_ms, src_ip, dst_ip, threat_type, action, confidence, hmac; a line of these names is passed
    over. A row without a source address or an action says nothing that could be joined, and is a Reject.
  - Where a key is configured, a row counts only if its last column is the HMAC-SHA256 of the bytes before it.
"""

from __future__ import annotations

from math import isfinite

from engine.errors import BadRecordError
from engine.families import clean
from engine.normalize import address, score
from engine.sources.argus import cells_of, whole
from engine.sources.base import Parsed
from engine.sources.lines import BOM, Line, LineAdapter
from ipc.event import FirewallAction

COLUMNS = ("timestamp_ms", "src_ip", "dst_ip", "threat_type", "action", "confidence", "hmac")
ACTION_MAX = 64
TS_MS_MAX = ((1 << 63) - 1) // 1_000_000
SNIFF_LINES = 8


class ArgusFirewallAdapter(LineAdapter):
    format = "argus-firewall"

    @classmethod
    def sniff(cls, head: bytes, file_name: str) -> bool:
        return any(_looks_so(line) for line in head.removeprefix(BOM).split(b"\n", SNIFF_LINES)[:SNIFF_LINES])

    def read(self, lines: list[Line], out: Parsed) -> None:
        for line in lines:
            if line.record.startswith(b"timestamp_ms,"):
                continue
            try:
                out.actions.append(self._action(line))
            except BadRecordError as e:
                out.rejects.append(self.reject(line.offset, e.reason, line.record))

    def _action(self, line: Line) -> FirewallAction:
        time, src, dst, threat, action, confidence, _ = cells_of(line.record, len(COLUMNS), self.spec.hmac_key)
        ts_ms = whole("timestamp", time, TS_MS_MAX)
        if ts_ms is None:
            raise BadRecordError("no timestamp")
        src_ip, dst_ip, word = address(src)[0], address(dst)[0], clean(action).upper()
        if not src_ip:
            raise BadRecordError("no source address")
        if not 0 < len(word) <= ACTION_MAX:
            raise BadRecordError(f"the action has not 1 to {ACTION_MAX} characters")
        try:
            share = float(confidence) if confidence.strip() else float("nan")
        except ValueError as e:
            raise BadRecordError("confidence is not a number") from e
        return FirewallAction(
            ts_ms * 1_000_000, src_ip, dst_ip, clean(threat), word,
            score("confidence", share) if isfinite(share) else None,
        )  # fmt: skip


def _looks_so(line: bytes) -> bool:
    cells = [cell.strip() for cell in line.rstrip(b"\r").split(b",")]
    if len(cells) != len(COLUMNS):
        return False
    if cells[0] == b"timestamp_ms":
        return True
    time, src, dst, _, action, _, sign = cells
    try:
        told = bool(address(src.decode())[0]) and address(dst.decode()) is not None
    except (BadRecordError, UnicodeDecodeError):
        return False
    return told and time.isdigit() and 12 <= len(time) <= 14 and bool(action) and len(sign) in (0, 64)
