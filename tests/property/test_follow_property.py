"""A followed log under any mix of growth, rotation and restarts: every line is stored exactly once."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_follow import Watch, line

PROFILE = settings(max_examples=120, deadline=None, derandomize=True, database=None)
STEPS = st.lists(
    st.sampled_from(["write", "write", "half", "poll", "poll", "poll small", "restart", "rename", "compress", "copy"]),
    min_size=4,
    max_size=60,
)


class Writer:
    """A logger and its logrotate. Rotation is by rename (and later compression) or by copytruncate."""

    def __init__(self, log: Path) -> None:
        self.log, self.next, self.rest, self.archives = log, 0, b"", 0
        self.old = log.with_name("eve.json.1")

    def write(self, count: int = 3) -> None:
        data, self.rest = self.rest, b""
        # Distinct beginnings: a log starts with a time, and no two logs start with the same.
        for _ in range(count):
            data += line(self.next)
            self.next += 1
        with self.log.open("ab") as f:
            f.write(data)

    def half(self) -> None:
        whole = self.rest or line(self.next)
        self.next += not self.rest
        cut = len(whole) // 2
        with self.log.open("ab") as f:
            f.write(whole[:cut])
        self.rest = whole[cut:]

    def finish_line(self) -> None:
        if self.rest:
            self.write(0)

    def retire(self) -> None:
        """What was rotated before is compressed by now, under a name of its own."""
        if self.old.exists():
            self.archives += 1
            self.log.with_name(f"eve.json.{self.archives + 1}.gz").write_bytes(gzip.compress(self.old.read_bytes()))
            self.old.unlink()

    def rename(self) -> None:
        if self.log.exists():
            self.finish_line()
            self.retire()
            self.log.rename(self.old)

    def copy(self) -> None:
        if self.log.exists():
            self.finish_line()
            self.retire()
            shutil.copyfile(self.log, self.old)
            os.truncate(self.log, 0)


@PROFILE
@given(steps=STEPS, one_file=st.booleans())
def test_every_line_once(steps: list[str], one_file: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "eve.json"
        watch, writer = Watch(log if one_file else Path(name)), Writer(log)
        rotated_unseen = False
        for step in steps:
            if step == "write":
                writer.write()
            elif step == "half":
                writer.half()
            elif step == "poll":
                watch.poll()
                rotated_unseen = False
            elif step == "poll small":
                watch.take(watch.follower.poll(100))
            elif step == "restart":
                watch.restart()
            elif not rotated_unseen:  # a log that comes and goes between two looks cannot be known
                watch.poll()
                getattr(writer, "retire" if step == "compress" else step)()
                rotated_unseen = True
        writer.finish_line()
        watch.poll()
        watch.follower.close()
        assert watch.seen == list(range(writer.next))
        assert not watch.rejects
