"""Requests about files go to the files of whose they are, and of nobody else."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from conftest import open_descriptors

if sys.platform == "win32":
    pytest.skip("POSIX only", allow_module_level=True)

from sandd import wire
from sandd._core.isolation.tenant_requests import TenantRequests
from sandd._core.isolation.workspaces import Workspaces
from sandd._core.requests import RequestFailedError

if TYPE_CHECKING:
    from pathlib import Path

    from sandd._core.requests import Doing


async def do(requests: TenantRequests, tenant: str, spec: wire.Request) -> list[Any]:
    """What is answered to that tenant."""
    answers: list[Any] = []

    async def answer(given: Any) -> None:
        answers.append(given)

    doing = cast("Doing", SimpleNamespace(tenant=tenant, answer=answer))
    await requests.doers[type(spec)](doing, spec)
    return answers


async def test_each_tenant_has_files_of_its_own(tmp_path: Path) -> None:
    """The same path is another file to each, and the other's path is out of reach."""
    requests = TenantRequests(Workspaces(tmp_path / "w", None), tmp_path / "journals")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(requests.keep_tidy)
        await do(requests, "a", wire.TouchSpec(b"file"))
        assert (await do(requests, "a", wire.StatSpec(b"file")))[0].kind is wire.FileKind.FILE
        with pytest.raises(FileNotFoundError):
            await do(requests, "b", wire.StatSpec(b"file"))
        for path in (bytes(tmp_path / "w" / "a" / "file"), b"../a/file"):
            with pytest.raises(PermissionError):
                await do(requests, "b", wire.StatSpec(path))
        nursery.cancel_scope.cancel()


async def test_what_is_no_tenant_is_declined(tmp_path: Path) -> None:
    """No directory is made of its name."""
    requests = TenantRequests(Workspaces(tmp_path / "w", None), tmp_path / "journals")
    with pytest.raises(RequestFailedError, match="no tenant's name"):
        await do(requests, "../x", wire.TouchSpec(b"file"))
    assert os.listdir(tmp_path) == []


async def test_the_end_of_a_daemon_lets_go_of_all_workspaces(tmp_path: Path) -> None:
    """Cancelled at any moment, it leaves no descriptor open: the leak check looks."""
    requests = TenantRequests(Workspaces(tmp_path / "w", None), tmp_path / "journals")
    for name in ("a", "b"):
        (tmp_path / "journals" / name).mkdir(parents=True)
        (tmp_path / "journals" / name / "x.journal").write_bytes(b"dw\0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(requests.keep_tidy)
        await do(requests, "a", wire.TouchSpec(b"file"))
        await do(requests, "b", wire.TouchSpec(b"file"))
        nursery.cancel_scope.cancel()
    # The thread that looked for what was left is not waited for; but nothing is opened any more.
    while any(str(tmp_path) in target for _, target in open_descriptors()):
        await trio.sleep(0.01)
    with pytest.raises(OSError, match="is being stopped"):
        await do(requests, "a", wire.StatSpec(b"file"))
