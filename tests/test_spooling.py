"""A real daemon's output while nobody fetches it: on disk, whole, within its quotas; and then gone from there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio
from attrs import define
from daemons import DaemonProcess, open_daemon, start_daemon
from process_tools import until

import sandd
from sandd import wire
from sandd._core.job_link import JobHandle
from sandd._core.process_handle import Process
from sandd.testing import UP, FaultProxy, open_fault_proxy
from sandd.wire import OnFull, Role, StallReason, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from sandd._core.client_job import ClientJob

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

MB: Final = 1_000_000
LIMIT: Final = 50.0
PRODUCER: Final = (
    "import sys, random\n"
    "r = random.Random(7)\n"
    "sys.stdin.readline()\n"
    "for i in range(int(sys.argv[1])):\n"
    "    sys.stdout.buffer.write(r.randbytes(1_000_000))\n"
    "open('over', 'w')\n"
)
"""Waits for a line, then prints so many megabytes, then makes a file."""


def produced(megabytes: int) -> str:
    """The SHA-256 of what PRODUCER prints."""
    source, digest = random.Random(7), hashlib.sha256()
    for _ in range(megabytes):
        digest.update(source.randbytes(MB))
    return digest.hexdigest()


@define
class Site:
    """A controller, a daemon, and the relay between them."""

    controller: sandd.Controller
    relay: FaultProxy
    process: DaemonProcess
    worker: sandd.Daemon
    state_dir: Path

    @property
    def files(self) -> list[Path]:
        """What is in the daemon's spool."""
        spool = self.state_dir / "spool"
        return sorted(spool.iterdir()) if spool.exists() else []

    @property
    def disk_bytes(self) -> int:
        """What that takes on disk; a hole takes nothing."""
        total = 0
        for path in self.files:
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_blocks * 512
        return total

    async def disconnect(self) -> None:
        """Cut, keep it cut, and return when the controller has noticed."""
        self.relay.refuse()
        await until(lambda: self.worker.state is not sandd.DaemonState.ONLINE)

    async def reconnect(self) -> None:
        """Let the daemon through again, and return when it is there."""
        self.relay.accept()
        await self.controller.wait_for_daemon(self.worker.id)

    def start(self, megabytes: int, *, detach: bool = False, on_full: OnFull = OnFull.BLOCK) -> Job:
        """PRODUCER, which waits for its line."""
        argv = [sys.executable, "-c", PRODUCER, str(megabytes)]
        spec = wire.CommandSpec(
            tuple(os.fsencode(word) for word in argv), detach=detach, on_full=on_full
        )
        return Job(self, self.controller._service.link.open(self.worker.id, spec))

    def attach(self, job_id: str, role: Role = Role.OWNER) -> Job:
        """Another attachment to a job, from the oldest that is kept."""
        local = self.controller._service.link
        job = local.client.attach(self.worker.id, job_id, role=role)
        handle = local._handles[job] = JobHandle(local, job, {}, 5.0)
        local.changed(job)
        return Job(self, handle)


@define
class Job:
    """One attachment to a job."""

    site: Site
    handle: JobHandle

    @property
    def client_job(self) -> ClientJob:
        """What the client knows of it."""
        return self.handle.job

    @property
    def process(self) -> Process:
        """As its user sees it."""
        return Process(self.handle, stdin=False, stderr=False, kill_grace=5.0)

    async def begin(self) -> None:
        """Give it its line, once it runs."""
        await self.handle.until(lambda: self.handle.begun)
        self.client_job.input.append(b"go\n")
        self.handle.link.changed(self.client_job)
        await until(lambda: self.client_job.input.floor or self.client_job.outputs[3].received)

    async def read(self) -> tuple[str, int, int]:
        """All of its stdout: the digest of the bytes, their number, and the number of those in gaps."""
        stdout, digest, total, missing = self.process.stdout, hashlib.sha256(), 0, 0
        while True:
            try:
                chunk = await stdout.receive_some()
            except sandd.OutputGap as gap:
                missing += gap.end - gap.start
                continue
            if not chunk:
                return digest.hexdigest(), total, missing
            digest.update(chunk)
            total += len(chunk)

    async def leave(self) -> None:
        """End it, and have it forgotten."""
        await self.handle.leave(1.0)


@contextlib.asynccontextmanager
async def site(
    *arguments: str, state_dir: Path | None = None, within: float = LIMIT
) -> AsyncIterator[Site]:
    """A fresh controller, relay and daemon with these options."""
    if state_dir is not None:
        arguments = (*arguments, "--state-dir", str(state_dir))
    with trio.fail_after(within):
        async with sandd.open_controller(port=0) as controller:
            port = int(controller.address.rpartition(":")[2])
            async with open_fault_proxy(port, buffer_bytes=1 << 20) as relay:
                options = ["--reconnect-max", "0.2", "--log-level", "info", *arguments]
                async with open_daemon(relay.url, arguments=options) as process:
                    worker = await controller.wait_for_daemon("worker-1")
                    yield Site(controller, relay, process, worker, state_dir or process.state_dir)


def peak_memory(process: DaemonProcess) -> int:
    """The most it ever had resident, in bytes; Linux only."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


# ---- away ----------------------------------------------------------------------------------------


@linux_only
async def test_output_while_away_is_whole_and_memory_flat() -> None:
    """100 MB written while the connection is cut arrive byte for byte, over a daemon that stays small."""
    async with site() as it:
        assert (await it.worker.run("head -c 5000000 /dev/zero | wc -c")).success
        job = it.start(100)
        before = peak_memory(it.process)
        await job.begin()
        await it.disconnect()
        await until(lambda: it.disk_bytes > 99 * MB, within=LIMIT)
        assert {path.stat().st_mode & 0o777 for path in it.files} == {0o600}
        await it.reconnect()
        digest, total, missing = await job.read()
        assert (total, missing) == (100 * MB, 0)
        assert digest == produced(100)
        await job.handle.until(lambda: job.handle.ended)
        assert peak_memory(it.process) - before < 30 * wire.MIB
        await job.leave()
        await until(lambda: not it.files)
        assert "spool_failed" not in it.process.log


async def test_a_command_is_not_slowed_by_a_cut(tmp_path: Path) -> None:
    """It ends while its daemon is away; its end and its output are told afterwards."""
    over = tmp_path / "over"
    script = f"echo begun >&2; head -c 3000000 /dev/zero; touch {over}; exit 7"
    async with site() as it:
        async with it.worker.open_process(script) as process:
            await process.stderr.receive_some()
            await it.disconnect()
            await until(over.exists)
            await it.reconnect()
            status = await process.wait()
            assert status.exit_code == 7
            assert sum([len(chunk) async for chunk in process.stdout]) == 3 * MB
        await until(lambda: not it.files)


async def test_while_attached_a_slow_reader_slows_the_command() -> None:
    """Nothing goes to disk then."""
    async with site() as it, it.worker.open_process("head -c 20000000 /dev/zero") as process:
        with trio.move_on_after(1.0) as scope:
            await process.wait()
        assert scope.cancelled_caught
        assert it.files == []
        assert sum([len(chunk) async for chunk in process.stdout]) == 20 * MB
        assert it.files == []


async def test_short_output_while_away_makes_no_file() -> None:
    """What the ring holds stays there."""
    async with site() as it, it.worker.open_process("read x; head -c 100000 /dev/zero") as process:
        await process.stdin.send_all(b"go\n")
        await it.disconnect()
        await trio.sleep(0.5)
        assert it.files == []
        await it.reconnect()
        assert sum([len(chunk) async for chunk in process.stdout]) == 100_000


async def test_any_number_of_cuts_while_it_replays_lose_and_repeat_nothing() -> None:
    """The cursor goes back, to disk or to memory: there is no other replay."""
    async with site() as it:
        job = it.start(30)
        await job.begin()
        await it.disconnect()
        await until(lambda: it.disk_bytes > 25 * MB)
        accepted = it.relay.accepted
        await it.reconnect()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def flap() -> None:
                while True:  # by what has passed: on a busy machine no time is enough for a byte
                    await it.relay.wait_passed(it.relay.passed[UP] + 1_234_567, UP)
                    it.relay.cut()

            digest, total, missing = await job.read()
            nursery.cancel_scope.cancel()
        assert (total, missing, digest) == (30 * MB, 0, produced(30))
        assert it.relay.accepted - accepted > 15
        await job.leave()


# ---- detached ------------------------------------------------------------------------------------


@linux_only
async def test_a_detached_job_keeps_its_whole_output() -> None:
    """What its first owner has read, and what came after it had left; for an owner and viewers at once."""
    async with site() as it:
        job = it.start(40, detach=True)
        before = peak_memory(it.process)
        await job.begin()
        log = job.client_job.outputs[Stream.OUTPUT]
        while log.consumed < 10 * MB:
            await job.handle.until(lambda: log.readable)
            log.take(MB)
            job.handle.link.changed(job.client_job)
        job.handle.detach()
        await until(lambda: it.disk_bytes > 39 * MB, within=LIMIT)
        assert peak_memory(it.process) - before < 30 * wire.MIB
        readers = [it.attach(job.client_job.id), *(_viewers(it, job.client_job.id, 2))]
        results = {}
        async with trio.open_nursery() as nursery:
            for index, reader in enumerate(readers):

                @nursery.start_soon
                async def read(index: int = index, reader: Job = reader) -> None:
                    results[index] = await reader.read()

        assert results == dict.fromkeys(range(3), (produced(40), 40 * MB, 0))
        assert peak_memory(it.process) - before < 30 * wire.MIB
        await readers[0].leave()
        await until(lambda: not it.files)


def _viewers(it: Site, job_id: str, count: int) -> Sequence[Job]:
    return [it.attach(job_id, Role.VIEWER) for _ in range(count)]


async def test_a_detached_job_that_has_ended_is_still_all_there() -> None:
    """Result and output wait for whoever attaches; forgetting it deletes the files."""
    async with site() as it:
        job = it.start(5, detach=True)
        await job.begin()
        job.handle.detach()
        await until((it.process.home / "over").exists)
        for _ in range(2):
            again = it.attach(job.client_job.id)
            assert await again.read() == (produced(5), 5 * MB, 0)
            await again.handle.until(lambda again=again: again.handle.ended)  # type: ignore[misc]
            result = again.client_job.result
            assert isinstance(result, wire.Exited)
            assert result.finals[Stream.OUTPUT] == 5 * MB
            again.handle.detach()
        assert it.files
        await it.attach(job.client_job.id).leave()
        await until(lambda: not it.files)


# ---- quotas --------------------------------------------------------------------------------------


async def test_at_its_quota_a_command_waits_and_goes_on_when_it_is_read() -> None:
    """Not a byte beyond the quota is on disk, not a byte is lost, and an event says why it stood still."""
    async with site("--job-spool-quota", "4MiB") as it:
        job = it.start(20)
        await job.begin()
        await it.disconnect()
        await until(lambda: it.disk_bytes > 3 * wire.MIB)
        await trio.sleep(0.5)
        assert it.disk_bytes <= 4 * wire.MIB + 4096 * len(it.files)
        await it.reconnect()
        stalled = wire.Stalled(Stream.OUTPUT, StallReason.QUOTA)
        await job.handle.until(lambda: job.client_job.stalls == {Stream.OUTPUT: stalled})
        stalls = job.process.stalls
        assert stalls == {"stdout": sandd.Stall(sandd.StallReason.QUOTA)}
        assert await job.read() == (produced(20), 20 * MB, 0)
        assert job.client_job.stalls == {}
        await job.leave()


async def test_jobs_share_the_daemons_quota() -> None:
    """Together they put no more on disk than it allows; each goes on when it is read."""
    async with site("--spool-quota", "4MiB") as it:
        jobs = [it.start(6) for _ in range(3)]
        for job in jobs:
            await job.begin()
        await it.disconnect()
        await until(lambda: it.disk_bytes > 3 * wire.MIB)
        await trio.sleep(0.5)
        assert it.disk_bytes <= 4 * wire.MIB + 4096 * len(it.files)
        await it.reconnect()
        for job in jobs:
            assert await job.read() == (produced(6), 6 * MB, 0)
            await job.leave()


async def test_with_no_quota_output_stays_in_memory() -> None:
    """The ring is the bound, as it is for who is attached."""
    async with site("--spool-quota", "0") as it:
        job = it.start(3)
        await job.begin()
        await it.disconnect()
        await trio.sleep(0.5)
        assert it.files == []
        await it.reconnect()
        assert await job.read() == (produced(3), 3 * MB, 0)
        await job.leave()


@pytest.mark.parametrize("detach", [False, True], ids=["away", "detached"])
async def test_where_dropping_is_allowed_the_oldest_goes_and_is_accounted_for(detach: bool) -> None:
    """The command never waits; what arrives is the newest, and gaps and bytes make up all of it."""
    async with site("--job-spool-quota", "4MiB") as it:
        job = it.start(30, detach=detach, on_full=OnFull.DROP_OLDEST)
        await job.begin()
        arrived = 0
        if detach:
            job.handle.detach()
        else:
            await it.disconnect()
            # Nobody reads yet: so what is here is what has come by now.
            arrived = job.client_job.outputs[Stream.OUTPUT].received
        await until((it.process.home / "over").exists, within=20)
        if detach:
            job = it.attach(job.client_job.id)
        else:
            await it.reconnect()
        _, total, missing = await job.read()
        await job.handle.until(lambda: job.handle.ended)
        if detach:  # what is gone below the place where it begins is no gap
            missing = 30 * MB - total
            assert job.client_job.outputs[Stream.OUTPUT].consumed == 30 * MB
        assert total + missing == 30 * MB
        assert 3 * wire.MIB < total - arrived < 5 * wire.MIB
        assert job.client_job.stalls == {}
        await job.leave()


async def test_output_that_somebody_took_off_the_disk_is_told_and_never_left_out() -> None:
    """Of `run` the result says so: how much there was, and where a part is missing."""
    results: list[sandd.CommandResult] = []
    gate = "read line; head -c 3000000 /dev/zero; echo end"
    async with site() as it, trio.open_nursery() as nursery:
        fifo = it.process.home / "fifo"
        os.mkfifo(fifo)

        async def run() -> None:
            results.append(await it.worker.run(f"({gate}) < {fifo}"))

        nursery.start_soon(run)
        await until(lambda: it.controller.statistics().jobs == 1)
        writer = await trio.to_thread.run_sync(os.open, fifo, os.O_WRONLY)
        await it.disconnect()
        os.write(writer, b"go\n")
        os.close(writer)
        await until(lambda: it.disk_bytes > 2_500_000)
        for file in it.files:
            file.unlink()
        await it.reconnect()
    (result,) = results
    assert (result.exit_code, result.stdout_total, result.truncated) == (0, 3_000_004, True)
    assert result.stdout.endswith("\0end\n")
    assert "bytes omitted" in result.stdout


# ---- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, where this system lets us make one."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a small file system")
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none", str(mounted)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this system mounts nothing: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


async def test_with_its_disk_full_a_command_waits_and_nothing_is_lost(small_disk: Path) -> None:
    """An event says so, once; other jobs don't notice; the log has one line; then it goes on."""
    async with (
        site(state_dir=small_disk / "state") as it,
        it.controller.open_events() as events,
    ):
        job = it.start(12)
        await job.begin()
        await it.disconnect()
        await it.process.wait_for_log("spool_failed")
        await it.reconnect()
        told = [await anext(events) for _ in range(3)]
        assert [event.kind for event in told] == ["away", "resumed", "stalled"]
        assert (told[2].daemon_id, told[2].job_id) == ("worker-1", job.client_job.id)
        assert (told[2].stream, told[2].info) == ("stdout", it.worker.info)
        assert told[2].stall == job.process.stalls["stdout"]
        stalled = job.client_job.stalls[Stream.OUTPUT]
        assert (stalled.reason, stalled.message) == (StallReason.DISK, "No space left on device")
        assert (await it.worker.run("echo on", timeout=10)).stdout == "on\n"
        await trio.sleep(2.5)
        assert it.process.log.count("spool_failed") == 1
        assert await job.read() == (produced(12), 12 * MB, 0)
        assert job.client_job.stalls == job.process.stalls == {}
        flowing = await anext(events)
        assert (flowing.kind, flowing.stream, flowing.stall) == ("flowing", "stdout", None)
        await job.leave()
        await until(lambda: not it.files)


async def test_a_full_disk_is_used_again_when_there_is_room(small_disk: Path) -> None:
    """Somebody makes room while nobody is attached: the command goes on by itself."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(3 * wire.MIB))
    async with site(state_dir=small_disk / "state") as it:
        job = it.start(2)
        await job.begin()
        await it.disconnect()
        await it.process.wait_for_log("spool_failed")
        ballast.unlink()
        await it.process.wait_for_log("spool_recovered")
        await until(lambda: it.disk_bytes > 1 * MB)
        await it.reconnect()
        assert await job.read() == (produced(2), 2 * MB, 0)
        await job.leave()


# ---- nothing is left -----------------------------------------------------------------------------


async def test_a_stopped_daemon_leaves_no_file() -> None:
    """SIGTERM with output of a detached job on disk."""
    async with site() as it:
        job = it.start(5, detach=True)
        await job.begin()
        job.handle.detach()
        await until(lambda: it.disk_bytes > 4 * MB)
        assert await it.process.stop() == 0
        assert it.files == []
        assert not (it.state_dir / "spool").exists()


async def test_what_a_killed_daemon_left_goes_with_the_next_start(tmp_path: Path) -> None:
    """SIGKILL can't be cleaned up after by the daemon itself."""
    state = tmp_path / "state"
    async with site(state_dir=state) as it:
        job = it.start(5, detach=True)
        await job.begin()
        job.handle.detach()
        await until(lambda: it.disk_bytes > 4 * MB)
        it.process.kill()
        assert it.files
        again = start_daemon(it.relay.url, arguments=["--state-dir", str(state)])
        with again._put_away_at_the_end():
            await again.wait_for_log("connected")
            assert it.files == []
            assert "stale_spool_removed" in again.log
            again.signal(signal.SIGTERM)
            assert await again.wait() == 0
