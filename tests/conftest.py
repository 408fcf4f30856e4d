"""Engines and stores for tests: `start` makes an engine, `filled` is shared by tests that only read.

`store` and `full` are the same without processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import tests.one_thread  # noqa: F401  (before numpy)
from tests.engine_fixture import Engine, Starter
from tests.events import several
from tests.store_fixture import Store

FILLED = 400  # events of the shared engine: six full row files of 64 and some

settings.register_profile(
    "flowkin", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=False
)
settings.load_profile("flowkin")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it, and its children


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--idle", default="2000", help="of tests/process/test_load.py: connections that say nothing")
    parser.addoption("--active", default="200", help="connections that ask")
    parser.addoption("--stop-s", default="0", help="how long a reader is stopped, with hang_after_ms as it ships")
    parser.addoption("--keep", action="store_true", help="append what was counted to bench/results")


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Starter]:
    """start(...) -> a running Engine; each is stopped and checked at the end. Of two readers, or of as many as the
    module says: where the ingest worker or a command is looked at, the second would only cost its start."""
    engines: list[Engine] = []
    count = getattr(request.module, "READERS", 2)

    def begin(*flags: str, data_dir: Path | None = None, readers: int = count, env: dict[str, str] | None = None,
              ready: bool = True) -> Engine:  # fmt: skip
        engines.append(Engine(data_dir or tmp_path / "data", readers=readers, env=env))
        return engines[-1].start(*flags, ready=ready)

    yield begin
    _close(engines)


def _close(engines: list[Engine]) -> None:
    error: BaseException | None = None
    for engine in engines:
        try:
            engine.close()
        except BaseException as e:
            error = error or e
    if error is not None:
        raise error


@pytest.fixture
def engine(start: Starter) -> Engine:
    return start()


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with FILLED events, indexed; for tests that change nothing."""
    shared = Engine(tmp_path_factory.mktemp("filled") / "data", readers=2)
    try:
        shared.start()
        shared.ingest(several(FILLED))
        shared.indexed(FILLED // 64)
        yield shared
        with shared.client() as client:
            assert client.stats().facts["events"] == FILLED, "a test stored events in the engine that all share"
    finally:
        shared.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A data directory opened in this process."""
    with Store(tmp_path / "data") as opened:
        yield opened


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """FILLED events in this process, all but the last row file indexed; for tests that change nothing."""
    with Store(tmp_path_factory.mktemp("full") / "data") as opened:
        opened.publish(several(FILLED))
        opened.index()
        yield opened


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a test that failed may still map a file in it
