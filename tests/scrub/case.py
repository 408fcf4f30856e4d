"""One damage from beginning to end, in steps, each of which may kill the process that does it.

look    a reader starts on the damaged directory and answers
mend    the engine starts, scrubs and mends
again   a reader starts on what is there then
send    what was stored is sent again, and something new
"""

from __future__ import annotations

import asyncio
import os
import shutil
from functools import partial
from pathlib import Path
from unittest.mock import patch

import lmdb
from msgspec import Struct

from engine.errors import EngineError
from engine.maintain.build import Built, IndexJob, Job, RowsJob, build_indexes
from engine.maintain.doctor import _mend_all
from engine.maintain.upkeep import Upkeep
from engine.store.publish import Publisher
from engine.store.rebuild import rebuild
from engine.store.rows import RowMap
from tests.events import several
from tests.heard import heard
from tests.scrub.damage import HARMLESS, Damage
from tests.scrub.look import Seen
from tests.scrub.store import items
from tests.store_fixture import Store

NEW = 3
WAYS_OUT = ("backup restore", "doctor --fix", "remove")


class Mended(Struct):
    """refused: why the engine did not start. left: what could not be mended. frozen: why nothing is stored any more.
    said: what the log said. wrong: what should not be."""

    refused: str = ""
    left: list[str] = []
    frozen: str = ""
    said: list[str] = []
    wrong: list[str] = []


class Case(Struct):
    """died: the steps that killed their process, and how."""

    damage: Damage
    place: str
    look: Seen
    mend: Mended
    again: Seen
    send: Mended
    died: dict[str, str] = {}

    @property
    def noticed(self) -> bool:
        mend = self.mend
        return bool(self.look.said or self.died or mend.said or mend.refused or mend.left or mend.frozen)

    @property
    def outcome(self) -> str:
        """In a word, for counting."""
        if not self.noticed:
            return f"harmless: {self.place}"
        if self.mend.refused:
            return "start refused, with a way out"
        if self.mend.frozen:
            return "structure of the catalog: nothing more is stored, the rest answers"
        if self.mend.left:
            return "refused by name, all others whole"
        return "mended, all whole"

    def broken(self) -> list[str]:
        """Promises that this damage broke."""
        out = [f"{step}: {what}" for step in ("look", "again") for what in getattr(self, step).wrong]
        out += self.mend.wrong + self.send.wrong
        kind = self.damage.kind
        if not self.noticed and (self.place not in HARMLESS or self.look.missing):
            out.append(f"nobody noticed; {self.look.missing[:3]}")
        out += [f"{step} died: {how}" for step, how in self.died.items() if step != "look" or kind != "index"]
        if self.mend.refused or self.mend.frozen:
            if kind not in ("catalog", "model", "small"):
                out.append(f"refused for a derived file: {self.mend.refused or self.mend.frozen}")
            if not any(way in self.mend.refused + self.mend.frozen + str(self.send.said) for way in WAYS_OUT):
                out.append(f"no way out is named: {self.mend.refused or self.send.said}")
        elif self.mend.left:
            if kind not in ("catalog", "model", "letters"):
                out.append(f"left: {self.mend.left}")
        elif not self.again.whole:
            missing = [what for what in self.again.missing if not self._is_read_again(what)]
            if missing or self.again.said:
                out.append(f"not whole again: {missing[:3]} {self.again.said[:3]}")
        return out

    def _is_read_again(self, what: str) -> bool:
        """A damaged place in a followed file is forgotten, and said to be: the file is read again from its beginning,
        and what is stored of it is known (engine/maintain/mend.py)."""
        return what.startswith("offset of ") and any("catalog offsets" in said for said in self.mend.said)


def copied(whole: Path, folder: Path, damage: Damage) -> Path:
    """A directory that differs from the whole one in the damaged file; what is written in place is a copy, too."""
    shutil.copytree(whole, folder, copy_function=os.link)
    kinds = ("catalog/*", "rows/*", "generation", "*.ndjson", "run/*")
    written = [path for kind in kinds for path in folder.glob(kind)]
    for path in written:
        data, mode = path.read_bytes(), path.stat().st_mode
        path.unlink()
        path.write_bytes(data)
        path.chmod(mode)
    damage.do(folder)
    return folder


async def _at_once(publisher: Publisher, job: Job, **how: float) -> Built | None:
    """What the child does, in this process, which has the catalog open already. how: what a child makes way for."""
    layout = publisher.layout
    if isinstance(job, IndexJob):
        return build_indexes(layout, job.row_files, job.rows)
    assert isinstance(job, RowsJob)
    path, number = layout.row_file(*job.row_file), job.row_file[1]
    rebuild(publisher.catalog, publisher.models, path, number, job.rows, job.count)
    return Built(sealed=[(number, RowMap(path, number, job.rows).checksum())])


def mend(data_dir: Path) -> Mended:
    """As engine/ingest.py at a start, and when the scrub ends."""
    out = Mended()
    with heard() as said:
        try:
            with Store(data_dir) as store:
                upkeep = Upkeep(store.layout, store.config, store.publisher, lambda: None)
                try:
                    at_once = partial(_at_once, store.publisher)
                    with patch.object(upkeep.jobs, "run", at_once), patch.object(upkeep.merges, "run", at_once):
                        _, _, out.left = asyncio.run(_mend_all(upkeep))
                except EngineError as e:
                    out.left = [str(e)]
                out.frozen = store.catalog.damage
        except (EngineError, OSError, lmdb.Error) as e:
            out.refused = f"{type(e).__name__}: {e}"
    out.said = said
    return out


def send(data_dir: Path) -> Mended:
    """All of it again is known, so it is not stored twice; something new is stored, unless nothing is."""
    out = Mended()
    new = several(NEW, 5_000)
    with heard() as said:
        try:
            with Store(data_dir) as store:
                try:
                    accepted = store.publish(items()).accepted
                except EngineError:  # one of them: each by itself
                    accepted = 0
                    for item in items():
                        try:
                            accepted += store.publish([item]).accepted
                        except EngineError as e:
                            said.append(f"refused: {e}")
                if accepted:
                    out.wrong.append(f"{accepted} events were stored twice")
                try:
                    if store.publish(new).accepted != NEW:
                        out.wrong.append("something new was not stored")
                except EngineError as e:
                    said.append(f"refused: {e}")
                    if not store.catalog.damage:
                        out.wrong.append(f"nothing new is stored: {e}")
        except (EngineError, OSError, lmdb.Error) as e:
            out.refused = f"{type(e).__name__}: {e}"
    out.said = said
    return out
