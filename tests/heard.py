"""What the engine warns of while something is done to it in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"mended: {record.getMessage()}")


@contextmanager
def heard() -> Iterator[list[str]]:
    """Where every step was durable before the next there is nothing to mend, and nothing is said."""
    handler, log = _Heard(), logging.getLogger("engine")
    log.addHandler(handler)
    try:
        yield handler.said
    finally:
        log.removeHandler(handler)
