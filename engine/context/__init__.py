"""The context tracker: the 26 features of an event that look at the flows before it.

    layers      counters and maps that can be layered over a parent
    history     what hosts and pairs did before, decayed
    windows     the flows of one host in 30 s, and sums over them
    streams     how far the time of one sensor has come, and its bytes
    addresses   internal or not, and the network of an address
    state       all of that, its overlays, and its dump
    tracker     the definitions of the features

Always true
  - The answer for an event depends on the events before it in order of arrival, never on how the stream was cut into
    batches, on overlays and merges, or on a dump and load in between. One event is taken at a time; counts, bytes,
    entropies and durations are integers (fixed point), so nothing drifts and adding and removing cancel exactly. Only
    the decayed histories are float sums, and each belongs to one host and is touched in order of arrival only.
  - Only kind == "flow" changes state. An alert or notice gets context from the flows and counts as none; where no flow
    is in its window it gets NaN, not 0. An event without time (0) or addresses: the same, and it changes nothing.
  - Cost per event is amortised O(log n), and memory is bounded: hosts, pairs, the flows of a window, and those of all
    windows together (state.py).

Recovery: `load` a dump and `observe` the stored events after it, in order of seq; the state is the same bit for bit.
"""

from engine.context.tracker import Tracker

__all__ = ["Tracker"]
