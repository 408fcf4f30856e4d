"""What goes wrong, and when: one table of weights, from which a seed draws."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple

PAUSE_S = 0.3  # between two faults, on average

# fmt: off
WEIGHTS = {  # names of methods in faults.py
    "kill_ingest": 14,
    "kill_reader": 14,
    "kill_child": 10,
    "kill_supervisor": 6,     # and start again at once
    "kill_all": 3,
    "kill_writer": 3,         # the client, in the middle of a request
    "pause": 6,               # SIGSTOP, then SIGCONT: ingest worker, reader or supervisor
    "hang": 3,                # SIGSTOP until it is replaced
    "terminate": 3,           # SIGTERM under load, then start again
    "hang_up": 3,             # SIGHUP
    "full_disk": 3,
    "full_disk_kill": 2,      # the ingest worker killed meanwhile
    "full_disk_terminate": 1,
    "bad_disk": 2,            # EIO, once
    "full_map": 3,            # of LMDB; then it grows
    "rotate": 8,              # the followed file
    "garbage": 8,
    "slow_client": 3,
    "deaf_client": 3,         # asks, and never reads
    "label_storm": 8,
    "switch": 4,              # of models, or the way back
    "purge": 6,               # of a batch
    "compact": 4,             # the catalog
    "retain": 1,              # from now on only so much is kept, the oldest leave
}
BRIEF = {  # what takes hardly longer than the recovery from it
    "kill_ingest": 12,
    "kill_reader": 4,
    "kill_supervisor": 1,
    "kill_all": 2,
    "kill_writer": 2,
    "bad_disk": 1,
    "rotate": 2,
    "garbage": 1,
    "label_storm": 1,
    "switch": 1,
}
# fmt: on


class Step(NamedTuple):
    """Wait, then do it. seed: for what the fault itself draws."""

    pause_s: float
    fault: str
    seed: int


def draw(seed: int, weights: Mapping[str, int] = WEIGHTS) -> Iterator[Step]:
    """Without end. Each fault comes once, in any order, before they come by their weights."""
    chance = random.Random(seed)
    once = sorted(weights)
    chance.shuffle(once)
    while True:
        fault = once.pop() if once else chance.choices(list(weights), list(weights.values()))[0]
        yield Step(chance.uniform(0, 2 * PAUSE_S), fault, chance.getrandbits(32))
