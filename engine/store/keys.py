"""Keys come from files that their owner alone may read.

Always true
  - A key is 32 bytes, written as 64 hex characters. Its file has mode 0600 or less and belongs to us or root, or is a
    systemd credential. It comes from nowhere else: no setting, no variable, no argument holds a key.
  - No error says anything of a key but where its file is.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from engine.errors import SourceError

KEY_BYTES = 32
KEY_FILE_BYTES_MAX = 256
CREDENTIALS = Path("/run/credentials")  # where systemd puts them, mode 0440 for the ACL's mask


def read_key(path: Path) -> bytes:
    """The 32 bytes of a key file of 64 hex characters, that its owner alone may read: we or root, or systemd, which
    gives us a credential by an ACL. Raises SourceError, which says nothing of the key."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise SourceError(f"key file {path} is no plain file")
            credential = found.st_uid == 0 and CREDENTIALS in path.parents
            if found.st_uid not in (0, os.geteuid()) or found.st_mode & (0o027 if credential else 0o077):
                mode = f"uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}"
                raise SourceError(
                    f"key file {path} is not its owner's alone ({mode}): chmod 600 it, as yours or root's"
                )
            key = bytes.fromhex(file.read(KEY_FILE_BYTES_MAX).decode("ascii").strip())
    except OSError as e:
        raise SourceError(f"key file {path} cannot be read: {e.strerror}") from e
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise SourceError(f"key file {path} does not hold 64 hex characters")
    return key
