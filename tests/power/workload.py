"""What a recorded engine is asked to do, and what its replies promised.

Always true
  - One client, one request after the other, so the order of replies is that of STEPS.
  - The engine is the real one: supervisor, ingest worker, reader, niced child. Its ingest worker is killed once, so
    that a start after a death is recorded, too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from engine.embed import models
from engine.layout import Layout
from ipc.event import FeaturedEvent, FirewallAction
from ipc.messages import Reject
from tests.engine_fixture import Engine
from tests.events import blocked, make, several
from tests.power.trace import Operation, Picture, parse, strace
from tests.store_fixture import OTHER, other_model


class Step(NamedTuple):
    """A request. label: of event 0; adds, uses: a model version. Before the next one: row files that have got their
    indexes, and whether the ingest worker is killed."""

    events: Sequence[FeaturedEvent] = ()
    rejects: int = 0
    actions: Sequence[FirewallAction] = ()
    label: str = ""
    adds: str = ""
    uses: str = ""
    indexed: int = 0
    killed: bool = False


STEPS = (
    Step(several(1)),  # makes the first row file
    Step(several(30, 1), rejects=2),  # makes the file of dead letters
    Step(label="seen"),
    Step(several(1, 31)),  # the publish that is explored exhaustively
    Step(several(36, 32), rejects=1, indexed=1),  # goes on in a second row file; the first one is indexed
    Step(rejects=3),
    Step(several(2, 68), actions=[blocked(n, after_s=0) for n in (20, 69)], killed=True),
    Step(several(1, 70)),
    Step(adds=OTHER),
    Step(uses=OTHER),  # all that is stored is embedded anew
    Step(several(1, 71)),
)
ANNOTATED_BY = {0: 2, 20: 6, 69: 6}  # seq -> place of the step
ADDED, SWITCHED = 8, 9  # places in STEPS
SMALL_PUBLISH = 3  # its place in STEPS


class Recording(NamedTuple):
    """operations: on a data directory and the folder that it is in, by paths relative to that. left: what was there
    before, after an earlier power failure; generations: told by the replies to the steps before that; steps: how many
    of STEPS there were in the end."""

    data_dir: Path
    operations: list[Operation]
    left: Picture = {}
    generations: tuple[int, ...] = ()
    steps: int = len(STEPS)


def lay_out(picture: Picture, root: Path) -> None:
    for path, content in picture.items():
        if content is None:
            (root / path).mkdir(mode=0o700)
        else:
            (root / path).write_bytes(content)


def record(
    root: Path, durability: str = "full", *, left: Picture | None = None, generations: tuple[int, ...] = (),
    steps: int = len(STEPS),
) -> Recording:  # fmt: skip
    """Run the first STEPS on an engine in `root`, a new one, or the rest of them on what a power failure left."""
    left = left or {}
    (root / "made" / "models").mkdir(parents=True)
    lay_out(left, root)
    output = root / "strace"
    env = {"FLOWKIN_INGEST__DURABILITY": durability}
    engine = Engine(root / "data", readers=1, env=env, under=strace(output))
    try:
        engine.start()
        for step in STEPS[len(generations) : steps]:
            with engine.client() as client:
                if step.adds:
                    client.add_model(step.adds, models.read(other_model(Layout(root / "made"))))
                elif step.uses:
                    client.use_model(step.uses)
                elif step.label:
                    client.label(make(0).event.event_id, step.label)
                else:
                    rejects = [Reject("file", n, f"bad {n}", b"bytes") for n in range(step.rejects)]
                    client.ingest("ndjson", step.events, rejects=rejects, source="test", actions=step.actions)
            if step.indexed:
                engine.indexed(step.indexed)
            if step.killed:
                victim = engine.pid("ingest")
                os.kill(victim, signal.SIGKILL)
                engine.replaced("ingest", victim)
    finally:
        engine.close()
    return Recording(root / "data", parse(output, root / "data", left), left, generations, steps)


def recorded(root: Path) -> Recording:
    """What `record` recorded of a new engine."""
    return Recording(root / "data", parse(root / "strace", root / "data", {}))
