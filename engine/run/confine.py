"""What a process can no longer do, whoever has taken it over: Landlock and seccomp, for a reader before it serves.

Always true afterwards, for every thread to come
  - Nothing is opened to be written to, created, renamed, removed or given another mode or owner. What was opened before
    stays open: a reader's heartbeat, LMDB's lock file, its log, its channel and connections.
  - Only `reads` (data, models, libraries) can be opened for reading; Landlock alone gives that.
  - No program is run and no process forked, no socket made or connected, no other process traced, read or signalled;
    nothing that changes the system, and no io_uring, which would go round all of this.
  - A forbidden call fails with EPERM; it does not kill: a library that only tries goes on.
  - Nothing can be taken back (no_new_privs; both only ever grow tighter).

What is there is used: Landlock from its ABI 1 on (Linux 5.13), by its system calls; seccomp by libseccomp, which writes
the filter for the machine's own architecture (a call by another one kills). What is not there is named.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import BootError

PR_SET_NO_NEW_PRIVS = 38

# ---- Landlock (linux/landlock.h); the numbers are the same on every architecture
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, RULE_PATH_BENEATH = 1, 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
FS_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # how many rights an ABI knows, from it on
NET_RIGHTS = 0b11  # bind and connect TCP, from ABI 4
SCOPES = 0b11  # abstract sockets and signals stay within, from ABI 6
# of /proc what is about ourselves and the machine: Landlock lets others' environment be read
LIBRARIES = """
    /usr/lib /usr/lib64 /lib /lib64 /usr/local/lib /usr/share/zoneinfo
    /etc/ld.so.cache /etc/localtime /etc/nsswitch.conf /etc/passwd /etc/group
    /proc/self /proc/cpuinfo /proc/meminfo /proc/stat /sys/devices /sys/bus/pci /dev/null /dev/urandom
"""

# ---- seccomp (seccomp.h)
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
ATTR_NNP, ATTR_TSYNC = 3, 4
NE, MASKED_EQ = 1, 7
CLONE_THREAD = 0x00010000
FORBIDDEN = """
    execve execveat fork vfork
    socket connect bind listen accept accept4
    ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_open pidfd_getfd pidfd_send_signal
    kill tkill rt_sigqueueinfo rt_tgsigqueueinfo
    creat truncate ftruncate fallocate rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat
    mkdir mkdirat rmdir mknod mknodat chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat
    utime utimes utimensat futimesat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
    open_by_handle_at name_to_handle_at memfd_create memfd_secret
    mount umount2 pivot_root chroot unshare setns move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr
    bpf perf_event_open userfaultfd fanotify_init
    keyctl add_key request_key init_module finit_module delete_module kexec_load kexec_file_load
    setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset personality
    iopl ioperm swapon swapoff reboot acct quotactl quotactl_fd syslog sethostname setdomainname
    settimeofday clock_settime clock_adjtime adjtimex stime
    shmget shmat msgget semget mq_open
"""
SIGNAL_BY_FCNTL = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: who gets which signal when something comes
SIGNAL_BY_IOCTL = (0x8901, 0x8902)  # FIOSETOWN, SIOCSPGRP
RINGS = ("io_uring_setup", "io_uring_enter", "io_uring_register")
UNKNOWN = ("clone3", "openat2")  # their arguments cannot be looked at; who asks is told to use the older call


class Confined(NamedTuple):
    """landlock: the ABI in force, 0 none. why: what is missing, "" nothing."""

    landlock: int = 0
    seccomp: bool = False
    why: str = ""

    @property
    def whole(self) -> bool:
        return bool(self.landlock and self.seccomp)

    def __str__(self) -> str:
        parts = [f"Landlock (ABI {self.landlock})" if self.landlock else "", "seccomp" if self.seccomp else ""]
        return " and ".join(filter(None, parts)) or "nothing"


def libraries() -> list[Path]:
    """What Python and its packages are loaded from, now and later, and what they look at."""
    ours = Path(__file__).resolve().parents[2]
    found = [sys.prefix, sys.base_prefix, *filter(None, sys.path), *LIBRARIES.split()]
    return [path for path in (ours, *map(Path, found)) if path.exists()]


def confine(reads: Iterable[Path], *, require: bool = False) -> Confined:
    """Confine this process, which must have one thread, for good. Raises BootError where `require` and not all of it
    could be had."""
    why = []
    landlock, seccomp = 0, False
    if (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        why.append(f"{threads} threads run already")
    else:
        try:
            landlock = _landlock(reads)
        except OSError as e:
            why.append(f"no Landlock: {e.strerror}")
        try:
            _seccomp()
            seccomp = True
        except OSError as e:
            why.append(f"no seccomp: {e.strerror or e}")
    confined = Confined(landlock, seccomp, "; ".join(why))
    if require and not confined.whole:
        raise BootError(f"readers.confine is require, but there is {confined.why}")
    return confined


def without_rings() -> None:
    """No io_uring from now on; to be called before an event loop is made. libuv opens a ring for its epoll calls, no
    setting keeps it from that, and it aborts where the ring is forbidden later. Where there is no libseccomp nothing
    happens, and nothing is forbidden later either."""
    with contextlib.suppress(OSError), _filter() as made:
        for name in RINGS:
            made.forbid(name, code=errno.ENOSYS)
        made.load()


# ---- Landlock


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_abi() -> int:
    """0 where the kernel has none, or it is off."""
    try:
        return _call(CREATE_RULESET, None, 0, VERSION_FLAG)
    except OSError:
        return 0


def _landlock(reads: Iterable[Path]) -> int:
    """Only beneath `reads` may be read, nothing written. The ABI. Raises OSError."""
    abi = _call(CREATE_RULESET, None, 0, VERSION_FLAG)
    rights = max(count for since, count in FS_RIGHTS.items() if since <= abi)
    ruleset = _Ruleset((1 << rights) - 1, NET_RIGHTS if abi >= 4 else 0, SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    fd = _call(CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    try:
        os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)  # stays open: made anew, it would be another directory
        for path in reads:
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = _PathBeneath(READ_FILE | (READ_DIR if path.is_dir() else 0), parent)
                _call(ADD_RULE, fd, RULE_PATH_BENEATH, ctypes.byref(rule), 0)
            finally:
                os.close(parent)
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        _call(RESTRICT_SELF, fd, 0)
    finally:
        os.close(fd)
    return abi


def _call(number: int, *arguments: Any) -> int:
    """A system call that the C library has no name for. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    done = int(libc.syscall(ctypes.c_long(number), *given))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done


# ---- seccomp


class _Compare(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class _Filter:
    """A libseccomp filter that allows what no rule forbids. Raises OSError."""

    def __init__(self, library: Any) -> None:
        self._library = library
        library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))
        if not self._context:
            raise OSError(errno.ENOMEM, "libseccomp makes no filter")

    def forbid(self, name: str, *compare: _Compare, code: int = errno.EPERM) -> None:
        """Where all comparisons hold. A call that this machine or this libseccomp does not know is passed over."""
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number != -1:
            array = (_Compare * len(compare))(*compare)
            action = ctypes.c_uint32(ERRNO | code)
            self._check(self._library.seccomp_rule_add_array(self._context, action, number, len(compare), array))

    def load(self) -> None:
        for attribute in (ATTR_NNP, ATTR_TSYNC):
            self._check(self._library.seccomp_attr_set(self._context, attribute, ctypes.c_uint32(1)))
        self._check(self._library.seccomp_load(self._context))

    def close(self) -> None:
        self._library.seccomp_release(self._context)

    @staticmethod
    def _check(done: int) -> None:
        if done < 0:
            raise OSError(-done, os.strerror(-done))


@contextlib.contextmanager
def _filter() -> Iterator[_Filter]:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as e:
        raise OSError(errno.ENOENT, "libseccomp.so.2 is not here (Debian: libseccomp2)") from e
    made = _Filter(library)
    try:
        yield made
    finally:
        made.close()


def _seccomp() -> None:
    """Raises OSError."""
    with _filter() as made:
        for name in FORBIDDEN.split():
            made.forbid(name)
        for name in (*UNKNOWN, *RINGS):
            made.forbid(name, code=errno.ENOSYS)
        made.forbid("clone", _Compare(0, MASKED_EQ, CLONE_THREAD, 0))  # a process, no thread
        made.forbid("tgkill", _Compare(0, NE, os.getpid(), 0))
        made.forbid("prlimit64", _Compare(0, NE, 0, 0))  # of CPU seconds: a way to kill another process
        for call, commands in (("fcntl", SIGNAL_BY_FCNTL), ("ioctl", SIGNAL_BY_IOCTL)):
            for command in commands:
                made.forbid(call, _Compare(1, MASKED_EQ, 0xFFFFFFFF, command))
        for call, flags_at in (("open", 1), ("openat", 2)):
            for mode in (os.O_WRONLY, os.O_RDWR, os.O_ACCMODE):
                made.forbid(call, _Compare(flags_at, MASKED_EQ, os.O_ACCMODE, mode))
            for flag in (os.O_CREAT, os.O_TRUNC):
                made.forbid(call, _Compare(flags_at, MASKED_EQ, flag, flag))
        made.load()
