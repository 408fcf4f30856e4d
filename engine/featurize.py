"""The one way of a feature into the store, into a question and into a fit.

Always true
  - The same events in the same order on the same tracker get the same 105 features, whoever asks.
  - What a source gave is kept; only missing cells are filled: first what follows from other cells, then the context.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.context import Tracker
from engine.features import F32
from engine.flows.derived import derive
from ipc.event import Event


def featurize(events: Sequence[Event], features: F32, tracker: Tracker) -> None:
    """Fill float32 [n, 105] in place for events in order of arrival; the tracker moves on."""
    ends = [[bool(a) and tracker.classify(a)[0] for a in (e.src_ip, e.dst_ip)] for e in events]
    internal = np.array(ends, np.bool_).reshape(-1, 2)
    derive(features, internal[:, 0], internal[:, 1])
    tracker.observe(events, features)
