"""Which user is which tenant's: each has one of its own, allotted when it is first needed, and keeps it for good.

An allotment is never taken back, since files that belong to that user may be anywhere. Blocking; POSIX only.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
import threading
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import grp
import pwd

from sandd._core._errors import ConfigurationError
from sandd._core.isolation.options import DEFAULT_UIDS
from sandd._core.state_directory import replace_file

if TYPE_CHECKING:
    from pathlib import Path

FILE_NAME: Final = "tenants.json"
"""In the state directory: tenants and their users."""
MAX_FILE_BYTES: Final = 8 << 20
"""Room for 65,536 tenants with long names."""


class NoUserLeftError(Exception):
    """All users that may be tenants' are taken."""


class Allotments:
    """The users of a daemon's tenants. Hold the state directory's lock; any thread may ask.

    Args:
        path: of the file that keeps them.
        uids: the first and the last that may be allotted.
        workspaces: the directory of their workspaces. Should the file be lost, that says as much: whose user a
            workspace has, has that user.

    Raises:
        ConfigurationError: what the file says can't be read, or is not within `uids`.
    """

    def __init__(
        self, path: Path, uids: tuple[int, int], *, workspaces: Path | None = None
    ) -> None:
        self._path = path
        self._first, self._last = uids
        self._lock = threading.Lock()
        self._uids = self._read()
        self._taken = set(self._uids.values())
        if workspaces is not None:
            for name, uid in _owners(workspaces):
                if (
                    name not in self._uids
                    and uid not in self._taken
                    and self._first <= uid <= self._last
                ):
                    self._uids[name] = uid
                self._taken.add(uid)
        outside = [name for name, uid in self._uids.items() if not self._first <= uid <= self._last]
        if outside:
            raise ConfigurationError(
                f"--isolation-uids {self._first}-{self._last} leaves out uid {self._uids[outside[0]]}, which is "
                f"tenant {outside[0]!r}'s by {path}: its files belong to that user"
            )

    @property
    def tenants(self) -> tuple[str, ...]:
        """Those that have a user."""
        with self._lock:
            return tuple(self._uids)

    def uid_of(self, tenant: str) -> int:
        """The tenant's user, for good: it is on the disk when this returns.

        Raises:
            NoUserLeftError: there is none for it.
            OSError: it can't be kept. Then it has none.
        """
        with self._lock:
            uid = self._uids.get(tenant)
            if uid is None:
                uid = self._free_uid(tenant)
                kept = {**self._uids, tenant: uid}
                replace_file(self._path, json.dumps(kept, indent=1).encode(), mode=0o600)
                self._uids = kept
                self._taken.add(uid)
            return uid

    def _free_uid(self, tenant: str) -> int:
        uids = range(self._first, self._last + 1)
        begin = 0
        if (self._first, self._last) == DEFAULT_UIDS:
            # Nobody has said which users are this daemon's, and of others on this machine it knows nothing: from its
            # first on, each would give the same ones to its own tenants.
            begin = secrets.randbelow(len(uids))
        for step in range(len(uids)):
            uid = uids[(begin + step) % len(uids)]
            if uid not in self._taken and not _is_somebodys(uid):
                return uid
        raise NoUserLeftError(
            f"there is no user left for tenant {tenant!r}: all of --isolation-uids {self._first}-{self._last} are taken"
        )

    def _read(self) -> dict[str, int]:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigurationError(f"can't read {self._path}: {error.strerror}") from error
        try:
            value = json.loads(data)
            uids = {str(name): int(uid) for name, uid in value.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigurationError(
                f"{self._path}, which says whose files are whose, can't be read: {error}"
            ) from error
        if len(set(uids.values())) < len(uids):
            raise ConfigurationError(f"{self._path} gives one user to two tenants")
        return uids


def _owners(workspaces: Path) -> list[tuple[str, int]]:
    """Each workspace that is there, and its user. None but us makes them, or gives them to anybody."""
    try:
        with os.scandir(workspaces) as entries:
            found = [(each.name, each.stat(follow_symlinks=False)) for each in entries]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(
            f"can't see whose workspaces are in {workspaces}: {error.strerror}"
        ) from error
    return sorted((name, status.st_uid) for name, status in found if stat.S_ISDIR(status.st_mode))


def _is_somebodys(uid: int) -> bool:
    """Whether this system knows a user, or a group, of that number."""
    for look in (pwd.getpwuid, grp.getgrgid):
        try:
            look(uid)
        except KeyError:
            continue
        return True
    return False
