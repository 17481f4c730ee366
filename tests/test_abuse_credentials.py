"""Abuse of credentials that a running controller meets: damaged, of another tenant, and relayed by who ends TLS.

What else is tried with them is in ``test_identity_gate.py``, ``test_enrolment.py`` and ``test_tenants.py``; all of it
in a table in ``docs/security.rst``.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from daemons import open_daemon
from peers_with_credentials import (
    OPTIONS,
    guarded,
    join_token,
    key_of,
    operator_token,
    refusal_of,
)
from raw_daemon import raw_daemon
from raw_peer import serving
from tls_peers import pem_of, server_pair, write_pair

import sandd
from sandd import wire
from sandd._core.identity.gate import REFUSED_DAEMON, REFUSED_OPERATOR
from sandd._core.identity.introductions import answer_as_operator, answer_challenge
from sandd._core.identity.proofs import DaemonKey
from sandd._core.identity.tokens import Token, TokenKind, client_prefix
from sandd._core.link import Identity
from sandd._core.pump import receive_control, send_control
from sandd._core.tls.authority import new_authority
from sandd._core.tls.contexts import client_context, server_tls
from sandd._core.transport import Connection, connect
from sandd.wire import CredentialKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandd._core.identity.proofs import Credential

# ---- damaged ------------------------------------------------------------------------------------


def introduction(
    challenge: wire.Challenge, credential: Credential
) -> wire.Hello | wire.OperatorHello:
    """What somebody says who has this credential, and nothing is wrong with it."""
    if isinstance(credential, Token) and credential.kind is TokenKind.OPERATOR:
        client = client_prefix(credential.key_id) + "0" * 16
        return answer_as_operator(challenge, client, 1, "", credential)
    daemon_id = "joined" if isinstance(credential, DaemonKey) else "new"
    return answer_challenge(challenge, Identity(daemon_id, "i"), 1, credential)


def damages(hello: wire.Hello | wire.OperatorHello) -> list[dict[str, Any]]:
    """Fields of a Hello that came out otherwise: cut off, longer, of other characters, kinds and numbers."""
    proofs = (b"", hello.proof[:-1], hello.proof + b"\0", hello.proof[::-1], b"\xff" * 64)
    name = hello.key_id
    names = ("", name[:-1], "\u00e9" * 12, "' OR 1=1 --", f"{name}\0", name.swapcase() + "\u202e")
    found: list[dict[str, Any]] = [{"proof": proof} for proof in proofs]
    found += [{"key_id": each} for each in names]
    found += [{"credential": kind} for kind in CredentialKind if kind is not hello.credential]
    if isinstance(hello, wire.Hello):
        found += [{"generation": each} for each in (7, 2**53, 2**62)]
    return found


@pytest.mark.parametrize("kind", ["join", "key", "operator"])
async def test_a_damaged_credential_has_the_one_refusal(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with it: no word on that, no traceback; and the whole one is as good as before."""
    async with guarded(tmp_path, token="shared", operator_token="operators") as controller:
        join, operator = await join_token(controller, uses=2), await operator_token(controller)
        async with raw_daemon(controller.url, "joined", credential=join) as daemon:
            key = key_of(daemon)
        credentials: dict[str, Credential] = {"join": join, "key": key, "operator": operator}
        refused = REFUSED_OPERATOR if kind == "operator" else REFUSED_DAEMON
        path = wire.OPERATOR_PATH if kind == "operator" else wire.DAEMON_PATH

        async def come(number: int | None) -> object:
            """What is answered to the whole of it, or with the damage of that number."""
            async with connect(f"ws://{controller.address}{path}", **OPTIONS) as connection:
                challenge = await receive_control(connection)
                assert isinstance(challenge, wire.Challenge)
                hello = introduction(challenge, credentials[kind])
                damage = {} if number is None else damages(hello)[number]
                await send_control(connection, attrs.evolve(hello, **damage))
                return await receive_control(connection)

        some = damages(introduction(wire.Challenge(b"n", "c"), credentials[kind]))
        for number, damage in enumerate(some):
            answer = await come(number)
            assert refusal_of(answer) == (refused.code, refused.message), damage
        assert isinstance(await come(None), wire.Welcome)
    assert not [each for each in caplog.records if each.exc_info or each.levelname == "ERROR"]


# ---- of another tenant --------------------------------------------------------------------------


async def test_another_tenants_token_reaches_nothing_here(tmp_path: Path) -> None:
    """A daemon that joins by it under our daemon's id is another's; nor is there an id that leads out of its tenant."""
    async with guarded(tmp_path) as controller:
        ours = await join_token(controller)
        theirs = await join_token(controller, tenant="acme", uses=9)
        async with raw_daemon(controller.url, "w", credential=ours, instance="ours") as holder:
            async with raw_daemon(controller.url, "w", credential=theirs) as other:
                stolen = key_of(other)
            for name in ("default/w", "acme/../w", "../w", "/w"):
                async with raw_daemon(controller.url, name, credential=theirs) as daemon:
                    assert refusal_of(daemon.answer)[0] is wire.RejectCode.BAD_HELLO
            # Its key is for its own record, whatever else is said with it.
            forged = attrs.evolve(stolen, uid=key_of(holder).uid)
            async with raw_daemon(controller.url, "w", credential=forged) as daemon:
                assert refusal_of(daemon.answer) == (REFUSED_DAEMON.code, REFUSED_DAEMON.message)
            await holder.control(0, wire.Ping(7))
            assert (await holder.receive())[1] == wire.Pong(7)
            assert controller.daemon("w").info.instance == "ours"
            assert {each.name for each in await controller.enrolled.list()} == {"w", "acme/w"}


# ---- relayed ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def ending_tls(
    controller: sandd.Controller, directory: Path, *, forges: bool
) -> AsyncIterator[tuple[str, Path]]:
    """Somebody in between, whose certificate the victims trust; yields its URL, and what they trust.

    It passes on every message, either as it is, or with the Hello changed to say that it was meant for the
    controller's channel.
    """
    rogue = new_authority(time.time())
    pair = write_pair(server_pair(rogue), directory, "rogue.pem")
    presented = server_tls(pair, pair)
    trusted = directory / "trusted.pem"
    right = directory / "state" / "tls" / "ca.pem"
    trusted.write_bytes(pem_of(rogue) + right.read_bytes())
    to_controller = client_context(authorities=right.read_bytes())

    async def relay(victim: Connection) -> None:
        url = f"wss://{controller.address}{victim.path}"
        async with connect(url, ssl_context=to_controller, **OPTIONS) as beyond:

            async def back() -> None:
                with contextlib.suppress(sandd.SanddError):
                    while True:
                        await victim.send_message(await beyond.receive_message())
                nursery.cancel_scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(back)
                with contextlib.suppress(sandd.SanddError):
                    while True:
                        message = await victim.receive_message()
                        (frame,) = wire.decode_frames(message)
                        hello = wire.decode_control(frame)
                        assert isinstance(hello, wire.Hello | wire.OperatorHello)
                        if forges:
                            hello = attrs.evolve(hello, channel_binding=beyond.channel_binding)
                        await send_control(beyond, hello)
                nursery.cancel_scope.cancel()

    options = OPTIONS | {"paths": [wire.DAEMON_PATH, wire.OPERATOR_PATH]}
    async with serving(relay, tls=lambda: presented, **options) as address:
        yield f"wss://{address.host}:{address.port}", trusted


@pytest.mark.parametrize("forges", [False, True], ids=["as it is", "forged"])
async def test_whoever_ends_tls_in_between_gets_nothing_from_a_proof(
    tmp_path: Path, forges: bool
) -> None:
    """Though victims trust its certificate: what a daemon and an operator prove holds for the channel they saw."""
    async with guarded(tmp_path / "state", tls="auto") as controller:
        join, operator = await join_token(controller), await operator_token(controller)
        (tmp_path / "token").write_text(join.text)
        async with ending_tls(controller, tmp_path, forges=forges) as (url, trusted):
            arguments = ["--token-file", str(tmp_path / "token"), "--ca-file", str(trusted)]
            async with open_daemon(f"{url}/ws", "w", arguments=arguments) as daemon:
                assert await daemon.wait() == 1
            assert "missing or wrong, or no longer valid" in daemon.log
            with pytest.raises(sandd.AuthenticationFailed):
                async with sandd.connect_controller(url, token=operator.text, ca_file=trusted):
                    pass
            assert controller.daemons() == []
            # And nothing was used up by that: without somebody in between both are let in.
            async with open_daemon(controller.url, "w", arguments=arguments):
                await controller.wait_for_daemon("w")
                async with sandd.connect_controller(
                    controller.url, token=operator.text, ca_file=trusted
                ) as connected:
                    assert [each.id for each in connected.daemons()] == ["w"]
