"""Abuse by an operator of another tenant, or with a viewer's token, that says to the router whatever it likes.

The client's own code would not say most of this: here the messages are made by hand, over a connection that was let in.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from attrs import define
from peers_with_credentials import guarded, join_token, operator_token, raw_operator

import sandd
from sandd import wire
from sandd._core.pump import send_control
from sandd.testing import open_daemon_cores
from sandd.wire import RefusedCode, Role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandd._core.transport import Connection
    from sandd.testing import DaemonCores

JOB = "the-job"
FUTURE = "a-job-to-come"
"""To end a job that never came takes its id away."""
COMMAND = wire.encode_spec(wire.CommandSpec((b"echo", b"hello")))


@define
class Abuser:
    """A client's end of a live link, by hand."""

    connection: Connection
    channel: int = 0

    async def attach(self, daemon_id: str, job_id: str = JOB, **fields: object) -> wire.Control:
        """What is answered to an Attach; with fields of its own."""
        self.channel += 1
        said = {"daemon_id": daemon_id, "job_id": job_id, "client": "c"} | fields
        await self._send(self.channel, wire.Attach(**said))  # type: ignore[arg-type] # a mix
        while True:
            for frame in wire.decode_frames(await self.connection.receive_message()):
                if frame.channel == self.channel and frame.type is wire.FrameType.CONTROL:
                    message = wire.decode_control(frame)
                    assert not isinstance(message, wire.Unknown)
                    return message

    async def end(self, daemon_id: str, job_id: str = JOB, **fields: object) -> None:
        """Say that the job is over."""
        said = {"daemon_id": daemon_id, "job_id": job_id, "grace": 0.0} | fields
        await self._send(0, wire.End(**said))  # type: ignore[arg-type] # a mix

    async def refused(self, daemon_id: str, job_id: str = JOB, **fields: object) -> RefusedCode:
        """Why it isn't attached."""
        answer = await self.attach(daemon_id, job_id, **fields)
        assert isinstance(answer, wire.Refused), answer
        return answer.code

    async def _send(self, channel: int, message: wire.Control) -> None:
        await self.connection.send_message(b"".join(wire.encode_control(channel, message)))

    async def ping(self) -> None:
        """Return when all that was said until now has been heard."""
        await send_control(self.connection, wire.Ping(9))
        while True:
            for frame in wire.decode_frames(await self.connection.receive_message()):
                is_control = frame.type is wire.FrameType.CONTROL
                if is_control and wire.decode_control(frame) == wire.Pong(9):
                    return


@contextlib.asynccontextmanager
async def job_and_abuser(
    state_dir: Path, tenant: str, **rights: str
) -> AsyncIterator[tuple[sandd.Daemon, sandd.Process, Abuser, DaemonCores]]:
    """A job that reads its input, on the daemon w-0 of that tenant; and somebody of the tenant "default"."""
    async with guarded(state_dir) as host:
        join = await join_token(host, tenant=tenant)
        abuser = await operator_token(host, "eve", **rights)
        async with (
            open_daemon_cores(host.url, 1, prefix="w-", token=join.text.encode()) as cores,
            raw_operator(host, abuser) as (connection, answer),
        ):
            await cores.wait_live()
            assert isinstance(answer, wire.Welcome)
            worker = host.daemon("w-0" if tenant == "default" else f"{tenant}/w-0")
            async with worker.open_process("cat", job_id=JOB) as process:
                await process.stdin.send_all(b"mine")
                assert await process.stdout.receive_some() == b"mine"
                yield worker, process, Abuser(connection), cores


async def assert_undisturbed(worker: sandd.Daemon, process: sandd.Process) -> None:
    """It has got no input of another, and runs; and an id that was to be taken away from its owner starts."""
    await process.stdin.send_all(b"still mine")
    assert await process.stdout.receive_some() == b"still mine"
    async with worker.open_process("echo hello", job_id=FUTURE) as started:
        assert (await started.wait()).success


@pytest.mark.parametrize(
    "name", ["acme/w-0", "w-0", "ACME/w-0", "acme//w-0", "*/w-0", "nobodys/w-9"]
)
async def test_another_tenants_job_is_out_of_reach_for_any_message(
    tmp_path: Path, name: str
) -> None:
    """To read along, take over, start, kill, forget or end: by whatever name, there is one answer, as for no daemon."""
    async with job_and_abuser(tmp_path, "acme", role="admin") as scene:
        worker, process, abuser, cores = scene
        core = cores[0]
        known = set(core._table.jobs)
        (job,) = core._table.jobs.values()
        instance = core._table.instance
        specs = [
            COMMAND,
            wire.encode_spec(wire.JobsSpec()),
            wire.encode_spec(wire.StatisticsSpec()),
            wire.encode_spec(wire.KillSpec(JOB)),
            wire.encode_spec(wire.ForgetSpec(JOB)),
            wire.encode_spec(wire.ReadSpec(b"/etc/passwd")),
        ]
        answers = {await abuser.refused(name, role=Role.VIEWER)}
        answers.add(await abuser.refused(name, takeover=True))
        answers.add(await abuser.refused(name, tenant="acme", principal="local", takeover=True))
        for number, spec in enumerate(specs):
            answers.add(
                await abuser.refused(
                    name, f"new-{number}", spec=spec, instance=instance, tenant="acme"
                )
            )
        assert answers == {RefusedCode.DAEMON_NOT_FOUND}
        for fields in ({}, {"tenant": "acme"}, {"client": job.client, "tenant": "acme"}):
            for job_id in (JOB, FUTURE):
                await abuser.end(name, job_id, **fields)
        await abuser.ping()
        assert set(core._table.jobs) == known
        await assert_undisturbed(worker, process)


async def test_a_viewer_can_say_what_it_likes_and_ends_nothing(tmp_path: Path) -> None:
    """It may look on; in whosever name it speaks, it holds, starts and ends nothing."""
    async with job_and_abuser(tmp_path, "default", role="viewer") as scene:
        worker, process, abuser, cores = scene
        core = cores[0]
        known = set(core._table.jobs)
        (job,) = core._table.jobs.values()
        assert isinstance(await abuser.attach("w-0", role=Role.VIEWER), wire.Attached)
        instance = core._table.instance
        for client in ("c", job.client):
            assert await abuser.refused("w-0", client=client, takeover=True) is RefusedCode.DENIED
            for job_id in (JOB, "new", f"{client}.1"):
                said = {"client": client, "spec": COMMAND, "instance": instance}
                assert await abuser.refused("w-0", job_id, **said) is RefusedCode.DENIED
            for job_id in (JOB, FUTURE):
                await abuser.end("w-0", job_id, client=client)
                await abuser.end("w-0", job_id, client=client, left=0)
        await abuser.end("w-0", client="")
        await abuser.ping()
        await trio.testing.wait_all_tasks_blocked()
        assert set(core._table.jobs) == known
        # Whoever has generated an id may come back to its job without a spec; and nobody by its name.
        async with worker.open_process("cat") as other:
            assert other.job_id.startswith(f"{job.client}.")
            for takeover in (False, True):
                said = {"client": job.client, "takeover": takeover}
                assert await abuser.refused("w-0", other.job_id, **said) is RefusedCode.DENIED
        await assert_undisturbed(worker, process)
