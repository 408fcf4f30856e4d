"""The one way of a feature into the store, into a question and into a fit.

Always true
  - The same events in the same order on the same tracker get the same 105 features, whoever asks.
  - What a source gave is kept; only missing cells are filled: first what follows from other cells, then the context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan

import numpy as np

from engine.context import Tracker
from engine.features import F32
from engine.flows.derived import derive
from ipc.event import Event


def featurize(
    events: Sequence[Event], features: F32, tracker: Tracker, derived: Callable[[], None] = lambda: None
) -> None:
    """Fill float32 [n, 105] in place for events in order of arrival; the tracker moves on. `derived` is called between
    what follows from other features and the context."""
    derive_features(events, features, tracker)
    derived()
    tracker.observe(events, features)


def derive_features(events: Sequence[Event], features: F32, tracker: Tracker) -> None:
    """The first half of `featurize`: what follows from other features. The tracker stays."""
    leaves = [
        float(tracker.classify(e.src_ip)[0] and not tracker.classify(e.dst_ip)[0]) if e.src_ip and e.dst_ip else nan
        for e in events
    ]
    derive(features, np.array(leaves))
