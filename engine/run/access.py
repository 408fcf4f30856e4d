"""Who may do what: the roles of a peer, by the uid and gid that the kernel gives (SO_PEERCRED).

Always true
  - A peer has the roles that the settings give its user or one of its groups, as the user database has them when it
    connects (getgrouplist); nothing that it says of itself counts. A peer without a role is refused at its Hello.
  - The engine's own user and root have every role; a role that nobody was given is theirs alone, but for `read`, which
    is everybody's who may open the query socket, and the writers' defaults (engine/config.py).
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from engine.config import Config
from engine.errors import BootError

Role = Literal["read", "ingest", "label", "admin"]
ROLES: tuple[Role, ...] = ("read", "ingest", "label", "admin")
WRITING: frozenset[Role] = frozenset({"ingest", "label", "admin"})  # any of them opens the write socket


class Allowed(Struct, frozen=True):
    """Who has one role."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    anyone: bool = False

    def has(self, uid: int, gid: int) -> bool:
        return self.anyone or uid in self.uids or bool(self.gids and self.gids & groups_of(uid, gid))


def groups_of(uid: int, gid: int) -> frozenset[int]:
    """The groups of a user; gid: the one its process runs with."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return frozenset({gid})
    return frozenset({gid, *os.getgrouplist(name, gid)})


def access(config: Config) -> dict[Role, Allowed]:
    """By role. Raises BootError for a user or group that this machine does not know."""
    given = config.access
    old = [*config.sockets.writers, *([f"@{config.sockets.write_group}"] if config.sockets.write_group else [])]
    lists: dict[Role, list[str]] = {"read": given.read}
    lists |= {"ingest": given.ingest or old, "label": given.label or old, "admin": given.admin or old}
    return {
        role: _allowed(f"access.{role}", names, anyone=role == "read" and not names) for role, names in lists.items()
    }


def _allowed(setting: str, names: Iterable[str], *, anyone: bool) -> Allowed:
    uids, gids = {os.geteuid(), 0}, set()
    for name in names:
        bare = name.removeprefix("@")
        try:
            if name.startswith("@"):
                gids.add(int(bare) if bare.isdigit() else grp.getgrnam(bare).gr_gid)
            else:
                uids.add(int(bare) if bare.isdigit() else pwd.getpwnam(bare).pw_uid)
        except KeyError as e:
            what = "group" if name.startswith("@") else "user"
            raise BootError(f"{setting}: no {what} {bare!r} on this machine") from e
    return Allowed(frozenset(uids), frozenset(gids), anyone)


def roles_of(allowed: dict[Role, Allowed], uid: int, gid: int) -> frozenset[Role]:
    return frozenset(role for role, who in allowed.items() if who.has(uid, gid))


def user(uid: int) -> str:
    """A user's name, the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
