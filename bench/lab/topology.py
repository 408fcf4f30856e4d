"""The lab's network: namespaces, addresses, and every process that runs inside.

Always true
  - Nothing leaves: no interface of the lab is ever in the machine's own namespace, and no namespace has
    a route to anything but the lab's own networks.
  - All addresses are documentation addresses (RFC 5737, RFC 3849).
  - Everything made here is taken down by `Lab.down`: processes by the groups that we started (and what is
    left by the pids inside our own namespaces), then the namespaces, whose interfaces go with them.

    inside 192.0.2.0/24 -- lan bridge -- router -- wan.py (delay) -- wan bridge -- 198.51.100.0/24, 203.0.113.0/24
                               ^ the recorder listens here: it sees each packet once
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PREFIX = "fkl-"
LAN, WAN, ROUTER = "lan", "wan", "router"
ETC_NETNS = Path("/etc/netns")
INSIDE = "192.0.2.0/24"
INSIDE6, OUTSIDE6 = "2001:db8:1::/64", "2001:db8:2::/64"
RESOLVER = "192.0.2.53"
OFFLOADS = ("tx", "rx", "gso", "tso", "gro")


class Stopped(Exception):
    """The lab is being taken down; an actor lets this pass."""


class LabError(Exception):
    """Setting up or recording failed; the message says what to do."""


@dataclass(frozen=True)
class Host:
    name: str
    ip: str
    ip6: str | None = None
    more: tuple[str, ...] = ()  # further IPv4 addresses of the same machine

    @property
    def inside(self) -> bool:
        return self.ip.startswith("192.0.2.")

    @property
    def gateway(self) -> str:
        return self.ip.rsplit(".", 1)[0] + ".1"


BOTS = tuple(f"203.0.113.{n}" for n in range(130, 178))

HOSTS: dict[str, Host] = {
    h.name: h
    for h in (
        # inside: servers, then workstations
        Host("web", "192.0.2.10", "2001:db8:1::10"),
        Host("app", "192.0.2.11"),
        Host("files", "192.0.2.20"),
        Host("db", "192.0.2.30"),
        Host("printer", "192.0.2.40"),
        Host("dns", RESOLVER, "2001:db8:1::53"),
        Host("ws1", "192.0.2.101", "2001:db8:1::101"),
        Host("ws2", "192.0.2.102", "2001:db8:1::102"),
        Host("ws3", "192.0.2.103"),
        Host("ws4", "192.0.2.104"),
        Host("ws5", "192.0.2.105"),  # gets infected in the first half
        Host("ws6", "192.0.2.106"),  # in the second
        Host("ws7", "192.0.2.107"),  # tunnels in the first half
        Host("ws8", "192.0.2.108"),  # in the second
        Host("dev", "192.0.2.120"),
        Host("monitor", "192.0.2.200"),
        # outside: the ordinary Internet
        Host("site", "198.51.100.10", "2001:db8:2::10"),
        Host("mirror", "198.51.100.20"),
        Host("cloud", "198.51.100.30"),
        Host("speed", "198.51.100.40"),
        Host("udns", "198.51.100.53"),
        Host("ntp", "198.51.100.123"),
        Host("remote1", "198.51.100.201", "2001:db8:2::201"),
        Host("remote2", "198.51.100.202"),
        Host("remote3", "198.51.100.203"),
        # outside: those who mean harm
        Host("scan1", "203.0.113.11"),
        Host("scan2", "203.0.113.12"),
        Host("slow1", "203.0.113.21"),
        Host("slow2", "203.0.113.22"),
        Host("brute1", "203.0.113.31"),
        Host("brute2", "203.0.113.32"),
        Host("hack1", "203.0.113.41"),
        Host("hack2", "203.0.113.42"),
        Host("c2a", "203.0.113.80"),
        Host("c2b", "203.0.113.81"),
        Host("drop1", "203.0.113.90"),
        Host("drop2", "203.0.113.91"),
        Host("tun1", "203.0.113.97", more=("203.0.113.98",)),
        Host("tun2", "203.0.113.107", more=("203.0.113.108",)),
        Host("bots", "203.0.113.129", more=BOTS),
    )
}

# A namespace sees these instead of the machine's own: no account of this machine can be logged in to.
ETC_FILES = {
    "resolv.conf": f"nameserver {RESOLVER}\noptions timeout:2 attempts:1\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "passwd": "root:x:0:0:root:{home}:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "shadow": "root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n",
}


def netns(name: str) -> str:
    return PREFIX + name


def host_command(argv: Sequence[str]) -> str:
    """A set-up command on the machine itself; failing is an error with the command's own words."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def leftovers() -> list[str]:
    """Namespaces of an earlier run that was killed without a chance to take them down."""
    listed = host_command(["ip", "netns", "list"]).splitlines()
    return sorted(word[0] for line in listed if (word := line.split()) and word[0].startswith(PREFIX))


def remove_namespaces(names: Sequence[str]) -> None:
    """Kill what still runs inside, then delete; what is already gone is not an error."""
    for name in names:
        for _ in range(3):
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            if not pids:
                break
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.1)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        shutil.rmtree(ETC_NETNS / name, ignore_errors=True)
    try:
        ETC_NETNS.rmdir()  # only when empty
    except OSError:
        pass


class Lab:
    """The running network. `run` and `spawn` are the only ways a program gets into it."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work = work
        self.seed = seed
        self.stop = threading.Event()
        self.namespaces: list[str] = []
        self._live: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    # -- network ------------------------------------------------------------------------------------

    def up(self) -> None:
        (self.work / "home").mkdir(parents=True, exist_ok=True)
        for name in (LAN, WAN, ROUTER, *HOSTS):
            self._namespace(name)
        for bridge in (LAN, WAN):
            host_command(["ip", "-n", netns(bridge), "link", "add", "br0", "type", "bridge", "mcast_snooping", "0"])
            host_command(["ip", "-n", netns(bridge), "link", "set", "br0", "up"])
        self._router()
        for host in HOSTS.values():
            self._host(host)
        self._no_way_out()

    def _namespace(self, name: str) -> None:
        etc = ETC_NETNS / netns(name)
        etc.mkdir(parents=True, exist_ok=True)
        for file, text in ETC_FILES.items():
            (etc / file).write_text(text.replace("{home}", str(self.work / "home")))
        (etc / "shadow").chmod(0o600)
        self.namespaces.append(netns(name))
        host_command(["ip", "netns", "add", netns(name)])
        self._sysctl(name, "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        host_command(["ip", "-n", netns(name), "link", "set", "lo", "up"])

    def _sysctl(self, name: str, *settings: str) -> None:
        host_command(["ip", "netns", "exec", netns(name), "sysctl", "-qw", *settings])

    def _cable(self, name: str, interface: str, bridge: str, port: str) -> None:
        """A veth from a namespace to a bridge, without offloads: the recording shows packets as on a wire."""
        add = ["ip", "-n", netns(bridge), "link", "add", "name", port, "type", "veth"]
        host_command([*add, "peer", "name", interface, "netns", netns(name)])
        for ns, dev in ((bridge, port), (name, interface)):
            switches = [word for offload in OFFLOADS for word in (offload, "off")]
            host_command(["ip", "netns", "exec", netns(ns), "ethtool", "-K", dev, *switches])
        host_command(["ip", "-n", netns(bridge), "link", "set", port, "master", "br0", "up"])

    def _address(self, name: str, interface: str, *addresses: str) -> None:
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            host_command(["ip", "-n", netns(name), "addr", "add", address, "dev", interface, *nodad])
        host_command(["ip", "-n", netns(name), "link", "set", interface, "up"])

    def _ipv6(self, name: str, interface: str) -> None:
        conf = f"net.ipv6.conf.{interface}"
        self._sysctl(name, f"{conf}.disable_ipv6=0", f"{conf}.accept_ra=0", f"{conf}.router_solicitations=0")

    def _router(self) -> None:
        self._cable(ROUTER, "lan0", LAN, "uplink")
        wan = Path(__file__).with_name("wan.py")
        delay = self.spawn(ROUTER, [sys.executable, str(wan), str(self.seed)], pipe=True)
        assert delay.stdout is not None
        if delay.stdout.readline() != b"READY\n":
            raise LabError("wan.py could not make its TAP devices: is /dev/net/tun there?")
        host_command(["ip", "-n", netns(ROUTER), "link", "set", "wan1", "netns", netns(WAN)])
        host_command(["ip", "-n", netns(WAN), "link", "set", "wan1", "master", "br0", "up"])
        for interface in ("lan0", "wan0"):
            self._ipv6(ROUTER, interface)
        self._address(ROUTER, "lan0", "192.0.2.1/24", "2001:db8:1::1/64")
        self._address(ROUTER, "wan0", "198.51.100.1/24", "203.0.113.1/24", "2001:db8:2::1/64")
        self._sysctl(ROUTER, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def _host(self, host: Host) -> None:
        bridge = LAN if host.inside else WAN
        self._cable(host.name, "eth0", bridge, f"to-{host.name}")
        if host.ip6:
            self._ipv6(host.name, "eth0")
        sixes = [f"{host.ip6}/64"] if host.ip6 else []
        self._address(host.name, "eth0", *(f"{ip}/24" for ip in (host.ip, *host.more)), *sixes)
        via = ["via", host.gateway]
        networks = ["198.51.100.0/24", "203.0.113.0/24"] if host.inside else [INSIDE]
        for network in networks:
            host_command(["ip", "-n", netns(host.name), "route", "add", network, *via])
        if host.ip6:
            there, gateway = (OUTSIDE6, "2001:db8:1::1") if host.inside else (INSIDE6, "2001:db8:2::1")
            host_command(["ip", "-6", "-n", netns(host.name), "route", "add", there, "via", gateway])

    def _no_way_out(self) -> None:
        for name in self.namespaces:
            for family in ("-4", "-6"):
                if host_command(["ip", family, "-n", name, "route", "show", "default"]).strip():
                    raise LabError(f"{name} has a default route; the lab must have none")

    # -- processes ----------------------------------------------------------------------------------

    def spawn(
        self, host: str, argv: Sequence[str], *, pipe: bool = False, log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program in a namespace, in a process group of its own; it dies with the calling thread."""
        if self.stop.is_set():
            raise Stopped
        sink: int | IO[bytes] = subprocess.DEVNULL
        if pipe:
            sink = subprocess.PIPE
        elif log:
            sink = log.open("ab")
        home = str(self.work / "home")
        try:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", netns(host), *argv],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.DEVNULL if pipe else subprocess.STDOUT,
                start_new_session=True,
                cwd=self.work,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": home, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            )
        finally:
            if log and not isinstance(sink, int):
                sink.close()
        with self._lock:
            self._live.add(process)
        return process

    def run(self, host: str, argv: Sequence[str], *, timeout_s: float = 30) -> int:
        """Run a program to its end, or to its timeout; its exit status (attacks are expected to fail)."""
        process = self.spawn(host, argv, log=self.work / f"{host}.log")
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return -1
        finally:
            self.end(process)
            if self.stop.is_set():
                raise Stopped

    def end(self, process: subprocess.Popen[bytes], grace_s: float = 2) -> None:
        """TERM, then KILL, for the whole group that we started."""
        for sig in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sig)
            except ProcessLookupError:
                pass
            try:
                process.wait(grace_s)
                break
            except subprocess.TimeoutExpired:
                continue
        with self._lock:
            self._live.discard(process)

    def pause(self, seconds: float) -> None:
        if self.stop.wait(max(0.0, seconds)):
            raise Stopped

    def down(self) -> None:
        """Take everything down; safe to call twice and after a failed `up`."""
        self.stop.set()
        with self._lock:
            live = list(self._live)
        for process in live:
            self.end(process, grace_s=1)
        remove_namespaces(self.namespaces)
