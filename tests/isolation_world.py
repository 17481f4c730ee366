"""Two tenants on one machine: their commands as a daemon would start them, at any level that this machine has.

An enrolled daemon belongs to one tenant, so that there is another one is said where it can be: to the daemon's own
`Isolation`, over a real process host.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, evolve
from trusted_files import trusted_directory

if sys.platform == "win32":
    pytest.skip("POSIX only", allow_module_level=True)

from sandd._core.isolation.confining import Isolation, open_isolation
from sandd._core.isolation.options import IsolationOptions
from sandd._core.isolation.probing import probe
from sandd._core.policy.permits import Permit
from sandd._core.processes import SpawnRequest, open_process_host
from sandd.wire import CommandSpec, IsolationLevel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from sandd._core.processes import Child, ExitStatus, ProcessHost

CONFINED = tuple(level for level in IsolationLevel if level is not IsolationLevel.NONE)


@functools.cache
def missing(level: IsolationLevel) -> str | None:
    """Why this machine has not that level, for a daemon as these tests are."""
    if os.geteuid() != 0:
        return "only root may make directories that others can pass, and become somebody else"
    return probe(IsolationOptions())[level]


def needs(level: IsolationLevel) -> pytest.MarkDecorator:
    """On what tests a level; skipped where the machine hasn't got it."""
    why = missing(level)
    return pytest.mark.skipif(why is not None, reason=f"no isolation {str(level)!r} here: {why}")


EACH_LEVEL = [pytest.param(level, id=str(level), marks=needs(level)) for level in CONFINED]


@contextlib.contextmanager
def isolated(level: IsolationLevel, **options: object) -> Iterator[Isolation]:
    """A daemon's isolation, with a state directory of its own."""
    with trusted_directory() as state:
        state.chmod(0o700)
        given = evolve(IsolationOptions(level=level, is_required=True), **options)  # type: ignore[arg-type]
        yield open_isolation(given, state)


@define(eq=False)
class World:
    """A daemon's end of both tenants."""

    isolation: Isolation
    host: ProcessHost

    def workspace(self, tenant: str) -> Path:
        """The tenant's, which is there."""
        return self.isolation.workspaces.open(tenant).path

    async def start(
        self,
        tenant: str,
        *argv: str,
        cwd: str | None = None,
        env: Mapping[bytes, bytes] | None = None,
    ) -> Child:
        """A command of that tenant's."""
        spec = CommandSpec(tuple(map(os.fsencode, argv)))
        marker = secrets.token_hex(8).encode()
        request = SpawnRequest(
            argv=spec.argv,
            env={b"SANDD_JOB": marker, **(env or {})},
            marker=marker,
            cwd=None if cwd is None else os.fsencode(cwd),
            stdin=False,
            merge_stderr=True,
        )
        with Permit() as permit:
            request = self.isolation.confine(tenant, self.isolation.level, spec, request, permit)
            return await self.host.spawn(request)

    async def run(
        self,
        tenant: str,
        text: str,
        *,
        cwd: str | None = None,
        env: Mapping[bytes, bytes] | None = None,
    ) -> tuple[ExitStatus, str]:
        """How a line for the shell ended, and what it has printed; nothing is left of it."""
        child = await self.start(tenant, "/bin/sh", "-c", text, cwd=cwd, env=env)
        try:
            output = b""
            async with child.stdout:
                async for chunk in child.stdout:
                    output += chunk
            return await child.wait_exited(), output.decode()
        finally:
            child.close_pipes()
            await child.kill(grace=0)

    @contextlib.asynccontextmanager
    async def running(self, tenant: str, text: str) -> AsyncIterator[Child]:
        """A line for the shell that goes on; it has begun when it has printed something."""
        child = await self.start(tenant, "/bin/sh", "-c", text)
        try:
            await child.stdout.receive_some()
            yield child
        finally:
            child.close_pipes()
            with trio.CancelScope(shield=True):
                await child.kill(grace=0)


@contextlib.asynccontextmanager
async def open_world(level: IsolationLevel, **options: object) -> AsyncIterator[World]:
    """Both tenants, for as long as the block lasts."""
    with isolated(level, **options) as isolation:
        async with open_process_host() as host:
            yield World(isolation, host)
