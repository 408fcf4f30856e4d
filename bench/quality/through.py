"""The same questions put to a running engine: a model fitted on the known side and used, that side ingested, the rest
asked by query_event. What a claim rests on is measured so.

Always true
  - Neighbours are labelled events only, as in process, by a filter; search is that of readers.
  - The engine's fit names families as it does in life: where a source says no more than Malicious, it learns no family.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from bench.harness import engine
from bench.quality.data import Labelled, label
from bench.quality.measure import TOP_K, Found
from bench.quality.splits import Sides, Split
from engine.embed.fit import fit
from engine.embed.models import Data
from ipc.event import Event, FeaturedEvent
from ipc.messages import Filter, Options

MESSAGE_EVENTS = 128
DEADLINE_MS = 600_000
LABELLED = Filter(classifications=["BENIGN", "SUSPICIOUS", "MALICIOUS"])


def fitted(at: Sides, internal: Sequence[str], seed: int) -> dict[str, bytes]:
    """The files of the model that the known side gives."""
    data = Data(description="bench.quality", events=0, families={}, sha256={})
    return fit(at.past.events, at.past.features, version="bench", seed=seed, data=data, internal=internal, trained=True)


def through_engine(
    data: Labelled, split: Split, at: Sides, files: dict[str, bytes], space: str = "attack",
    other_episodes: bool = False,
) -> Found:  # fmt: skip
    """The neighbours of the labelled queries, in their order. files: of the model version `bench`."""
    number = {name: i for i, name in enumerate(at.families)}
    past, asked = ([data.items[i] for i in rows] for rows in split)
    options = Options(
        space=space,
        top_k=TOP_K,
        collapse=False,
        deadline_ms=DEADLINE_MS,
        filter=LABELLED,
        other_episodes=other_episodes,
    )
    setting = f"network.internal={json.dumps(list(data.internal))}"
    families = np.full((len(asked), TOP_K), -1, np.int64)
    distances = np.full((len(asked), TOP_K), np.inf)
    with engine(2, settings=[setting]) as running, running.client(timeout_ms=DEADLINE_MS) as client:
        client.add_model("bench", files)
        client.use_model("bench")
        for messages in _messages(past):
            client.ingest("bench", messages)
        at_row = 0
        for messages in _messages(asked):
            for answer in client.query_events(messages, options=options, session=1).answers:
                for i, hit in enumerate(answer.hits):
                    assert isinstance(hit.event, Event)
                    families[at_row, i], distances[at_row, i] = number[label(hit.event)], hit.distance
                at_row += 1
    judged = [i for i, item in enumerate(asked) if label(item.event)]
    return Found(families[judged], distances[judged])


def _messages(items: list[FeaturedEvent]) -> list[list[FeaturedEvent]]:
    return [items[i : i + MESSAGE_EVENTS] for i in range(0, len(items), MESSAGE_EVENTS)]
