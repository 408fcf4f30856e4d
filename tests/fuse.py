"""A file system of a given type, for a command: `python -m tests.fuse TYPE DIRECTORY COMMAND...` in a mount namespace.

The kernel mounts it as it mounts sshfs; what is behind it is this process, which shows one empty directory and refuses
the rest. Exit status: the command's, 77 where FUSE may not be mounted here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
import sys
import threading

IN, OUT = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")
LOOKUP, FORGET, GETATTR, INIT, BATCH_FORGET = 1, 2, 3, 26, 42
CANNOT = 77


def serve(fd: int) -> None:
    """Until it is unmounted."""
    attributes = struct.pack(
        "<QII 6Q 10I", 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40700, 2, os.getuid(), os.getgid(), 0, 4096, 0
    )
    init = struct.pack("<IIIIHHIIHHI", 7, 31, 0, 0, 12, 9, 4096, 1, 0, 0, 0) + bytes(28)
    while True:
        try:
            data = os.read(fd, 1 << 17)
        except OSError:
            return
        _, code, unique, *_ = IN.unpack_from(data)
        if code in (FORGET, BATCH_FORGET):
            continue
        body = {INIT: init, GETATTR: attributes}.get(code, b"")
        error = 0 if body else -(errno.ENOENT if code == LOOKUP else errno.ENOSYS)
        os.write(fd, OUT.pack(OUT.size + len(body), error, unique) + body)


def main(kind: str, directory: str, *command: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        fd = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        return CANNOT
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    if libc.mount(b"nobody:/", directory.encode(), kind.encode(), 0, options.encode()):
        print(f"mount: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return CANNOT
    threading.Thread(target=serve, args=(fd,), daemon=True).start()
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
