"""The audit log of a running controller: who asked for what is on the disk before it runs, whatever happens then."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from audit_log import key_in
from controllers import read_ready, running_controller, start_controller
from daemons import daemon_environment, open_daemon
from forked_python import copies

import sandd
from sandd import AuditOptions, ConfigurationError, RequestRefused, SpawnFailed
from sandd._core.audit.segments import Lines, SegmentedLog, segments_in
from sandd._core.audit.verifying import verify_log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")
LIMIT = 40.0
NASTY = "a\nb\x1b]0;owned\x07\u202e"


@asynccontextmanager
async def audited(
    directory: Path, audit: bool | AuditOptions = True, **settings: Any
) -> AsyncIterator[tuple[sandd.Controller, sandd.Daemon]]:
    """A controller with a log in the directory, and a daemon."""
    with trio.fail_after(LIMIT):
        async with (
            sandd.open_controller(
                port=0, state_dir=directory, audit=audit, **settings
            ) as controller,
            open_daemon(controller.url),
        ):
            yield controller, await controller.wait_for_daemon("worker-1")


def records_in(directory: Path) -> list[dict[str, Any]]:
    """All that the log says, which is whole."""
    assert verify_log(directory / "audit", key_in(directory).public).fault is None
    return read(directory)


def read(directory: Path) -> list[dict[str, Any]]:
    """All that the log says by now."""
    found = []
    for path in segments_in(directory / "audit"):
        lines = path.read_bytes().split(b"\n")[:-1]
        found += [json.loads(line) for line in lines]
    return found


def of_type(records: list[dict[str, Any]], *types: str) -> list[dict[str, Any]]:
    """Those of these types."""
    return [each for each in records if each["type"] in types]


@posix_only
async def test_a_command_is_told_from_request_to_end(tmp_path: Path) -> None:
    """What was run, by whom, where, and how it ended; of its environment names, and no value."""
    async with audited(tmp_path) as (_, worker):
        await worker.run(
            ["sh", "-c", "exit 3"], env={"COLOUR": "s3cr3t-blue", "A": "1"}, cwd="/tmp"
        )
    records = records_in(tmp_path)
    request, end = of_type(records, "request", "end")
    assert request["argv"] == ["sh", "-c", "exit 3"]
    assert (request["actor"], request["tenant"], request["daemon"]) == (
        "local",
        "default",
        "worker-1",
    )
    assert (request["env"], request["cwd"]) == (["A", "COLOUR"], "/tmp")
    assert (end["job"], end["outcome"], end["result"]["code"]) == (request["job"], "exited", 3)
    text = (tmp_path / "audit" / "000001.jsonl").read_text()
    assert "s3cr3t" not in text
    (came,) = of_type(records, "connection")
    (went,) = of_type(records, "disconnection")
    assert came["remote"] == went["remote"]
    assert [each["outcome"] for each in of_type(records, "controller")] == ["started", "closed"]


@posix_only
async def test_what_runs_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself finds its request there, however slow the disk is: it is written ahead."""
    append = SegmentedLog.append

    def append_late(log: SegmentedLog, made: Lines, **options: Any) -> None:
        time.sleep(0.2)  # far longer than it takes to start a command
        append(log, made, **options)

    async with audited(tmp_path) as (_, worker):
        monkeypatch.setattr(SegmentedLog, "append", append_late)
        for number in range(5):
            looked = await worker.run(f"grep -c mark-{number} {tmp_path}/audit/000001.jsonl")
            assert looked.stdout == "1\n"


@posix_only
async def test_nothing_from_outside_breaks_a_line(tmp_path: Path) -> None:
    """A newline, an escape sequence or a bidirectional control in a command is text in one line."""
    async with audited(tmp_path) as (_, worker):
        await worker.run(["echo", NASTY])
        with pytest.raises(SpawnFailed):
            await worker.run([NASTY])
    content = (tmp_path / "audit" / "000001.jsonl").read_bytes()
    assert all(0x20 <= byte < 0x7F or byte == 0x0A for byte in content)
    commands = [each["argv"] for each in of_type(records_in(tmp_path), "request")]
    assert commands == [["echo", NASTY], [NASTY]]


@posix_only
async def test_tokens_are_in_no_line(tmp_path: Path) -> None:
    """Those of the controller, and those that it is told of, wherever they are said."""
    options = AuditOptions(secrets=("a passphrase",))
    async with audited(tmp_path, options, operator_token="operators-token") as (_, worker):
        await worker.run(["echo", "operators-token", "a passphrase", "sdj_" + "x1" * 20])
    (request,) = of_type(records_in(tmp_path), "request")
    assert request["argv"] == ["echo", "[redacted]", "[redacted]", "[redacted]"]


@posix_only
async def test_tokens_of_later_are_in_no_line(tmp_path: Path) -> None:
    """Nor are those of before, which somebody may still try."""
    async with audited(tmp_path, operator_token="operators-token") as (controller, worker):
        controller.set_tokens(token=None, operator_token="another-secret")
        await worker.run(["echo", "operators-token", "another-secret"])
    (request,) = of_type(records_in(tmp_path), "request")
    assert request["argv"] == ["echo", "[redacted]", "[redacted]"]


@posix_only
async def test_all_that_is_asked_of_a_daemon_is_told(tmp_path: Path) -> None:
    """Sessions, files, transfers, ports, lists and kills: by their kind, and what they are about."""
    source = tmp_path / "source"
    source.write_bytes(b"content")
    state = tmp_path / "state"
    async with audited(state) as (_, worker):
        async with worker.open_session(["cat"]) as session:
            await session.resize(30, 90)
        await worker.path(str(source)).read_bytes()
        await worker.upload(source, str(tmp_path / "copy"))
        await worker.download(str(source), tmp_path / "back")
        with pytest.raises((OSError, sandd.SanddError)):
            await worker.open_tcp_stream("127.0.0.1", 1)
        await worker.jobs()
        async with worker.open_process(["sleep", "60"], job_id="mine"):
            await worker.kill("mine")
    requests = of_type(records_in(state), "request")
    told = {(each["kind"], each.get("target")) for each in requests}
    assert {
        ("session", None),
        ("read", str(source)),
        ("upload", str(tmp_path / "copy")),
        ("download", str(source)),
        ("connect", "127.0.0.1:1"),
        ("jobs", None),
        ("kill", "mine"),
    } <= told
    assert len({each["job"] for each in requests}) == len(requests)


@posix_only
async def test_a_recording_is_told_with_its_hash(tmp_path: Path) -> None:
    """Where it is and what it has to be; the secrets that the log leaves out are not in it either."""
    recording = tmp_path / "session.cast"
    options = AuditOptions(secrets=("open sesame",))
    async with audited(tmp_path / "state", options) as (_, worker):
        script = "printf 'the word is open '; sleep 0.3; printf 'sesame. done'"
        async with worker.open_session(["sh", "-c", script], record=recording) as session:
            shown = b""
            while b"done" not in shown:
                shown += await session.receive_some()
    (told,) = of_type(records_in(tmp_path / "state"), "recording")
    assert (told["target"], told["outcome"], told["actor"]) == (str(recording), "complete", "local")
    assert told["result"] == {"sha256": hashlib.sha256(recording.read_bytes()).hexdigest()}
    events = [json.loads(line) for line in recording.read_text().splitlines()]
    assert "sesame" not in str(events[1:])
    output = "".join(event[2] for event in events[1:] if event[1] == "o")
    assert output == "the word is [redacted]. done"


@posix_only
async def test_leaving_early_is_told(tmp_path: Path) -> None:
    """Who ends a job is on record, and how it ended."""
    async with audited(tmp_path) as (_, worker):
        async with worker.open_process(["sleep", "60"], job_id="mine"):
            pass
    kinds = [each["type"] for each in records_in(tmp_path) if each.get("job") == "mine"]
    assert kinds == ["request", "start", "stop", "end"]


@posix_only
async def test_operators_are_told_by_name(tmp_path: Path) -> None:
    """Of a client in another process it is on record when it came, what it asked for, and when it went."""
    async with audited(tmp_path) as (controller, _):
        token = (tmp_path / "operator.token").read_text()
        async with sandd.connect_controller(controller.url, token=token) as other:
            remote = await other.wait_for_daemon("worker-1")
            assert (await remote.run("cat", input=b"in" * 20_000)).stdout == "in" * 20_000
        with pytest.raises(sandd.AuthenticationFailed):
            async with sandd.connect_controller(controller.url, token="wrong"):
                pass
        while not of_type(read(tmp_path), "refusal"):
            await trio.sleep(0.01)
    records = records_in(tmp_path)
    (request,) = of_type(records, "request")
    assert request["actor"].startswith("operator:")
    operators = [each for each in records if each.get("kind") == "operator"]
    assert [each["type"] for each in operators] == ["connection", "disconnection", "refusal"]
    assert operators[0]["actor"] == request["actor"]


async def test_daemons_that_are_turned_away_are_told(tmp_path: Path) -> None:
    """With what they called themselves, and from where."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(
            port=0, state_dir=tmp_path, audit=True, token="right"
        ) as controller:
            command = [sys.executable, "-m", "sandd.daemon", "--daemon-id", "stranger"]
            command += ["--server-url", controller.url, "--state-dir", str(tmp_path / "daemon")]
            with copies():
                done = await trio.run_process(
                    command, env=daemon_environment(), capture_stderr=True, check=False
                )
            assert done.returncode == 1
    refusal = of_type(records_in(tmp_path), "refusal")[0]
    assert (refusal["daemon"], refusal["kind"]) == ("stranger", "daemon")
    assert refusal["remote"].startswith("127.0.0.1:")
    assert not of_type(records_in(tmp_path), "connection")


@posix_only
async def test_attaching_is_told(tmp_path: Path) -> None:
    """Who looks on at a job, and how it was taken."""
    async with audited(tmp_path) as (_, worker):
        async with worker.open_process(["cat"], job_id="mine", detach=True) as process:
            async with worker.attach_process("mine", read_only=True):
                pass
            await process.stdin.aclose()
            await process.wait()
    told = [each for each in records_in(tmp_path) if each.get("job") == "mine"]
    assert [each["type"] for each in told] == ["request", "start", "attach", "end"]
    assert told[2]["result"] == {"role": "viewer", "takeover": False}


@posix_only
async def test_policies_and_tokens_are_told(tmp_path: Path) -> None:
    """What is in force, by its hash; what was refused by it; and that other secrets count."""
    policy = tmp_path / "policy.toml"
    policy.write_text('version = 1\ndefault = "deny"\n')
    policy.chmod(0o600)
    state = tmp_path / "state"
    async with audited(state, policy=policy) as (controller, worker):
        with pytest.raises(sandd.PolicyDenied):
            await worker.run(["true"])
        policy.write_text("nonsense")
        with pytest.raises(ConfigurationError):
            await controller.reload_policy()
        controller.set_tokens(token="second-secret", operator_token=None)
    records = records_in(state)
    in_force, refused = of_type(records, "policy")
    (denied,) = of_type(records, "refusal")
    assert in_force["result"] == {"*": denied["policy"]}
    assert denied["outcome"] == "policy_denied"
    assert refused["outcome"] == "refused"
    assert not of_type(records, "request")
    (changed,) = of_type(records, "token")
    assert changed["result"] == {"daemons_need_one": True, "operators_may_come": False}


@posix_only
async def test_certificates_are_told(tmp_path: Path) -> None:
    """Which are shown, by their hash and the pin that others know the CA by; and that others can't be used."""
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(
            port=0, state_dir=tmp_path, audit=True, tls="auto"
        ) as controller:
            pin = controller.ca_pin
            for path in (tmp_path / "tls").iterdir():
                path.write_bytes(b"nonsense")
            assert not await controller.reload_tls()
    in_force, refused = of_type(records_in(tmp_path), "ca")
    assert in_force["result"]["authorities"] == [pin]
    assert re.fullmatch("sha256:[0-9a-f]{64}", in_force["result"]["certificate"])
    assert refused["outcome"] == "refused"


async def test_a_log_needs_a_place() -> None:
    """Without a state directory nothing is opened."""
    with pytest.raises(ConfigurationError, match="state_dir"):
        async with sandd.open_controller(port=0, audit=True):
            pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("it takes a root who may mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill_up(path: Path) -> None:
    """Take all the room there is."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
async def test_a_full_disk_runs_nothing(tmp_path: Path, small_disk: Path) -> None:
    """Each new command is refused, and says why; when there is room again, commands run."""
    ran = tmp_path / "ran"
    ran.touch()
    refusals: list[str] = []
    async with audited(small_disk) as (_, worker):
        assert (await worker.run("echo ran")).stdout == "ran\n"
        fill_up(small_disk / "filler")
        while len(refusals) < 3:  # the file's last page has room for some
            try:
                await worker.run(f"echo ran >> {ran}")
            except RequestRefused as error:
                refusals.append(str(error))
        count = len(ran.read_text().splitlines())
        (small_disk / "filler").unlink()
        while (await outcome(worker)) != "again\n":
            await trio.sleep(0.05)
    assert all("the audit log can't be written" in each for each in refusals)
    assert all("No space left" in each for each in refusals)
    records = records_in(small_disk)
    asked = [each for each in of_type(records, "request") if str(ran) in each["argv"][0]]
    assert len(asked) == count
    assert len(of_type(records, "refusal")) >= 3


async def outcome(worker: sandd.Daemon) -> str:
    """What a command prints, or that it was refused."""
    try:
        return (await worker.run("echo again")).stdout
    except RequestRefused:
        return "refused"


@posix_only
async def test_a_controller_that_is_killed_leaves_a_log_to_go_on_with(tmp_path: Path) -> None:
    """By SIGKILL, while it writes: all that ran is on record, and the next controller goes on."""
    state, ran = tmp_path / "state", tmp_path / "ran"
    killed = start_controller("--audit", home=tmp_path)
    try:
        url = await trio.to_thread.run_sync(read_ready, killed)
        with trio.fail_after(LIMIT):
            async with open_daemon(url):
                token = (state / "operator.token").read_text()
                async with sandd.connect_controller(url, token=token) as controller:
                    worker = await controller.wait_for_daemon("worker-1")

                    async def go_on(name: int) -> None:
                        for number in range(1000):
                            await worker.run(f"echo {name}-{number} >> {ran}")

                    async with trio.open_nursery() as nursery:
                        for name in range(8):
                            nursery.start_soon(go_on, name)
                        while not ran.exists() or len(ran.read_text().splitlines()) < 100:
                            await trio.sleep(0.01)
                        killed.kill()
                        nursery.cancel_scope.cancel()
    finally:
        killed.kill()
        killed.communicate()
    on_record = {each["argv"][0].split()[1] for each in of_type(read(state), "request")}
    assert set(ran.read_text().split()) <= on_record
    verdict = verify_log(state / "audit", key_in(state).public)
    assert verdict.fault is None or "torn" in verdict.fault
    with (state / "audit" / "000001.jsonl").open("ab") as file:
        file.write(b'{"actor":"loc')  # a crash is hardly ever so kind as to tear a line
    with running_controller("--audit", home=tmp_path):
        pass
    records = records_in(state)
    assert [each["outcome"] for each in of_type(records, "controller")] == [
        "started",
        "started",
        "closed",
    ]
    assert of_type(records, "repair")


def test_the_command_line_knows_the_log(tmp_path: Path) -> None:
    """``sandd controller --audit`` keeps one, which ``sandd audit`` reads."""
    with running_controller("--audit", home=tmp_path) as controller:
        with controller.daemon("worker-1"):
            controller.run_command("exec", "worker-1", "--", "true")
            done = controller.run_command("audit", "verify", str(controller.state_dir))
            assert (done.returncode, done.stderr) == (0, "")
            rows = controller.objects(
                "audit", "tail", "--json", "--type", "request", str(controller.state_dir)
            )
            assert [row["argv"] for row in rows] == [["true"]]
