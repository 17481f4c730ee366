"""Real daemons and operators of a controller with TLS: what others on the way see, and whom nobody takes for another.

The relays here stand where an attacker on the network would.
"""

from __future__ import annotations

import contextlib
import json
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio
from daemons import DaemonProcess, open_daemon
from raw_peer import RawPeer, raw_server
from tls_peers import pem_of, server_pair, why_unreachable, write_pair

import sandd
from sandd import ConfigurationError, ControllerUnreachable
from sandd._core.tls import authority
from sandd._core.tls.authority import issue_client, new_authority
from sandd._core.tls.contexts import server_tls
from sandd._core.tls.files import AuthorityFiles
from sandd.cli import main as run_sandd
from sandd.controller import open_controller
from sandd.testing import open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sandd._core.tls.key_pair import KeyPair
    from sandd._core.tls.rotation import Rotation
    from sandd.controller import Controller

TOKEN: Final = "a-token-that-nobody-may-see"
SECRET: Final = "a-command-that-nobody-may-see"
SECONDS: Final = 60.0


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    """What daemons are told it by."""
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return str(path)


@contextlib.asynccontextmanager
async def secure_controller(state_dir: Path, **options: object) -> AsyncIterator[Controller]:
    """One with a CA of its own."""
    settings = {"tls": "auto", "state_dir": state_dir, "token": TOKEN} | options
    with trio.fail_after(SECONDS):
        async with open_controller(port=0, **settings) as controller:  # type: ignore[arg-type] # a mix
            yield controller


def authority_in(state_dir: Path) -> Rotation:
    """The CA of a controller."""
    rotation = AuthorityFiles(state_dir / "tls").read()
    assert rotation is not None
    return rotation


@contextlib.asynccontextmanager
async def recording_relay(address: str, heard: bytearray) -> AsyncIterator[str]:
    """Carries bytes both ways, and keeps all of them; yields a URL."""

    async def relay(peer: RawPeer) -> None:
        host, _, port = address.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as there:

            async def carry(source: trio.SocketStream, target: trio.SocketStream) -> None:
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    async for part in source:
                        heard.extend(part)
                        await target.send_all(part)
                nursery.cancel_scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry, peer.stream, there)
                nursery.start_soon(carry, there, peer.stream)

    async with raw_server(relay) as url:
        yield url.replace("ws:", "wss:")


@contextlib.asynccontextmanager
async def impostor(pair: KeyPair, directory: Path, heard: bytearray) -> AsyncIterator[str]:
    """A server with a certificate that keeps what it is told after the handshake; yields a URL."""
    path = write_pair(pair, directory, "impostor.pem")
    presented = server_tls(path, path)

    async def listen(peer: RawPeer) -> None:
        stream = trio.SSLStream(
            peer.stream, presented.context, server_side=True, https_compatible=True
        )
        async for part in stream:
            heard.extend(part)

    async with raw_server(listen) as url:
        yield url.replace("ws:", "wss:")


# ---- what is seen on the way --------------------------------------------------------------------


async def test_nobody_on_the_way_reads_along(tmp_path: Path, token_file: str) -> None:
    """A relay sees neither token nor command, nor what that prints; without TLS it sees the latter two."""
    for tls in ("auto", None):
        heard = bytearray()
        async with secure_controller(tmp_path / "state", tls=tls) as controller:
            async with recording_relay(controller.address, heard) as url:
                known = ["--ca-pin", controller.ca_pin] if controller.ca_pin else []
                url = url if known else url.replace("wss:", "ws:")
                arguments = ["--token-file", token_file, *known]
                async with open_daemon(url, "worker-1", arguments=arguments):
                    worker = await controller.wait_for_daemon("worker-1")
                    result = await worker.run(["echo", SECRET], input=f"{SECRET}-input")
                    assert result.stdout == f"{SECRET}\n"
                    operator = (tmp_path / "state" / "operator.token").read_text().strip()
                    async with sandd.connect_controller(
                        url, token=operator, ca_pin=controller.ca_pin
                    ) as remote:
                        done = await remote.daemon("worker-1").run(["echo", SECRET])
                        assert done.success
        assert len(heard) > 1000
        assert TOKEN.encode() not in heard
        assert operator.encode() not in heard
        assert (SECRET.encode() in heard) is (tls is None)


async def test_whoever_has_a_certificate_of_another_ca_gets_nothing(
    tmp_path: Path, token_file: str
) -> None:
    """Not a byte after the handshake; with a pin alone the question for the CA's certificate, on first contact only."""
    ca, other = new_authority(time.time()), new_authority(time.time())
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(pem_of(ca))
    heard = bytearray()
    with trio.fail_after(SECONDS):
        async with impostor(server_pair(other), tmp_path, heard) as url:
            arguments = ["--token-file", token_file, "--ca-file", str(ca_file)]
            async with open_daemon(url, arguments=arguments) as daemon:
                await daemon.wait_for_log("verify failed")
            assert "verify failed" in await why_unreachable(url, token=TOKEN, ca_file=ca_file)
            async with open_daemon(url, arguments=["--token-file", token_file]) as daemon:
                await daemon.wait_for_log("verify failed")  # by the CAs of this system
            assert heard == b""
            pin = str(authority.read_facts(ca.certificate).pin)
            while b"\r\n\r\n" not in heard:  # (nor is there any answer)
                with pytest.raises(sandd.ControllerUnreachable):
                    async with sandd.connect_controller(
                        url, token=TOKEN, ca_pin=pin, connect_timeout=0.5
                    ):
                        pass
            assert heard.lower().startswith(b"get /ca.pem http/1.1\r\n")
            questions = bytes(heard).lower().split(b"\r\n\r\n")
            assert set(questions) == {questions[0], b""}


async def test_a_wrong_pin_lets_no_token_out(tmp_path: Path, token_file: str) -> None:
    """Nor anything else; the daemon says whose certificate it met, and asks again."""
    async with secure_controller(tmp_path / "state") as controller:
        pin = f"sha256:{'0' * 64}"
        arguments = ["--token-file", token_file, "--ca-pin", pin]
        async with open_daemon(controller.url, arguments=arguments) as daemon:
            log = await daemon.wait_for_log("is not the controller that the CA pin is of")
            assert controller.ca_pin is not None
            assert controller.ca_pin in log
            assert "dial_failed" in log
        assert "CA pin" in await why_unreachable(controller.url, token=TOKEN, ca_pin=pin)
        assert controller.daemons() == []


async def test_a_daemon_s_certificate_is_no_controller_s(tmp_path: Path, token_file: str) -> None:
    """Though it is of the right CA: a daemon that was taken over can't command the others."""
    async with secure_controller(tmp_path / "state") as controller:
        ca = authority_in(tmp_path / "state").old
        rogue = issue_client(ca, "sandd:daemon:rogue", time.time())
        ca_file = tmp_path / "state" / "tls" / "ca.pem"
        heard = bytearray()
        async with impostor(rogue, tmp_path, heard) as url:
            arguments = ["--token-file", token_file, "--ca-file", str(ca_file)]
            async with open_daemon(url, arguments=arguments) as daemon:
                log = await daemon.wait_for_log("verify failed")
                assert "unsuit" in log or "purpose" in log
        assert heard == b""
        assert controller.daemons() == []


# ---- client certificates ------------------------------------------------------------------------


async def test_a_controller_may_want_certificates(
    tmp_path: Path, token_file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """One made by the command lets a daemon in, and an operator; none, another's, or one that is past doesn't."""
    state_dir = tmp_path / "state"
    async with secure_controller(state_dir, client_certificates="required") as controller:
        assert controller.ca_pin is not None
        known = ["--token-file", token_file, "--ca-pin", controller.ca_pin]
        for kind, name in (("daemon", "worker-1"), ("operator", "me")):
            out = str(tmp_path / f"{name}.pem")
            given = ["--state-dir", str(state_dir), kind, name, "--out", out]
            assert run_sandd(["ca", "issue", *given]) == 0
            assert f"sandd:{kind}:{name}" in capfd.readouterr().out
        shown = ["--client-cert", str(tmp_path / "worker-1.pem")]
        async with open_daemon(controller.url, "worker-1", arguments=[*known, *shown]):
            worker = await controller.wait_for_daemon("worker-1")
            assert (await worker.run("true")).success
            operator = (state_dir / "operator.token").read_text()
            known_by = {"token": operator, "ca_pin": controller.ca_pin}
            async with sandd.connect_controller(
                controller.url, client_certificate=tmp_path / "me.pem", **known_by
            ) as remote:
                assert [each.id for each in remote.daemons()] == ["worker-1"]
            why = await why_unreachable(controller.url, **known_by)
            assert "certificate is required" in why
        async with open_daemon(controller.url, "other", arguments=[*known, *shown]) as daemon:
            assert await daemon.wait() == 1  # a stolen certificate, even with the right token
        past = issue_client(
            authority_in(state_dir).old, "sandd:daemon:late", time.time() - 1000, seconds=500
        )
        shown = ["--client-cert", str(write_pair(past, tmp_path, "past.pem"))]
        async with open_daemon(controller.url, "late", arguments=[*known, *shown]) as daemon:
            assert "certificate expired" in (await daemon.wait_for_log("dial_failed"))
        async with open_daemon(controller.url, "bare", arguments=known) as daemon:
            assert "certificate is required" in (await daemon.wait_for_log("dial_failed"))
        assert [each.id for each in controller.daemons() if each.id != "worker-1"] == []


# ---- change -------------------------------------------------------------------------------------


async def until(condition: Callable[[], object]) -> None:
    """Wait for what happens in another process."""
    while not condition():
        await trio.sleep(0.01)


def trusted_by(daemon: DaemonProcess) -> bytes:
    """The CAs that a daemon keeps."""
    return b"".join(path.read_bytes() for path in daemon.state_dir.glob("controller-ca-*.pem"))


def all_trust(daemons: list[DaemonProcess], bundle: bytes) -> bool:
    """Whether each keeps just these."""
    return all(trusted_by(daemon) == bundle for daemon in daemons)


async def test_a_rotation_loses_nobody(
    tmp_path: Path, token_file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three daemons, each with a command that runs all the while; afterwards they know the new CA alone."""
    state_dir = tmp_path / "state"
    names = ["worker-1", "worker-2", "worker-3"]
    async with (
        secure_controller(state_dir) as controller,
        open_fault_proxy(controller.address) as proxy,
        contextlib.AsyncExitStack() as stack,
    ):
        first_pin = controller.ca_pin
        assert first_pin is not None
        arguments = ["--token-file", token_file, "--ca-pin", first_pin]
        daemons, processes = [], []
        for name in names:
            daemon = open_daemon(f"wss://{proxy.address}/ws", name, arguments=arguments)
            daemons.append(await stack.enter_async_context(daemon))
            worker = await controller.wait_for_daemon(name)
            processes.append(await stack.enter_async_context(worker.open_process(["cat"])))

        async def cut_all() -> None:
            known = {each.id: each.info.connected_at for each in controller.daemons()}
            proxy.cut()
            await until(
                lambda: all(
                    controller.daemon(name).state is sandd.DaemonState.ONLINE
                    and controller.daemon(name).info.connected_at != known[name]
                    for name in names
                )
            )

        pins = [first_pin]
        for phase, count in (("trust-both", 2), ("issue-new", 2), ("steady", 1)):
            rotate = ["ca", "rotate", "--state-dir", str(state_dir)]
            if phase != "trust-both":
                assert run_sandd(rotate) == 125  # a day has to pass
                assert "--now" in capfd.readouterr().err
                rotate.append("--now")
            assert run_sandd(rotate) == 0
            assert capfd.readouterr().out.startswith(f"{phase}: ")
            assert await controller.reload_tls()
            assert controller.ca_pin is not None
            pins.append(controller.ca_pin)
            await cut_all()
            bundle = b"".join(map(pem_of, authority_in(state_dir).trusted))
            assert bundle.count(b"BEGIN") == count
            await until(partial(all_trust, daemons, bundle))
        await cut_all()
        assert pins[0] == pins[1] != pins[2] == pins[3]
        for process in processes:
            await process.stdin.send_all(b"still here\n")
            assert await process.stdout.receive_some() == b"still here\n"
        with pytest.raises(ControllerUnreachable):
            async with sandd.connect_controller(
                controller.url, token=TOKEN, ca_pin=first_pin, connect_timeout=0.5
            ):
                pass


async def test_changes_are_in_the_audit_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The certificate that a controller begins with, each that follows, what could not be used; and who rotated."""
    state_dir = tmp_path / "state"
    async with secure_controller(state_dir, audit=True) as controller:
        assert run_sandd(["ca", "rotate", "--state-dir", str(state_dir)]) == 0
        assert await controller.reload_tls()
        pin = controller.ca_pin
        (state_dir / "tls" / "authority.json").write_text("{}")
        assert not await controller.reload_tls()
    segments = sorted((state_dir / "audit").glob("*.jsonl"))
    records = [json.loads(line) for path in segments for line in path.read_bytes().splitlines()]
    all_of_them = [each for each in records if each["type"] == "ca"]
    (rotation,) = [each for each in all_of_them if each.get("actor", "").startswith("local:")]
    *first, refusal = [each for each in all_of_them if each is not rotation]
    assert (refusal["outcome"], "damaged" in refusal["reason"]) == ("refused", True)
    changes = [each["result"]["authorities"] for each in first]
    assert [len(each) for each in changes] == [1, 2]
    assert changes[0] == [pin] == changes[1][:1]
    assert rotation["result"]["authorities"] == changes[1]
    assert capfd.readouterr().out.startswith("trust-both")


async def test_a_bad_pair_changes_nothing(tmp_path: Path, token_file: str) -> None:
    """Whoever comes next is served by the old one; it is counted, and a good one is taken."""
    ca = new_authority(time.time())
    path = write_pair(server_pair(ca), tmp_path)
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(pem_of(ca))
    arguments = ["--token-file", token_file, "--ca-file", str(ca_file)]
    async with secure_controller(tmp_path / "state", tls=(path, path)) as controller:
        assert controller.ca_pin is None
        path.write_text("half")
        assert not await controller.reload_tls()
        assert controller.statistics().certificate_failures == 1
        async with open_daemon(controller.url, "worker-1", arguments=arguments):
            await controller.wait_for_daemon("worker-1")
        write_pair(server_pair(ca), tmp_path)
        assert await controller.reload_tls()
        async with open_daemon(controller.url, "worker-2", arguments=arguments):
            await controller.wait_for_daemon("worker-2")


# ---- what makes no sense, or is not safe --------------------------------------------------------


async def test_what_makes_no_sense_is_told(tmp_path: Path) -> None:
    """By the controller and by its operators, before anything listens or is dialled."""
    for options, words in (
        ({"tls_names": ["a"]}, 'tls="auto"'),
        ({"client_certificates": "required"}, 'tls="auto"'),
        ({"tls": "yes"}, "auto"),
        ({"tls": ("/no/such", "/no/such")}, "/no/such"),
        ({"tls": "auto", "tls_names": ["a b"]}, "'a b'"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            async with open_controller(port=0, **options):  # type: ignore[arg-type] # a mix
                pass
    pin = f"sha256:{'0' * 64}"
    for url, options, words in (
        ("ws://127.0.0.1:1", {"ca_pin": pin}, "wss://"),
        ("wss://127.0.0.1:1", {"ca_pin": "sha256:0"}, "64 hexadecimal"),
        ("wss://127.0.0.1:1", {"ca_pin": pin, "ca_file": "x"}, "one of the two"),
        ("wss://127.0.0.1:1", {"ca_file": "/no/such"}, "/no/such"),
        ("ws://192.0.2.1:1", {}, "insecure=True"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            async with sandd.connect_controller(url, token=TOKEN, **options):  # type: ignore[arg-type] # a mix
                pass


async def test_without_tls_to_another_machine_it_is_loud(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who insists is warned, and then it is tried."""
    with trio.fail_after(SECONDS), pytest.raises(ControllerUnreachable):
        async with sandd.connect_controller(
            "ws://192.0.2.1:1", token=TOKEN, insecure=True, connect_timeout=0.1
        ):
            pass
    assert "connection_is_not_secure" in [
        record.msg["event"]  # type: ignore[index] # structlog's
        for record in caplog.records
    ]


async def test_a_controller_that_goes_without_withdraws_its_ca(tmp_path: Path) -> None:
    """Commands on this machine would dial by it in vain; it comes back with the same."""
    public = tmp_path / "state" / "tls" / "ca.pem"
    async with secure_controller(tmp_path / "state") as controller:
        pin = controller.ca_pin
        assert public.exists()
    async with secure_controller(tmp_path / "state", tls=None) as controller:
        assert not public.exists()
        assert controller.url.startswith("ws://")
    async with secure_controller(tmp_path / "state") as controller:
        assert controller.ca_pin == pin
        assert public.exists()
