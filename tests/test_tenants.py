"""Tenants are kept apart: nobody sees, reads, ends or disturbs what is another's; and rights are what a token says."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
from peers_with_credentials import guarded, join_token, operator_token
from raw_daemon import raw_daemon

import sandd
from sandd import wire
from sandd.testing import open_daemon_cores

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandd.testing import DaemonCores


@contextlib.asynccontextmanager
async def daemons_of(
    controller: sandd.Controller, tenant: str, count: int = 1
) -> AsyncIterator[DaemonCores]:
    """Daemons that have joined there: w-0, w-1, ... in each tenant."""
    token = await join_token(controller, tenant=tenant, uses=count)
    async with open_daemon_cores(
        controller.url, count, prefix="w-", token=token.text.encode()
    ) as cores:
        await cores.wait_live()
        yield cores


@contextlib.asynccontextmanager
async def operator(
    controller: sandd.Controller, name: str = "someone", **options: Any
) -> AsyncIterator[sandd.Controller]:
    """Somebody with a token of these rights, in a process of their own."""
    token = await operator_token(controller, name, **options)
    async with sandd.connect_controller(controller.url, token=token.text) as connected:
        yield connected


def ids(controller: sandd.Controller) -> list[str]:
    """Those that it sees."""
    return [daemon.id for daemon in controller.daemons()]


async def test_each_tenant_sees_its_own_by_plain_ids(tmp_path: Path) -> None:
    """Equal ids in two tenants are two daemons; who is admin of all says which."""
    async with guarded(tmp_path) as host, daemons_of(host, "acme", 2), daemons_of(host, "default"):
        assert ids(host) == ["acme/w-0", "acme/w-1", "w-0"]
        async with (
            operator(host, tenant="acme", role="runner") as acme,
            operator(host, role="runner") as default,
            operator(host, tenant="*", role="admin") as admin,
            operator(host, tenant="acme", role="runner", daemons="*-1") as some,
            operator(host, tenant="nobodys", role="runner") as nobody,
        ):
            assert ids(acme) == ["w-0", "w-1"]
            assert ids(default) == ["w-0"]
            assert ids(admin) == ids(host)
            assert ids(some) == ["w-1"]
            assert ids(nobody) == []
            assert (nobody.statistics().daemons_online, acme.statistics().daemons_online) == (0, 2)
            theirs, ours = acme.daemon("w-0").info, default.daemon("w-0").info
            assert theirs.instance != ours.instance
            # Through each name its own daemon answers.
            for controller, name in ((acme, "w-0"), (admin, "acme/w-0"), (default, "w-0")):
                assert (await controller.daemon(name).run("echo hello")).stdout
            results = await acme.broadcast("echo hello")
            assert results.keys() == {"w-0", "w-1"}


async def test_another_tenants_daemon_is_like_none(tmp_path: Path) -> None:
    """Not even whether it exists can be told: neither by its name nor by what happens to it."""
    async with guarded(tmp_path) as host, operator(host, role="runner") as stranger:
        async with stranger.open_events() as events:
            async with daemons_of(host, "acme"):
                for said in ("w-0", "acme/w-0", "acme/nobody", "w-9"):
                    with pytest.raises(sandd.DaemonNotFound):
                        stranger.daemon(said)
            async with daemons_of(host, "default"):
                # The first that it hears of is its own.
                event = await events.__anext__()
                assert (event.kind, event.daemon_id) == ("connected", "w-0")


async def test_a_job_is_its_tenants_alone(tmp_path: Path) -> None:
    """Under an equal id on an equally named daemon there is another job; nobody reads, ends or lists the one."""
    async with guarded(tmp_path) as host, daemons_of(host, "acme"), daemons_of(host, "default"):
        async with (
            operator(host, tenant="acme", role="runner") as acme,
            operator(host, role="runner") as stranger,
        ):
            ours, theirs = acme.daemon("w-0"), stranger.daemon("w-0")
            async with ours.open_process("cat", job_id="ours"):
                assert [job.job_id for job in await ours.jobs()] == ["ours"]
                assert await theirs.jobs() == []
                for attempt in (theirs.kill, theirs.forget):
                    with pytest.raises(sandd.JobNotFound):
                        await attempt("ours")
                with pytest.raises(sandd.JobNotFound):
                    async with theirs.attach_process("ours", takeover=True):
                        pytest.fail("not theirs")
                assert [job.job_id for job in await ours.jobs()] == ["ours"]
                # Within the tenant it can be seen; and by who is admin of all.
                assert [job.job_id for job in await host.daemon("acme/w-0").jobs()] == ["ours"]


async def test_a_viewer_looks_on_and_runs_nothing(tmp_path: Path) -> None:
    """It sees daemons, jobs and output, and every other thing is refused before the daemon hears of it."""
    async with guarded(tmp_path) as host, daemons_of(host, "default") as cores:
        async with operator(host, "eve", role="viewer") as viewer:
            worker, seen = host.daemon("w-0"), viewer.daemon("w-0")
            async with worker.open_process("cat", job_id="job") as process:
                assert [job.job_id for job in await seen.jobs()] == ["job"]
                async with seen.attach_process("job", read_only=True) as looking:
                    await process.stdin.send_all(b"x")
                    assert await looking.stdout.receive_some() == b"x"
                known = set(cores[0]._table.jobs)
                for attempt in (
                    seen.run("true"),
                    seen.kill("job"),
                    seen.forget("job"),
                    seen.path("/etc/passwd").read_bytes(),
                    seen.path("/tmp/x").touch(),
                    seen.open_tcp_stream("127.0.0.1", 1),
                ):
                    with pytest.raises(sandd.RequestRefused, match=r"'eve' may not do that"):
                        await attempt
                for takeover in (False, True):
                    with pytest.raises(sandd.RequestRefused, match="right to run"):
                        async with seen.attach_process("job", takeover=takeover):
                            pytest.fail("it may not hold it")
                # What was refused never came as far as the daemon.
                assert set(cores[0]._table.jobs) == known
                assert [job.job_id for job in await worker.jobs()] == ["job"]


async def test_verbs_narrow_a_role(tmp_path: Path) -> None:
    """A runner whose token says so reads files, say, and runs nothing."""
    async with guarded(tmp_path) as host, daemons_of(host, "default"):
        async with operator(host, role="runner", verbs=["list", "jobs", "run"]) as narrow:
            worker = narrow.daemon("w-0")
            assert (await worker.run("echo hello")).success
            with pytest.raises(sandd.RequestRefused, match="right to files"):
                await worker.path("/x").read_bytes()
            with pytest.raises(sandd.RequestRefused, match="right to end"):
                await worker.kill("j")


async def test_revoking_in_the_middle_of_a_run_ends_the_talk(tmp_path: Path) -> None:
    """Its connection is closed, and its next dial says why; what it ran ends by its lease, or as it would."""
    async with guarded(tmp_path) as host, daemons_of(host, "default"):
        made = await host.tokens.create_operator("alice", role="runner")
        with pytest.raises(sandd.AuthenticationFailed):  # noqa: PT012 - the block is what is tested
            async with sandd.connect_controller(host.url, token=made.text) as alice:
                async with alice.daemon("w-0").open_process("cat", job_id="job") as process:
                    await process.stdin.send_all(b"x")
                    assert await process.stdout.receive_some() == b"x"
                    await host.tokens.revoke(made.info.id)
                    await process.wait()
        assert [job.job_id for job in await host.daemon("w-0").jobs()] == ["job"]


async def test_a_copy_in_one_tenant_is_no_news_in_another(tmp_path: Path) -> None:
    """Whose state directory was copied hears of it, and nobody else does."""
    async with guarded(tmp_path) as host, operator(host, role="runner") as stranger:
        async with operator(host, tenant="acme", role="viewer") as acme:
            async with acme.open_events() as events, stranger.open_events() as silent:
                token = await join_token(host, tenant="acme", uses=2)
                router = host._service.router  # type: ignore[attr-defined]
                async with raw_daemon(host.url, "w", credential=token):
                    assert (await events.__anext__()).kind == "connected"
                    router.tell_cloned("acme/w", "i", wire.UNDESCRIBED)
                    router.wake_carriers()
                    event = await events.__anext__()
                    assert (event.kind, event.daemon_id) == ("cloned", "w")
                    with trio.move_on_after(0.2) as waited:
                        await silent.__anext__()
                    assert waited.cancelled_caught
