"""What the write socket takes: the role that each message needs, and what the audit log says of it.

Always true
  - A message that is not named here needs no role beyond that which opens the socket, and is no order.
  - The audit log names what an order was about, never what is in an event, nor what a purge is to forget.
"""

from __future__ import annotations

from engine.errors import EngineError, NoSpaceError
from engine.run.access import Role
from engine.store.room import is_full
from ipc.messages import (
    AddModel,
    Compact,
    ForgetModel,
    Ingest,
    Label,
    Measure,
    Purge,
    Request,
    RollbackModel,
    Scrub,
    UseModel,
)

ORDERS: dict[type, tuple[Role, str]] = {  # the role that each needs, and what the command line calls it
    Ingest: ("ingest", "ingest"),
    Label: ("label", "label"),
    AddModel: ("admin", "models add"),
    UseModel: ("admin", "models use"),
    RollbackModel: ("admin", "models rollback"),
    ForgetModel: ("admin", "models gc"),
    Measure: ("admin", "measure"),
    Scrub: ("admin", "scrub"),
    Compact: ("admin", "compact"),
    Purge: ("admin", "purge"),
}
MAY = "access.ingest, access.label and access.admin name who may what (sockets.writers, where they do not)"


def about(request: Request) -> str:
    """What it was about; of an event its id and nothing else."""
    match request:
        case Ingest():
            return request.source
        case Label():
            return request.id
        case AddModel() | UseModel():
            return request.version
        case Purge():  # which addresses would say again what is to be forgotten
            return "dry run" if request.dry_run else f"{len(request.ids)} ids" if request.ids else "a filter"
    return ""


def outcome_of(error: Exception | None) -> str:
    """For the audit log: an error's code."""
    if error is None:
        return "done"
    return error.code.name if isinstance(error, EngineError) else "INTERNAL"


def failed(e: EngineError | OSError, left: str) -> EngineError:
    """What an order is answered that failed. left: what is there now."""
    if isinstance(e, EngineError):
        return e
    return NoSpaceError(f"the disk is full ({e.strerror}); {left}") if is_full(e) else EngineError(f"{e}; {left}")
