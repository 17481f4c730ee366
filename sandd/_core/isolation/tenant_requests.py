"""Requests about files, each tenant's among its own: what `FileRequests` and `TransferRequests` do, once for each."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import trio

from sandd._core.file_requests import MAX_THREADS, FileRequests
from sandd._core.isolation.tenant_files import TenantFiles
from sandd._core.isolation.workspaces import WorkspaceError, check_name
from sandd._core.requests import RequestFailedError
from sandd._core.transfer_requests import TIDY_SECONDS, TransferRequests
from sandd._core.transfers.partials import Partials
from sandd.wire import FailedCode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sandd import wire
    from sandd._core.files.roots import Root
    from sandd._core.isolation.workspaces import Workspaces
    from sandd._core.requests import Doer, Doing


class TenantRequests:
    """Does requests about files: as the user of whose they are, and in that tenant's workspace.

    Args:
        journals: a directory of ours; what is being written is noted there, apart for each tenant.
        granted: what a policy grants, instead of the workspaces.
    """

    def __init__(
        self, workspaces: Workspaces, journals: Path, *, granted: Root | None = None
    ) -> None:
        self._workspaces = workspaces
        self._journals = journals
        self._granted = granted
        self._limiter = trio.CapacityLimiter(MAX_THREADS)
        self._of: dict[str, _Tenant] = {}
        # Which kinds there are doesn't depend on whose files they are about.
        self._kinds = tuple(_Tenant(TenantFiles(workspaces, ""), None, self._limiter).doers)

    @property
    def doers(self) -> Mapping[type[wire.Request], Doer]:
        """For `Requests.offer`."""

        def doer(kind: type[wire.Request]) -> Doer:
            async def do(doing: Doing, spec: Any) -> None:
                await self._tenant(doing.tenant).doers[kind](doing, spec)

            return do

        return {kind: doer(kind) for kind in self._kinds}

    async def keep_tidy(self) -> None:
        """Remove what transfers left that nobody went on with in time; as long as the daemon lives."""
        try:
            while True:
                with contextlib.suppress(OSError):  # a disk that fails now may not the next time
                    await trio.to_thread.run_sync(self._purge, abandon_on_cancel=True)
                await trio.sleep(TIDY_SECONDS)
        finally:
            for tenant in self._of.values():
                tenant.close()

    def _purge(self) -> None:
        if self._journals.exists():
            for directory in self._journals.iterdir():
                if directory.is_dir():  # it was we who made it
                    self._tenant(directory.name).purge()

    def _tenant(self, name: str) -> _Tenant:
        tenant = self._of.get(name)
        if tenant is None:
            try:
                journals = self._journals / check_name(name)
            except WorkspaceError as error:
                raise RequestFailedError(FailedCode.DECLINED, str(error)) from error
            # Tenants' users pass through the directory above: which others there are is not theirs to see.
            self._journals.mkdir(0o700, parents=True, exist_ok=True)
            root = TenantFiles(self._workspaces, name, self._granted)
            tenant = _Tenant(root, journals, self._limiter)
            self._of[name] = tenant
        return tenant


class _Tenant:
    """What is done for one tenant."""

    def __init__(
        self, root: TenantFiles, journals: Path | None, limiter: trio.CapacityLimiter
    ) -> None:
        self._root = root
        self._partials = Partials(journals)
        transfers = TransferRequests(root, self._partials)
        files = FileRequests(root, self._partials, limiter=limiter)
        self.doers: Mapping[type[wire.Request], Doer] = {**files.doers, **transfers.doers}

    def close(self) -> None:
        """Let go of its workspace."""
        self._root.close()

    def purge(self) -> None:
        """Remove what earlier transfers left."""
        self._partials.purge(self._root)
