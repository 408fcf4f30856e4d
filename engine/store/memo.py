"""The models of a data directory: a version loaded, its card as it was when it came, and the memo of its sentences.

Always true
  - A sentence is embedded once for a data directory: its vector stands in the table `texts` of the catalog, under a
    hash of the text model and the sentence. A damaged one is embedded again.
  - A version whose card is not the one that came is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.embed import models as embed_models
from engine.embed.base import ModelSet
from engine.embed.text import TextEmbedder
from engine.errors import CorruptionError
from engine.store.catalog import Catalog

log = logging.getLogger(__name__)


class TextMemo:
    """Vectors of sentences in the catalog; each look is a read transaction of its own."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = []
        with self.catalog.read() as view:
            for key in keys:
                try:
                    vector = view.get("texts", key)
                except CorruptionError as e:  # embedded and stored again
                    log.warning("%s", e)
                    vector = None
                found.append(None if vector is None else bytes(vector))
        return found


def load_models(
    path: Path, catalog: Catalog, internal: Sequence[str], alive: Callable[[], None] = lambda: None
) -> ModelSet:
    """A model version whose sentences are looked up in the catalog first and say "internal" of these networks. `alive`
    is called in long steps. Raises ModelError."""
    models = embed_models.load(path, internal)
    try:
        with catalog.read() as view:
            known = view.card(models.version)
    except CorruptionError as e:
        log.error("%s", e)
        known = b""
    embed_models.check_card(models, known)
    text = models.embedders["sbert"]
    if isinstance(text, TextEmbedder):
        text.memo, text.alive = TextMemo(catalog), alive
    return models


def fresh_texts(models: ModelSet) -> list[tuple[bytes, bytes]]:
    """(key, vector) of the sentences that no memo knew yet, to be stored in `texts`."""
    text = models.embedders["sbert"]
    return text.take_fresh() if isinstance(text, TextEmbedder) else []
