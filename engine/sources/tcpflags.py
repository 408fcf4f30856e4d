"""What the set of TCP flags that a side's packets had says for certain, where in how many packets is not said.

Always true
  - A flag that no packet had is a count of 0; of one that some had the count stays missing.
  - Bits are those of the TCP header; -1 means that it is not known what was seen.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.features import F32, INDEX

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << i for i in range(8))
LETTERS = {"F": FIN, "S": SYN, "R": RST, "P": PSH, "A": ACK, "U": URG, "E": ECE, "C": CWR}
UNSEEN = -1
_COUNTS = {
    "fin_flag_count": FIN, "syn_flag_count": SYN, "rst_flag_count": RST, "psh_flag_count": PSH,
    "ack_flag_count": ACK, "urg_flag_count": URG, "ece_flag_count": ECE, "cwr_flag_count": CWR,
}  # fmt: skip


def give_absent(features: F32, forward: NDArray[np.float64], backward: NDArray[np.float64]) -> None:
    """0 for each flag that was in no packet, in place; forward, backward: [n] bits seen on that side, or UNSEEN."""
    sides = {"forward": forward.astype(np.int64), "backward": backward.astype(np.int64)}
    known = (forward >= 0.0) & (backward >= 0.0)
    seen = sides["forward"] | sides["backward"]
    for name, bit in _COUNTS.items():
        features[known & (seen & bit == 0), INDEX[name]] = 0.0
    for side, bits in sides.items():
        for name, bit in (("psh_flags", PSH), ("urg_flags", URG)):
            features[(bits >= 0) & (bits & bit == 0), INDEX[f"{side}_{name}"]] = 0.0


@lru_cache(maxsize=4096)
def bits_of(letters: str) -> int:
    """The bits of 'FSPA' or '...AP.SF'; UNSEEN where a letter is none of a flag."""
    bits = 0
    for letter in letters.strip():
        if letter != ".":
            bit = LETTERS.get(letter)
            if bit is None:
                return UNSEEN
            bits |= bit
    return bits


@lru_cache(maxsize=65_536)
def completion(forward: int, backward: int) -> float:
    """flow_completion_rate of TCP from the flags of both sides; NaN where their order in time would have to be known.

    As engine/flows/features.py has it: established when each side acknowledged the other without RST.
    """
    if forward < 0 or backward < 0:
        return float("nan")
    if not forward & ACK or not backward & ACK:
        return 0.0
    # Which packets had the ACK? Where none was a reset, or data flowed, one that counts.
    ours = not forward & RST or forward & PSH
    theirs = not backward & RST or backward & (PSH | SYN)
    if not (ours and theirs) or (forward & SYN and not backward & SYN):
        return float("nan")
    if forward & backward & FIN:
        return float("nan") if (forward | backward) & RST else 1.0
    return 0.5
