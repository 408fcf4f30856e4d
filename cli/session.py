"""What one run of the program knows: where the engine is, the one connection to it, and the last hits (for #N).

Always true
  - Nothing is opened before a command asks for it; the connection is made once and kept (the shell lives on that).
  - A flag beats the environment. --socket decides the connection alone; --data-dir also names files.
  - What a line says holds for later lines. A line with --data-dir and no --socket means the engine of that directory:
    the socket of an earlier line is forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import NOT_FOUND, USAGE, CommandError

if TYPE_CHECKING:
    from engine.config import Config
    from engine.layout import Layout
    from engine.store.cipher import Cipher
    from ipc.client import Client

TIMEOUT_MS = 10_000


def toml_value(text: str) -> Any:
    """A setting's text as TOML would read it, else as a plain string."""
    import tomllib

    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


class Session:
    def __init__(self, *, interactive: bool = False) -> None:
        self.interactive = interactive
        self.debug = bool(os.environ.get("FLOWKIN_DEBUG"))
        self.data_dir = Path(os.environ["FLOWKIN_DATA_DIR"]) if os.environ.get("FLOWKIN_DATA_DIR") else None
        self.socket: Path | None = None
        self.hits: list[str] = []  # source/id of what was last listed
        self._client: Client | None = None

    def point(self, *, data_dir: Path | None = None, socket: Path | None = None) -> None:
        """Use this engine from now on; all that one line says of it."""
        if data_dir is None:
            data_dir = self.data_dir
            socket = socket or self.socket
        if (data_dir, socket) != (self.data_dir, self.socket):
            self.data_dir, self.socket = data_dir, socket
            self.close()

    @property
    def layout(self) -> Layout:
        """Paths of the data directory. Raises CommandError where none was named."""
        from engine.layout import Layout

        if self.data_dir is None:
            raise CommandError("no data directory: give --data-dir DIR or set FLOWKIN_DATA_DIR", USAGE)
        return Layout(self.data_dir.absolute())

    def existing(self) -> Layout:
        """As layout, of a directory that is there."""
        layout = self.layout
        if not layout.data_dir.is_dir():
            raise CommandError(f"there is no data directory {layout.data_dir}; `flowkin serve` creates one", NOT_FOUND)
        return layout

    def sockets(self) -> tuple[Path, Path]:
        """(query, write): --socket, else as the configuration of the data directory says."""
        if self.socket is not None:
            return self.socket, self.socket.with_name("write.sock")
        if self.data_dir is None:
            raise CommandError("no engine named: give --data-dir DIR or --socket PATH, or set FLOWKIN_DATA_DIR", USAGE)
        layout = self.layout
        query, write = layout.query_socket, layout.write_socket
        if (
            "FLOWKIN_CONFIG" in os.environ
            or any(name.startswith("FLOWKIN_SOCKETS__") for name in os.environ)
            or os.access(layout.config, os.R_OK)
        ):
            sockets = self.config().sockets
            query, write = Path(sockets.query or query), Path(sockets.write or write)
        return query, write

    def cipher(self) -> Cipher | None:
        """What opens an encrypted data directory; None where no key is set. Raises ConfigError, KeyFileError."""
        from engine.store.cipher import cipher_of

        return cipher_of(self.config().store.key_file, self.layout.data_dir)

    def client(self) -> Client:
        if self._client is None:
            from ipc.client import Client

            query, write = self.sockets()
            self._client = Client(str(query), str(write), timeout_ms=TIMEOUT_MS, client_name="flowkin-cli")
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def config(
        self, file: Path | None = None, flags: Mapping[str, Any] | None = None, settings: Sequence[str] = ()
    ) -> Config:
        """The engine's configuration from --config, FLOWKIN_CONFIG or DIR/flowkin.toml, the environment and flags.

        settings: 'readers.count=4'. Raises ConfigError, CommandError.
        """
        from engine.config import load

        given: dict[str, Any] = {}
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals or not key.strip():
                raise CommandError(f"--set {setting!r}: write it as key=value, for example readers.count=4", USAGE)
            given[key.strip()] = toml_value(text.strip())
        given |= {key: value for key, value in (flags or {}).items() if value is not None}
        if file is None and os.environ.get("FLOWKIN_CONFIG"):
            file = Path(os.environ["FLOWKIN_CONFIG"])
        if self.data_dir is not None:
            given["data_dir"] = str(self.data_dir.absolute())
            if file is None and self.layout.config.exists():
                file = self.layout.config
        return load(file, flags=given)
