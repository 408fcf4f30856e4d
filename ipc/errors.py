"""What a client raises: one root, one class for each thing a caller would do differently.

Always true
  - Every ErrorCode has exactly one class here.
  - `exit_status` goes to the shell: 1 failed, 2 usage, 3 not found, 4 denied, 5 not reachable, 6 overloaded or late.
"""

from __future__ import annotations

from typing import Any

from ipc.messages import ErrorCode, Failure


class ClientError(Exception):
    """A call failed. `retry_after_ms` above 0: the engine asks to try again after so long."""

    exit_status = 1

    def __init__(self, code: ErrorCode | None, detail: str, retry_after_ms: int = 0) -> None:
        self.code, self.detail, self.retry_after_ms = code, detail, retry_after_ms
        super().__init__(detail)

    def __reduce__(self) -> tuple[Any, ...]:
        """It crosses to another process whole (multiprocessing)."""
        return type(self), (self.code, self.detail, self.retry_after_ms)


class InternalError(ClientError):
    """The engine failed; its log says why."""


class BadRequestError(ClientError):
    exit_status = 2


class NotFoundError(ClientError):
    exit_status = 3


class UnknownSpaceError(BadRequestError):
    pass


class NotReadyError(ClientError):
    """Not yet: the engine is starting, or min_generation did not come before the deadline."""

    exit_status = 6


class OverloadedError(ClientError):
    exit_status = 6


class DeadlineError(ClientError):
    """No answer in time, from the engine or on the way. Whether a write was done is not known."""

    exit_status = 6


class DeniedError(ClientError):
    exit_status = 4


class WrongSocketError(BadRequestError):
    pass


class WrongModelError(BadRequestError):
    pass


class VersionError(ClientError):
    """Client and engine share no protocol version, or the peer is no flowkin engine."""


class CancelledError(ClientError):
    pass


class NoSpaceError(ClientError):
    """The engine's disk is full; nothing was stored, and it may be sent again."""

    exit_status = 6


class ConnectError(ClientError):
    """No engine answers at this path, or the client was closed."""

    exit_status = 5

    def __init__(self, path: str, detail: str) -> None:
        self.path = path
        super().__init__(None, detail)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.detail)


class ConnectionLostError(ConnectError):
    """The connection broke before the answer came. Whether a write was done is not known; sending the same events
    again is safe, the engine knows them."""


BY_CODE: dict[ErrorCode, type[ClientError]] = {
    ErrorCode.INTERNAL: InternalError,
    ErrorCode.BAD_REQUEST: BadRequestError,
    ErrorCode.NOT_FOUND: NotFoundError,
    ErrorCode.UNKNOWN_SPACE: UnknownSpaceError,
    ErrorCode.NOT_READY: NotReadyError,
    ErrorCode.OVERLOADED: OverloadedError,
    ErrorCode.DEADLINE: DeadlineError,
    ErrorCode.DENIED: DeniedError,
    ErrorCode.WRONG_SOCKET: WrongSocketError,
    ErrorCode.WRONG_MODEL: WrongModelError,
    ErrorCode.VERSION: VersionError,
    ErrorCode.CANCELLED: CancelledError,
    ErrorCode.NO_SPACE: NoSpaceError,
}


def error_of(failure: Failure) -> ClientError:
    """The exception for a Failure reply."""
    return BY_CODE[failure.code](failure.code, failure.detail, failure.retry_after_ms)
