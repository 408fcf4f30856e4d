"""What every worker process is, before it becomes a reader or the ingest worker. Run as:
python -P -m engine.run.worker FD

Always true
  - It dies with its supervisor: by PR_SET_PDEATHSIG, by comparing getppid() after that, and by EOF on its channel.
  - Nothing heavy (numpy, faiss, lmdb, onnxruntime) is imported before the job is read; the supervisor has set
    OMP_NUM_THREADS=1 and its like before.
  - It ignores SIGINT (Ctrl-C reaches the whole group; the supervisor decides). SIGTERM sets `stopping`; a second one
    changes nothing (systemd and the supervisor may both send it): the supervisor kills what is late.
  - The stamp comes from the loop that does the work: a loop that is stuck stops stamping.
  - Exit statuses 70 to 79 mean "do not restart me" (engine/run/restart.py); an EngineError leaves with its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from engine.config import Config
from engine.errors import BootError, CorruptionError, EngineError
from engine.layout import Layout
from engine.run import handoff
from engine.run.audit import Audit, File
from engine.run.heartbeat import Heartbeat
from engine.run.process import PARENT_GONE, connections_max, die_with_parent, name_process, raise_limits, set_up_log
from ipc.server import Bounds, Server

log = logging.getLogger("engine.run.worker")

STAMP_S_MAX = 0.25
MEASURED_S_MAX = 1.0
LEAVE_S = 1.0  # what is left of us once the supervisor is gone


class Job(msgspec.Struct, frozen=True):
    """What the supervisor tells a worker, as the first message on its channel."""

    role: str
    index: int
    module: str  # has main(worker) -> int
    supervisor: int  # pid
    config: Config


class Worker:
    """Given to main(worker) of engine.reader and engine.ingest."""

    def __init__(self, job: Job, receiver: handoff.Receiver) -> None:
        self.role, self.index, self.config = job.role, job.index, job.config
        self.layout = Layout(Path(job.config.data_dir))
        self.heartbeat = Heartbeat(self.layout.heartbeat(job.role), write=True)
        self.heartbeat.put(pid=os.getpid())
        # a reader opens nothing to write to it: the supervisor does
        self.audit = Audit(job.role, File(self.layout.audit).write if job.role == "ingest" else receiver.report)
        self.stopping = asyncio.Event()
        self.supervisor = job.supervisor
        self._receiver = receiver
        self._server: Server | None = None
        self._measured: asyncio.Future[None] | None = None
        receiver.on_measured = self._on_measured
        self._rolled: asyncio.Future[bool] | None = None
        receiver.on_rolled = self._on_rolled

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def run(self, main: Coroutine[Any, Any, int | None]) -> int:
        """Run main to its end on uvloop and return its status (None: 0)."""
        status: int = uvloop.run(self._run(main))
        return status

    def bounds(self) -> Bounds:
        """What peers may cost this worker."""
        sockets = self.config.sockets
        most, patience_s = connections_max(sockets.connections_max), sockets.patience_ms / 1_000
        return Bounds(connections_max=most, hello_s=patience_s, frame_s=patience_s, write_s=patience_s)

    def serve(self, server: Server) -> None:
        """Connections from the supervisor go to this server, their ends back to the supervisor."""
        self._server = server
        server.on_close = self.connection_closed
        self.on_connection(server.adopt)

    def on_connection(self, callback: Callable[[socket.socket], None]) -> None:
        """callback gets each accepted, non-blocking socket; connection_closed() is due once for each."""
        self._receiver.on_connection = callback

    def connection_closed(self) -> None:
        self._receiver.closed_one()

    def ready(self) -> None:
        """Everything is open: the supervisor may send connections."""
        self.stamp()
        self._receiver.send(handoff.READY)

    def stamp(self, *, generation: int | None = None, searching: str | None = None) -> None:
        """A sign of life. Called by the loop; call it in every long step before ready(), too."""
        beat = self.heartbeat
        if searching is not None:
            beat.searching(searching)
        if generation is not None:
            beat.put(generation=generation)
        if self._server is not None:
            counters = self._server.counters
            beat.put(
                connections=len(self._server.connections),
                requests=counters.requests,
                errors=counters.errors,
                bytes_in=counters.bytes_in,
                bytes_out=counters.bytes_out,
            )
        beat.put(damage=CorruptionError.met)
        beat.stamp()

    def on_suspect(self, callback: Callable[[str], None]) -> None:
        """callback gets what crashing readers were searching; no reader starts before checked(), or some seconds."""
        self._receiver.on_suspect = callback

    def checked(self) -> None:
        self._receiver.send(handoff.CHECKED)

    async def measured(self) -> None:
        """The memory of all workers stands in their heartbeats, measured now by the supervisor; as it was before where
        that has no time."""
        if self._measured is None:
            self._measured = self.loop.create_future()
            if not self._receiver.measure():
                self._on_measured()
                return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._measured), MEASURED_S_MAX)

    def _on_measured(self) -> None:
        future, self._measured = self._measured, None
        if future is not None:
            future.set_result(None)

    async def rolled(self, within_s: float) -> bool:
        """Have every confined reader replaced, one after the other; have all been? By one caller at a time."""
        self._rolled = self.loop.create_future()
        try:
            return self._receiver.roll() and await asyncio.wait_for(self._rolled, within_s)
        except TimeoutError:
            return False
        finally:
            self._rolled = None

    def _on_rolled(self, all_of_them: bool) -> None:
        if self._rolled is not None and not self._rolled.done():
            self._rolled.set_result(all_of_them)

    async def _run(self, main: Coroutine[Any, Any, int | None]) -> int:
        loop = self.loop
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        self._receiver.attach(loop, self._orphaned)
        stamping = loop.create_task(self._stamp_always())
        try:
            return await main or 0
        finally:
            stamping.cancel()
            self.audit.flush(all=True)
            self._receiver.stop()

    async def _stamp_always(self) -> None:
        every_s = min(STAMP_S_MAX, self.config.hang_after_ms / 4_000)
        while True:
            self.stamp()
            self.audit.flush()
            await asyncio.sleep(every_s)

    def stop(self) -> None:
        """Leave, as at SIGTERM."""
        if not self.stopping.is_set():
            self._receiver.leave()
        self.stopping.set()

    def _orphaned(self) -> None:
        log.warning("the supervisor is gone: leaving")
        self.stopping.set()
        self.loop.call_later(LEAVE_S, os._exit, PARENT_GONE)


def main(argv: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    receiver = handoff.Receiver(socket.socket(fileno=int(argv[1])))
    receiver.sock.set_inheritable(False)
    data = receiver.job()
    if not data:
        return PARENT_GONE
    job = msgspec.msgpack.decode(data, type=Job)
    die_with_parent(job.supervisor)
    raise_limits()
    set_up_log(job.role, job.config.log.level)
    name_process(job.role)
    try:
        worker = Worker(job, receiver)
        status = importlib.import_module(job.module).main(worker)
        return int(status)
    except EngineError as e:
        log.error("%s", e)
        return e.exit_status
    except (ImportError, MemoryError) as e:
        log.exception("cannot start")
        return BootError.exit_status if isinstance(e, ImportError) else 1
    except Exception:
        log.exception("failed")
        return 1


if __name__ == "__main__":
    from engine.run.worker import main as main_of_the_module  # the one that engine.reader imports, not a second copy

    sys.exit(main_of_the_module(sys.argv))
