"""What a part of the day is, and what its actor is given to act with.

Always true
  - A program runs only in a host's namespace, with a timeout that ends soon after its part does.
  - `until_deadline` and `spread` are the only open-ended loops: they end at the deadline or at their count.
  - Files that actors send are made up here from the part's own random numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic

from bench.lab.services import Services
from bench.lab.topology import Lab

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
Ports = list[list[int]] | None
Act = Callable[["Stage"], None]
SSH_OPTIONS = ["-F", "/dev/null", "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no"]


@dataclass(frozen=True)
class Rule:
    """What a part's flows look like: initiator, responder, protocol, ports. None is any."""

    src: Sequence[str] | None
    dst: Sequence[str] | None
    proto: int | None = None
    dst_ports: Ports = None
    src_ports: Ports = None


@dataclass(frozen=True)
class Part:
    """One program of the day: in which half, from when to when (shares of the half), what, and how to know it."""

    episode: str
    half: int
    family: str
    begin: float
    end: float
    act: Act
    rules: Sequence[Rule]
    text: str
    whole_half: bool = False  # its rules hold for all of its half: others make such flows too

    @property
    def malicious(self) -> bool:
        return self.family != "Normal"


@dataclass
class Stage:
    """What an actor is given."""

    lab: Lab
    services: Services
    scale: float  # 1.0, less in a quick run
    rng: random.Random
    deadline: float  # monotonic seconds

    def n(self, count: int) -> int:
        return max(2, round(count * self.scale))

    @property
    def left_s(self) -> float:
        return max(0.0, self.deadline - monotonic())

    def until_deadline(self, pause_s: Callable[[], float], count_max: int = 1_000) -> Iterator[int]:
        for i in range(count_max):
            if self.left_s <= 0:
                return
            yield i
            self.lab.pause(min(pause_s(), self.left_s))

    def spread(self, count: int, jitter: float = 0.5) -> Iterator[int]:
        """`count` times over the time that is left, with uneven pauses; stops at the deadline."""
        step = self.left_s / max(1, count)
        return self.until_deadline(lambda: step * self.rng.uniform(1 - jitter, 1.0), count)

    def run(self, host: str, *argv: str, timeout_s: float = 30) -> int:
        return self.lab.run(host, argv, timeout_s=min(timeout_s, self.left_s + 3))

    def curl(self, host: str, *options: str, agent: str | None = None, timeout_s: float = 12) -> int:
        named = ["-A", agent] if agent else []
        return self.run(host, "curl", "-sk", "-o", "/dev/null", *named, *options, timeout_s=timeout_s)

    def file(self, size: int, random_bytes: bool = True) -> str:
        """A made-up file to send; random bytes look like an archive, the other kind like a spreadsheet."""
        path = self.lab.work / "home" / f"{self.rng.randrange(1 << 48):012x}"
        line = f"{self.rng.randrange(10**6)};{self.rng.random():.6f};account;open\n".encode()
        path.write_bytes(self.rng.randbytes(size) if random_bytes else (line * (size // len(line) + 1))[:size])
        return str(path)

    def ssh(self, host: str, to: str, command: str) -> int:
        key = str(self.services.key)
        return self.run(host, "ssh", *SSH_OPTIONS, "-i", key, f"root@{to}", command, timeout_s=15)

    def guess(self, host: str, to: str, user: str, password: str) -> int:
        once = ["-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1"]
        once += ["-o", "KexAlgorithms=curve25519-sha256", "-o", "HostKeyAlgorithms=ssh-ed25519"]  # a short handshake
        return self.run(host, "sshpass", "-p", password, "ssh", *SSH_OPTIONS, *once, f"{user}@{to}", "id", timeout_s=12)

    def crowd(self, jobs: Sequence[Callable[[], object]], at_once: int) -> None:
        with ThreadPoolExecutor(at_once) as pool:
            for done in [pool.submit(job) for job in jobs]:
                done.result()
