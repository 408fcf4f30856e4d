"""Waiting in tests: poll until it holds, never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(fn: Callable[[], T], within_s: float = 30.0, every_s: float | None = None) -> T:
    """fn()'s first true value; an AssertionError or OSError of fn counts as not yet, until time is up.

    every_s: where what is waited for passes by again. Otherwise the longer it takes the less often is it looked, as
    looking takes from what is waited for: an engine that is asked for `stats` measures all of its processes.
    """
    began_s = time.monotonic()
    deadline_s = began_s + within_s
    while True:
        error: Exception | None = None
        try:
            if value := fn():
                return value
        except (AssertionError, OSError) as e:
            error = e
        if (now_s := time.monotonic()) >= deadline_s:
            raise AssertionError(f"not within {within_s} s: {error or 'never true'}") from error
        time.sleep(min(max(0.01, (now_s - began_s) / 10), 0.1) if every_s is None else every_s)
