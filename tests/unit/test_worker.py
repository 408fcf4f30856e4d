from __future__ import annotations

import logging
import sys

import msgspec

from engine.config import Config, Readers
from engine.run.process import LogFormat
from engine.run.worker import Job


def test_a_log_record_is_one_line_without_control_characters() -> None:
    try:
        raise ValueError("a\nb\x1b[31m\u202e")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed: %s", ("\r\n\x1b",), sys.exc_info())
    line = LogFormat("reader-0").format(record)
    assert " level=error role=reader-0 msg=" in line
    assert line.isascii()
    assert line.isprintable()


def test_a_job_survives_its_way_to_the_worker() -> None:
    job = Job("reader-1", 1, "engine.reader", 7, Config(data_dir="/d", readers=Readers(count=3)))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(job), type=Job) == job
