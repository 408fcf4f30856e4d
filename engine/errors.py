"""One root, one class for each thing a caller would do differently.

Always true
  - A message says what, which object, what is unchanged, and what to do next.
  - `code` goes on the wire, `exit_status` to the shell; both are listed in docs/OPERATIONS.md.
  - Errors of LMDB, FAISS and the OS become ours at one boundary, `raise ... from`.
"""

from __future__ import annotations

from ipc.messages import ErrorCode


class EngineError(Exception):
    """Something failed; nothing was changed unless the message says so."""

    code = ErrorCode.INTERNAL
    exit_status = 1


class ConfigError(EngineError):
    """The configuration is refused; the message names the key."""

    code = ErrorCode.BAD_REQUEST
    exit_status = 2


class BadRequestError(EngineError):
    code = ErrorCode.BAD_REQUEST
    exit_status = 2


class NotFoundError(EngineError):
    code = ErrorCode.NOT_FOUND
    exit_status = 3


class UnknownSpaceError(BadRequestError):
    code = ErrorCode.UNKNOWN_SPACE

    def __init__(self, space: str, known: tuple[str, ...]) -> None:
        self.space, self.known = space, known
        super().__init__(f"no embedding space {space!r}; there are {', '.join(known)}")


class WrongModelError(BadRequestError):
    code = ErrorCode.WRONG_MODEL


class NotReadyError(EngineError):
    code = ErrorCode.NOT_READY
    exit_status = 6


class OverloadedError(EngineError):
    code = ErrorCode.OVERLOADED
    exit_status = 6


class DeadlineError(EngineError):
    code = ErrorCode.DEADLINE
    exit_status = 6


class DeniedError(EngineError):
    code = ErrorCode.DENIED
    exit_status = 4


class NoSpaceError(EngineError):
    """The disk or the map is full; the batch was not stored and may be sent again."""

    code = ErrorCode.NO_SPACE
    exit_status = 6


class SourceError(EngineError):
    """A file or stream cannot be read as what it was said to be."""

    exit_status = 1


class BadRecordError(EngineError):
    """One record cannot be read; it goes to the dead letters and stops nothing. `reason` is one line, no payload."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class ModelError(EngineError):
    """A model is missing, damaged, or not of the promised shape."""


class BootError(EngineError):
    """A worker cannot start and must not be restarted (exit statuses 70 to 79 mean that)."""

    exit_status = 70


class CorruptionError(EngineError):
    """Bytes disagree with their checksum; `what` names the object, `detail` says the rest. met: how many this process
    met; a worker tells it in its heartbeat, so that what a reader meets is looked for at once."""

    exit_status = 71
    met = 0

    def __init__(self, what: str, detail: str) -> None:
        CorruptionError.met += 1
        self.what, self.detail = what, detail
        super().__init__(f"{what}: {detail}")


class FormatError(BootError):
    """A data directory of another format_version."""

    exit_status = 72


class LockedError(BootError):
    """Another ingest worker holds writer.lock."""

    exit_status = 73


class KeyFileError(BootError):
    """The key that the directory is encrypted with is missing, another, or in a file that is not its owner's alone; or
    there is a key and the directory is not encrypted."""

    exit_status = 74
