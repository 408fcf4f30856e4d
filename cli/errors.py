"""What a command raises on its own account; everything else comes from ipc.errors and engine.errors."""

from __future__ import annotations

OK, FAILED, USAGE, NOT_FOUND, DENIED, NOT_REACHABLE, LATE, FINDINGS = range(8)

STATUSES = {
    OK: "done",
    FAILED: "failed",
    USAGE: "wrong usage: an option, a value or the configuration",
    NOT_FOUND: "not found: an event, a model, a file",
    DENIED: "denied",
    NOT_REACHABLE: "no engine answers",
    LATE: "overloaded, not ready or timed out: the same again later may work",
    FINDINGS: "a check found problems: doctor, backup create or verify",
}


class CommandError(Exception):
    """One sentence: what, which object, what to do next."""

    def __init__(self, message: str, exit_status: int = FAILED) -> None:
        self.exit_status = exit_status
        super().__init__(message)


class Quit(Exception):
    """Ends the command with this status; everything was said."""

    def __init__(self, exit_status: int) -> None:
        self.exit_status = exit_status
        super().__init__(exit_status)
