"""Who may do what: users and groups of the settings against what the kernel says of a peer."""

from __future__ import annotations

import grp
import os
import pwd
from typing import get_args

import pytest

from engine.config import Config, load
from engine.errors import BootError
from engine.orders import ORDERS, about
from engine.run.access import ROLES, access, groups_of, roles_of
from ipc.messages import Compact, Filter, Purge, Scrub, Write

STRANGER, GROUP = 54_321, 54_322


def config(**flags: object) -> Config:
    return load(env={}, flags=flags)


def roles(uid: int, gid: int = GROUP, **flags: object) -> set[str]:
    return set(roles_of(access(config(**flags)), uid, gid))


def test_by_default_everybody_reads_and_only_the_engine_and_root_write() -> None:
    assert roles(STRANGER) == {"read"}
    assert roles(0) == roles(os.geteuid()) == set(ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_given_by_uid_name_group_and_gid(role: str) -> None:
    own = {"read"} - {role}  # a list for `read` shuts the others out
    user = pwd.getpwuid(1)
    group = grp.getgrgid(user.pw_gid).gr_name
    given = {f"access.{role}": [str(STRANGER)]}
    assert roles(STRANGER, **given) == own | {role}
    assert roles(STRANGER + 1, **given) == own
    assert role in roles(user.pw_uid, **{f"access.{role}": [user.pw_name]})
    assert role in roles(STRANGER, GROUP, **{f"access.{role}": [f"@{GROUP}"]})
    assert role in roles(user.pw_uid, GROUP, **{f"access.{role}": [f"@{group}"]}) or group not in _groups(user.pw_name)
    assert role not in roles(STRANGER, GROUP, **{f"access.{role}": [f"@{group}"]})
    assert roles(0, **given) == set(ROLES)


def _groups(name: str) -> set[str]:
    return {g.gr_name for g in grp.getgrall() if name in g.gr_mem}


def test_groups_are_those_of_the_user_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the peer's own word, and not only the group that its process happens to run with."""
    asked = []

    def grouplist(name: str, gid: int) -> list[int]:
        asked.append((name, gid))
        return [gid, 7_001, 7_002]

    monkeypatch.setattr(os, "getgrouplist", grouplist)
    assert groups_of(1, GROUP) == {GROUP, 7_001, 7_002}
    assert asked == [(pwd.getpwuid(1).pw_name, GROUP)]
    assert groups_of(STRANGER, GROUP) == {GROUP}  # no name, so no groups but its own
    assert roles(1, **{"access.label": ["@7002"]}) == {"read", "label"}


def test_writers_and_their_group_have_the_roles_that_nobody_else_was_given() -> None:
    old = {"sockets.writers": [str(STRANGER)]}
    assert roles(STRANGER, **old) == set(ROLES)
    assert roles(STRANGER, **old, **{"access.admin": ["0"]}) == {"read", "ingest", "label"}
    group = grp.getgrgid(1).gr_name
    assert roles(STRANGER, 1, **{"sockets.write_group": group}) == set(ROLES)


def test_a_peer_that_the_kernel_knows_nothing_of_has_nothing() -> None:
    assert roles(-1, -1, **{"access.read": ["0"]}) == set()


@pytest.mark.parametrize("name", ["no-such-user", "@no-such-group"])
def test_who_is_not_known_is_named_at_the_start(name: str) -> None:
    with pytest.raises(BootError, match=r"access\.label: no (user|group) 'no-such-"):
        access(config(**{"access.label": [name]}))


def test_every_message_that_writes_needs_a_role() -> None:
    assert set(ORDERS) == set(get_args(Write))
    assert {ORDERS[one][0] for one in (Purge, Compact, Scrub)} == {"admin"}


def test_the_audit_log_does_not_say_again_what_a_purge_forgets() -> None:
    assert about(Purge(1, Filter(addr=["203.0.113.7"]))) == "a filter"
    assert about(Purge(1, None, ["a", "b"])) == "2 ids"
    assert about(Purge(1, Filter(addr=["203.0.113.7"]), [], True)) == "dry run"
