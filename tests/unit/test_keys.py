"""Key files: who else may read one gets none of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.errors import SourceError
from engine.store import keys


def test_a_key_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, key = tmp_path / "key", bytes(range(32))
    path.write_text(key.hex() + "\n")
    for mode in (0o600, 0o400):
        path.chmod(mode)
        assert keys.read_key(path) == key
    for mode in (0o640, 0o604, 0o660, 0o644):
        path.chmod(mode)
        with pytest.raises(
            SourceError, match=rf"is not its owner's alone \(uid \d+, mode {mode:04o}\): chmod 600"
        ) as e:
            keys.read_key(path)
        assert key.hex() not in str(e.value)
    if os.geteuid() == 0:
        monkeypatch.setattr(keys, "CREDENTIALS", tmp_path)  # as systemd shows a credential that an ACL gives to us
        path.chmod(0o440)
        assert keys.read_key(path) == key
        path.chmod(0o444)
        with pytest.raises(SourceError, match="not its owner's alone"):
            keys.read_key(path)
        path.chmod(0o600)
        os.chown(path, 12_345, -1)
        with pytest.raises(SourceError, match="uid 12345"):
            keys.read_key(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SourceError, match="no plain file"):
        keys.read_key(tmp_path / "pipe")
