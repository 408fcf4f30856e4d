"""Does chronos know a beacon by its rhythm: `python -m bench.rhythm [--flow-ports] [--lasting-s 3600]`.

Always true
  - Sizes, packets, durations and gaps of every flow, and the port of every conversation (--flow-ports: of every flow),
    are drawn from the same distributions whatever its kind: only starts and ends tell a beacon from what looks like it.
  - Features come from the context tracker, as in ingest. What is indexed and what is asked are two networks of
    different seeds: no host or pair is in both, so a neighbour is found by rhythm, not by identity.
  - A beacon is asked about from its fifth flow on; before that it has no rhythm.
  - A space is trained on what trains the version that ships or, beside it, on a third network; never on these two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.harness import arguments, report
from bench.quality.methods import standardised
from engine.config import CIDRS_INTERNAL
from engine.context import Tracker
from engine.embed.base import F32
from engine.embed.fit import NETWORK_DIMS, SHARE, family_numbers, fitted, nearest
from engine.embed.rhythm import rhythms
from engine.embed.ship import SEED, SYNTHETIC_EVENTS, lab, observed
from engine.features import INDEX, pack
from engine.sources.synthetic import PROFILE, START_NS, flow_features, generate
from ipc.event import Event, FeaturedEvent

HOURS = 8
HOSTS = 60
OF_EACH = 120  # beacons, and conversations of each look-alike
FLOWS_MAX = 40  # of one conversation
KEPT = 12  # flows of one conversation that are indexed or asked about
JUDGED_FROM = 5
TOP_K = 10
LASTING_S = 2.0  # of any flow: shorter than the shortest period, so that no beacon's flows overlap
LIKE_PERIOD = 1.5  # factor within which two periods are the same
PERIOD_S = (3.0, 3_600.0)
JITTER_MAX = 0.3
SHARES = (0.25, 0.5, 1.0, 2.0)
PORTS = (22, 25, 53, 80, 110, 123, 143, 389, 443, 587, 853, 993, 1883, 3128, 5432, 8080, 8443, 9100)
LOOKS = tuple(PROFILE[name] for name in ("dns", "web", "http", "database", "mail", "update", "guess", "beacon"))
INTERNAL = ("10.0.0.0/8",)
KINDS = ("beacon", "clients", "bursts", "sessions", "batch", "polls", "daily")


class Traffic(NamedTuple):
    """One network's events in order of time. kind: number in KINDS; period: seconds, of a beacon or poll, else NaN;
    conversation: which pair and port; nth: how many flows of it came before."""

    events: list[Event]
    features: F32
    kind: NDArray[np.int64]
    period: NDArray[np.float64]
    conversation: NDArray[np.int64]
    nth: NDArray[np.int64]


class Talk(NamedTuple):
    """One conversation: who, to whom, and the starts of its flows in seconds."""

    kind: str
    period: float
    src: str
    dst: str
    starts: NDArray[np.float64]


def traffic(seed: int, *, flow_ports: bool = False, lasting_s: float = LASTING_S) -> Traffic:
    """A network of HOSTS hosts over HOURS hours. lasting_s: the longest flow."""
    rng = np.random.default_rng((seed, 7))
    talks = list(_talks(rng, seed))
    starts = np.concatenate([t.starts for t in talks])
    talk = np.repeat(np.arange(len(talks)), [len(t.starts) for t in talks])
    port = rng.choice(PORTS, len(starts) if flow_ports else len(talks))
    port = port if flow_ports else port[talk]
    rows, seconds = flow_features(rng, rng.choice(LOOKS, 4 * len(starts)))
    over = np.flatnonzero(np.array(seconds) <= lasting_s)[: len(starts)]
    rows, seconds = rows[over], [seconds[i] for i in over]
    source_ports = rng.integers(32_768, 61_000, len(starts))
    proto = rows[:, 0].astype(np.int64)
    items = []
    for i, (start, t) in enumerate(zip(starts.tolist(), talk.tolist(), strict=True)):
        begin = START_NS + round(start * 1e9)
        event = Event(
            event_id=f"{i:07d}", source="rhythm", sensor="rhythm", ts=begin + round(seconds[i] * 1e9), ts_start=begin,
            src_ip=talks[t].src, dst_ip=talks[t].dst, src_port=int(source_ports[i]), dst_port=int(port[i]),
            proto=int(proto[i]),
        )  # fmt: skip
        items.append(FeaturedEvent(event, pack(rows[i])))
    events, features = observed(items, Tracker(INTERNAL))
    order = np.array([int(e.event_id) for e in events])
    talk = talk[order]
    nth, seen = np.empty(len(talk), np.int64), np.zeros(len(talks), np.int64)
    for i, t in enumerate(talk):
        nth[i] = seen[t]
        seen[t] += 1
    kind = np.array([KINDS.index(t.kind) for t in talks])[talk]
    return Traffic(events, features, kind, np.array([t.period for t in talks])[talk], talk, nth)


def _talks(rng: np.random.Generator, seed: int) -> Iterator[Talk]:
    whole = HOURS * 3_600.0
    hosts = [f"10.{seed % 250}.1.{i + 1}" for i in range(HOSTS)]
    ends = iter(rng.permutation(60_000).tolist())

    def end() -> str:
        n = next(ends)
        return f"{10 if n % 3 == 0 else 100 + n % 50}.{seed % 250}.{2 + n // 250}.{1 + n % 250}"

    def pace() -> float:
        return float(np.exp(rng.uniform(*np.log(PERIOD_S))))

    def cut(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
        starts = np.cumsum(gaps)
        starts += rng.uniform(0.0, max(1.0, whole - starts[-1]))
        return np.asarray(starts[starts < whole])

    for kind in KINDS[:5]:
        for _ in range(OF_EACH):
            every = pace()
            n = int(min(FLOWS_MAX, max(6, whole / every)))
            match kind:
                case "beacon":
                    gaps = every * (1 + rng.uniform(0, JITTER_MAX) * rng.uniform(-1, 1, n))
                case "clients":  # many users behind one address
                    gaps = rng.exponential(every, n)
                case "bursts":
                    gaps = np.where(rng.random(n) < 0.75, rng.exponential(every / 40, n), rng.exponential(4 * every, n))
                case "sessions":  # a person: reading times, and now and then away
                    gaps = rng.lognormal(np.log(every / 2), 1.1, n) + (rng.random(n) < 0.1) * rng.exponential(
                        5 * every, n
                    )
                case _:  # batch: the next begins when the last is done, however long that took
                    gaps = every * (0.1 + rng.lognormal(-0.3, 0.8, n))
            yield Talk(kind, every if kind == "beacon" else np.nan, str(rng.choice(hosts)), end(), cut(gaps))
    for _ in range(6):  # monitoring: the same round again and again, over many targets
        src, every, targets = end(), float(rng.uniform(30, 300)), int(rng.integers(20, 60))
        turns = np.arange(16) * every + rng.uniform(0, whole / 2)
        for k in range(targets):
            yield Talk("polls", every, src, end(), turns + every * k / targets + rng.uniform(0, 0.5, len(turns)))
    for src in hosts:  # what people do all day, to a dozen sites of theirs
        sites, visits = [end() for _ in range(12)], rng.uniform(0, whole, rng.poisson(10 * rng.lognormal(0, 0.7)))
        starts = np.concatenate([[], *(v + np.cumsum(rng.lognormal(1.5, 1.2, rng.geometric(1 / 12))) for v in visits)])
        site = rng.integers(0, len(sites), len(starts))
        for k, dst in enumerate(sites):
            if (site == k).any():
                yield Talk("daily", np.nan, src, dst, np.sort(starts[site == k]))


class Sample(NamedTuple):
    """What is indexed, or asked about."""

    features: F32
    kind: NDArray[np.int64]
    period: NDArray[np.float64]


def sampled(t: Traffic, seed: int, *, beacons_only: bool) -> Sample:
    """At most KEPT flows of each conversation, none of its first; of beacons only, where asked."""
    rng = np.random.default_rng((seed, 8))
    rows = rng.permutation(np.flatnonzero((t.nth >= JUDGED_FROM - 1) & ((t.kind == 0) | (not beacons_only))))
    taken, kept = np.zeros(t.conversation.max() + 1, np.int64), []
    for row in rows.tolist():
        taken[t.conversation[row]] += 1
        if taken[t.conversation[row]] <= KEPT:
            kept.append(row)
    kept.sort()
    return Sample(t.features[kept], t.kind[kept], t.period[kept])


def judged(embed: Callable[[F32], F32], index: Sample, asked: Sample) -> dict[str, float]:
    """P@10: neighbours of a beacon's flows that are of beacons; like: of beacons with a like period; by period; what
    the others are."""
    return judged_vectors(embed(index.features), embed(asked.features), index, asked)


def judged_vectors(ours: F32, theirs: F32, index: Sample, asked: Sample) -> dict[str, float]:
    rows, _ = nearest(theirs, ours, TOP_K)
    right = index.kind[rows] == 0
    apart = np.abs(np.log(index.period[rows] / asked.period[:, None]))
    like = right & (apart < np.log(LIKE_PERIOD))
    out = {"P@10": right.mean(), "like period": like.mean()}
    for low, high in ((3, 15), (15, 60), (60, 600), (600, 3_601)):
        band = (asked.period >= low) & (asked.period < high)
        out[f"{low}-{high}s"], out[f"{low}-{high}s like"] = right[band].mean(), like[band].mean()
    for number, kind in enumerate(KINDS[1:], 1):
        out[kind] = (index.kind[rows] == number).mean()
    return {name: round(float(value), 3) for name, value in out.items()}


def chance(index: Sample, asked: Sample) -> dict[str, float]:
    """The same for neighbours drawn at random."""
    every = asked.period[:: max(1, len(asked.period) // 200)]
    like = np.abs(np.log(index.period / every[:, None])) < np.log(LIKE_PERIOD)
    beacon = index.kind == 0
    return {"P@10": round(float(beacon.mean()), 3), "like period": round(float((like & beacon).mean()), 3)}


def taught(events: list[Event], features: F32, index: Sample, asked: Sample) -> dict[str, dict[str, float]]:
    """chronos as fitted on these events: its linear part, its network, and both at some shares."""
    families, _ = family_numbers(events)
    embed = fitted("chronos", "bench", features, families, rhythms(events), SEED).embed_features
    width, share = NETWORK_DIMS["chronos"], SHARE["chronos"]
    linear, network = ((e[:, :-width], e[:, -width:]) for e in (embed(index.features), embed(asked.features)))
    out = {}
    for name, flat, by in (("linear", 1.0, 0.0), ("network", 0.0, 1.0), *((f"share {k}", 1.0, k) for k in SHARES)):
        ours, theirs = (np.hstack((flat * a, by / (share or 1.0) * b)) for a, b in (linear, network))
        out[name] = judged_vectors(ours, theirs, index, asked)
    return out


def main() -> int:
    parse = arguments(__doc__)
    parse.add_argument("--flow-ports", action="store_true", help="draw a port for every flow, not every conversation")
    parse.add_argument("--lasting-s", type=float, default=LASTING_S, help="the longest flow")
    args = parse.parse_args()
    more = {"flow_ports": args.flow_ports, "lasting_s": args.lasting_s}
    index = sampled(traffic(101, **more), 101, beacons_only=False)
    asked = sampled(traffic(202, **more), 202, beacons_only=True)
    ships = [*lab(), observed(generate(SYNTHETIC_EVENTS, SEED), Tracker(CIDRS_INTERNAL))]
    events, features = [e for some, _ in ships for e in some], np.vstack([some for _, some in ships])
    third = traffic(303, **more)
    regularity = [INDEX["temporal_pattern"]]
    figures = {
        "chance": chance(index, asked),
        "log z": judged(standardised(features, log=True), index, asked),
        "regularity alone": judged(lambda x: np.nan_to_num(x[:, regularity]), index, asked),
        "taught by what ships": taught(events, features, index, asked),
        "taught by a third network": taught(third.events, third.features, index, asked),
    }
    return report("rhythm", args, figures)


if __name__ == "__main__":
    sys.exit(main())
