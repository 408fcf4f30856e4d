"""Waiting in tests: poll until it holds, never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(fn: Callable[[], T], within_s: float = 5.0, every_s: float = 0.01) -> T:
    """fn()'s first true value; an AssertionError or OSError of fn counts as not yet, until time is up."""
    deadline_s = time.monotonic() + within_s
    while True:
        error: Exception | None = None
        try:
            if value := fn():
                return value
        except (AssertionError, OSError) as e:
            error = e
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"not within {within_s} s: {error or 'never true'}") from error
        time.sleep(every_s)
