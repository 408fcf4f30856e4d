"""Where the tools that we are compared with compute otherwise: their formula in words, ours, and why.

Always true
  - The table is closed: a column of features 0 to 64 that a tool has and that is not here agrees with ours on flows of
    equal boundaries, in at least 98 of 100 cells within 0.1 % or 1 us. tests/unit/test_flows_golden.py holds it to
    that, and to the tool's own formula, computed from our packets, for every column that is here.
  - docs/FEATURES.md shows it.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.features import INDEX

CICFLOWMETER = "CICFlowMeter 4"  # the Java tool, its last commit (98a5beb)
CICFLOWMETER_2018 = "CICFlowMeter of 2018"  # the edition that made its authors' own tables
NFSTREAM = "NFStream 6.6"
BOTH = (CICFLOWMETER, CICFLOWMETER_2018)

STATS = ("mean", "std", "max", "min")
FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "cwr", "ece")
BULKS = ("average_bytes_bulk", "average_packets_bulk", "average_bulk_rate")
FLOW_GAPS = tuple(f"flow_inter_arrival_time_{stat}" for stat in STATS)
WAY_GAPS = tuple(f"{way}_inter_arrival_time_{stat}" for way in ("forward", "backward") for stat in ("total", *STATS))


class Difference(NamedTuple):
    """columns: names of engine.features that the tools compute as `theirs` says."""

    tools: tuple[str, ...]
    columns: tuple[str, ...]
    theirs: str
    ours: str
    why: str


DIFFERENCES = (
    Difference(
        BOTH,
        ("packet_length_mean", "packet_length_std", "packet_length_variance"),
        "over the lengths of all packets and once more that of the first",
        "each packet once",
        "the tool adds a flow's first packet for the flow and again for its direction",
    ),
    Difference(
        BOTH,
        ("average_packet_size",),
        "(total bytes + bytes of the first packet)/packets",
        "total bytes/packets",
        "its sum is that of the lengths above",
    ),
    Difference(
        BOTH,
        ("download_upload_ratio",),
        "backward packets/forward packets, cut to a whole number",
        "the quotient",
        "the tool divides integers; 0.9 and 0.1 are both 0",
    ),
    Difference(
        BOTH,
        tuple(f"{way}_{flag}_flags" for way in ("forward", "backward") for flag in ("psh", "urg")),
        "1 where the flow's first packet goes in this direction and has the flag, else 0",
        "the number of packets",
        "the tool looks at flags of a direction when it makes a flow, never again",
    ),
    Difference(
        BOTH,
        WAY_GAPS,
        "0 where the direction has fewer than two packets",
        "missing there",
        "no gap is not a gap of no length",
    ),
    Difference(
        BOTH,
        tuple(f"forward_{name}" for name in BULKS),
        "always 0",
        "by direction; missing without a bulk, the rate 0",
        "the tool compares the sender's address by reference, which is never equal (in 2018 it kept no bulks)",
    ),
    Difference(
        (CICFLOWMETER,),
        tuple(f"backward_{name}" for name in BULKS),
        "of 4 or more packets with payload, of either direction, no gap above 1 s; whole numbers, 0 without a bulk",
        "of backward packets alone; missing without a bulk, the rate 0",
        "as no packet is a forward one, all are backward ones, requests and answers in one bulk",
    ),
    Difference(
        (CICFLOWMETER_2018,),
        tuple(f"backward_{name}" for name in BULKS),
        "always 0",
        "of backward packets; missing without a bulk, the rate 0",
        "it kept no bulks",
    ),
    Difference(
        BOTH,
        ("active_mean",),
        "mean of the active periods that an idle one ended and that lasted; 0 without one",
        "all active periods, the last one and those of one packet too",
        "the tool closes an active period only when the next one begins",
    ),
    Difference(
        BOTH,
        ("idle_mean",),
        "0 without an idle period",
        "missing there",
        "never idle is not idle for no time",
    ),
    Difference(
        (CICFLOWMETER_2018,),
        tuple(f"{flag}_flag_count" for flag in FLAGS),
        "1 where the first packet has a flag, else 0, under other names: its columns FIN, SYN, RST, PSH, ACK, URG, "
        "CWE, ECE are RST, PSH, ECE, SYN, ACK, FIN, URG, CWR",
        "the number of packets with the flag",
        "it looked at the first packet only, and wrote the flags in the order of a Java hash map",
    ),
    Difference(
        (NFSTREAM,),
        FLOW_GAPS + tuple(name for name in WAY_GAPS if not name.endswith("_total")),
        "from packet times cut to whole ms; 0 where there is no gap",
        "from the capture's times; missing where there is no gap",
        "NFStream keeps milliseconds",
    ),
    Difference(
        (NFSTREAM,),
        ("flow_duration",),
        "from packet times cut to whole ms",
        "from the capture's times",
        "NFStream keeps milliseconds",
    ),
)

assert all(name in INDEX for d in DIFFERENCES for name in d.columns)


def differing(tool: str) -> frozenset[str]:
    """Columns that the tool computes otherwise."""
    return frozenset(name for d in DIFFERENCES if tool in d.tools for name in d.columns)
