"""Row files are made ahead: no batch waits for one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from engine.layout import Layout
from engine.store import append
from engine.store.append import AHEAD_SHARE, RowAppender
from engine.store.manifest import Manifest
from engine.store.rows import RowMap
from tests.store_fixture import ROWS
from tests.unit.test_rows import some

OF = Manifest(generation=1, row_file_rows=ROWS, model="v", names_count=1)
DUE = round(ROWS * AHEAD_SHARE)


@pytest.fixture
def appender(tmp_path: Path) -> RowAppender:
    layout = Layout(tmp_path)
    layout.make()
    return RowAppender(layout, lambda stage: None)


def there(appender: RowAppender) -> list[int]:
    appender.close()  # waits for what is on its way
    return sorted(int(path.name.split("-")[1]) for path in appender.layout.rows.iterdir())


def test_the_next_row_file_is_there_whole_before_its_first_row(appender: RowAppender) -> None:
    appender.append(OF, ROWS, 0, some(DUE - 1))
    assert there(appender) == [0]
    appender.append(OF, ROWS, DUE - 1, some(1))
    assert there(appender) == [0, 1]
    ahead = appender.layout.row_file(*OF.row_file(1))
    made = ahead.stat().st_ino
    assert not RowMap(ahead, 1, ROWS).sums.any()
    appender.append(OF, ROWS, DUE, some(ROWS - DUE + 3))
    assert there(appender) == [0, 1] and ahead.stat().st_ino == made
    assert RowMap(ahead, 1, ROWS).bad_rows(3) == []


def test_one_batch_over_several_row_files(appender: RowAppender) -> None:
    appender.append(OF, ROWS, 0, some(3 * ROWS))
    assert there(appender) == [0, 1, 2, 3]
    for number in range(3):
        assert RowMap(appender.layout.row_file(*OF.row_file(number)), number, ROWS).bad_rows(ROWS) == []


def test_where_it_cannot_be_made_ahead_the_batch_makes_it(
    appender: RowAppender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, rows: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(append, "create", full)
    appender.append(OF, ROWS, 0, some(ROWS))
    assert there(appender) == [0] and "not made ahead" in caplog.text
    appender.append(OF, ROWS, ROWS, some(1))
    assert there(appender) == [0, 1]
