"""Data directories of every released format open, answer, and go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.limits import FORMAT_BORN, FORMAT_ENCRYPTED, FORMAT_VERSION
from tests.events import ids, several
from tests.format.make import EVENTS, LABELLED, make, unpack
from tests.store_fixture import Store

KEPT = sorted(Path(__file__).parent.glob("v*.tar.zst"))


@pytest.mark.parametrize(
    "kept", [FORMAT_BORN, FORMAT_ENCRYPTED, *KEPT], ids=lambda of: getattr(of, "stem", f"now v{of}")
)
def test_a_data_directory_of_a_released_format_opens_and_goes_on(tmp_path: Path, kept: Path | int) -> None:
    key_file = None
    if not isinstance(kept, Path):
        if kept == FORMAT_ENCRYPTED:
            key_file = tmp_path / "key"
            key_file.touch(0o600)
            key_file.write_text("ab" * 32)
        number, kept = kept, tmp_path / "now.tar.zst"
        make(kept, key_file)
        assert kept.stat().st_size < 1 << 20  # small enough to keep
    else:
        number = int(kept.name.removesuffix(".tar.zst")[1:])
    with Store(unpack(kept, tmp_path), key_file) as store:
        assert store.ids() == ids(several(EVENTS))
        assert store.publisher.manifest.format_version == number <= FORMAT_VERSION
        store.check()
        with store.catalog.read() as view:
            note = view.annotation(view.find(LABELLED) or 0)
        assert note is not None and note.label == "true_positive"
        answer = store.ask("e000010", top_k=5, collapse=False)
        assert len(answer.hits) == 5
        assert store.publish(several(EVENTS)).duplicates == EVENTS
        assert store.publish(several(60, EVENTS)).accepted == 60
        store.index()
        store.check()
