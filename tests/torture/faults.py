"""Does what goes wrong, to a real engine and its clients. A method's name stands in the table of schedule.py.

Always true
  - None waits until all is well again: the next fault may meet a recovery. One that finds no victim counts as missed.
  - Some lines of the followed file are none: each of them is to be one dead letter.
  - After a start of the engine its ingest worker may be armed to die by itself at a failpoint, again and again.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from engine import failpoint
from engine.embed import models
from engine.layout import Layout
from ipc.client import Client
from ipc.errors import ClientError, ConnectError, NotFoundError
from ipc.frames import frame
from ipc.messages import PROTOCOL_VERSION, Hello, List, encode
from tests.bad_disk import bad_disk, small_map
from tests.engine_fixture import Engine, environment, processes
from tests.events import line
from tests.store_fixture import OTHER, other_model
from tests.torture.oracle import FOLLOWED, Batch, Oracle, sent, spoiled
from tests.torture.writer import AGAIN
from tests.wait import eventually

HANG_MS = 2_000
VICTIM_S = 8.0  # how long a fault waits for a worker to be there
CHILD_S = 3.0
LEAVE_S = 20.0  # for orphans, on a busy machine; 2 s are promised
LINES_PER_S = 4.0
SPOILED_SHARE = 0.1  # of the lines
LABELS = 20
CLIENT_S = 6.0  # of a client that misbehaves
ORDER_S = 60.0  # a purge or a compaction is asked for again and again so long
KEPT_BYTES_MIN = 4 << 20
CLIENTS_MAX = 12
ROLES = ("ingest", "reader-0", "reader-1")
MET = [  # not by an engine: backups, migrations; at model.rows_ready each life would end before it has done anything
    point
    for point in failpoint.POINTS
    if not point.startswith(("backup.", "restore.", "migrate.", "rows.", "letters.")) and point != "model.rows_ready"
]
CONFIG = """
hang_after_ms = {hang}
[sources.followed]
path = "{path}"
format = "ndjson"
poll_ms = 50
[ingest]
save_after_ms = 5
"""


class Faults:
    """The engine, the writer and the followed file; `close` ends what is left of them."""

    def __init__(
        self, folder: Path, data_dir: Path, seed: int, events_per_s: float, *, small_disk: bool, encrypted: bool
    ) -> None:  # fmt: skip
        """small_disk: data_dir is a file system of its own. encrypted: it is born with a key."""
        self.folder, self.data_dir, self.seed, self.events_per_s = folder, data_dir, seed, events_per_s
        self.small_disk, self.oracle = small_disk, Oracle(folder / "oracle")
        self.chance = random.Random(seed)
        self.done, self.missed, self.kills = Counter[str](), Counter[str](), Counter[str]()
        self.findings: list[str] = []
        for name in ("seam", "logs", "made"):
            (folder / name).mkdir()
        (folder / "made" / "models").mkdir()
        self.disk, env = bad_disk(folder / "seam")
        self.map, more = small_map(folder / "seam")
        self.followed = folder / "logs" / "events.ndjson"
        self.followed.touch()
        self.config = folder / "flowkin.toml"
        self.config.write_text(CONFIG.format(hang=HANG_MS, path=self.followed))
        self.other = models.read(other_model(Layout(folder / "made")))
        self.shipped = models.shipped().name
        self.key_file: Path | None = None
        if encrypted:
            self.key_file = folder / "key"
            self.key_file.touch(0o600)
            self.key_file.write_text(self.chance.randbytes(32).hex())
            env["FLOWKIN_STORE__KEY_FILE"] = str(self.key_file)
        self.engine = Engine(data_dir, env=env | more | {"FLOWKIN_STORE__MAP_SIZE_GIB": "4"})
        self.starts = 0
        self.writer: subprocess.Popen[bytes] | None = None
        self.lines = self.spoiled = self.rotations = 0
        self.labels: list[tuple[str, str, bool]] = []  # event, label, acknowledged
        self._file = threading.Lock()
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._serial = itertools.count()

    # ---- life

    def start(self, *, armed: bool = True) -> None:
        self.engine.env.pop("ENGINE_FAILPOINT", None)
        if armed and self.starts and self.chance.random() < 0.7:
            often = self.chance.random() < 0.7
            point = self.chance.choice([point for point in MET if point.startswith("publish.") == often])
            nth = self.chance.randint(20, 120) if often else self.chance.randint(2, 4)
            self.engine.env["ENGINE_FAILPOINT"] = f"{point}:{nth}"
            self.done["failpoint"] += 1
        self.starts += 1
        self.engine.start("--config", str(self.config))

    def start_writer(self) -> None:
        command = [sys.executable, "-P", "-m", "tests.torture.writer", str(self.data_dir), str(self.oracle.path),
                   str(self.seed), str(self.events_per_s)]  # fmt: skip
        self.writer = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, start_new_session=True)

    def stop_writer(self, within_s: float) -> None:
        """It ends once the last batch was acknowledged."""
        assert self.writer is not None
        self.writer.terminate()
        try:
            if status := self.writer.wait(within_s):
                self.findings.append(f"the writer ended with status {status}")
        except subprocess.TimeoutExpired:
            self.findings.append("the writer did not end")
            self.writer.kill()
            self.writer.wait()

    def stop(self) -> None:
        """SIGTERM: status 0, whatever the engine is in the middle of."""
        if status := self.engine.stop():
            self.findings.append(f"exit status {status} after SIGTERM: {self.engine.log[-1_500:]}")

    def end_threads(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """After an error: nothing of it is left running."""
        self.end_threads()
        for process in (self.writer, self.engine.process):
            if process is not None and process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def feed(self) -> None:
        """Begin to write the followed file, a line cut in two now and then."""

        def write(chance: random.Random) -> None:
            while not self._ending.wait(chance.expovariate(LINES_PER_S)):
                with self._file:
                    if chance.random() < SPOILED_SHARE:
                        data = spoiled(self.spoiled)
                        self.spoiled += 1
                    else:
                        data = line(sent(FOLLOWED + self.lines))
                        self.lines += 1
                    with self.followed.open("ab", buffering=0) as file:
                        cut = chance.randrange(len(data)) if chance.random() < 0.3 else len(data)
                        file.write(data[:cut])
                        if cut < len(data):
                            self._ending.wait(0.1)
                            file.write(data[cut:])

        self._go(write, self.seed)

    def _go(self, work: Callable[[random.Random], None], seed: int) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) > CLIENTS_MAX:
            self.missed["client"] += 1
            return
        self._threads.append(threading.Thread(target=work, args=(random.Random(seed),)))
        self._threads[-1].start()

    # ---- the faults

    def do(self, fault: str, seed: int) -> None:
        getattr(self, fault)(random.Random(seed))
        self.done[fault] += 1
        process = self.engine.process
        if process is not None and (status := process.poll()) is not None:
            self.findings.append(f"the engine left with status {status} after {fault}: {self.engine.log[-3_000:]}")
            self.engine.process = None
            self.start()

    def _pid(self, role: str) -> int:
        """Of a living worker; 0 where none came in time."""
        process = self.engine.process
        assert process is not None

        def look() -> int:
            pid = self.engine.pid(role)
            return pid if pid in processes(process.pid) else 0

        return self.within(look, VICTIM_S)

    def within(self, look: Callable[[], int], within_s: float) -> int:
        try:
            return eventually(look, within_s=within_s, every_s=0.02)
        except AssertionError:
            return 0

    def _signal(self, role: str, number: int) -> bool:
        pid = self._pid(role)
        try:
            if pid:
                os.kill(pid, number)
        except ProcessLookupError:
            pid = 0
        if not pid:
            self.missed[role] += 1
        elif number == signal.SIGKILL:
            self.kills[role.partition("-")[0]] += 1
        return bool(pid)

    def kill_ingest(self, chance: random.Random) -> None:
        self._signal("ingest", signal.SIGKILL)

    def kill_reader(self, chance: random.Random) -> None:
        self._signal(chance.choice(ROLES[1:]), signal.SIGKILL)

    def kill_child(self, chance: random.Random) -> None:
        process = self.engine.process
        assert process is not None

        def look() -> int:
            return next((pid for pid, what in processes(process.pid).items() if " engine.maintain.build " in what), 0)

        pid = self.within(look, CHILD_S)
        self._ending.wait(chance.uniform(0, 1.0))
        try:
            os.kill(pid or -1 << 22, signal.SIGKILL)
            self.kills["child"] += 1
        except ProcessLookupError:
            self.missed["child"] += 1

    def kill_supervisor(self, chance: random.Random) -> None:
        """Its workers leave with it; a new engine is started before they have."""
        process = self.engine.process
        assert process is not None
        process.kill()
        process.wait()
        self.engine.process = None
        self.kills["supervisor"] += 1
        if not self.within(lambda: int(not processes(process.pid)), chance.choice((0.0, LEAVE_S))):
            self._go(lambda _: self._left(process.pid), 0)
        self.start()

    def _left(self, session: int) -> None:
        if not self.within(lambda: int(not processes(session)), LEAVE_S):
            self.findings.append(f"{LEAVE_S} s after their supervisor was killed: {processes(session)}")

    def kill_all(self, chance: random.Random) -> None:
        self.engine.kill()
        self.kills["all"] += 1
        self.start()

    def kill_writer(self, chance: random.Random) -> None:
        assert self.writer is not None
        if self.writer.poll() is not None:
            self.findings.append(f"the writer had ended with status {self.writer.returncode}")
        self.writer.kill()
        self.writer.wait()
        self.start_writer()

    def pause(self, chance: random.Random) -> None:
        role = chance.choice((*ROLES, "supervisor"))
        process = self.engine.process
        assert process is not None
        pid = process.pid if role == "supervisor" else self._pid(role)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid or -1 << 22, signal.SIGSTOP)
            self._ending.wait(chance.uniform(0.1, HANG_MS / 2_000))
            os.kill(pid, signal.SIGCONT)

    def hang(self, chance: random.Random) -> None:
        """Of one that was ready: a start may take ten times as long."""
        role = chance.choice(ROLES)
        before = self._pid(role)
        started = self.engine.log.rfind(f"{role} started, pid {before}")
        if started < 0 or f"{role} is ready" not in self.engine.log[started:] or not self._signal(role, signal.SIGSTOP):
            self.missed["hang"] += 1
            return
        if not self.within(lambda: int(self.engine.pid(role) != before), 10 * HANG_MS / 1_000):
            self.findings.append(f"{role} hangs and was not replaced: {self.engine.log[-1_500:]}")

    def terminate(self, chance: random.Random) -> None:
        self.stop()
        self.start()

    def hang_up(self, chance: random.Random) -> None:
        assert self.engine.process is not None
        self.engine.process.send_signal(signal.SIGHUP)

    @contextlib.contextmanager
    def _full(self):  # type: ignore[no-untyped-def]
        """A file takes all that is free; without a disk of our own every sync says that it is full."""
        filler = self.data_dir / "filler"
        try:
            if not self.small_disk:
                self.disk.write_text(str(errno.ENOSPC))
                yield
                return
            with filler.open("wb") as file:
                size, step = 0, 1 << 30
                while step >= 4096:
                    try:
                        os.posix_fallocate(file.fileno(), size, step)
                        size += step
                    except OSError:
                        step //= 2
                yield
        finally:
            (filler if self.small_disk else self.disk).unlink(missing_ok=True)

    def full_disk(self, chance: random.Random) -> None:
        with self._full():
            self._ending.wait(chance.uniform(0.5, 3))

    def full_disk_kill(self, chance: random.Random) -> None:
        with self._full():
            self._ending.wait(chance.uniform(0.1, 1))
            self._signal("ingest", signal.SIGKILL)
            self._ending.wait(chance.uniform(0.5, 3))

    def full_disk_terminate(self, chance: random.Random) -> None:
        with self._full():
            self._ending.wait(chance.uniform(0.1, 1))
            self.stop()
        self.start()

    def bad_disk(self, chance: random.Random) -> None:
        self.disk.write_text(str(errno.EIO))
        self.within(lambda: int(not self.disk.exists()), 3)
        self.disk.unlink(missing_ok=True)

    def full_map(self, chance: random.Random) -> None:
        """A map of hardly more than there is; a reader that starts now has to follow when it grows."""
        used = max((path.stat().st_size for path in self.engine.layout.catalog.glob("catalog.*[0-9]")), default=0)
        self.map.write_text(str((used + chance.randint(1 << 16, 1 << 19)) // 4096 * 4096))
        self._signal("ingest", signal.SIGKILL)
        self._signal(chance.choice(ROLES[1:]), signal.SIGKILL)
        self._ending.wait(chance.uniform(1, 4))
        self.map.unlink()
        self._signal("ingest", signal.SIGKILL)

    def rotate(self, chance: random.Random) -> None:
        with self._file:
            self.rotations += 1
            self.followed.rename(self.followed.with_name(f"events.ndjson.{self.rotations}"))
            self.followed.touch()

    def garbage(self, chance: random.Random) -> None:
        hello = frame(encode(Hello(PROTOCOL_VERSION, "garbage")))
        noise = chance.randbytes(chance.randint(1, 5_000))
        data = chance.choice(
            (noise, hello + noise, b"\xff\xff\xff\xff" + noise, hello + b"\x10\0\0\0half", b"\0\0\0\0")
        )
        path = chance.choice((self.engine.layout.query_socket, self.engine.layout.write_socket))
        self._go(lambda _: self._send(path, data, at_once=1 << 20), 0)

    def _ask_much(self) -> bytes:
        lists = [List(n, None, -1, 500, True, True) for n in range(1, 100)]
        return b"".join(frame(encode(message)) for message in (Hello(PROTOCOL_VERSION, "slow"), *lists))

    def slow_client(self, chance: random.Random) -> None:
        self._go(lambda _: self._send(self.engine.layout.query_socket, self._ask_much(), at_once=1), 0)

    def deaf_client(self, chance: random.Random) -> None:
        self._go(lambda _: self._send(self.engine.layout.query_socket, self._ask_much(), at_once=0), 0)

    def _send(self, path: Path, data: bytes, *, at_once: int) -> None:
        """at_once: bytes that are read at a time, 0: none."""
        end_s = time.monotonic() + CLIENT_S
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1.0)
            sock.connect(str(path))
            with contextlib.suppress(TimeoutError):
                sock.sendall(data)
            while time.monotonic() < end_s and not self._ending.wait(0.05):
                with contextlib.suppress(TimeoutError):
                    if at_once and not sock.recv(at_once):
                        return

    def label_storm(self, chance: random.Random) -> None:
        if batches := [batch for _ in range(LABELS) if (batch := self.oracle.look().draw(chance))]:
            self._go(lambda _: self._label(batches, chance), 0)

    def _label(self, batches: list[Batch], chance: random.Random) -> None:
        """Each is said once: a reply that is lost leaves it open whether it was heard."""
        with Client.for_data_dir(self.data_dir, timeout_ms=5_000, client_name="labels") as client:
            for batch in batches:
                name, label = chance.choice(batch.ids), f"label {next(self._serial)}"
                try:
                    client.label(name, label)
                    self.labels.append((name, label, True))
                except ClientError as e:
                    self.labels.append((name, label, False))
                    gone = isinstance(e, NotFoundError) and self.oracle.may_be_gone(batch)
                    if not gone and not isinstance(e, ConnectError) and e.code not in AGAIN:
                        self.findings.append(f"a label: {e!r}")

    def switch(self, chance: random.Random) -> None:
        self._go(self._switch, chance.getrandbits(32))

    def _switch(self, chance: random.Random) -> None:
        """Refusals are its due: nothing to go back to, another one under way, given up."""
        try:
            with Client.for_data_dir(self.data_dir, timeout_ms=20_000, client_name="switch") as client:
                version = chance.choice((OTHER, OTHER, self.shipped, ""))
                if version == OTHER:
                    client.add_model(OTHER, self.other)
                done = client.use_model(version) if version else client.rollback_model()
                self.done["switched"] += done.facts["version"] == version
                if chance.random() < 0.2:
                    client.forget_model()
        except ClientError as e:
            self.missed[f"switch: {type(e).__name__}"] += 1

    def purge(self, chance: random.Random) -> None:
        batch = self.oracle.look().draw(chance)
        if batch is not None and batch.first not in self.oracle.asked:
            self.oracle.let_go(batch)
            self._go(lambda _: self._purge(batch), 0)

    def _purge(self, batch: Batch) -> None:
        """Until it is acknowledged; else it may be half done."""
        if self._ordered("purge", lambda client: client.purge(ids=batch.ids)):
            self.oracle.purged.update({batch.first} - self.oracle.again)
            self.done["purged"] += batch.count

    def compact(self, chance: random.Random) -> None:
        self._go(lambda _: self._compact(), 0)

    def _compact(self) -> None:
        self.done["compacted"] += self._ordered("compact", lambda client: client.compact())

    def _ordered(self, what: str, order: Callable[[Client], object]) -> bool:
        """Asked for until it is acknowledged; was it?"""
        end_s = time.monotonic() + ORDER_S
        with Client.for_data_dir(self.data_dir, timeout_ms=20_000, client_name=what) as client:
            while time.monotonic() < end_s and not self._ending.wait(0.2):
                try:
                    order(client)
                except ClientError as e:
                    self.missed[f"{what}: {type(e).__name__}"] += 1
                    given_up = what == "compact" and "nothing was changed" in str(e)  # its child or a reader was killed
                    if not given_up and not isinstance(e, ConnectError) and e.code not in AGAIN:
                        self.findings.append(f"{what}: {e!r}")
                else:
                    return True
        return False

    def retain(self, chance: random.Random) -> None:
        """A start with other settings."""
        self.stop()
        layout = self.engine.layout
        taken = sum(path.stat().st_size for folder in (layout.rows, layout.indexes) for path in folder.iterdir())
        self.engine.env["FLOWKIN_RETENTION__BYTES_MAX"] = str(max(KEPT_BYTES_MIN, taken * 2 // 3))
        self.oracle.let_go(None)
        self.start()
