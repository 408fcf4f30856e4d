"""`python -m bench.lab`: build the network, play the day, record it, take everything down.

Always true
  - Everything is taken down at the end, also on an error, Ctrl-C or SIGTERM.
  - Files in --out are replaced only when the whole recording has been made and read back.
Exit status: 0 done; 1 failed or checked and found faulty; 2 cannot run here (not root, a program is missing).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.lab import check, day, record, topology
from bench.lab.services import Services
from bench.lab.stage import Part, Stage
from bench.lab.topology import Lab, LabError, Stopped

HALF_S, HALF_QUICK_S = 190.0, 22.0
QUICK_SCALE = 0.15
WORK_PREFIX = "fkl-lab-"
PAUSE_BETWEEN_HALVES_S = 4.0
NEEDED = (
    "ip ethtool sysctl setpriv tcpdump nginx dnsmasq dig curl openssl ssh ssh-keygen scp sshd sshpass rsync chronyd "
    "iperf3 ping nc nmap hping3 slowhttptest iodine iodined suricata"
)
PROGRAMS = NEEDED.split()


def why_not_here() -> str | None:
    if os.geteuid() != 0:
        return "the lab makes network namespaces: run it as root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"missing programs: {', '.join(missing)}; install the packages of bench/lab/packages.txt"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing: this machine gives no TAP devices"
    if stale := topology.leftovers():
        return f"{len(stale)} lab namespaces exist: another run is going on, or one was killed (then: --down)"
    return None


class Player:
    """Plays the parts of a half, each in a thread of its own, and notes when each really ran."""

    def __init__(self, lab: Lab, services: Services, half_s: float, scale: float) -> None:
        self.lab, self.services, self.half_s, self.scale = lab, services, half_s, scale
        self.played: list[record.Played] = []
        self.failed: list[str] = []

    def _play(self, part: Part, begin: float) -> None:
        rng = random.Random(f"{self.lab.seed}-{part.episode}")
        stage = Stage(self.lab, self.services, self.scale, rng, begin + part.end * self.half_s)
        try:
            self.lab.pause(begin + part.begin * self.half_s - time.monotonic())
            start_ns = time.time_ns()
            part.act(stage)
            self.played.append(record.Played(part, start_ns, time.time_ns()))
        except Stopped:
            pass
        except Exception as error:  # said once, by run_half, which also ends the day
            self.failed.append(f"{part.episode}: {error!r}")

    def run_half(self, half: int, parts: list[Part]) -> None:
        begin, begin_ns = time.monotonic(), time.time_ns()
        threads = [threading.Thread(target=self._play, args=(part, begin), daemon=True) for part in parts]
        for thread in threads:
            thread.start()
        print(f"half {half}: {len(parts)} parts", flush=True)
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)
                if self.failed:
                    raise LabError("; ".join(self.failed))
        for number, played in enumerate(self.played):
            if played.part.half == half and played.part.whole_half:
                self.played[number] = record.Played(played.part, begin_ns, time.time_ns())


def play(lab: Lab, pcap: Path, half_s: float, scale: float) -> list[record.Played]:
    lab.up()
    services = Services(lab)
    services.start()
    capture = record.Capture(lab, pcap)
    player = Player(lab, services, half_s, scale)
    for half in (1, 2):
        player.run_half(half, [part for part in day.parts() if part.half == half])
        lab.pause(PAUSE_BETWEEN_HALVES_S)
    capture.finish()
    return player.played


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def make(out: Path, seed: int, quick: bool) -> int:
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix=WORK_PREFIX))
    lab = Lab(work, seed)
    try:
        pcap = work / "lab.pcap"
        try:
            played = play(lab, pcap, HALF_QUICK_S if quick else HALF_S, QUICK_SCALE if quick else 1.0)
        finally:
            for sig in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not leave half of it standing
                signal.signal(sig, signal.SIG_IGN)
            lab.down()
            for sig in (signal.SIGINT, signal.SIGTERM):
                signal.signal(sig, interrupt)
        print("reading the capture with suricata", flush=True)
        eve = record.suricata(pcap, work / "suricata")
        fresh = work / "out"
        fresh.mkdir()
        record.compress(pcap, fresh / "lab.pcap.gz")
        record.compress(eve, fresh / "eve.json.gz")
        (fresh / "labels.ndjson").write_text("\n".join(record.label_lines(played)) + "\n")
        summary = check.summarise(fresh)
        (fresh / "README.md").write_text(record.readme(summary, fresh, seed, time.monotonic() - began))
        out.mkdir(parents=True, exist_ok=True)
        for file in fresh.iterdir():
            shutil.copyfile(file, out / f".{file.name}.new")
            (out / f".{file.name}.new").replace(out / file.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(check.report(summary))
    faults = list(summary.faults())
    for fault in faults:
        print(f"{'quick, so' if quick else 'fault'}: {fault}")
    print(f"{out}: {time.monotonic() - began:.0f} s")
    return 1 if faults and not quick else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lab", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, help="where it goes (default: examples/lab; required with --quick)")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a one-minute version, to try the script")
    parser.add_argument("--down", action="store_true", help="remove what a killed run left behind")
    args = parser.parse_args(argv)
    if args.down:
        topology.remove_namespaces(topology.leftovers())
        for work in Path(tempfile.gettempdir()).glob(WORK_PREFIX + "*"):
            shutil.rmtree(work, ignore_errors=True)
        return 0
    if reason := why_not_here():
        print(f"lab: skipped: {reason}", file=sys.stderr)
        return 2
    if args.quick and args.out is None:
        parser.error("--quick makes a small recording: say where it goes with --out")

    for sig in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us with SIGINT ignored
        signal.signal(sig, interrupt)
    try:
        return make(args.out or check.DEFAULT, args.seed, args.quick)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; everything is taken down", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
