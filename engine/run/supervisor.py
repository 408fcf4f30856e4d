"""One command starts everything: one ingest worker, N readers, the sockets, and what happens when any of it dies.

Always true
  - One engine a data directory: an flock on run/supervisor.pid, held for life; only the directories are made before.
    (That there is one writer is the ingest worker's own lock, not ours.)
  - It holds no data and imports no numpy, faiss, lmdb or torch; its workers are named as strings.
  - A connection is accepted only when a ready worker has room; until then it waits in the listen backlog.
  - Every worker is one _Slot for ever; its process, pidfd and channel come and go together.
  - It ends when it is asked to, when the start is given up, or when no worker is left to run: in this order sockets
    away, SIGTERM to all, one shared deadline, SIGKILL. If it is killed itself, the kernel kills the workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from engine.config import Config
from engine.errors import BootError, ConfigError, EngineError
from engine.files import open_ours
from engine.layout import Layout
from engine.limits import HANDOFF_BACKLOG_MAX
from engine.run import handoff, mounts, notify
from engine.run.audit import SUM_S, SUMS_MAX, Audit, File
from engine.run.audit import decode as decode_line
from engine.run.audit import encode as encode_line
from engine.run.heartbeat import Heartbeat
from engine.run.process import connections_max, memory_bytes, raise_limits, set_up_log
from engine.run.restart import GiveUp, Policy, Restart, Suspicion, describe
from engine.run.sockets import Listener, check_parents, check_private, listen, remove, socket_paths
from engine.run.worker import Job

log = logging.getLogger("engine.run.supervisor")

MODULES = {"reader": "engine.reader", "ingest": "engine.ingest"}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# glibc raises its own thresholds with the largest block it sees freed, and then keeps such blocks: a reader of 100,000
# events held 65 MiB of private memory so, 37 MiB with the thresholds fixed
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "524288", "MALLOC_TRIM_THRESHOLD_": "524288"}
QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}  # report to nobody
WORKER_ENV = dict.fromkeys(THREADS, "1") | MALLOC | QUIET
ACCEPTS_IN_A_TURN = 64
TURN_S_MAX = 0.25  # the longest sleep between two looks at the heartbeats
SILENT_NS = 1_000_000_000  # a worker that long without a stamp gets connections only when no other can
ACCEPT_AGAIN_S = 0.1  # after it failed
RETRY_S = 0.02  # when a channel was full
START_PATIENCE = 10  # a worker that is not ready yet may be silent so many times longer
SAME_SIGNAL_S = 0.5  # timeout(1) and others send SIGTERM twice at once, to us and to our group: that is one
LAST_WORDS = 8  # times as many messages as are taken at once of a worker that has ended
REPORTS_MAX = 4 * SUMS_MAX  # lines for the audit log that a worker may send in SUM_S; it sums up itself
CHECK_S_MAX = 10.0  # how long crashing readers wait for the ingest worker's checks
DEATH_S_MAX = 5.0  # that is waited for killed workers at the end
MEASURE_S_MIN = 1.0  # between two looks at the memory of all workers


class _Slot:
    """One worker's place. `due_s`: when to start it next, math.inf while it runs or was given up."""

    def __init__(self, kind: str, index: int, module: str, layout: Layout) -> None:
        self.kind, self.index, self.module = kind, index, module
        self.role = kind if kind == "ingest" else f"{kind}-{index}"
        self.policy = Policy(self.role)
        self.beat = Heartbeat(layout.heartbeat(self.role), create=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.pidfd = -1
        self.sender: handoff.Sender | None = None
        self.starts = 0
        self.reports, self.reports_since_s = 0, 0.0
        self.due_s = math.inf
        self.kill_s = math.inf
        self.rolling = self.given_up = False
        self.retried = False  # by a SIGHUP, after it was given up
        self.killed = False  # and not dead yet

    @property
    def ready(self) -> bool:
        return self.sender is not None and self.sender.ready and not (self.rolling or self.sender.leaving)

    def signal(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)


def run(config: Config, *, modules: Mapping[str, str] = MODULES) -> int:
    """Serve until told to stop. Prints one line beginning with READY to stderr once every worker is ready.
    Meant as all that its process does: afterwards it ignores SIGTERM, SIGINT and SIGHUP.

    Returns 0 after SIGTERM or SIGINT, 1 or 2 when it cannot start, a worker's own status when that ended the start.
    """
    set_up_log("supervisor", config.log.level)
    try:
        with contextlib.ExitStack() as stack:
            supervisor = Supervisor(config, modules, stack)
            return supervisor.run()
    except EngineError as e:
        log.error("%s", e)
        return 2 if isinstance(e, ConfigError) else 1


class Supervisor:
    """See run(). `stack` closes what is opened here, in reverse order."""

    def __init__(self, config: Config, modules: Mapping[str, str], stack: contextlib.ExitStack) -> None:
        self.config = config
        self.layout = Layout(Path(config.data_dir).absolute())
        secure(self.layout, config)
        raise_limits()
        wanted = config.sockets.connections_max
        if (most := connections_max(wanted)) < wanted:
            log.warning(
                "a worker takes %d connections, not sockets.connections_max = %d: raise the hard limit on open files "
                "(ulimit -Hn, LimitNOFILE=)", most, wanted,
            )  # fmt: skip
        lock(self.layout, stack)
        file = File(self.layout.audit)
        stack.callback(file.close)
        self.audit_file, self.audit = file, Audit("supervisor", file.write)
        self.listeners = listen(self.layout, config, stack)
        self.held: dict[str, socket.socket] = {}  # accepted, but its worker's channel was full
        for stale in self.layout.run.glob("*.heartbeat"):
            stale.unlink(missing_ok=True)
        self.ingest = _Slot("ingest", 0, modules["ingest"], self.layout)
        self.readers = [_Slot("reader", i, modules["reader"], self.layout) for i in range(config.readers.count)]
        self.slots = [self.ingest, *self.readers]
        for slot in self.slots:
            stack.callback(self.layout.heartbeat(slot.role).unlink, missing_ok=True)
            stack.callback(slot.beat.close)
        self.selector = selectors.DefaultSelector()
        stack.callback(self.selector.close)
        self.suspicion = Suspicion()
        self.readers_wait_s = 0.0  # no reader starts before, unless the ingest worker has checked the files
        self.accept_after_s = 0.0
        self.accept_failing = ""  # why the last accept failed; "": it did not
        self.roll: deque[_Slot] = deque()
        self.rolled: _Slot | None = None
        self.measured_s = -math.inf
        self.rolls_for: handoff.Sender | None = None  # who waits for the end of it
        self.started = False  # every worker was ready once
        self.status: int | None = None  # set: stop with it
        self.asked_s = 0.0  # when SIGTERM or SIGINT last came
        self.awake_ns = time.monotonic_ns()  # silence before this is our own (SIGSTOP, a suspended machine)
        self.turn_ns = self.awake_ns
        self.watchdog_s = notify.watchdog_s()
        self.watchdog_due_s = 0.0 if self.watchdog_s else math.inf
        self.wake = self._catch_signals(stack)

    # ---- the loop

    def run(self) -> int:
        self.ingest.due_s = 0.0
        self._note("start")
        try:
            while self.status is None:
                now_s = self._turn()
                self._start_due(now_s)
                self._look_for_hangs(now_s)
                self._roll_on(now_s)
                self._open_or_shut()
                if now_s >= self.watchdog_due_s and self.watchdog_s:
                    notify.notify("WATCHDOG=1")
                    self.watchdog_due_s = now_s + self.watchdog_s
                if self.status is None:
                    self._wait(self._sleep_s(now_s))
        except BaseException:
            self._kill_all()
            raise
        return self._stop(self.status)

    def _turn(self) -> float:
        now_ns = time.monotonic_ns()
        if now_ns - self.turn_ns > 1e9 * (TURN_S_MAX + 1):
            log.warning("slept for %.1f s: workers get as long to show themselves", (now_ns - self.turn_ns) / 1e9)
            self.awake_ns = now_ns
        self.turn_ns = now_ns
        return now_ns / 1e9

    def _sleep_s(self, now_s: float) -> float:
        if self.held:
            return RETRY_S
        due_s = min(self.watchdog_due_s, *(slot.due_s for slot in self.slots))
        return min(max(due_s - now_s, 0.001), TURN_S_MAX, self.config.hang_after_ms / 4_000)

    def _wait(self, timeout_s: float) -> None:
        for key, _ in self.selector.select(timeout_s):
            if self.selector.get_map().get(key.fd) is key:  # an earlier one may have closed it
                key.data()

    # ---- workers come and go

    def _start_due(self, now_s: float) -> None:
        checked = self.ingest.sender is not None and self.ingest.sender.checked
        for slot in self.slots:
            if slot.due_s > now_s or (slot.kind == "reader" and now_s < self.readers_wait_s and not checked):
                continue
            slot.due_s = math.inf
            try:
                self._start(slot)
            except OSError as e:
                log.error("%s cannot be started: %s", slot.role, e)
                self._decide(slot, 1, now_s)

    def _start(self, slot: _Slot) -> None:
        slot.beat.start(slot.starts)
        slot.starts += 1
        ours, theirs = handoff.channel()
        sender = handoff.Sender(ours)
        config = msgspec.structs.replace(self.config, data_dir=str(self.layout.data_dir))
        job = Job(slot.role, slot.index, slot.module, os.getpid(), config)
        env = {name: value for name, value in os.environ.items() if name not in notify.VARIABLES} | WORKER_ENV
        command = [sys.executable, "-P", "-m", "engine.run.worker", str(theirs.fileno())]
        try:
            sender.send(handoff.JOB, msgspec.msgpack.encode(job))
            process = subprocess.Popen(
                command, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno()
            )
            try:
                slot.pidfd = os.pidfd_open(process.pid)
            except OSError:
                process.kill()
                process.wait()
                raise
        except BaseException:
            sender.close()
            raise
        finally:
            theirs.close()
        sender.on_measure = lambda: self._on_measure(sender)
        sender.on_report = lambda line: self._on_report(slot, line)
        if slot is self.ingest:
            sender.on_roll = lambda: self._on_roll(sender)
        slot.process, slot.sender, slot.kill_s, slot.killed = process, sender, math.inf, False
        self.selector.register(slot.pidfd, selectors.EVENT_READ, lambda: self._reap(slot))
        self.selector.register(sender, selectors.EVENT_READ, lambda: self._hear(slot))
        log.info("%s started, pid %d", slot.role, process.pid)

    def _hear(self, slot: _Slot) -> None:
        """Something came on a worker's channel."""
        sender = slot.sender
        assert sender is not None
        was_ready = sender.ready
        try:
            hears = sender.receive()
        except ValueError as e:
            log.error("%s says what no worker says (%s): killed", slot.role, e)
            slot.signal(signal.SIGKILL)
            hears = False
        if not hears:
            self.selector.unregister(sender)  # its pidfd says the rest
        if sender.ready and not was_ready:
            log.info("%s is ready", slot.role)
            slot.policy.on_ready(time.monotonic())
            self._on_ready(slot)

    def _on_report(self, slot: _Slot, line: bytes) -> None:
        """A line of a worker that may not write the audit log itself. It is believed no more than it must be: it is
        marked as the worker's, and bounded."""
        now_s = time.monotonic()
        if now_s - slot.reports_since_s >= SUM_S:
            slot.reports, slot.reports_since_s = 0, now_s
        slot.reports += 1
        if slot.reports > REPORTS_MAX:
            if slot.reports == REPORTS_MAX + 1:
                log.error("%s sends more than %d lines for the audit log: the rest is left out", slot.role, REPORTS_MAX)
            return
        try:
            found = decode_line(line)
        except (msgspec.MsgspecError, RecursionError):
            log.error("%s sent a line for the audit log that is none", slot.role)
            return
        self.audit_file.write(encode_line(msgspec.structs.replace(found, process=slot.role)))

    def _on_measure(self, sender: handoff.Sender) -> None:
        """For a worker that may not look at other processes: a confined reader. However often one asks, it is looked
        once in a while: the kernel goes through all that they have mapped."""
        now_s = time.monotonic()
        if now_s - self.measured_s >= MEASURE_S_MIN:
            for slot in self.slots:
                if slot.process is not None:
                    slot.beat.put(**memory_bytes(slot.process.pid))
            self.measured_s = time.monotonic()
        sender.send(handoff.MEASURED)

    def _on_roll(self, sender: handoff.Sender) -> None:
        """For the ingest worker: another catalog is there, which a confined reader could not open later."""
        self.rolls_for = sender
        slots = [slot for slot in self._not_yet_rolled(self.readers) if self._confined(slot)]
        if slots:
            log.info("another catalog: rolling %d readers", len(slots))
        self.roll.extend(slots)
        if not self.roll and self.rolled is None:
            self._tell_rolled(True)

    def _confined(self, slot: _Slot) -> bool:
        """May it be, by now or soon? One that is not there opens what there is when it starts."""
        if slot.process is None or self.config.readers.confine == "off":
            return False
        beat = slot.beat.read()
        return bool(beat.landlock or beat.seccomp or not slot.ready)

    def _not_yet_rolled(self, slots: Iterable[_Slot]) -> list[_Slot]:
        """But for those whose turn is still to come, or whose successor is not started yet."""
        return [slot for slot in slots if slot not in self.roll and not slot.rolling]

    def _tell_rolled(self, all_of_them: bool) -> None:
        if self.rolls_for is not None:
            self.rolls_for.send(handoff.ROLLED, b"\1" if all_of_them else b"")
            self.rolls_for = None

    def _note(self, what: str) -> None:
        """What was done to the engine as a whole; a signal does not say who sent it."""
        self.audit.add(os.getuid(), os.getpid(), "admin", what, "done", alone=True)

    def _on_ready(self, slot: _Slot) -> None:
        if slot is self.ingest:
            for reader in self.readers:  # a data directory is born by the ingest worker, so readers come after it
                if reader.starts == 0:
                    reader.due_s = 0.0
        if slot is self.rolled and not slot.rolling:  # the new one
            self._rolled()
        if not self.started and all(slot.ready for slot in self.slots):
            self.started = True
            paths = " ".join(f"{kind}={path}" for kind, path in socket_paths(self.layout, self.config).items())
            print(f"READY pid={os.getpid()} readers={len(self.readers)} {paths}", file=sys.stderr, flush=True)
            notify.notify(f"READY=1\nSTATUS={len(self.readers)} readers")

    def _rolled(self) -> None:
        """The turn of the next one, if there is one."""
        self.rolled = None
        if not self.roll:
            log.info("rolled")
            notify.notify("READY=1")
            self._tell_rolled(True)

    def _reap(self, slot: _Slot) -> None:
        status = self._bury(slot)
        now_s = time.monotonic()
        if slot.rolling:
            slot.rolling, slot.due_s = False, 0.0
            return
        if slot.kind == "reader" and self.suspicion.on_exit(status, now_s):
            searching = slot.beat.read().searching
            log.error("readers crash while searching %r: its files are checked first", searching)
            if self.ingest.ready and self.ingest.sender is not None:
                self.ingest.sender.checked = False
                if self.ingest.sender.send(handoff.SUSPECT, searching.encode()):
                    self.readers_wait_s = now_s + CHECK_S_MAX
        self._decide(slot, status, now_s)

    def _bury(self, slot: _Slot) -> int:
        """Collect a worker that has left."""
        assert slot.process is not None
        assert slot.sender is not None
        status = slot.process.wait()
        for _ in range(LAST_WORDS):
            if not _last_words(slot.sender):
                break
        self.selector.unregister(slot.pidfd)
        os.close(slot.pidfd)
        with contextlib.suppress(KeyError):
            self.selector.unregister(slot.sender)
        slot.sender.close()
        slot.process, slot.sender, slot.pidfd = None, None, -1
        return status

    def _decide(self, slot: _Slot, status: int, now_s: float) -> None:
        match slot.policy.on_exit(status, now_s):
            case Restart(after_s, looping):
                level = logging.ERROR if looping else logging.WARNING
                log.log(level, "%s %s; again in %.1f s", slot.role, describe(status), after_s)
                slot.due_s = now_s + after_s
            case GiveUp(reason, status):
                slot.given_up = True
                if slot is self.rolled and slot.retried:
                    self._rolled()  # it did not serve before either
                elif slot is self.rolled:
                    self._stop_rolling(f"{slot.role} did not come back")
                if not self.started:
                    log.error("the start is given up: %s", reason)
                    self.status = status
                elif all(slot.given_up for slot in self.slots):
                    log.error("no worker is left: %s", reason)
                    self.status = status
                else:
                    log.error("%s; the others go on. SIGHUP tries again", reason)

    def _look_for_hangs(self, now_s: float) -> None:
        for slot in self.slots:
            if slot.process is None or slot.killed:
                continue
            patience = 1 if slot.sender is not None and slot.sender.ready else START_PATIENCE
            silent_ms = (self.turn_ns - max(slot.beat.stamp_ns, self.awake_ns)) / 1e6
            if silent_ms > self.config.hang_after_ms * patience:
                log.error("%s gave no sign of life for %.1f s: killed", slot.role, silent_ms / 1e3)
            elif now_s >= slot.kill_s:
                log.warning("%s did not drain in time: killed", slot.role)
            else:
                continue
            slot.signal(signal.SIGKILL)
            slot.killed = True  # one that waits for a disk dies when that answers

    # ---- connections

    def _open_or_shut(self) -> None:
        """Listen exactly where a worker has room."""
        now_s = self.turn_ns / 1e9
        registered = self.selector.get_map()
        for listener in self.listeners:
            held = self.held.get(listener.kind)
            if held is not None and self._hand(listener.kind, held):
                del self.held[listener.kind]
            room = listener.kind not in self.held and now_s >= self.accept_after_s and bool(self._takers(listener.kind))
            if room and listener.sock not in registered:
                self.selector.register(listener.sock, selectors.EVENT_READ, lambda on=listener: self._accept(on))
            elif not room and listener.sock in registered:
                self.selector.unregister(listener.sock)

    def _takers(self, kind: str) -> list[_Slot]:
        """Ready workers with room in their channels, the one with the fewest connections first, silent ones last. One
        that has far more than another waits for it: where it goes is for life, and idle ones never even it out."""
        since_ns = self.turn_ns - SILENT_NS
        found = [
            (slot.beat.stamp_ns < since_ns, slot.sender.open, slot.index, slot)
            for slot in self.slots
            if slot.kind == kind and slot.ready and slot.sender is not None
        ]
        fewest = min((open_count for silent, open_count, *_ in found if not silent), default=0)
        most = fewest + max(HANDOFF_BACKLOG_MAX, fewest // 10)
        return [
            slot
            for silent, open_count, _, slot in sorted(found)
            if slot.sender is not None and not slot.sender.full and (silent or open_count <= most)
        ]

    def _accept(self, listener: Listener) -> None:
        for _ in range(ACCEPTS_IN_A_TURN):
            try:
                connection, _ = listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as e:  # no file descriptors, no memory: the backlog keeps it
                if not self.accept_failing:
                    log.error("no connection can be accepted: %s; tried again every %g s", e, ACCEPT_AGAIN_S)
                self.accept_failing = str(e)
                self.accept_after_s = time.monotonic() + ACCEPT_AGAIN_S
                return
            if self.accept_failing:
                log.warning("connections are accepted again")
                self.accept_failing = ""
            if not self._hand(listener.kind, connection):
                log.info("all %s workers are busy taking connections: accepting pauses", listener.kind)
                self.held[listener.kind] = connection
                return

    def _hand(self, kind: str, connection: socket.socket) -> bool:
        return any(slot.sender is not None and slot.sender.offer(connection) for slot in self._takers(kind))

    # ---- signals

    def _catch_signals(self, stack: contextlib.ExitStack) -> socket.socket:
        """The handlers are empty: the byte on the socket is the event.

        At the end they are not restored: what comes while the process leaves is ignored, as the default would make its
        exit status a signal's (and an ending Python puts the default back in place of a handler that is a function).
        """
        wake, wake_w = socket.socketpair()
        for end in (wake, wake_w):
            end.setblocking(False)
            stack.callback(end.close)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(wake_w.fileno()))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
            stack.callback(signal.signal, number, signal.SIG_IGN)
        self.selector.register(wake, selectors.EVENT_READ, self._on_signals)
        return wake

    def _on_signals(self) -> None:
        for number in self.wake.recv(256):
            if number in (signal.SIGTERM, signal.SIGINT):
                now_s = time.monotonic()
                if now_s - self.asked_s > SAME_SIGNAL_S:
                    log.info("%s: stopping%s", signal.Signals(number).name, " now" if self.asked_s else "")
                    self.asked_s, self.status = now_s, 0
            elif number == signal.SIGHUP and self.started:
                log.info("SIGHUP: rolling %d readers", len(self.readers))
                self._note("reload")
                notify.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1_000}")
                slots = [slot for slot in self.slots if slot.kind == "reader" or slot.given_up]
                self.roll.extend(self._not_yet_rolled(slots))

    def _roll_on(self, now_s: float) -> None:
        """The next reader of a SIGHUP, once the one before is ready again."""
        if self.rolled is not None or not self.roll:
            return
        slot = self.rolled = self.roll.popleft()
        slot.retried = slot.process is None
        if slot.retried:
            slot.given_up, slot.due_s = False, 0.0
        else:
            slot.rolling, slot.kill_s = True, now_s + self.config.drain_ms / 1e3
            slot.signal(signal.SIGTERM)

    def _stop_rolling(self, why: str) -> None:
        log.error("%s: the other readers are left as they are", why)
        self.rolled = None
        self.roll.clear()
        notify.notify("READY=1")
        self._tell_rolled(False)

    # ---- the end

    def _stop(self, status: int) -> int:
        notify.notify("STOPPING=1")
        self._note("stop")
        for listener in self.listeners:
            with contextlib.suppress(KeyError):
                self.selector.unregister(listener.sock)
            remove(listener.sock, listener.path, listener.inode)
        for connection in self.held.values():
            connection.close()
        for slot in self.slots:
            slot.signal(signal.SIGTERM)
        self.status = None  # a second SIGTERM sets it again
        deadline_s = time.monotonic() + self.config.drain_ms / 1e3
        while any(slot.process for slot in self.slots):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or self.status is not None:
                late = [slot.role for slot in self.slots if slot.process]
                log.warning("killed without waiting any longer: %s", ", ".join(late))
                self._kill_all()
                break
            for key, _ in self.selector.select(left_s):
                left = next((slot for slot in self.slots if slot.pidfd == key.fd), None)
                if left is not None:
                    self._bury(left)
                elif key.fileobj is self.wake:
                    self._on_signals()
                elif not isinstance(key.fileobj, handoff.Sender) or not _last_words(key.fileobj):
                    self.selector.unregister(key.fileobj)
        log.info("stopped")
        return status

    def _kill_all(self) -> None:
        for slot in self.slots:
            slot.signal(signal.SIGKILL)
        end_s = time.monotonic() + DEATH_S_MAX
        for slot in self.slots:
            if slot.process is not None:
                try:
                    slot.process.wait(max(0.0, end_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    log.critical("%s, pid %d, was killed and does not die: a disk?", slot.role, slot.process.pid)
                else:
                    self._bury(slot)


# ---- what must be true before the first worker starts


def secure(layout: Layout, config: Config) -> None:
    """Make the data directory, and refuse one that others could tamper with or that is not on a local
    file system. Raises BootError, ConfigError."""
    if not config.data_dir:
        raise ConfigError("data_dir is not set")
    try:
        if os.path.lexists(layout.data_dir):
            check_private(layout.data_dir)
        kind = mounts.check(layout.data_dir)
        layout.make()
        check_parents(layout.data_dir)
        for path in (layout.data_dir, layout.run, layout.catalog, layout.rows, layout.indexes, layout.models):
            check_private(path)
    except OSError as e:
        raise BootError(f"the data directory {layout.data_dir} cannot be used: {e}") from e
    if kind == "overlay":
        log.warning("%s is on overlayfs: keep it on a volume, or it goes with the container", layout.data_dir)


def lock(layout: Layout, stack: contextlib.ExitStack) -> None:
    """Take run/supervisor.pid for life. Raises BootError naming the holder."""
    path = layout.supervisor_pid
    try:
        fd = open_ours(path, os.O_RDWR | os.O_CREAT)
    except OSError as e:
        raise BootError(f"{path} cannot be opened: {e.strerror}") from e
    stack.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise BootError(f"another engine, pid {holder}, serves {layout.data_dir}; nothing was changed") from e
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    stack.callback(os.ftruncate, fd, 0)


def _last_words(sender: handoff.Sender) -> bool:
    """What a worker that leaves has told, its last audit lines among it; False where there is no more."""
    try:
        return sender.receive()
    except ValueError:
        return False
