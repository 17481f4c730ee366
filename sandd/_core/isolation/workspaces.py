"""A tenant's own directory, and the user it belongs to. Blocking; POSIX only.

The directory above is ours, and others may only pass through it: so no tenant can put anything in another's place, and
what is looked at by its name there is what is changed.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from attrs import frozen

from sandd._core.isolation.credentials import acting_as

if TYPE_CHECKING:
    from pathlib import Path

    from sandd._core.isolation.allotments import Allotments

DIRECTORY: Final = "workspaces"
"""In the state directory, where nobody says otherwise."""
TEMPORARY: Final = "tmp"
"""In a workspace: what is TMPDIR there."""
SHOWN: Final = ".tmp"
"""Beside the workspaces, as no tenant's name begins so: for each tenant what is /tmp at 'bwrap'. What is shown there is
looked up outside, so it must not be in the workspace, where its tenant could put a link in its place."""
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
"""As the controller has them; but it is the controller that says so."""
_PRIVATE: Final = 0o700
_PASSED: Final = 0o711
"""Who isn't its owner may pass, and read nothing."""


class WorkspaceError(Exception):
    """A tenant's workspace can't be used; the text is one line for people."""


def check_name(tenant: str) -> str:
    """The name itself; WorkspaceError for what can't be a tenant's, and so no directory's either."""
    if not _TENANT.fullmatch(tenant):
        raise WorkspaceError(f"{tenant!r:.80} is no tenant's name")
    return tenant


@frozen
class Workspace:
    """One tenant's. At `user` and above it is that user's, and all that is made there."""

    path: Path
    uid: int | None
    """None: it is ours, as we can't be anybody else."""

    @property
    def temporary(self) -> Path:
        """For what needn't last."""
        return self.path / TEMPORARY

    @property
    def shown_as_tmp(self) -> Path:
        """What bubblewrap shows as /tmp, once `Workspaces.open_tmp` has made it."""
        return self.path.parent / SHOWN / self.path.name


class Workspaces:
    """All tenants' of a daemon, below one directory."""

    def __init__(
        self, directory: Path, allotments: Allotments | None, *, passing: Path | None = None
    ) -> None:
        """Without allotments they are all ours. `passing` is a directory of ours that leads there, if one does."""
        self.directory = directory
        self.allotments = allotments
        self._passing = passing

    def way_in(self) -> str | None:
        """What of the way there tenants' users can't pass, nor be let pass by us; None: they can.

        OSError if it can't be looked at.
        """
        first = self._passing or self.directory
        for each in reversed(first.resolve().parents):
            if each.exists() and not each.stat().st_mode & stat.S_IXOTH:
                return str(each)
        return None

    def _prepare(self) -> None:
        """Make the directory, and let tenants pass: when there is a first one, as most daemons never have any."""
        self.directory.mkdir(_PASSED, parents=True, exist_ok=True)
        if self.directory.stat().st_uid != os.geteuid():
            raise WorkspaceError(
                f"{self.directory}, where workspaces are to be, is somebody else's"
            )
        self.directory.chmod(_PASSED)
        if self._passing is not None and self.allotments is not None:
            # What is in there has modes of its own, and is for us alone.
            mode = stat.S_IMODE(self._passing.stat().st_mode)
            self._passing.chmod(mode | _PASSED & ~_PRIVATE)

    def open(self, tenant: str) -> Workspace:
        """The tenant's, which is there when this returns.

        Raises:
            WorkspaceError: the tenant's name is none, or what is there can't be its.
            NoUserLeftError: there is no user for it.
            OSError: it can't be made.
        """
        check_name(tenant)
        self._prepare()
        uid = None if self.allotments is None else self.allotments.uid_of(tenant)
        workspace = Workspace(self.directory / tenant, uid)
        _make_owned(workspace.path, tenant, uid)
        # What is in there is the tenant's to exchange at any moment: so it is made as whoever that is.
        if uid is None:
            self._make_temporary(workspace)
        else:
            with acting_as(uid, uid):
                self._make_temporary(workspace)
        return workspace

    def open_tmp(self, workspace: Workspace) -> Path:
        """What bubblewrap is to show as /tmp to jobs of an open workspace; it is there when this returns. As `open`."""
        path = workspace.shown_as_tmp
        path.parent.mkdir(_PASSED, exist_ok=True)
        path.parent.chmod(_PASSED)
        _make_owned(path, workspace.path.name, workspace.uid)
        return path

    def _make_temporary(self, workspace: Workspace) -> None:
        try:
            os.mkdir(workspace.temporary, _PRIVATE)
        except FileExistsError:
            pass  # whatever it is: the tenant may have made it


def _make_owned(path: Path, tenant: str, uid: int | None) -> None:
    """Have a directory there that is that user's, or ours, alone: in a directory of ours."""
    owner = os.geteuid() if uid is None else uid
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, _PRIVATE)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (owner, os.geteuid()):
        raise WorkspaceError(
            f"{path} is there, and not tenant {tenant!r}'s directory: it belongs to uid {status.st_uid}"
        )
    if status.st_uid != owner:  # just made; or we were killed before this
        os.chown(path, owner, owner, follow_symlinks=False)
