"""Times of sources: the quick way for microseconds says what the slow way says."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadRecordError
from engine.sources.times import _iso_ns, epoch_ns, iso_ns

MADRID = ZoneInfo("Europe/Madrid")
STAMP = "2021-06-06T15:59:46.457984+0200"


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(at=st.integers(0, len(STAMP) - 1), to=st.sampled_from("0129 -+:.TZU,\u0661x"), cut=st.sampled_from([26, 31]))
def test_the_quick_way_is_the_slow_way(at: int, to: str, cut: int) -> None:
    text = (STAMP[:at] + to + STAMP[at + 1 :])[:cut]
    try:
        slow: int | None = _iso_ns(text, MADRID)
    except BadRecordError:
        slow = None
    try:
        quick: int | None = iso_ns(text, MADRID)
    except BadRecordError:
        quick = None
    assert quick == slow, text


@pytest.mark.parametrize(
    "text",
    [
        "   2021-06-06T15:59.123456",
        "2021-06-06T15:59+01.123456",
        "2262-04-11T23:47:16.999999Z    ",
        "1969-12-31T23:59:59.5",
    ],
)
def test_what_only_looks_like_a_time(text: str) -> None:
    with pytest.raises(BadRecordError):
        iso_ns(text)


def test_seconds_since_1970() -> None:
    assert epoch_ns("1300475167.096535") == 1_300_475_167_096_535_000 and epoch_ns(" 5 ") == 5_000_000_000
    for text in ("", "-1", "1e9", "9999999999", "12345678901", "1.5.5", "\u0661"):
        with pytest.raises(BadRecordError):
            epoch_ns(text)
