"""Confinement: a child that confined itself tries what it must not, and what it must still be able to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import BootError
from engine.run import confine
from engine.run.confine import FORBIDDEN, Confined, landlock_abi
from tests.engine_fixture import ROOT, environment

pytestmark = pytest.mark.timeout(60)

# what a child tries, each in a line: its name, and an expression
TRIES = {
    "write": "open(home / 'new', 'w')",
    "append": "open(home / 'data' / 'file', 'a')",
    "update": "os.open(home / 'data' / 'file', os.O_RDWR)",
    "truncate": "os.truncate(home / 'data' / 'file', 0)",
    "truncate by opening": "os.open(home / 'data' / 'file', os.O_RDONLY | os.O_TRUNC)",
    "create": "os.open(home / 'data' / 'new', os.O_RDONLY | os.O_CREAT)",
    "unnamed file": "os.open(home, os.O_TMPFILE | os.O_RDWR)",
    "memory file": "os.memfd_create('x')",
    "rename": "os.rename(home / 'data' / 'file', home / 'data' / 'other')",
    "unlink": "os.unlink(home / 'data' / 'file')",
    "link": "os.link(home / 'data' / 'file', home / 'data' / 'other')",
    "symlink": "os.symlink('x', home / 'data' / 'other')",
    "mkdir": "os.mkdir(home / 'data' / 'other')",
    "mkfifo": "os.mkfifo(home / 'data' / 'other')",
    "chmod": "os.chmod(home / 'data' / 'file', 0o777)",
    "chmod by fd": "os.fchmod(readable.fileno(), 0o777)",
    "chown": "os.chown(home / 'data' / 'file', 1, 1)",
    "utime": "os.utime(home / 'data' / 'file')",
    "xattr": "os.setxattr(home / 'data' / 'file', 'user.x', b'x')",
    "read beyond": "open(home / 'secret').read()",
    "list beyond": "os.listdir(home)",
    "shadow": "open('/etc/hostname').read()",
    "execve": "os.execv('/bin/true', ['true'])",
    "fork": "os.fork()",
    "spawn": "subprocess.run(['/bin/true'])",
    "unix socket": "socket.socket(socket.AF_UNIX)",
    "inet socket": "socket.socket(socket.AF_INET)",
    "connect": "sock.connect(str(home / 'x.sock'))",
    "signal the parent": "os.kill(os.getppid(), 0)",
    "limit the parent": "__import__('resource').prlimit(os.getppid(), 0)",
    "signal by fcntl": "__import__('fcntl').fcntl(sock.fileno(), 8, os.getppid())",
    "signal by ioctl": "__import__('fcntl').ioctl(sock.fileno(), 0x8901, os.getppid().to_bytes(4, 'little'))",
    "ptrace": "call(lib.ptrace, 16, os.getppid(), 0, 0)",
    "read another process": "open(f'/proc/{os.getppid()}/environ').read()",
    "become root": "os.setuid(0)",
    "unshare": "call(lib.unshare, 0x10000000)",
    "mount": "call(lib.mount, b'x', b'/mnt', b'tmpfs', 0, 0)",
    "io_uring": "call(lib.syscall, 425, 8, 0)",
    "write in a thread": "in_thread(lambda: open(home / 'new', 'w'))",
}
MAY = {
    "read": "open(home / 'data' / 'file').read()",
    "list": "os.listdir(home / 'data')",
    "what was open": "(log.write(b'x'), log.flush(), mapped.__setitem__(0, 7))",
    "talk": "(pair[0].sendall(b'x'), pair[1].recv(1))",
    "a pair of its own": "socket.socketpair()",  # an event loop makes one when it ends
    "import": "__import__('onnxruntime') and __import__('tokenizers') and __import__('sqlite3')",
    "a thread": "in_thread(lambda: 1)",
    "time zones": "__import__('zoneinfo').ZoneInfo('Europe/Berlin')",
    "own memory": "open('/proc/self/smaps_rollup').read()",
    "own user": "__import__('pwd').getpwuid(0)",
    "a new file by another": "open(home / 'data' / 'later').read()",
}
CHILD = """
import ctypes, json, mmap, os, socket, subprocess, sys, threading
from pathlib import Path
from engine.run import confine
home, tries = Path(sys.argv[1]), json.loads(sys.argv[2])
lib = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    if function(*arguments) < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def in_thread(function):
    out = []
    def run():
        try: out.append(function())
        except BaseException as e: out.append(e)
    thread = threading.Thread(target=run); thread.start(); thread.join()
    if isinstance(out[0], BaseException): raise out[0]
pair, sock = socket.socketpair(), socket.socket(socket.AF_UNIX)
readable, log = open(home / "data" / "file"), open(home / "data" / "log", "wb")
mapped = mmap.mmap(os.open(home / "data" / "page", os.O_RDWR), 4096)
made = eval(sys.argv[3])
print(json.dumps(made), flush=True)
sys.stdin.readline()
results = {}
for name, what in tries.items():
    try: eval(what); results[name] = "done"
    except OSError as e: results[name] = type(e).__name__
    except BaseException as e: results[name] = repr(e)
print(json.dumps(results), flush=True)
"""
WHOLE = "confine.confine([home / 'data', *confine.libraries()])"
BY_LANDLOCK_ALONE = {"read beyond", "list beyond", "shadow", "read another process"}


def child(tmp_path: Path, tries: dict[str, str], how: str = WHOLE) -> tuple[Confined, dict[str, str]]:
    """How a child that confined itself came to be confined, and what came of each thing it tried."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("precious")
    (data / "page").write_bytes(bytes(4096))
    (tmp_path / "secret").write_text("secret")
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD, str(tmp_path), json.dumps(tries), how],
        cwd="/", env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdin is not None and process.stdout is not None
        made = json.loads(process.stdout.readline())
        (data / "later").write_text("of a later generation")
        process.stdin.write("go\n")
        process.stdin.flush()
        results: dict[str, Any] = json.loads(process.stdout.readline())
    assert process.returncode == 0
    assert (data / "file").read_text() == "precious"
    return Confined(*made), results


def test_a_confined_process_can_do_nothing_but_what_it_is_for(tmp_path: Path) -> None:
    made, results = child(tmp_path, TRIES | MAY)
    if not made.whole:
        pytest.skip(f"this machine has {made}: {made.why}")
    assert {name: results[name] for name in MAY} == dict.fromkeys(MAY, "done")
    assert {name: results[name] for name in TRIES} == dict.fromkeys(TRIES, "PermissionError") | {"io_uring": "OSError"}
    assert (tmp_path / "data" / "page").read_bytes()[0] == 7
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["file", "later", "log", "page"]


def test_seccomp_alone_keeps_it_from_writing_running_and_connecting(tmp_path: Path) -> None:
    """As on a kernel without Landlock."""
    made, results = child(tmp_path, TRIES | MAY, "(confine._seccomp(), (0, True, ''))[1]")
    assert made == Confined(0, True)
    assert {name for name in MAY if results[name] != "done"} == set()
    left = {name for name in TRIES if results[name] == "done"}
    assert left <= BY_LANDLOCK_ALONE


def test_landlock_alone_keeps_it_from_files_beyond(tmp_path: Path) -> None:
    if not landlock_abi():
        pytest.skip("no Landlock here")
    denied = [
        "write",
        "append",
        "update",
        "create",
        "unlink",
        "mkdir",
        "symlink",
        *BY_LANDLOCK_ALONE,
        "ptrace",
        "execve",
    ]
    how = "(confine._landlock([home / 'data', *confine.libraries()]), False, '')"
    made, results = child(tmp_path, {name: TRIES[name] for name in denied} | MAY, how)
    assert made.landlock == landlock_abi()
    assert results == dict.fromkeys(denied, "PermissionError") | dict.fromkeys(MAY, "done")


def test_what_is_missing_is_named_and_refused_where_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(confine, "_landlock", none)
    monkeypatch.setattr(confine, "_seccomp", none)
    monkeypatch.setattr(confine.Path, "iterdir", lambda path: iter([path]))  # pytest has threads
    made = confine.confine([])
    assert (made.whole, str(made)) == (False, "nothing")
    assert made.why == "no Landlock: Function not implemented; no seccomp: Function not implemented"
    with pytest.raises(BootError, match=r"readers\.confine is require, but there is no Landlock"):
        confine.confine([], require=True)


def test_a_process_with_threads_is_not_confined_by_half(tmp_path: Path) -> None:
    how = "(threading.Thread(target=threading.Event().wait, daemon=True).start(), confine.confine([home]))[1]"
    made, _ = child(tmp_path, {}, how)
    assert made == Confined(0, False, "2 threads run already")


def test_no_call_is_named_twice() -> None:
    names = FORBIDDEN.split()
    assert sorted(set(names)) == sorted(names)


def test_this_project_is_among_what_may_be_read() -> None:
    assert ROOT in confine.libraries()
    assert not {Path("/"), Path.home(), Path("/tmp"), Path("/etc"), Path(os.sep + "var")} & set(confine.libraries())
