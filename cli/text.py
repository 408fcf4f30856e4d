"""Words for people: times, sizes, ends of a flow, and text made safe for a terminal. No printing, nothing of ours.

Always true
  - `clean` returns no control, ESC, NUL, bidi or other invisible character; all text of an event passes it before a
    terminal or a pipe sees it (JSON passes `escaped`, and keeps its value).
  - Times are ns since 1970 UTC and are shown in UTC.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

PROTOCOLS = {
    "icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58, "ospf": 89, "pim": 103,
    "vrrp": 112, "l2tp": 115, "sctp": 132,
}  # fmt: skip
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
NS = 1_000_000_000
NS_MAX = (1 << 63) - 1
UNIT_S = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}

# Controls (C0, DEL, C1), soft hyphen, Arabic letter mark, zero-width and bidi marks, line and paragraph separators,
# isolates, BOM, interlinear marks, tag characters, surrogates.
_HIDDEN = (
    "\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff"
)
_UNSAFE = re.compile(f"[\x00-\x1f{_HIDDEN}]")
_UNSAFE_IN_JSON = re.compile(f"[{_HIDDEN}]")  # of the others it escapes its own, and indents with some
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d|w)")
_INSTANT = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2}(?::\d{2})?)(?:[.,](\d{1,9}))?)?\s*(Z|[+-]\d{2}:?\d{2})?", re.I
)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escape_in_json(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def clean(text: str) -> str:
    """The text with everything that a terminal would act on, or hide, spelt out."""
    return _UNSAFE.sub(_escape, text)


def escaped(json: str) -> str:
    """JSON text of the same value without such characters; they can stand in its strings only."""
    if json.isascii() and "\x7f" not in json:  # as most is: an export passes here line by line
        return json
    return _UNSAFE_IN_JSON.sub(_escape_in_json, json)


def width(text: str) -> int:
    """Columns that a terminal needs for it."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def iso(ns: int) -> str:
    """ISO-8601 UTC, with as many digits of the second as it has: none, 3, 6 or 9."""
    seconds, rest = divmod(ns, NS)
    try:
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, ValueError, OSError):  # beyond the year 9999
        return f"@{ns}"
    if rest:
        digits = f"{rest:09d}"
        text += "." + (digits[:3] if digits.endswith("000000") else digits[:6] if digits.endswith("000") else digits)
    return text + "Z"


def when(ns: int) -> str:
    """For a table: UTC with milliseconds, always of the same width."""
    if ns <= 0:
        return "-"
    text = iso(ns // 1_000_000 * 1_000_000)
    return text if text[0] == "@" else (text[:-1] + ("" if "." in text else ".000")).replace("T", " ")


def instant(text: str, now_ns: int | None = None) -> int:
    """ns of an ISO time (without an offset: UTC), or of '24h', '7d', '90m' ago, or 'now'; from 1970 to 2262, what an
    event may have. Raises ValueError."""
    now = time.time_ns() if now_ns is None else now_ns
    word = text.strip()
    if word.lower() == "now":
        return now
    parts = _DURATION.findall(word.removesuffix(" ago").removeprefix("-"))
    if parts and "".join(n + u for n, u in parts) == word.removesuffix(" ago").removeprefix("-").replace(" ", ""):
        age_s = min(sum(float(n) * UNIT_S[u] for n, u in parts), now / NS)  # no earlier than 1970, whatever the age
        return max(0, now - int(age_s * NS))
    match = _INSTANT.fullmatch(word)
    if not match:
        raise ValueError(f"{text!r} is neither a time (2026-05-01T12:00:00Z) nor an age (90m, 24h, 7d)")
    day, clock, fraction, zone = match.groups()
    zone = "+00:00" if zone in (None, "Z", "z") else zone
    moment = datetime.fromisoformat(f"{day}T{clock or '00:00'}{zone}")
    return min(max(0, int(moment.timestamp()) * NS + int((fraction or "0").ljust(9, "0"))), NS_MAX)


def end(address: str, port: int | None) -> str:
    """address:port, IPv6 in brackets."""
    if not address:
        return "-" if port is None else f"*:{port}"
    host = f"[{address}]" if ":" in address and port is not None else address
    return host if port is None else f"{host}:{port}"


def protocol(number: int | None) -> str:
    return "-" if number is None else PROTOCOL_NAMES.get(number, str(number))


def count(n: int) -> str:
    """1234567 -> 1,234,567."""
    return f"{n:,}"


def size(n: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def duration(seconds: float) -> str:
    """'3.2 ms', '12.5 s', '4 min 10 s', '3 h 5 min', '12 d 3 h'."""
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 0.9995:  # what is rounded up to the next unit is told in it
        return f"{seconds * 1e3:.3g} ms" if seconds >= 0.9995e-3 else f"{seconds * 1e6:.3g} us"
    if seconds < 120:
        return f"{seconds:.3g} s"
    for big, per, small, inner in (("min", 60, "s", 1), ("h", 3_600, "min", 60)):
        if seconds < per * (60 if big == "min" else 48):
            return _two(seconds, big, per, small, inner)
    return _two(seconds, "d", 86_400, "h", 3_600)


def _two(seconds: float, big: str, per: int, small: str, inner: int) -> str:
    whole, rest = divmod(int(seconds), per)
    return f"{whole} {big} {rest // inner} {small}" if rest // inner else f"{whole} {big}"


def quantity(value: float | None, unit: str = "-") -> str:
    """A feature's value in its own unit, short: '1.2 s', '340 bytes', '-' where it is missing."""
    if value is None or value != value:
        return "-"
    suffix = "" if unit in ("-", "") else f" {unit}"
    if unit == "us" and abs(value) >= 1_000:
        value, suffix = (value / 1e6, " s") if abs(value) >= 1e6 else (value / 1e3, " ms")
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}{_of_one(suffix) if value == 1 else suffix}"
    if abs(value) >= 1_000_000 or 0 < abs(value) < 0.0001:
        return f"{value:.3g}{suffix}"
    return f"{value:,.{1 if abs(value) >= 1000 else 2 if abs(value) >= 10 else 4}f}".rstrip("0").rstrip(".") + suffix


def _of_one(suffix: str) -> str:
    """' packet' of ' packets', ' byte/s' of ' bytes/s'; ' s' and ' us' are no plurals."""
    what, slash, per = suffix.partition("/")
    return (what.removesuffix("s") if len(what) > 3 else what) + slash + per


def number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def plural(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
