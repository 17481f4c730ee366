"""Whom a child runs as: from a name or number to ids."""

from __future__ import annotations

import errno
import os
import sys
from typing import NamedTuple

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import pwd

from sandd._core._errors import SpawnFailed
from sandd._core.processes.spawner_messages import Identity

_NOBODYS_GROUP = 65_534
"""Group of a uid that the user database does not know: a group that owns nothing. Never the
daemon's own."""


def resolve_user(user: str) -> Identity | None:
    """The ids of a user name or a numeric uid; None if that is us, and can't be changed anyway.

    May block for seconds, where users come from a network: call it in a thread.

    Raises:
        SpawnFailed: EINVAL, there is no such user.
    """
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):  # ValueError: a NUL in the name
        if not (user.isascii() and user.isdigit()) or int(user) >= 2**32 - 1:
            raise SpawnFailed(
                errno.EINVAL, "there is no such user on the daemon's machine", user
            ) from None
        try:
            entry = pwd.getpwuid(int(user))
        except KeyError:
            return _unless_it_is_us(Identity(int(user), _NOBODYS_GROUP, ()))
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return _unless_it_is_us(Identity(entry.pw_uid, entry.pw_gid, tuple(groups)))


def _unless_it_is_us(identity: Identity) -> Identity | None:
    # Without privilege setgroups(2) fails even where nothing would change.
    return None if identity.uid == os.geteuid() != 0 else identity


class Account(NamedTuple):
    """What a login would take from the user database."""

    name: str
    home: str
    shell: str


def find_account(user: str) -> Account | None:
    """The account of a name or a numeric uid; None if the database knows none. May block, as above."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, ValueError, OverflowError):  # unknown, with a NUL, or beyond any uid
        return None
    return Account(entry.pw_name, entry.pw_dir, entry.pw_shell)
