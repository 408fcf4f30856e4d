"""Times as sources write them, to exact nanoseconds since 1970 UTC.

Always true
  - No float ever holds a time: the fraction is read digit by digit.
  - A time without an offset is in the zone that is given; where clocks go back the first of the two hours is meant.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from engine.errors import BadRecordError, SourceError

NS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_TS_NS_MAX = (1 << 63) - 1
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(?::(\d\d)(?:[.,](\d{1,18}))?)? ?(Z|UTC|[+-]\d\d(?::?\d\d)?)?")

_EPOCH_SECONDS = re.compile(r"([0-9]{1,10})(?:\.([0-9]{0,18}))?")


def zone(name: str) -> tzinfo:
    """The IANA zone of that name; raises SourceError."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as e:
        raise SourceError(f"timezone {name!r} is not known; give an IANA name such as Europe/Madrid") from e


@lru_cache(maxsize=4096)
def _minute_s(day: str, minute: str, offset: str | None, local: tzinfo) -> int:
    """Seconds since 1970 of a minute; a busy log has few different ones."""
    where: str = "+00:00" if offset in ("Z", "UTC") else offset or ""
    at = datetime.fromisoformat(f"{day}T{minute}:00{where}")
    if at.tzinfo is None:
        at = at.replace(tzinfo=local)
    return (at - _EPOCH) // _SECOND


def fraction_ns(digits: str | None) -> int:
    """The digits after the point as nanoseconds; more than nine are cut."""
    return int(digits[:9].ljust(9, "0")) if digits else 0


def epoch_ns(text: str) -> int:
    """Nanoseconds of seconds since 1970 ('1300475167.096535'); raises BadRecordError."""
    found = _EPOCH_SECONDS.fullmatch(text.strip())
    ns = int(found[1]) * NS + fraction_ns(found[2]) if found else -1
    if not 0 <= ns <= _TS_NS_MAX:
        raise BadRecordError(f"{text[:40]!r} is not a time in seconds since 1970")
    return ns


def iso_ns(text: str, local: tzinfo = UTC) -> int:
    """Nanoseconds of an ISO 8601 date and time ('2021-06-06T15:59:46.457984+0200'); raises BadRecordError."""
    if len(text) in (26, 31) and text[4] == "-" and text[16] == ":" and text[19] == ".":
        digits, offset = text[20:26], text[26:]  # as most logs have it: microseconds, and many lines of one second
        if digits.isdigit() and digits.isascii() and offset[:1] in ("", "+", "-"):
            ns = _second_ns(text[:19], offset, local) + int(digits) * 1_000
            if ns <= _TS_NS_MAX:
                return ns
    return _iso_ns(text, local)


@lru_cache(maxsize=4096)
def _second_ns(second: str, offset: str, local: tzinfo) -> int:
    return _iso_ns(second + offset, local)


def _iso_ns(text: str, local: tzinfo) -> int:
    found = _ISO.fullmatch(text.strip())
    if found is None:
        raise BadRecordError(f"{text[:40]!r} is not a date and time")
    day, minute, second, digits, offset = found.groups()
    try:
        ns = (_minute_s(day, minute, offset, local) + int(second or 0)) * NS + fraction_ns(digits)
    except (ValueError, OverflowError) as e:
        raise BadRecordError(f"{text[:40]!r} is not a date and time") from e
    if not 0 <= ns <= _TS_NS_MAX or int(second or 0) > 60:
        raise BadRecordError(f"{text[:40]!r} is not between 1970 and 2262")
    return ns
