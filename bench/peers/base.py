"""What a peer is, and the data that all hold.

Always true
  - Peers hold flowkin's own chronos vectors, under its ids, with its events as JSON for metadata: what is stored is the
    same bytes, and only who stores it differs.
  - One question = look up the vector of a stored id, find its nearest, return their ids and metadata. The event itself
    is among its nearest here (flowkin leaves it out), so a peer is asked for TOP + 1.
  - This file and a peer's run in the peer's own environment: they import nothing of flowkin, and packages of a peer
    only inside its functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP = 10
ASKED = TOP + 1
DIM = 128
COLLECTION = "events"

Question = Callable[[int], Any]  # position of a stored event -> the answer as the client gives it


class Data:
    """A folder with vectors.npy (float32 [n, 128]), names.json and metadata.json (n texts each)."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self.names: list[str] = json.loads((folder / "names.json").read_text())
        self.metadata: list[str] = json.loads((folder / "metadata.json").read_text())


class Peer:
    """One store. home: a short path of its own, gone afterwards. Its server answers there or on `port`."""

    packages: tuple[str, ...] = ()
    what = ""  # what is run, and how it searches
    metric = "l2"  # or cosine: what it is held to
    embedded = False  # no server: asked inside the process that asks
    efforts: tuple[int, ...] = (0,)  # of a search, ascending; the first with recall is measured

    def __init__(self, home: Path, port: int, data: Data) -> None:
        self.home, self.port, self.data = home, port, data

    def serve(self) -> list[str]:
        """The words that start the server; none where there is no server."""
        return []

    def ready(self) -> None:
        """Raises while the server does not answer."""

    def load(self) -> None:
        """Store everything, build indexes."""
        raise NotImplementedError

    def tune(self, effort: int) -> None:
        """Where the effort belongs to the store and not to a question."""

    def connect(self, effort: int) -> Question:
        """A connection of its own, where there are any."""
        raise NotImplementedError

    def names(self, answer: Any) -> list[str]:
        """The ids of an answer, nearest first."""
        raise NotImplementedError
