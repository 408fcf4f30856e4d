"""The file operations of real processes, in order, as strace saw them.

Always true
  - Nothing is left out silently: a call on a file of the data directory that is not understood is an error, and so are
    rings for files and writable mappings of anything but what is set anew. What ends up on the real disk is compared
    with what the operations make (tests/power/test_power.py), so a store that escaped would show.
  - An operation stands where it returned, an acknowledgement where it began. No sync overlaps with what it may or may
    not cover.
  - What is set anew is left out (`is_set_anew`): what a start makes, whatever is there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ipc.frames import FrameReader
from ipc.messages import FRAME_BYTES_MAX, Done, Ingested, decode_reply

CALLS = (
    "open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,ftruncate,truncate,fallocate,"
    "fsync,fdatasync,sync,syncfs,msync,sync_file_range,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,"
    "unlinkat,mkdir,mkdirat,rmdir,mknod,mknodat,mmap,lseek,copy_file_range,sendfile,splice,io_uring_setup,io_submit"
)
_SET_ANEW = re.compile(r"run(/.*)?|generation|(catalog|migrating)/catalog\.\d+(\.tmp)?-lock")


class Create(NamedTuple):
    path: str
    folder: bool = False


class Write(NamedTuple):
    path: str
    offset: int
    data: bytes


class Resize(NamedTuple):
    """keep: fallocate, which only grows."""

    path: str
    size: int
    keep: bool = False


class Sync(NamedTuple):
    """Of a file, or of the names in a folder."""

    path: str


class SyncRange(NamedTuple):
    """What O_DSYNC does after a write."""

    path: str
    offset: int
    size: int


class Rename(NamedTuple):
    path: str
    to: str


class Unlink(NamedTuple):
    path: str


class Acknowledged(NamedTuple):
    """A reply left the ingest worker."""

    reply: Ingested | Done


class Migrated(NamedTuple):
    """A migration had ended with status 0."""


Picture: TypeAlias = "dict[str, bytes | None]"  # what is in a folder: path -> content, None: a folder
Operation: TypeAlias = Create | Write | Resize | Sync | SyncRange | Rename | Unlink | Acknowledged | Migrated


def is_set_anew(name: str) -> bool:
    """Is that, relative to the data directory, made by each start, whatever is there?"""
    return _SET_ANEW.fullmatch(name) is not None


def strace(output: Path) -> list[str]:
    """What to put before a command to have it recorded. The tracer is no parent of it (-D)."""
    return [
        "strace", "-D", "-f", "--seccomp-bpf", "-yy", "-xx", "-v", "-s", "100000000", "-e", f"trace={CALLS}", "-e",
        "signal=none", "-o", str(output),
    ]  # fmt: skip


def why_not(folder: Path) -> str:
    """Why nothing can be recorded here, tried in that folder; "" where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (make deps)"
    done = subprocess.run([*strace(folder / "probe"), "true"], capture_output=True, text=True, check=False)
    return f"strace may not trace here: {done.stderr.strip()}" if done.returncode else ""


_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_HANDLE = re.compile(r"^(AT_FDCWD|\d+)<(.*?)>(\(deleted\))?$")
_LINE = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>(.*)|(\w+)\((.*))$", re.DOTALL)
_RESULT = re.compile(r"^(.*)\) += (-?\d+).*$", re.DOTALL)


def _bytes(quoted: str) -> bytes:
    return bytes.fromhex(quoted.replace("\\x", ""))


def _arguments(text: str) -> list[str]:
    """Split at the commas that no bracket holds; strings are escaped and hold none."""
    found, depth, at = [], 0, 0
    for here, char in enumerate(text):
        if char in "[{<":
            depth += 1
        elif char in "]}" or (char == ">" and text[here - 1] != "-"):
            depth -= 1
        elif char == "," and depth == 0:
            found.append(text[at:here].strip())
            at = here + 1
    return [*found, text[at:].strip()]


class _Parser:
    def __init__(self, data_dir: Path, sizes: dict[str, int]) -> None:
        self.root, self.data = str(data_dir.parent), data_dir.name
        self.mark = "".join(f"\\x{byte:02x}" for byte in self.root.encode())
        self.flags: dict[tuple[str, str], str] = {}  # of an open file, by (fd, path)
        self.position: dict[tuple[str, str], int] = {}
        self.size = sizes
        self.replies: dict[str, FrameReader] = {}

    def path(self, escaped: str) -> str | None:
        """Relative to the folder that the data directory is in; None for other files and what is set anew."""
        whole = _bytes(escaped).decode() if escaped.startswith("\\x") else escaped
        if whole != self.root and not whole.startswith(f"{self.root}/"):
            return None
        name = whole[len(self.root) + 1 :]
        top, _, below = name.partition("/")
        if top not in ("", self.data) or is_set_anew(below):
            return None
        return name

    def handle(self, text: str) -> tuple[str, str | None]:
        """(number, path) of `5</path>`."""
        match = _HANDLE.match(text)
        if match is None:
            return text, None
        return match[1], None if match[3] else self.path(match[2])

    def at(self, folder: str, name: str) -> str | None:
        """A path given by folder handle and name."""
        given = _bytes(name.strip('"')).decode()
        if given.startswith("/"):
            return self.path(given)
        base = self.handle(folder)[1]
        return None if base is None else f"{base}/{given}"

    def operations(self, call: str, arguments: str, result: int) -> Iterator[Operation]:
        writes = call.startswith(("write", "pwrite"))
        args = arguments.split(",", 1) if writes else _arguments(arguments)
        match call:
            case "openat":
                path, flags = self.at(args[0], args[1]), args[2]
                if path is None:
                    return
                if "O_CREAT" in flags and path not in self.size:
                    self.size[path] = 0
                    yield Create(path)
                elif "O_TRUNC" in flags:
                    self.size[path] = 0
                    yield Resize(path, 0)
                number = str(result)
                self.flags[number, path], self.position[number, path] = flags, 0
            case "write" | "writev" | "pwrite64" | "pwritev":
                number, path = self.handle(args[0])
                if path is None:
                    return
                data = b"".join(_bytes(m) for m in _STRING.findall(arguments))[:result]
                assert len(data) == result, f"strace cut {call} of {path}"
                flags = self.flags[number, path]
                if call.startswith("p"):
                    offset = int(arguments.rpartition(",")[2])
                else:
                    offset = self.size[path] if "O_APPEND" in flags else self.position[number, path]
                    self.position[number, path] = offset + result
                self.size[path] = max(self.size[path], offset + result)
                yield Write(path, offset, data)
                if "O_DSYNC" in flags or "O_SYNC" in flags:
                    yield SyncRange(path, offset, result)
            case "ftruncate" | "truncate" | "fallocate":
                path = self.handle(args[0])[1] if call != "truncate" else self.path(args[0].strip('"'))
                if path is not None:
                    assert call != "fallocate" or args[1] == "0"
                    size = int(args[1]) if call != "fallocate" else int(args[2]) + int(args[3])
                    self.size[path] = size if call != "fallocate" else max(size, self.size[path])
                    yield Resize(path, size, call == "fallocate")
            case "lseek":
                number, path = self.handle(args[0])
                if path is not None:
                    self.position[number, path] = result
            case "fsync" | "fdatasync":
                path = self.handle(args[0])[1]
                if path is not None:
                    yield Sync(path)
            case "mkdir" | "mkdirat":
                path = self.at("", args[0]) if call == "mkdir" else self.at(args[0], args[1])
                if path is not None:
                    yield Create(path, folder=True)
            case "rename" | "renameat" | "renameat2":
                pairs = (("", args[0]), ("", args[1])) if call == "rename" else ((args[0], args[1]), (args[2], args[3]))
                path, to = (self.at(*pair) for pair in pairs)
                if path is None and to is None:
                    return
                assert path is not None and to is not None, "a file came from or went elsewhere"
                for name in [n for n in self.size if n == path or n.startswith(f"{path}/")]:
                    self.size[to + name[len(path) :]] = self.size.pop(name)
                yield Rename(path, to)
            case "unlink" | "unlinkat" | "rmdir":
                path = self.at("", args[0]) if call != "unlinkat" else self.at(args[0], args[1])
                if path is not None:
                    self.size.pop(path, None)
                    yield Unlink(path)
            case "mmap":
                path = self.handle(args[4])[1]
                if path is not None and "PROT_WRITE" in args[2] and "MAP_SHARED" in args[3]:
                    raise AssertionError(f"{path} is written through a mapping")
            case "sendto" | "sendmsg":
                return
            case _:
                raise AssertionError(f"{call} of the data directory is not understood")

    def acknowledgements(self, arguments: str) -> Iterator[Acknowledged]:
        """Replies in a write to a client of the write socket."""
        socket = arguments.partition(">,")[0]
        reader = self.replies.setdefault(socket, FrameReader(FRAME_BYTES_MAX))
        reader.feed(b"".join(_bytes(m) for m in _STRING.findall(arguments.partition("]>")[2])))
        while (body := reader.next_frame()) is not None:
            reply = decode_reply(body)
            if isinstance(reply, Ingested | Done):
                yield Acknowledged(reply)


def parse(output: Path, data_dir: Path, left: Picture) -> list[Operation]:
    """The operations on a data directory and on the folder that it is in, by paths relative to that; `left` was there
    before. Raises AssertionError for what is not understood."""
    parser = _Parser(data_dir, {path: len(content) for path, content in left.items() if content is not None})
    found: list[Operation] = []
    begun: dict[str, tuple[str, str, int]] = {}  # by thread: the call that has not returned yet, and when it began
    with output.open() as lines:
        for line in lines:
            if "io_submit(" in line or ("io_uring_setup(" in line and "IORING_SETUP_SQPOLL" in line):
                raise AssertionError("files may be written by a ring, which is not seen")  # uvloop's other: epoll_ctl
            thread = line.partition(" ")[0]
            if parser.mark not in line and thread not in begun:
                continue
            match = _LINE.match(line.rstrip("\n"))
            if match is None:
                continue
            resumed, more, call, arguments = match[2], match[3], match[4], match[5]
            if call in ("write", "writev", "sendto") and "UNIX" in arguments.partition(",")[0]:
                if parser.mark in arguments.partition("]>")[0]:  # a socket with a path: a client's
                    found += parser.acknowledgements(arguments)
                continue
            if call and arguments.endswith("<unfinished ...>"):
                begun[thread] = call, arguments.removesuffix("<unfinished ...>").rstrip(), len(found)
                continue
            since = len(found)
            if resumed:
                if thread not in begun:
                    continue
                call, arguments, since = begun.pop(thread)
                assert call == resumed
                arguments += more
            done = _RESULT.match(arguments)
            if done is None or int(done[2]) < 0:
                continue
            for operation in parser.operations(call, done[1], int(done[2])):
                if isinstance(operation, Sync):
                    touched = {o.path for o in found[since:] if not isinstance(o, Acknowledged | Migrated)}
                    assert operation.path not in touched | {path.rpartition("/")[0] for path in touched}, operation
                found.append(operation)
    return found
