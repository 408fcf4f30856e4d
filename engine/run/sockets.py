"""Unix sockets that this engine listens on, and the directories they are in.

Always true
  - A directory of ours is private, and nobody else could put another in its place.
  - A socket has its mode and group before anybody can connect. What is in its place and is no stale socket of ours is
    left alone and named.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from engine.config import Config
from engine.errors import BootError, ConfigError, EngineError
from engine.layout import Layout
from engine.run import notify

LISTEN_BACKLOG = 4_096
PATH_BYTES_MAX = 107


def check_private(path: Path) -> None:
    """A directory, no link, ours, and nobody else can write to it. Raises BootError."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise BootError(f"{path} is not a directory (a link in its place is refused)")
    if found.st_uid != os.geteuid():
        raise BootError(f"{path} belongs to uid {found.st_uid}, not to uid {os.geteuid()} that runs the engine")
    if found.st_mode & 0o022:
        raise BootError(
            f"{path} can be written to by others (mode {stat.S_IMODE(found.st_mode):04o}): chmod go-w {path}"
        )


def check_parents(path: Path) -> None:
    """Nobody but us and root could put something else in the place of `path` or of a directory above it: each is one of
    ours, and where others may write to it (/tmp), what is in it belongs to its owner alone (sticky). The links on
    the way, too. Raises BootError, OSError."""
    for above in {*path.absolute().parents, *path.resolve().parents} - {Path("/")}:
        for found in (above.lstat(), above.stat()):
            if found.st_uid not in (0, os.geteuid()):
                raise BootError(
                    f"{above}, above {path}, belongs to uid {found.st_uid}, who could replace what is in it"
                )
            if not stat.S_ISLNK(found.st_mode) and found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
                mode = stat.S_IMODE(found.st_mode)
                raise BootError(
                    f"{above}, above {path}, can be written to by others (mode {mode:04o}), who could replace what is "
                    f"in it: chmod go-w {above}"
                )


def bind(path: Path, mode: int, group: str) -> socket.socket:
    """A listening socket at path. A socket that nobody listens on is replaced; anything else there is refused."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)  # nobody else may connect before mode and group are right
    try:
        gid = grp.getgrnam(group).gr_gid if group else -1
        check_parents(path)
        remove_stale(path)
        sock.bind(str(path))
        if group:
            os.chown(path, -1, gid, follow_symlinks=False)
        path.chmod(mode)
        sock.listen(LISTEN_BACKLOG)
    except KeyError as e:
        sock.close()
        raise ConfigError(f"sockets.write_group: there is no group {group!r}") from e
    except OSError as e:
        sock.close()
        too_long = len(os.fsencode(path)) > PATH_BYTES_MAX
        why = f"a path has at most {PATH_BYTES_MAX} bytes; set a shorter one" if too_long else e
        raise BootError(f"no socket can be made at {path}: {why}") from e
    except EngineError:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


def remove_stale(path: Path) -> None:
    """Unlink a socket that a killed engine left. Raises BootError when it is alive, or is no socket of ours."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise BootError(f"{path} is not a socket of ours; it is left alone, remove it yourself")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # alive, with a full backlog
    raise BootError(f"another process listens on {path}")


def remove(sock: socket.socket, path: Path | None, inode: int) -> None:
    """Close a listening socket and unlink its file, if that is still the one of `inode`. May be called twice."""
    if sock.fileno() < 0:
        return
    sock.close()
    if path is not None:
        with contextlib.suppress(OSError):
            if path.lstat().st_ino == inode:
                path.unlink()


class Listener(NamedTuple):
    """path: to be unlinked at the end; None when systemd owns the socket."""

    kind: str  # of the workers it is for
    sock: socket.socket
    path: Path | None
    inode: int


def socket_paths(layout: Layout, config: Config) -> dict[str, Path]:
    return {
        "query": Path(config.sockets.query) if config.sockets.query else layout.query_socket,
        "write": Path(config.sockets.write) if config.sockets.write else layout.write_socket,
    }


def listen(layout: Layout, config: Config, stack: contextlib.ExitStack) -> list[Listener]:
    """Both listening sockets, from systemd or bound here. Raises BootError, ConfigError."""
    given = notify.listeners()
    modes = {"query": config.sockets.query_mode, "write": config.sockets.write_mode}
    listeners = []
    for name, path in socket_paths(layout, config).items():
        kind = "reader" if name == "query" else "ingest"
        if name in given:
            listener = Listener(kind, given[name], None, 0)
        else:
            sock = bind(path, int(modes[name], 8), config.sockets.write_group if name == "write" else "")
            listener = Listener(kind, sock, path, path.lstat().st_ino)
        stack.callback(remove, listener.sock, listener.path, listener.inode)
        listeners.append(listener)
    return listeners
