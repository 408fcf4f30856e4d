"""From the wire to the committed files: the capture, Suricata's reading of it, the labels, the page about it.

Always true
  - The capture listens on the bridge of the inside network only: each packet is seen once, before or after
    the router, never twice.
  - Suricata reads the finished capture offline, with our own suricata.yaml and lab.rules and the event rules
    that Debian ships; time stamps are those of the packets.
  - A label line says when its program really ran. Attacks come first: the first line that matches is right.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.lab.check import Summary
from bench.lab.day import parts
from bench.lab.stage import ICMP, UDP, Part, Rule
from bench.lab.topology import LAN, Lab, LabError, host_command

HERE = Path(__file__).parent
GRACE_NS = 1_000_000_000  # a program's last packets may leave a moment after it ended
EVENT_RULES = ("app-layer", "decoder", "dns", "http", "ssh", "stream", "tls", "ntp")


class Capture:
    def __init__(self, lab: Lab, path: Path) -> None:
        self.lab, self.path = lab, path
        self.log = lab.work / "tcpdump.log"
        tcpdump = ["tcpdump", "-i", "br0", "-n", "-s", "0", "-B", "16384", "-Z", "root", "-w", str(path)]
        self.process = lab.spawn(LAN, tcpdump, log=self.log)
        for _ in range(50):
            if "listening on" in self._said():
                return
            lab.pause(0.1)
        raise LabError(f"tcpdump does not start: {self._said()}")

    def _said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def finish(self) -> None:
        self.lab.pause(1.5)
        self.lab.end(self.process, grace_s=5)
        dropped = re.search(r"(\d+) packets dropped by kernel", self._said())
        if dropped is None or dropped[1] != "0":
            raise LabError(f"the capture is not whole: {self._said()}")


@dataclass(frozen=True)
class Played:
    """A part, and when it really ran."""

    part: Part
    start_ns: int
    end_ns: int


def label_lines(played: list[Played]) -> list[str]:
    declared = {part.episode: number for number, part in enumerate(parts())}
    lines: list[str] = []
    for p in sorted(played, key=lambda p: (not p.part.malicious, declared[p.part.episode])):
        for rule in [line for asked in p.part.rules for line in (asked, *_answers(asked))]:
            line = {
                "episode": p.part.episode,
                "half": p.part.half,
                "family": p.part.family,
                "classification": "MALICIOUS" if p.part.malicious else "BENIGN",
                "proto": rule.proto,
                "src": rule.src,
                "dst": rule.dst,
                "src_ports": rule.src_ports,
                "dst_ports": rule.dst_ports,
                "start_ns": p.start_ns,
                "end_ns": p.end_ns + GRACE_NS,
                "text": p.part.text,
            }
            lines.append(json.dumps(line, separators=(",", ":")))
    return lines


def _answers(rule: Rule) -> list[Rule]:
    """What else a rule's packets bring: ICMP errors, and, where a flow table cuts a flow, its answering half."""
    answers = [Rule(rule.dst, rule.src, rule.proto, dst_ports=rule.src_ports, src_ports=rule.dst_ports)]
    if rule.proto == UDP:
        answers += [Rule(rule.dst, rule.src, ICMP), Rule(rule.src, rule.dst, ICMP)]  # of a client that is gone, too
    return answers


def suricata(pcap: Path, out: Path) -> Path:
    """EVE of a finished capture."""
    out.mkdir(parents=True, exist_ok=True)
    rules = out / "all.rules"
    shipped = [Path(f"/etc/suricata/rules/{name}-events.rules") for name in EVENT_RULES]
    rules.write_text("".join(p.read_text() for p in (HERE / "lab.rules", *shipped) if p.exists()))
    argv = [
        "suricata",
        "-r",
        str(pcap),
        "-c",
        str(HERE / "suricata.yaml"),
        "-S",
        str(rules),
        "-l",
        str(out),
        "--init-errors-fatal",
    ]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=300, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TZ": "UTC"}
    )
    eve = out / "eve.json"
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("E:", "Error:"))]
    if done.returncode != 0 or complaints or not eve.exists():
        raise LabError(f"suricata: {' '.join(complaints) or done.stderr[-600:]}")
    return eve


def compress(source: Path, target: Path) -> None:
    temporary = target.with_suffix(".tmp")
    with source.open("rb") as raw, temporary.open("wb") as out, gzip.GzipFile("", "wb", 9, out, mtime=0) as packed:
        shutil.copyfileobj(raw, packed)
    temporary.replace(target)


def version(program: str, flag: str = "--version") -> str:
    said = subprocess.run([program, flag], capture_output=True, text=True)
    found = re.search(r"\d+\.\d+[\w.]*", said.stdout + said.stderr)
    return found[0] if found else "?"


def debian() -> str:
    return host_command(["sh", "-c", ". /etc/os-release; echo $PRETTY_NAME"]).strip()


def readme(summary: Summary, out: Path, seed: int, took_s: float) -> str:
    """The page in examples/lab, every figure in it taken from the data."""
    families = "\n".join(
        f"| {family} | {summary.flows[family, 1]} | {summary.flows[family, 2]} | "
        f"{summary.flows[family, 1] + summary.flows[family, 2]} |"
        for family in summary.families
    )
    episodes = "\n".join(
        f"| {e.episode} | {e.half} | {e.family} | {summary.by_episode[e.episode]} | {e.text} |"
        for e in summary.episodes
    )
    sizes = "\n".join(
        f"| {name} | {(out / name).stat().st_size:,} |" for name in ("lab.pcap.gz", "eve.json.gz", "labels.ndjson")
    )
    types = ", ".join(f"{count:,} {kind}" for kind, count in summary.types.most_common())
    signatures = "\n".join(f"| {count} | {name} |" for name, count in summary.signatures.most_common())
    first = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(summary.first_s))
    return README.format(
        families=families,
        episodes=episodes,
        sizes=sizes,
        types=types,
        signatures=signatures,
        packets=f"{summary.packets:,}",
        flows=f"{sum(summary.flows.values()):,}",
        unlabelled=summary.unlabelled,
        chatter=summary.chatter,
        late=summary.late,
        late_ms=summary.late_ns_max / 1e6,
        first=first,
        seconds=round(summary.last_s - summary.first_s),
        took=round(took_s),
        seed=seed,
        debian=debian(),
        suricata=version("suricata", "-V"),
        nmap=version("nmap"),
        nginx=version("nginx", "-v"),
        curl=version("curl"),
    )


README = """# The lab recording

Real traffic by real programs, recorded by ourselves: an ordinary day of a small network, and attacks on it, in
about {seconds} seconds (from {first} UTC; time stamps are as recorded). Our own recording,
Apache-2.0 like the rest.

Made by `make lab` (`python -m bench.lab`, as root, seed {seed}; it took {took} s). This page is written by it, its
figures are counted from the files beside it; `python -m bench.lab.check` counts and checks them again.
Another run makes another recording: the choices follow from the seed, the timing is that of the machine.

| file | bytes |
|---|---|
{sizes}

- **lab.pcap.gz**: {packets} packets, whole, Ethernet, microseconds. Taken on the bridge of the inside network, where
  each packet between inside and outside, and between two inside hosts, passes once. {late} packets are up to
  {late_ms:.1f} ms out of order, as the kernel delivered them.
- **eve.json.gz**: Suricata {suricata} reading that capture offline with `bench/lab/suricata.yaml`,
  `bench/lab/lab.rules` and the event rules that Debian ships:
  {types}.
- **labels.ndjson**: one line per episode and rule; the first line that matches a flow is its label. A line matches
  when the flow's initiator is in `src` and its responder in `dst` (null: any), protocol and ports match, and its
  first packet lies in [`start_ns`, `end_ns`]. Each rule is followed by its answers (both ends exchanged, ICMP errors),
  for flow tables that cut a long flow in two or keep errors apart.

## How it was made
Network namespaces joined by veth, a router in the middle, no way out, documentation addresses only: 192.0.2.0/24 and
2001:db8:1::/64 inside; 198.51.100.0/24, 2001:db8:2::/64 (ordinary) and 203.0.113.0/24 (hostile) outside. Everything
outside is 3 to 30 ms away in each direction, with jitter and 0.1 % loss (`bench/lab/wan.py`). Offloads are off, so that
packets have the sizes of a wire. {debian}: nginx {nginx}, curl {curl}, nmap {nmap},
dnsmasq, OpenSSH, rsync, chrony, iperf3, hping3, slowhttptest, iodine.
Content is made from the seed; nothing of the recording machine is in it.

The day has two halves. Each family comes in both, with other hosts, rates and options, so that a split by time tests
on episodes that were not trained on. Some benign work resembles attacks on purpose: monitoring polls (scan), update
agents (beacon), a nightly backup (exfiltration), a rush of customers (flood), slow uploads (slow-body attack), hashed
CDN names (DNS tunnel), mistyped passwords (brute force).

## Flows by family (Suricata's flow records)
| family | first half | second half | all |
|---|---|---|---|
{families}

{flows} flows are labelled, {unlabelled} are not, beside {chatter} of IPv6 neighbour discovery.

## Episodes
| episode | half | family | flows | what |
|---|---|---|---|---|
{episodes}

## Alerts
| alerts | signature |
|---|---|
{signatures}

## What it is not
A day in minutes: pauses are short, beacons and scans faster than patient ones. Attack tools were given addresses, so
attacks do no name look-ups of their own. One kind of server and client each, all Linux, all on one kernel.
"""
