"""A worker that answers Ping, Info and a few orders given as Label, for tests of the supervisor. No data, no FAISS."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from engine.errors import BootError
from engine.run.worker import Worker
from ipc.messages import Done, Facts, Get, Info, Label, Ping, Pong, Request, Stats
from ipc.server import Connection, Server


def main(worker: Worker) -> int:
    order = os.environ.get("FAKE_" + worker.role.upper().replace("-", "_"), "")
    marker = worker.layout.data_dir / f"{worker.role}.born"
    if order == "boot_error" or (order == "boot_error_later" and marker.exists()):
        raise BootError("asked to fail at boot")
    if order == "fail":
        raise SystemExit(9)
    marker.touch()
    if order == "confined":
        worker.heartbeat.put(landlock=1, seccomp=1)
    return worker.run(serve(worker))


async def serve(worker: Worker) -> int:
    loop = worker.loop
    tasks: list[asyncio.Task[None]] = []

    def handle(connection: Connection, request: Request) -> None:
        facts = {
            "pid": os.getpid(),
            "role": worker.role,
            "heavy": sorted({"numpy", "faiss", "lmdb", "torch"} & set(sys.modules)),
            "threads": os.environ.get("OMP_NUM_THREADS"),
        }
        match request:
            case Ping():
                connection.reply(Pong(request.request_id, 1))
            case Info() | Stats():
                connection.reply(Facts(request.request_id, 1, facts))
            case Get(ids=["slow", after_ms]):
                loop.call_later(int(after_ms) / 1e3, connection.reply, Facts(request.request_id, 1, facts))
            case Get(ids=["hang"]):
                time.sleep(600)
            case Get(ids=["die"]):
                os.kill(os.getpid(), signal.SIGKILL)
            case Get(ids=["segv"]):
                worker.stamp(searching="chronos 0-16384.faiss")
                os.kill(os.getpid(), signal.SIGSEGV)
            case Label(label="roll"):

                async def roll(connection: Connection = connection, request_id: int = request.request_id) -> None:
                    connection.reply(Done(request_id, 1, {"all": await worker.rolled(10.0)}))

                tasks.append(loop.create_task(roll()))
            case Label(label="die"):
                os.kill(os.getpid(), signal.SIGKILL)
            case Label():
                connection.reply(Done(request.request_id, 1))
            case _:
                raise NotImplementedError

    role = "write" if worker.role == "ingest" else "read"
    server = Server(role=role, handle=handle, generation=lambda: 1, name=worker.role, version="test")
    worker.serve(server)
    if worker.role == "ingest":
        worker.on_suspect(lambda text: (print(f"SUSPECT {text}", file=sys.stderr, flush=True), worker.checked())[1])
    worker.ready()
    await worker.stopping.wait()
    await server.drain()
    await asyncio.sleep(0)
    return 0
