"""The seeded generator: a made-up network with habits, campaigns and look-alikes, for tests, demos and benches.

Always true
  - The same (VERSION, seed, start_ns) gives the same events byte for byte; fewer events are a prefix of more. Nothing
    depends on hash(), on the clock or on how far the caller reads.
  - Events come in order of (ts, number). Memory is that of one minute of traffic and of the campaigns under way.
  - Flow features agree with each other: lengths and gaps of a flow are multisets (a few values with multiplicities that
    add up to the packets), and everything else follows from those by the definitions of engine/features.py.
  - Context features stay NaN: engine/context computes them from the stream.

Time runs in blocks of a minute; a block and a campaign draw from PCG64 seeded by (seed, kind, number), so any block can
be made from its number alone. `family` is the truth; verdicts and classification are what engines made of it, with
noise: families overlap, and a backup, a monitoring system and software updates look like exfiltration, scan and beacon.
Half of the files that people move are packed, and quiet beacons ask for names like others: entropy gives nobody away.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import lru_cache
from math import cos, exp, pi
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from engine import features as table
from engine.features import F32, INDEX
from engine.flows.derived import derive
from engine.normalize import discrepancy
from ipc.event import Classification, Decision, Event, FeaturedEvent, Verdict

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]
Put = Callable[[str, F64], None]

SOURCE = "synthetic"
VERSION = 2  # of what a seed gives; part of the source record, so that no other flow passes for the same event
START_NS = 1_767_600_000_000_000_000  # Monday 2026-01-05 08:00 UTC
S_NS = 1_000_000_000
BLOCK_S = 60
UPDATE_S = 600  # how often a workstation looks for updates
SLOT_S = 75  # one campaign begins in each slot
CAMPAIGN_S_MAX = 1_800
PACKED_ENTROPY = 0.97  # an archive, a picture and what was encrypted look alike, in 1,024 bytes a side
VALUES = 16  # distinct lengths, and distinct gaps, of one direction of a flow
BIN_BYTES, BINS = 32, 47
TCP, UDP, ICMP = 6, 17, 1
BLOCK, CAMPAIGN, NETWORK = range(3)  # what a generator is seeded for


class Profile(NamedTuple):
    """How the flows of one activity look. Pairs are (median, sigma) of a log-normal, lengths (mean, CV) of payloads."""

    name: str
    family: str
    proto: int
    packets: tuple[float, float]  # forward
    answer: tuple[float, float]  # backward packets for each forward one
    answered: float  # probability of any answer
    bare: float  # share of packets without payload
    forward: tuple[float, float]
    backward: tuple[float, float]
    seconds: tuple[float, float]
    gap_cv: float
    closed: float  # probability that TCP ends in order
    entropy: float  # of the payload, 0..1, where it is not packed; 0: none is known
    suspicion: float  # logit of what engines see in it
    texts: str = ""  # what text there is, see _text
    packed: float = 0  # share of flows whose payload is compressed or encrypted


# fmt: off
PROFILES = (
    Profile("dns", "Normal", UDP, (1.1, .2), (1, .05), .99, 0,
            (42, .4), (130, .6), (.02, 1.), .6, 0, .56, -3.0, "dns"),
    Profile("web", "Normal", TCP, (14, .9), (1.4, .4), .98, .45,
            (320, 1.2), (980, .6), (4., 1.4), 2.0, .8, .97, -2.6, "tls"),
    Profile("http", "Normal", TCP, (9, .8), (1.3, .4), .97, .4,
            (260, .8), (820, .7), (1.5, 1.3), 1.8, .8, .62, -2.2, "http"),
    Profile("file", "Normal", TCP, (60, 1.2), (1.1, .5), .99, .3,
            (560, 1.0), (760, .9), (12., 1.3), 2.2, .7, .76, -2.2, "smb", .5),
    Profile("database", "Normal", TCP, (20, .9), (1.0, .3), 1.0, .3,
            (180, .7), (420, 1.1), (2., 1.2), 1.5, .5, .60, -3.0),
    Profile("mail", "Normal", TCP, (24, .8), (1.2, .4), .99, .35,
            (280, 1.1), (700, .8), (6., 1.1), 1.8, .9, .93, -2.6, "tls"),
    Profile("admin", "Normal", TCP, (90, 1.1), (1.0, .3), .98, .3,
            (90, .9), (160, 1.0), (60., 1.4), 3.0, .9, .98, -1.4, "ssh"),
    Profile("time", "Normal", UDP, (1, 0), (1, 0), .98, 0,
            (48, 0), (48, 0), (.03, .5), .5, 0, .40, -3.4),
    Profile("ping", "Normal", ICMP, (4, .4), (1, 0), .95, 0,
            (56, 0), (56, 0), (3., .3), .05, 0, .35, -2.8),
    Profile("backup", "Normal", TCP, (40_000, .9), (.35, .2), 1.0, .05,
            (1400, .1), (60, .5), (240., .6), 1.2, .95, .98, -.7, "tls"),
    Profile("monitor", "Normal", TCP, (3, .4), (.9, .3), .88, .8,
            (40, .8), (60, .8), (.06, .8), .8, .7, .50, -.9),
    Profile("update", "Normal", TCP, (7, .3), (1.2, .3), 1.0, .45,
            (210, .3), (700, .8), (.9, .4), 1.0, .95, .96, -1.1, "update"),
    Profile("syn_flood", "DDoS", TCP, (1.3, .4), (.3, .5), .25, 1.,
            (1, 0), (1, 0), (.4, 1.2), .8, 0, 0, 2.6),
    Profile("http_flood", "DDoS", TCP, (7, .5), (.9, .4), .75, .4,
            (280, .4), (600, .7), (1.2, 1.1), 1.2, .3, .62, 1.1, "http"),
    Profile("udp_flood", "DDoS", UDP, (30, 1.0), (.05, .5), .1, 0,
            (900, .4), (80, .5), (2., 1.0), .3, 0, .90, 2.4),
    Profile("probe", "PortScan", TCP, (1.2, .3), (.8, .2), .45, .97,
            (20, .5), (30, .5), (.05, 1.2), .6, .05, .40, 1.5),
    Profile("sweep", "PortScan", ICMP, (1, .2), (1, 0), .35, 0,
            (40, .3), (40, .3), (.4, 1.), .3, 0, .35, .7),
    Profile("encrypting", "Ransomware", TCP, (180, 1.0), (.9, .4), .96, .15,
            (860, .7), (640, .8), (9., 1.0), 1.6, .5, .86, 1.8, "smb", .7),
    Profile("guess", "BruteForce", TCP, (14, .3), (1.0, .2), .97, .35,
            (110, .5), (150, .5), (2.4, .6), 1.0, .7, .97, 1.6, "ssh"),
    Profile("beacon", "C2", TCP, (7, .3), (.9, .3), .97, .45,
            (230, .3), (260, .7), (.8, .5), 1.0, .9, .975, .9, "c2"),
    Profile("dns_beacon", "C2", UDP, (1.5, .3), (1, .1), .97, 0,
            (58, .4), (150, .5), (.04, .9), .6, 0, .61, 1.0, "quiet"),
    Profile("upload", "Exfiltration", TCP, (5_000, 1.3), (.4, .3), 1.0, .06,
            (1340, .15), (70, .6), (70., .9), 1.3, .9, .985, 1.2, "upload"),
    Profile("dns_upload", "Exfiltration", UDP, (6, .6), (1, .1), .97, 0,
            (180, .2), (110, .4), (.5, .9), .8, 0, .70, 1.4, "tunnel"),
)
# fmt: on
PROFILE = {p.name: i for i, p in enumerate(PROFILES)}

WORDS = (
    "nova", "delta", "harbor", "cinder", "maple", "orbit", "quartz", "raven", "summit", "timber", "vector", "willow",
)  # fmt: skip
ZONES = ("example", "test", "example.net", "example.org", "invalid")
AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Firefox/128.0", "Mozilla/5.0 (X11; Linux x86_64) Chrome/126.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) Safari/605.1", "curl/8.5.0", "python-requests/2.32",
)  # fmt: skip
PATHS = ("/", "/index.html", "/api/v1/items", "/login", "/static/app.js", "/search?q=weather", "/wp-login.php")
CLIENTS = ("SSH-2.0-OpenSSH_9.6", "SSH-2.0-Go", "SSH-2.0-libssh_0.10")
SIGNATURES = {
    "DDoS": ("possible SYN flood", "excessive requests from one client", "UDP flood towards a service"),
    "PortScan": ("horizontal scan", "many closed ports probed", "host sweep"),
    "Ransomware": ("mass rename over SMB", "ransom note written", "high-entropy writes to a share"),
    "BruteForce": ("repeated failed logins", "password guessing over SSH", "credential stuffing"),
    "C2": ("periodic callback to a rare host", "beacon with constant size", "TXT query to a young domain"),
    "Exfiltration": ("large upload to a rare host", "outbound archive transfer", "long DNS labels"),
    "Normal": ("policy: unusual volume", "policy: many hosts contacted", "policy: regular polling"),
}
TECHNIQUES = {
    "DDoS": "T1498", "PortScan": "T1046", "Ransomware": "T1486", "BruteForce": "T1110", "C2": "T1071",
    "Exfiltration": "T1041",
}  # fmt: skip
ENGINES = (("rules", "SIG_MATCH"), ("stat", "STAT_ANOMALY"), ("pca", "PCA_OUTLIER"), ("protocol", "PROT_VIOLATION"))

DNS, TIME, FILES, WEB, DATABASE, MAIL = "10.0.0.2", "10.0.0.4", "10.0.0.10", "10.0.0.20", "10.0.0.30", "10.0.0.40"
BACKUP, MONITOR, JUMP = "10.0.0.50", "10.0.0.60", "10.0.0.70"
SERVERS = (DNS, "10.0.0.3", TIME, FILES, "10.0.0.11", WEB, "10.0.0.21", "10.0.0.22", DATABASE, MAIL, BACKUP, JUMP)
SERVER_PORTS = (22, 53, 80, 443, 445, 3306, 5432, 9100)
WORKSTATIONS = tuple(f"10.1.{floor}.{10 + seat}" for floor in range(4) for seat in range(50))
SITES = tuple(f"198.{18 + i % 2}.{i * 7 % 250}.{1 + i * 13 % 250}" for i in range(240))
UPDATES = ("203.0.113.10", "203.0.113.11")
CLOUD = "203.0.113.50"
HOME = {"dns": (DNS, 53), "time": (TIME, 123), "file": (FILES, 445), "mail": (MAIL, 993), "admin": (JUMP, 22)}
DECISIONS: dict[Classification, Decision] = {"MALICIOUS": "DROP", "SUSPICIOUS": "ALERT", "BENIGN": "ALLOW"}
FAVOURITES = 12  # sites a workstation goes to
RANDOM_NETS = (45, 77, 91, 103, 146, 185, 193, 212)
FAMILY_SHARES = {"PortScan": 0.24, "BruteForce": 0.2, "C2": 0.2, "Exfiltration": 0.17, "Ransomware": 0.14, "DDoS": 0.05}
DAILY = ("dns", "web", "http", "file", "mail", "database", "admin", "time", "ping")
DAILY_SHARES = (0.28, 0.36, 0.08, 0.08, 0.07, 0.05, 0.02, 0.03, 0.03)
BENIGN_PER_S = 5.0  # at the height of the day


class Flow(NamedTuple):
    """One flow to be made: when it begins (seconds since the first block), and who does what to whom."""

    start: float
    profile: int
    src: str
    dst: str
    port: int  # of the responder; -1: none


def _rng(seed: int, kind: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, kind, number))))


def generate(n: int, seed: int, start_ns: int = START_NS) -> Iterator[FeaturedEvent]:
    """n events in order of ts; the first flows begin after start_ns. seed: 0 or more."""
    traffic, waiting, block, made = _Traffic(seed, start_ns), list[tuple[int, int, FeaturedEvent]](), 0, 0
    while made < n:
        waiting.extend(traffic.block(block))
        waiting.sort(key=lambda item: item[:2])
        block += 1
        end_ns = start_ns + block * BLOCK_S * S_NS  # no later block has an event before that
        ready = bisect_left(waiting, end_ns, key=lambda item: item[0])
        for _, serial, item in waiting[: min(ready, n - made)]:
            item.event.event_id = f"synthetic_{made:06d}"
            item.raw = f"synthetic {VERSION} seed={seed} start={start_ns} serial={serial}".encode()
            made += 1
            yield item
        del waiting[:ready]


class _Traffic:
    """A network with its habits, drawn once; its minutes and its campaigns, drawn by number."""

    def __init__(self, seed: int, start_ns: int) -> None:
        self.seed, self.start_ns = seed, start_ns
        rng, n = _rng(seed, NETWORK, 0), len(WORKSTATIONS)
        self.favourites = rng.integers(0, len(SITES), (n, FAVOURITES))
        activity = rng.lognormal(0.0, 0.7, n)
        self.activity = activity / activity.sum()
        self.update_s = rng.uniform(0.0, UPDATE_S, n)
        self.campaign = lru_cache(maxsize=64)(self._campaign)

    def block(self, number: int) -> list[tuple[int, int, FeaturedEvent]]:
        """(ts, serial, event) of the flows that begin in this minute; event_id and raw are still to come."""
        rng = _rng(self.seed, BLOCK, number)
        begin, end = number * BLOCK_S, (number + 1) * BLOCK_S
        flows = self._daily(rng, begin) + self._regular(rng, begin)
        for slot in range(max(0, (begin - CAMPAIGN_S_MAX) // SLOT_S - 1), end // SLOT_S + 1):
            flows += [f for f in self.campaign(slot) if begin <= f.start < end]
        flows.sort()
        return self._events(rng, number, flows)

    # who talks to whom

    def _daily(self, rng: np.random.Generator, begin: int) -> list[Flow]:
        """What people do: less at night and at weekends."""
        hours = (self.start_ns // S_NS + begin) / 3600
        weekend = (hours // 24 + 3) % 7 >= 5  # day 0 of 1970 was a Thursday
        rhythm = (0.12 + 0.88 * exp(-((1 + cos(pi * (hours % 24 - 1) / 12)) ** 2))) * (0.35 if weekend else 1.0)
        n = int(rng.poisson(BENIGN_PER_S * BLOCK_S * rhythm))
        starts = begin + rng.uniform(0.0, BLOCK_S, n)
        who = rng.choice(len(WORKSTATIONS), n, p=self.activity)
        what = rng.choice(len(DAILY), n, p=DAILY_SHARES)
        favourite, site, other = rng.integers(0, FAVOURITES, n), rng.integers(0, len(SITES), n), rng.random(n)
        flows = []
        for i, (start, w) in enumerate(zip(starts.tolist(), what.tolist(), strict=True)):
            name, src = DAILY[w], WORKSTATIONS[who[i]]
            if name in ("web", "http"):
                dst = SITES[site[i] if other[i] < 0.1 else self.favourites[who[i], favourite[i]]]
                port = 443 if name == "web" else 80
            elif name == "database":
                src, dst, port = SERVERS[5 + site[i] % 3], DATABASE, 5432
            elif name == "ping":
                dst, port = SERVERS[site[i] % len(SERVERS)], -1
            else:
                dst, port = HOME[name]
            flows.append(Flow(start, PROFILE[name], src, dst, port))
        return flows

    def _regular(self, rng: np.random.Generator, begin: int) -> list[Flow]:
        """The look-alikes: monitoring (a scan?), updates (a beacon?), backups (exfiltration?)."""
        checks = rng.permutation(len(SERVERS) * len(SERVER_PORTS))[:32].tolist()
        late = rng.uniform(5.0, 5.4, len(checks)).tolist()
        flows = [
            Flow(begin + 0.2 * i + late[i], PROFILE["monitor"], MONITOR, SERVERS[k // 8], SERVER_PORTS[k % 8])
            for i, k in enumerate(checks)
        ]
        to_update = (self.update_s - begin) % UPDATE_S
        for w in np.flatnonzero(to_update < BLOCK_S).tolist():
            start = begin + min(float(to_update[w]) + float(rng.exponential(0.5)), BLOCK_S - 1e-3)
            flows.append(Flow(start, PROFILE["update"], WORKSTATIONS[w], UPDATES[w % 2], 443))
        if begin // BLOCK_S % 20 == 3:
            for src in (BACKUP, FILES):
                flows.append(Flow(begin + float(rng.uniform(0, BLOCK_S)), PROFILE["backup"], src, CLOUD, 443))
        return flows

    def _campaign(self, slot: int) -> list[Flow]:
        rng = _rng(self.seed, CAMPAIGN, slot)
        family = str(rng.choice(list(FAMILY_SHARES), p=list(FAMILY_SHARES.values())))
        begin = slot * SLOT_S + float(rng.uniform(0, SLOT_S))
        inside, outside = str(rng.choice(WORKSTATIONS)), _outsider(rng)

        def times(per_s: float, seconds: float) -> list[float]:
            n = int(rng.poisson(per_s * seconds))
            return [begin + float(t) for t in np.sort(rng.uniform(0.0, min(seconds, CAMPAIGN_S_MAX), n))]

        def one_of(*values: str | int) -> str:
            return str(values[rng.integers(len(values))])

        match family:
            case "C2":
                period, jitter = float(rng.lognormal(3.0, 0.8)), float(rng.uniform(0.0, 0.3))
                n = int(rng.uniform(600, CAMPAIGN_S_MAX) / (period * (1 + jitter)))
                gaps = period * (1 + jitter * rng.uniform(-1, 1, n))
                quiet = rng.random() < 0.25
                dst = DNS if quiet else one_of(outside, outside, outside, SITES[int(rng.integers(len(SITES)))])
                name, port = ("dns_beacon", 53) if quiet else ("beacon", int(one_of(443, 443, 8080, 80)))
                starts = [begin + float(t) for t in np.cumsum(gaps) if t < CAMPAIGN_S_MAX]
                return [Flow(t, PROFILE[name], inside, dst, port) for t in starts]
            case "PortScan":
                src = one_of(inside, outside, outside)
                kind = one_of("ports", "hosts", "slow", "sweep")
                rate, seconds = float(rng.uniform(4, 30)), float(rng.uniform(15, 80))
                starts = times(0.3, 1500) if kind == "slow" else times(rate, seconds)
                hosts = [*WORKSTATIONS, *SERVERS]
                who = rng.permutation(len(hosts))
                victim, service = hosts[who[0]], int(one_of(22, 445, 3389, 80, 23))
                ports = rng.permutation(10_000) + 1
                return [
                    Flow(t, PROFILE["sweep"], src, hosts[who[i % len(who)]], -1) if kind == "sweep"
                    else Flow(t, PROFILE["probe"], src, hosts[who[i % len(who)]], service) if kind == "hosts"
                    else Flow(t, PROFILE["probe"], src, victim, int(ports[i % len(ports)]))
                    for i, t in enumerate(starts)
                ]  # fmt: skip
            case "BruteForce":
                dst, port = one_of(JUMP, JUMP, *SERVERS), int(one_of(22, 22, 3389, 21))
                src = one_of(outside, outside, inside)
                starts = times(float(rng.uniform(0.4, 4)), float(rng.uniform(60, 480)))
                return [Flow(t, PROFILE["guess"], src, dst, port) for t in starts]
            case "Ransomware":
                starts = times(float(rng.uniform(0.8, 4)), float(rng.uniform(60, 300)))
                victims = [FILES, "10.0.0.11", *(str(w) for w in rng.choice(WORKSTATIONS, 12))]
                who = rng.integers(0, len(victims), len(starts))
                return [
                    Flow(t, PROFILE["beacon"], inside, outside, 443) if i % 25 == 0
                    else Flow(t, PROFILE["encrypting"], inside, victims[k], 445)
                    for i, (t, k) in enumerate(zip(starts, who.tolist(), strict=True))
                ]  # fmt: skip
            case "Exfiltration":
                quiet = rng.random() < 0.25
                src = one_of(inside, inside, FILES)
                starts = times(float(rng.uniform(0.02, 0.2)) * (8 if quiet else 1), float(rng.uniform(300, 1200)))
                name, dst, port = ("dns_upload", DNS, 53) if quiet else ("upload", outside, int(one_of(443, 443, 22)))
                return [Flow(t, PROFILE[name], src, dst, port) for t in starts]
            case _:
                name = one_of("syn_flood", "http_flood", "udp_flood")
                bots = [_outsider(rng) for _ in range(int(rng.integers(20, 600)))]
                starts = times(float(rng.uniform(8, 30)), float(rng.uniform(20, 90)))
                dst, port = one_of(*SERVERS[5:8]), int(one_of(80, 443))
                who = rng.integers(0, len(bots), len(starts))
                return [Flow(t, PROFILE[name], bots[k], dst, port) for t, k in zip(starts, who.tolist(), strict=True)]

    # what it looks like

    def _events(self, rng: np.random.Generator, block: int, flows: list[Flow]) -> list[tuple[int, int, FeaturedEvent]]:
        n = len(flows)
        kind = np.array([f.profile for f in flows], np.int64)
        rows, seconds = flow_features(rng, kind)
        derive(rows, np.array([float(f.src.startswith("10.") and not f.dst.startswith("10.")) for f in flows]))
        ports = rng.integers(32_768, 61_000, n).tolist()
        # Engines see the same suspicion, shifted for all of them, and each with an error of its own.
        seen = np.array([p.suspicion for p in PROFILES])[kind] + rng.normal(0.0, 0.6, n)
        error = np.array((1.0, 0.6, 0.8, 1.0, 1.2, 1.5))
        scores = np.round(1 / (1 + np.exp(-(seen[:, None] + error * rng.normal(0.0, 1.0, (n, 6))))), 4).tolist()
        speaks = (rng.random((n, 4)) < (0.5, 0.8, 0.6, 0.3)).tolist()
        words = rng.integers(0, 1 << 30, (n, 4)).tolist()
        out = []
        for i, f in enumerate(flows):
            p, (fast, ml, *opinions) = PROFILES[f.profile], scores[i]
            verdicts = [
                _verdict(*engine, opinion)
                for engine, opinion, on in zip(ENGINES, opinions, speaks[i], strict=True)
                if on
            ]
            verdict = _word(0.3 * fast + 0.7 * ml)
            ts_start = self.start_ns + round(f.start * 1e9)
            event = Event(
                event_id="-",
                source=SOURCE,
                sensor=SOURCE,
                ts=ts_start + round(seconds[i] * 1e9),
                ts_start=ts_start,
                src_ip=f.src,
                dst_ip=f.dst,
                src_port=ports[i] if f.port >= 0 else None,
                dst_port=f.port if f.port >= 0 else None,
                proto=p.proto,
                classification=verdict,
                family=p.family,
                fast_score=fast,
                ml_score=ml,
                final_score=max(fast, ml),
                verdicts=verdicts,
                discrepancy=discrepancy(verdicts, fast, ml),
                decision=DECISIONS[verdict],
                text=_text(p, f.dst, words[i], verdict),
                technique=[TECHNIQUES[p.family]] if p.family in TECHNIQUES and verdict == "MALICIOUS" else [],
            )
            out.append((event.ts, block << 32 | i, FeaturedEvent(event, table.pack(rows[i]))))
        return out


def _outsider(rng: np.random.Generator) -> str:
    net, *rest = rng.integers(1, 250, 4).tolist()
    return ".".join(str(part) for part in (RANDOM_NETS[net % len(RANDOM_NETS)], *rest))


def _word(p: float) -> Classification:
    return "MALICIOUS" if p > 0.62 else "SUSPICIOUS" if p > 0.42 else "BENIGN"


def _verdict(engine: str, reason: str, p: float) -> Verdict:
    word = _word(p)
    return Verdict(engine, word, round(1 - p, 4) if word == "BENIGN" else p, "UNKNOWN" if word == "BENIGN" else reason)


def _name(dst: str, salt: int = 0) -> str:
    """The host name of an address, always the same."""
    k = crc32(dst.encode()) + salt
    return f"{WORDS[k % 12]}-{WORDS[k // 12 % 12]}.{ZONES[k // 144 % len(ZONES)]}"


def _text(p: Profile, dst: str, w: list[int], verdict: Classification) -> str:
    parts = []
    match p.texts:
        case "dns" | "quiet":  # now and then a host of a content network; more often one that looks like it
            name = _name(SITES[w[0] % len(SITES)])
            hashed = w[2] % (8 if p.texts == "dns" else 3) == 0
            parts = ["dns", f"{crc32(name.encode()):08x}.{name}" if hashed else name]
        case "tls" | "update" | "upload":
            parts = ["tls", _name(dst)]
        case "c2":
            parts = ["tls", f"{WORDS[w[0] % 12]}{w[1] % 97}.{_name(dst)}"] if w[2] % 3 else ["tls"]
        case "http":
            parts = ["http", _name(dst), PATHS[w[0] % len(PATHS)], AGENTS[w[1] % len(AGENTS)]]
        case "smb":
            suffix = "locked" if p.family == "Ransomware" and w[3] % 3 else "xlsx"
            parts = ["smb", f"\\\\files\\{WORDS[w[0] % 12]}\\{WORDS[w[1] % 12]}{w[2] % 100}.{suffix}"]
        case "ssh":
            parts = ["ssh", CLIENTS[w[0] % len(CLIENTS) if p.suspicion > 0 else 0]]
        case "tunnel":
            parts = ["dns", f"{w[0]:08x}{w[1]:08x}.{_name(dst, 7)}"]
    if verdict == "MALICIOUS" or (verdict == "SUSPICIOUS" and w[3] % 2):
        parts.append(SIGNATURES[p.family][w[2] % 3])
    return " | ".join(parts)


# --- the flow model ---------------------------------------------------------------------------------------------------


def _column(of: Callable[[Profile], float], kind: I64) -> F64:
    return np.array([of(p) for p in PROFILES], np.float64)[kind]


def flow_features(rng: np.random.Generator, kind: I64) -> tuple[F32, list[float]]:
    """float32 [n, 105] with the measured flow features of n flows of the given profiles, and their durations in s."""
    n = len(kind)
    rows = table.empty(n)

    def put(name: str, value: F64) -> None:
        rows[:, INDEX[name]] = value

    def lognormal(of: Callable[[Profile], tuple[float, float]]) -> F64:
        median, sigma = _column(lambda p: of(p)[0], kind), _column(lambda p: of(p)[1], kind)
        return np.asarray(median * np.exp(sigma * rng.standard_normal(n)), np.float64)

    proto = _column(lambda p: p.proto, kind)
    tcp = proto == TCP
    forward = np.clip(np.rint(lognormal(lambda p: p.packets)), 1, 2_000_000)
    answered = rng.random(n) < _column(lambda p: p.answered, kind)
    backward = np.where(answered, np.maximum(1, np.rint(forward * lognormal(lambda p: p.answer))), 0)
    established = tcp & answered & (forward >= 3) & (backward >= 2)
    closed = established & (rng.random(n) < _column(lambda p: p.closed, kind))
    packets = forward + backward
    longer = np.sqrt(forward / _column(lambda p: p.packets[0], kind))
    seconds = np.where(packets > 1, np.maximum(packets - 1, np.rint(lognormal(lambda p: p.seconds) * longer * 1e6)), 0)
    seconds = np.minimum(seconds, 3_600_000_000) / 1e6
    put("protocol_number", proto)
    put("interface_mode", np.full(n, 2.0))
    put("source_ifindex", np.full(n, 2.0))
    put("flow_duration", seconds)
    put("total_forward_packets", forward)
    put("total_backward_packets", backward)

    bare = _column(lambda p: p.bare, kind)
    histogram = np.zeros(n * BINS)
    payload = {}
    for side, count, of in (("forward", forward, _forward), ("backward", backward, _backward)):
        mean, cv = _column(lambda p, of=of: of(p)[0], kind), _column(lambda p, of=of: of(p)[1], kind)  # type: ignore[misc]
        times, weighted = _multiplicity(count), _gammas(rng, cv, n)
        lengths = np.clip(np.rint(mean[:, None] * weighted), 1, 1460)
        lengths[rng.random((n, VALUES)) < bare[:, None]] = 0
        lengths[tcp, 0] = 0  # SYN, SYN-ACK
        lengths[tcp & ~established] = 0
        histogram += _histogram(lengths, times)
        payload[side] = _lengths(put, side, count, lengths, times)
    total = histogram.reshape(n, BINS)
    share = total / total.sum(1, keepdims=True)
    put("packet_size_entropy", -np.sum(share * np.log2(np.where(share > 0, share, 1)), 1) + 0.0)

    # Gaps: those of the flow add up to the duration, those of a direction to nearly as much.
    cv = _column(lambda p: p.gap_cv, kind)
    us = seconds * 1e6
    last_forward = (rng.random(n) < 0.5) | (backward == 0)
    within = rng.uniform(0.75, 0.99, (2, n))
    spans = {
        "forward": us * np.where(last_forward, 1.0, within[0]),
        "backward": us * within[1] * np.where(last_forward, 0.98, 1.0),
    }
    for side, count in (("forward", forward), ("backward", backward)):
        spans[side] = np.where(count > 1, spans[side], np.nan)
        put(f"{side}_inter_arrival_time_total", spans[side])
        _gaps(put, side, _spacing(rng, cv, count - 1, spans[side]), count - 1)
    gaps = _spacing(rng, cv, packets - 1, us)
    _gaps(put, "flow", gaps, packets - 1)
    times = _multiplicity(packets - 1)
    idle = times * (gaps > 5e6)
    periods, idle_us = idle.sum(1), (idle * np.nan_to_num(gaps)).sum(1)
    put("idle_mean", np.where(periods > 0, idle_us / np.maximum(1, periods), np.nan))
    put("active_mean", (us - idle_us) / (periods + 1))

    _flags(rng, put, tcp, established, closed, forward, backward, payload)
    for side, count in (("forward", forward), ("backward", backward)):
        other = payload["backward" if side == "forward" else "forward"]
        dense = (payload[side] >= 8) & (payload[side] > 2 * other) & (spans[side] < 1e6 * (count - 1))
        _bulk(rng, put, side, np.where(dense, payload[side], 0), rows, spans[side])
    put("flow_completion_rate", np.where(tcp, 0.5 * established + 0.5 * closed, answered))
    packed = rng.random(n) < _column(lambda p: p.packed, kind)
    entropy = np.where(packed, PACKED_ENTROPY, _column(lambda p: p.entropy, kind))
    # What is far from 1 varies with its content, what is near it hardly.
    spread = np.clip(0.25 * (1.0 - entropy), 0.01, 0.06)
    entropy = np.clip(entropy + spread * rng.standard_normal(n), 0.05, 0.999)
    cut = (rng.random(n) < 0.1) | (payload["forward"] + payload["backward"] == 0)
    put("entropy", np.where(cut, np.nan, entropy))
    return rows, seconds.tolist()


def _forward(p: Profile) -> tuple[float, float]:
    return p.forward


def _backward(p: Profile) -> tuple[float, float]:
    return p.backward


def _multiplicity(count: F64) -> F64:
    """float64 [n, VALUES]: how often each of a flow's values occurs, adding up to count."""
    whole, rest = np.divmod(np.maximum(count, 0), VALUES)
    return np.asarray(whole[:, None] + (np.arange(VALUES) < rest[:, None]), np.float64)


def _gammas(rng: np.random.Generator, cv: F64, n: int) -> F64:
    """float64 [n, VALUES] of mean 1 and the given coefficient of variation."""
    shape = 1.0 / np.maximum(cv, 1e-3) ** 2
    return np.asarray(rng.gamma(shape[:, None], 1.0, (n, VALUES)) / shape[:, None], np.float64)


def _spacing(rng: np.random.Generator, cv: F64, count: F64, total_us: F64) -> F64:
    """float64 [n, VALUES]: gaps whose `count` add up to total_us; NaN where there are none."""
    gaps = _gammas(rng, cv, len(count)) + 1e-6
    weight = (gaps * _multiplicity(count)).sum(1)
    return np.asarray(gaps * np.where(weight > 0, total_us / np.maximum(weight, 1e-300), np.nan)[:, None], np.float64)


def _moments(values: F64, times: F64, count: F64) -> tuple[F64, F64, F64, F64]:
    """Mean, sample std, largest and smallest of multisets [n, VALUES]; 0 where they are empty."""
    there, n = times > 0, np.maximum(count, 1)
    known = np.where(there, values, 0.0)
    mean = (known * times).sum(1) / n
    std = np.sqrt((times * (known - mean[:, None]) ** 2).sum(1) / np.maximum(n - 1, 1)) * (count > 1)
    largest, smallest = np.where(there, values, -np.inf).max(1), np.where(there, values, np.inf).min(1)
    empty = count < 1
    return mean, std, np.where(empty, 0.0, largest), np.where(empty, 0.0, smallest)


def _lengths(put: Put, side: str, count: F64, lengths: F64, times: F64) -> F64:
    """Fill the length columns of a direction; how many of its packets have a payload."""
    mean, std, largest, smallest = _moments(lengths, times, count)
    put(f"total_{side}_bytes", (lengths * times).sum(1))
    put(f"{side}_packet_length_mean", mean)
    put(f"{side}_packet_length_std", std)
    put(f"{side}_packet_length_max", largest)
    put(f"{side}_packet_length_min", smallest)
    return np.asarray((times * (lengths > 0)).sum(1), np.float64)


def _histogram(lengths: F64, times: F64) -> F64:
    """float64 [n * BINS]: packets by length in bins of BIN_BYTES."""
    n = len(lengths)
    bins = (lengths // BIN_BYTES).astype(np.int64) + BINS * np.arange(n)[:, None]
    return np.bincount(bins.ravel(), times.ravel(), n * BINS).astype(np.float64)


def _gaps(put: Put, side: str, gaps: F64, count: F64) -> None:
    mean, std, largest, smallest = _moments(gaps, _multiplicity(count), count)
    for word, value in (("mean", mean), ("std", std), ("max", largest), ("min", smallest)):
        put(f"{side}_inter_arrival_time_{word}", np.where(count >= 1, value, np.nan))


def _flags(
    rng: np.random.Generator, put: Put, tcp: Mask, established: Mask, closed: Mask, forward: F64, backward: F64,
    payload: dict[str, F64],
) -> None:  # fmt: skip
    n = len(tcp)
    refused = tcp & ~established
    pushed = {side: np.where(tcp, np.rint(payload[side] * rng.uniform(0.3, 1.0, n)), 0.0) for side in payload}
    put("syn_flag_count", np.where(established, 2.0, np.where(tcp, forward, 0.0)))
    put("ack_flag_count", np.where(established, forward + backward - 1, np.where(refused, backward, 0.0)))
    put("fin_flag_count", np.where(closed, 2.0, 0.0))
    aborted = established & ~closed & (rng.random(n) < 0.3)
    put("rst_flag_count", np.where(refused, backward, np.where(aborted, 1.0, 0.0)))
    put("psh_flag_count", pushed["forward"] + pushed["backward"])
    put("forward_psh_flags", pushed["forward"])
    put("backward_psh_flags", pushed["backward"])
    marked = np.where(established & (rng.random(n) < 0.02), 1.0, 0.0)
    put("ece_flag_count", marked)
    put("cwr_flag_count", marked)
    for name in ("urg_flag_count", "forward_urg_flags", "backward_urg_flags"):
        put(name, np.zeros(n))
    header = np.where(rng.random(n) < 0.6, 32.0, 20.0)  # with and without timestamps
    for side, count in (("forward", forward), ("backward", backward)):
        opened = np.where(count > 0, header * (count - 1) + 40, 0.0)
        closed_port = 40.0 * count if side == "forward" else 20.0 * count
        put(f"{side}_header_length", np.where(tcp, np.where(established, opened, closed_port), 8.0 * count))


def _bulk(rng: np.random.Generator, put: Put, side: str, packets: F64, rows: F32, span_us: F64) -> None:
    """packets: those with payload in a dense direction, else 0."""
    n = len(packets)
    share = rng.uniform(0.7, 1.0, n)
    bulks = np.maximum(1, packets * share // rng.integers(8, 200, n))
    size = rows[:, INDEX[f"total_{side}_bytes"]] * share
    dense = packets > 0
    put(f"{side}_average_packets_bulk", np.where(dense, packets * share / bulks, 0.0))
    put(f"{side}_average_bytes_bulk", np.where(dense, size / bulks, 0.0))
    put(f"{side}_average_bulk_rate", np.where(dense, size / np.where(dense, span_us * share / 1e6, 1.0), 0.0))
