"""Who comes in, and who does not: credentials in each state, told apart by nobody outside; who has to leave again."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing
from peers_with_credentials import (
    LIMIT,
    OPTIONS,
    ended,
    gate_of,
    guarded,
    join_token,
    key_of,
    operator_token,
    raw_operator,
    refusal_of,
)
from raw_daemon import raw_daemon

import sandd
from sandd import wire
from sandd._core import operators
from sandd._core.audit import segments
from sandd._core.audit.changes import token_changed
from sandd._core.identity import gate as gate_module
from sandd._core.identity.database import IdentityDatabase, open_database
from sandd._core.identity.gate import REFUSED_DAEMON, REFUSED_OPERATOR
from sandd._core.identity.introductions import answer_as_operator, answer_challenge
from sandd._core.identity.proofs import DaemonKey, SharedSecret, daemon_secret
from sandd._core.identity.records import EnrolledDaemon
from sandd._core.identity.tokens import Token, TokenKind, client_prefix
from sandd._core.link import Identity
from sandd._core.pump import receive_control, send_control
from sandd._core.reception import Greeting
from sandd._core.transport import connect
from sandd.wire import RejectCode

if TYPE_CHECKING:
    from pathlib import Path

    from sandd._core.identity.proofs import Credential


def greeting(challenge: wire.Challenge, hello: wire.Control) -> Greeting:
    """What was said until then."""
    return Greeting(challenge, trio.current_time(), hello)


REFUSED = (RejectCode.UNAUTHENTICATED, REFUSED_DAEMON.message)


async def answer_to(url: str, daemon_id: str, credential: Credential | None, **options: Any) -> Any:
    """What a daemon is told that comes by this credential."""
    async with raw_daemon(url, daemon_id, credential=credential, **options) as daemon:
        return daemon.answer


# ---- joining -------------------------------------------------------------------------------------


async def test_a_daemon_joins_once_and_comes_by_its_own_key_then(tmp_path: Path) -> None:
    """The token's labels are its, and the controller has a record of it."""
    async with guarded(tmp_path) as controller:
        token = await join_token(controller, labels={"env": "prod"})
        async with raw_daemon(
            controller.url, "w", credential=token, instance="one", labels={"env": "x", "a": "b"}
        ) as daemon:
            key = key_of(daemon)
            worker = await controller.wait_for_daemon("w")
            assert worker.info.labels == {"env": "prod", "a": "b"}
        async with raw_daemon(
            controller.url, "w", credential=key, instance="one", connection_number=2
        ) as daemon:
            assert isinstance(daemon.answer, wire.Welcome)
            assert daemon.answer.enrolment is None
        (record,) = await controller.enrolled.list()
        assert (record.uid, record.id, record.token_id) == (key.uid, "w", token.key_id)


async def test_a_token_is_good_for_one_daemon(tmp_path: Path) -> None:
    """The next that comes with it is told what anybody is told whose token is wrong."""
    async with guarded(tmp_path) as controller:
        token = await join_token(controller)
        assert isinstance(await answer_to(controller.url, "w", token), wire.Welcome)
        assert refusal_of(await answer_to(controller.url, "x", token)) == REFUSED


async def test_of_two_at_once_one_joins(tmp_path: Path) -> None:
    """However many come with a token that is for one."""
    answers: list[object] = []
    async with guarded(tmp_path) as controller:
        token = await join_token(controller)

        async def come(number: int) -> None:
            answers.append(await answer_to(controller.url, f"w{number}", token))

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(come, number)
        assert len(await controller.enrolled.list()) == 1
    assert sum(isinstance(answer, wire.Welcome) for answer in answers) == 1
    assert {refusal_of(each) for each in answers if isinstance(each, wire.Reject)} == {REFUSED}


async def test_a_lost_welcome_burns_no_token(tmp_path: Path) -> None:
    """The same start of the daemon comes again with its token, as the daemon that has joined."""
    async with guarded(tmp_path) as controller:
        token = await join_token(controller)
        async with raw_daemon(controller.url, "w", credential=token, instance="one") as daemon:
            first = key_of(daemon)
        async with raw_daemon(
            controller.url, "w", credential=token, instance="one", connection_number=2
        ) as daemon:
            assert key_of(daemon) == first


async def test_a_lost_key_burns_no_token(tmp_path: Path) -> None:
    """A daemon that died before its key was on its disk comes with its token again, as the next start of it."""
    async with guarded(tmp_path) as controller:
        token = await join_token(controller)
        async with raw_daemon(controller.url, "w", credential=token, instance="one") as daemon:
            first = key_of(daemon)
        stranger = await answer_to(controller.url, "w", token, instance="two")
        assert refusal_of(stranger)[0] is wire.RejectCode.ID_IN_USE
        async with raw_daemon(
            controller.url, "w", credential=token, instance="two", ancestors=("one",)
        ) as daemon:
            assert key_of(daemon) == first
        async with raw_daemon(
            controller.url, "w", credential=first, instance="two", connection_number=2
        ):
            pass
        # It has used its key: from now on the token is good for nobody.
        answer = await answer_to(controller.url, "w", token, instance="three", ancestors=("two",))
        assert refusal_of(answer)[0] is wire.RejectCode.ID_IN_USE


async def test_whatever_is_wrong_there_is_one_refusal(tmp_path: Path) -> None:
    """Missing, wrong, unknown, expired, revoked, used up, an operator's, a forgotten daemon's, another controller's."""
    async with guarded(tmp_path / "a", token="shared") as controller:
        tokens = controller.tokens
        used_up = await join_token(controller)
        async with raw_daemon(controller.url, "gone", credential=used_up) as daemon:
            forgotten = key_of(daemon)
        await controller.enrolled.forget("gone")
        revoked, expired = (
            await join_token(controller),
            await join_token(controller, expires_in=0.001),
        )
        await tokens.revoke(revoked.key_id)
        good = await join_token(controller)
        wrong: dict[str, Credential | None] = {
            "nothing": None,
            "wrong secret": SharedSecret(b"shaerd"),
            "wrong token": attrs.evolve(good, secret=bytes(32)),
            "unknown token": Token.new(TokenKind.JOIN),
            "used up": used_up,
            "revoked": revoked,
            "expired": expired,
            "operator's": attrs.evolve(await operator_token(controller), kind=TokenKind.JOIN),
            "forgotten": forgotten,
            "forged key": attrs.evolve(forgotten, secret=bytes(32)),
            "unknown key": DaemonKey("0" * 32, 1, bytes(32)),
        }
        await trio.sleep(0.01)  # longer than one of them is valid
        for what, credential in wrong.items():
            answer = await answer_to(controller.url, "w", credential)
            assert refusal_of(answer) == REFUSED, what
            assert answer.retry_after is None
        assert await controller.enrolled.list() == []
        # And none of it has done anything to what is right.
        assert isinstance(await answer_to(controller.url, "w", good), wire.Welcome)
        assert isinstance(
            await answer_to(controller.url, "s", SharedSecret(b"shared")), wire.Welcome
        )
    async with guarded(tmp_path / "b", token="shared") as other:
        assert refusal_of(await answer_to(other.url, "w", good)) == REFUSED


async def test_a_token_for_other_ids_says_so(tmp_path: Path) -> None:
    """Who has proven a token may know what is wrong; and it isn't used up by that."""
    async with guarded(tmp_path) as controller:
        token = await join_token(controller, daemons="ci-*")
        code, text = refusal_of(await answer_to(controller.url, "w", token))
        assert code is RejectCode.BAD_HELLO
        assert "'ci-*'" in text
        assert isinstance(await answer_to(controller.url, "ci-1", token), wire.Welcome)


async def test_nobody_takes_a_joined_daemons_id(tmp_path: Path) -> None:
    """Neither by another token, nor by the shared secret, while it is here or away; and it notices nothing."""
    async with guarded(tmp_path, token="shared") as controller:
        token = await join_token(controller, uses=2)
        async with raw_daemon(controller.url, "w", credential=token, instance="one") as daemon:
            key = key_of(daemon)
            for credential in (token, SharedSecret(b"shared")):
                code, text = refusal_of(await answer_to(controller.url, "w", credential))
                assert code is RejectCode.ID_IN_USE
                assert "'sandd daemons forget w'" in text
            await daemon.control(0, wire.Ping(1))
            assert (await daemon.receive())[1] == wire.Pong(1)
        code, _ = refusal_of(await answer_to(controller.url, "w", SharedSecret(b"shared")))
        assert code is RejectCode.ID_IN_USE
        # It is still the holder, and its key as good as before.
        assert isinstance(
            await answer_to(controller.url, "w", key, instance="one", connection_number=2),
            wire.Welcome,
        )


async def test_a_key_is_for_one_id(tmp_path: Path) -> None:
    """A daemon can't come as another by it."""
    async with guarded(tmp_path) as controller:
        async with raw_daemon(
            controller.url, "w", credential=await join_token(controller)
        ) as daemon:
            key = key_of(daemon)
        code, text = refusal_of(await answer_to(controller.url, "x", key))
        assert code is RejectCode.BAD_HELLO
        assert "'w'" in text


# ---- replayed, relayed, copied -------------------------------------------------------------------


async def test_a_replayed_hello_is_refused(tmp_path: Path) -> None:
    """What was overheard on one connection is of no use on the next."""
    async with guarded(tmp_path) as controller:
        token = await join_token(controller, uses=9)
        identity = Identity("w", "one")
        async with connect(controller.url, **OPTIONS) as connection:
            hello = answer_challenge(await receive_control(connection), identity, 1, token)
            await send_control(connection, hello)
            assert isinstance(await receive_control(connection), wire.Welcome)
        async with connect(controller.url, **OPTIONS) as connection:
            await receive_control(connection)
            await send_control(connection, hello)
            assert refusal_of(await receive_control(connection)) == REFUSED
        operator = await operator_token(controller)
        async with connect(f"ws://{controller.address}/operator", **OPTIONS) as connection:
            said = answer_as_operator(
                await receive_control(connection), "c", 1, "me", SharedSecret(b"wrong")
            )
            forged = attrs.evolve(
                said, credential=wire.CredentialKind.OPERATOR, key_id=operator.key_id
            )
            await send_control(connection, forged)
            assert refusal_of(await receive_control(connection)) == (
                RejectCode.UNAUTHENTICATED,
                REFUSED_OPERATOR.message,
            )


@pytest.mark.parametrize("kind", ["join", "key", "shared", "operator"])
async def test_a_relayed_proof_is_refused_where_tls_ends(tmp_path: Path, kind: str) -> None:
    """Whoever stands in between has shown another certificate, and the peer has said which; or none at all."""
    ours = b"o" * 32
    async with guarded(tmp_path, token="shared") as controller:
        gate = gate_of(controller)
        challenge = wire.Challenge(b"n" * 32, gate.controller_id)
        async with raw_daemon(
            controller.url, "k", credential=await join_token(controller)
        ) as daemon:
            credentials: dict[str, Credential] = {
                "key": key_of(daemon),
                "join": await join_token(controller),
                "shared": SharedSecret(b"shared"),
            }

        async def is_let_in(hello: wire.Hello | wire.OperatorHello) -> bool:
            said = greeting(challenge, hello)
            with gate.passes.issued() as given:
                if kind == "operator":
                    reject = await gate.admit_operator(given, said, channel_binding=ours)
                else:
                    reject = await gate.admit_daemon(
                        given, said, is_loopback=True, channel_binding=ours
                    )
            return reject is None

        operator = await operator_token(controller)
        for binding in (b"t" * 32, b"", ours):
            hello: wire.Hello | wire.OperatorHello
            if kind == "operator":
                client = client_prefix(operator.key_id) + "0" * 16
                hello = answer_as_operator(challenge, client, 1, "", operator, binding)
            else:
                identity = Identity("k" if kind == "key" else "w", "one")
                hello = answer_challenge(challenge, identity, 1, credentials[kind], binding)
            assert await is_let_in(hello) is (binding == ours)
            # And what it has said can't be changed on the way.
            forged = attrs.evolve(hello, channel_binding=ours)
            assert await is_let_in(forged) is (binding == ours)


@pytest.mark.parametrize("kind", ["join", "key", "shared", "token", "operators"])
async def test_a_certificate_has_to_be_of_whoever_proves_itself(tmp_path: Path, kind: str) -> None:
    """With another's, or one for the other purpose, no token and no key lets anybody in; without one it does."""
    async with guarded(tmp_path, token="shared", operator_token="operators") as controller:
        gate = gate_of(controller)
        challenge = wire.Challenge(b"n" * 32, gate.controller_id)
        async with raw_daemon(
            controller.url, "w", credential=await join_token(controller, tenant="acme")
        ) as daemon:
            key = key_of(daemon)
        join = await join_token(controller, tenant="acme", uses=9)
        token = await operator_token(controller, "alice")
        client = client_prefix(token.key_id) + "0" * 16
        hello: wire.Hello | wire.OperatorHello
        hello, fitting = {
            "join": (answer_challenge(challenge, Identity("x", "i"), 1, join), "daemon:acme/x"),
            "key": (answer_challenge(challenge, Identity("w", "i"), 1, key), f"daemon:{key.uid}"),
            "shared": (
                answer_challenge(challenge, Identity("s", "i"), 1, SharedSecret(b"shared")),
                "daemon:s",
            ),
            "token": (answer_as_operator(challenge, client, 1, "", token), "operator:alice"),
            "operators": (
                answer_as_operator(challenge, "c", 1, "", SharedSecret(b"operators")),
                "operator:anybody",
            ),
        }[kind]

        async def is_let_in(certificate: str | None) -> bool:
            said = greeting(challenge, hello)
            with gate.passes.issued() as given:
                if isinstance(hello, wire.OperatorHello):
                    return None is await gate.admit_operator(
                        given, said, channel_binding=b"", certificate=certificate
                    )
                return None is await gate.admit_daemon(
                    given, said, is_loopback=True, channel_binding=b"", certificate=certificate
                )

        for wrong in ("daemon:other", "operator:", "daemon:", "operator:bob", "whatever"):
            if kind != "operators" or not wrong.startswith("operator:"):
                assert not await is_let_in(f"sandd:{wrong}")
        assert await is_let_in(f"sandd:{fitting}")
        assert await is_let_in(None)


async def test_a_key_with_anothers_certificate_was_not_used(tmp_path: Path) -> None:
    """It is refused, and so makes no earlier key a copy's: whoever may come goes on as if it had not been there."""
    async with guarded(tmp_path) as controller:
        gate = gate_of(controller)
        challenge = wire.Challenge(b"n" * 32, gate.controller_id)
        token = await join_token(controller)
        async with raw_daemon(controller.url, "w", credential=token, instance="one") as daemon:
            first = key_of(daemon)
        async with raw_daemon(controller.url, "w", credential=first, instance="two") as daemon:
            second = key_of(daemon)

        async def come(key: Credential, certificate: str | None) -> wire.Reject | None:
            hello = answer_challenge(challenge, Identity("w", "two"), 2, key)
            with gate.passes.issued() as given:
                return await gate.admit_daemon(
                    given,
                    greeting(challenge, hello),
                    is_loopback=True,
                    channel_binding=b"",
                    certificate=certificate,
                )

        assert await come(second, "sandd:daemon:other") == REFUSED_DAEMON
        assert await come(first, "sandd:daemon:w") is None
        assert await come(second, f"sandd:daemon:{second.uid}") is None


async def test_what_is_remembered_of_keys_that_were_used_is_bounded(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """By what may still be under way: the latest are there, and those of an hour ago are not."""
    gate = gate_module.Gate()
    for number in range(100):
        gate._note_raised(f"uid-{number}", 1)
        await trio.sleep(gate_module.RAISED_SECONDS / 10)
    assert 10 <= len(gate._raised) <= 12
    gate._note_raised("uid-95", 2)
    assert list(gate._raised)[-1] == "uid-95"
    await trio.sleep(2 * gate_module.RAISED_SECONDS)
    gate._note_raised("uid-95", 3)
    assert list(gate._raised) == ["uid-95"]


async def test_a_copied_key_locks_both(tmp_path: Path) -> None:
    """As soon as both have come: whoever is here is put out, and nobody is let in, until somebody has looked."""
    async with guarded(tmp_path) as controller:
        url = controller.url
        token = await join_token(controller)
        async with raw_daemon(url, "w", credential=token, instance="original") as daemon:
            first = key_of(daemon)
        async with raw_daemon(url, "w", credential=first, instance="copy") as daemon:
            second = key_of(daemon)
        async with raw_daemon(
            url, "w", credential=second, instance="copy", connection_number=2
        ) as copy:
            assert isinstance(copy.answer, wire.Welcome)
            code, text = refusal_of(
                await answer_to(url, "w", first, instance="original", connection_number=2)
            )
            assert code is RejectCode.LOCKED
            assert "copied" in text
            await ended(copy.connection)
        for key in (first, second):
            answer = await answer_to(url, "w", key, instance="any")
            assert refusal_of(answer)[0] is RejectCode.LOCKED
            assert answer.retry_after is not None
        assert [each.state.value for each in await controller.enrolled.list()] == ["locked"]
        await controller.enrolled.unlock("w")
        answer = await answer_to(url, "w", second, instance="copy", connection_number=3)
        assert isinstance(answer, wire.Welcome)


async def test_who_knows_no_key_locks_nobody_out(tmp_path: Path) -> None:
    """However often it comes in the name of another, with an old generation or a new one."""
    async with guarded(tmp_path) as controller:
        token = await join_token(controller)
        async with raw_daemon(controller.url, "w", credential=token, instance="one") as daemon:
            key = key_of(daemon)
        for generation in (0, 1, 2, 99):
            forged = DaemonKey(key.uid, generation, bytes(32))
            assert refusal_of(await answer_to(controller.url, "w", forged)) == REFUSED
        answer = await answer_to(controller.url, "w", key, instance="one", connection_number=2)
        assert isinstance(answer, wire.Welcome)


async def test_a_hello_that_was_under_way_for_long_locks_nobody(tmp_path: Path) -> None:
    """It answers a challenge from before its successor used the next key, and may not even live any more."""
    async with guarded(tmp_path) as controller:
        url = controller.url
        token = await join_token(controller)
        async with raw_daemon(url, "w", credential=token, instance="one") as daemon:
            first = key_of(daemon)

        async def meanwhile() -> None:
            async with raw_daemon(
                url, "w", credential=first, instance="two", ancestors=("one",)
            ) as daemon:
                second = key_of(daemon)
            answer = await answer_to(
                *(url, "w", second),
                instance="two",
                connection_number=2,
                ancestors=("one",),
            )
            assert isinstance(answer, wire.Welcome)

        answer = await answer_to(
            url, "w", first, instance="one", connection_number=2, before_hello=meanwhile
        )
        assert refusal_of(answer)[0] is RejectCode.STALE
        assert [each.state.value for each in await controller.enrolled.list()] == ["active"]


async def test_a_login_costs_little_among_many(tmp_path: Path) -> None:
    """With 10,000 daemons under 5 ms of processor time, threads included: its proof, and its record on the disk."""
    count = 10_000
    async with guarded(tmp_path) as controller:
        gate = gate_of(controller)
        store = gate.store
        assert store is not None

        def fill(database: IdentityDatabase) -> None:
            with database._changing(durably=False):
                for number in range(count):
                    daemon = EnrolledDaemon(f"{number:032x}", f"w{number}", instance="one")
                    database._insert("daemons", daemon)

        await store.ask(fill)
        challenge = wire.Challenge(b"n" * 32, gate.controller_id)
        hellos = []
        for number in range(0, count, 50):
            uid = f"{number:032x}"
            key = DaemonKey(uid, 1, daemon_secret(store.master_key, uid, 1))
            hellos.append(answer_challenge(challenge, Identity(f"w{number}", "two"), 1, key))
        before = time.process_time()
        for hello in hellos:
            with gate.passes.issued() as given:
                assert None is await gate.admit_daemon(
                    given, greeting(challenge, hello), is_loopback=False, channel_binding=b""
                )
                assert given.enrolment is not None  # so the record was changed
        each = (time.process_time() - before) / len(hellos)
        assert each < 0.005, f"{each * 1000:.2f} ms each"


# ---- leaving again -------------------------------------------------------------------------------


async def test_a_revoked_operator_is_out_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody looks whether something has changed; and isn't let in again. Others stay."""
    monkeypatch.setattr(gate_module, "LOOK_SECONDS", 1000.0)
    async with guarded(tmp_path) as controller:
        token, other = await operator_token(controller), await operator_token(controller)
        async with (
            raw_operator(controller, token) as (connection, answer),
            raw_operator(controller, other) as (stays, _),
        ):
            assert isinstance(answer, wire.Welcome)
            await controller.tokens.revoke(token.key_id)
            await ended(connection)
            assert "open" in repr(stays)
        async with raw_operator(controller, token) as (_, answer):
            assert refusal_of(answer) == (RejectCode.UNAUTHENTICATED, REFUSED_OPERATOR.message)


async def test_nobody_takes_all_the_room_for_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one token somebody has at most as many connections as are left for others."""
    monkeypatch.setattr(operators, "MAX_OPERATORS", 8)
    async with guarded(tmp_path) as controller, contextlib.AsyncExitStack() as stack:
        greedy = await operator_token(controller, "greedy", role="viewer")

        async def come(credential: Credential) -> object:
            _, answer = await stack.enter_async_context(raw_operator(controller, credential))
            return answer

        answers = [await come(greedy) for _ in range(8)]
        let_in = [answer for answer in answers if isinstance(answer, wire.Welcome)]
        assert len(let_in) == 4
        assert refusal_of(answers[-1])[0] is RejectCode.BUSY
        assert isinstance(await come(await operator_token(controller, "other")), wire.Welcome)
        for _ in range(3):  # whose all of it is
            owner = SharedSecret((tmp_path / "operator.token").read_bytes().strip())
            assert isinstance(await come(owner), wire.Welcome)
        assert refusal_of(await come(owner))[0] is RejectCode.BUSY


@pytest.mark.parametrize("question", ["version", "invalid"])
async def test_records_that_cant_be_read_end_nothing(
    question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so, once; and what has been done meanwhile is noticed when they can be."""
    failures = 0
    monkeypatch.setattr(gate_module, "LOOK_SECONDS", 0.02)
    async with guarded(tmp_path) as controller:
        token = await operator_token(controller)
        async with raw_operator(controller, token) as (connection, _):
            with monkeypatch.context() as patch:

                def fail(*_: object) -> None:
                    nonlocal failures
                    failures += 1
                    raise sqlite3.OperationalError("disk I/O error")

                patch.setattr(IdentityDatabase, question, fail)
                with contextlib.closing(open_database(tmp_path)) as database:
                    database.revoke(token.key_id, 0.0)
                while failures < 3:
                    await trio.sleep(0.01)
                assert "open" in repr(connection)
            await ended(connection)
    assert caplog.text.count("records_unreadable") == 1


async def test_another_program_puts_somebody_out_within_a_second(tmp_path: Path) -> None:
    """What it does to the file is noticed: to an operator's token, and to a daemon."""
    assert gate_module.LOOK_SECONDS <= 0.5
    async with guarded(tmp_path) as controller:
        token, join = await operator_token(controller), await join_token(controller, uses=2)
        async with (
            raw_operator(controller, token) as (connection, _),
            raw_daemon(controller.url, "locked", credential=join) as locked,
            raw_daemon(controller.url, "forgotten", credential=join) as forgotten,
        ):
            with contextlib.closing(open_database(tmp_path)) as database:
                database.revoke(token.key_id, 0.0)
                database.lock(key_of(locked).uid)
                database.forget(key_of(forgotten).uid)
            await ended(connection)
            await ended(locked.connection)
            await ended(forgotten.connection)
        assert (
            refusal_of(await answer_to(controller.url, "locked", key_of(locked), instance="i"))[0]
            is RejectCode.LOCKED
        )
        answer = await answer_to(controller.url, "forgotten", key_of(forgotten), instance="i")
        assert refusal_of(answer) == REFUSED


async def test_a_token_that_expires_puts_its_operator_out(tmp_path: Path) -> None:
    """Though nobody has changed anything."""
    async with guarded(tmp_path) as controller:
        token = await operator_token(controller, expires_in=0.3)
        async with raw_operator(controller, token) as (connection, answer):
            assert isinstance(answer, wire.Welcome)
            await ended(connection)


async def test_who_is_locked_while_it_comes_in_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no moment in which that is overlooked."""
    async with guarded(tmp_path) as controller:
        token = await join_token(controller)
        async with raw_daemon(controller.url, "w", credential=token, instance="one") as daemon:
            key = key_of(daemon)
        admit = gate_module.Gate.admit_daemon

        async def locked_behind(*args: Any, **options: Any) -> Any:
            answer = await admit(*args, **options)
            await controller.enrolled.lock("w")
            return answer

        monkeypatch.setattr(gate_module.Gate, "admit_daemon", locked_behind)
        answer = await answer_to(controller.url, "w", key, instance="one", connection_number=2)
        assert refusal_of(answer) == REFUSED


# ---- operators -----------------------------------------------------------------------------------


async def test_an_operator_comes_by_its_token_as_whom_that_says(tmp_path: Path) -> None:
    """From Python, too."""
    async with guarded(tmp_path) as controller:
        made = await controller.tokens.create_operator("alice", role="runner")
        async with sandd.connect_controller(controller.url, token=made.text):
            (link,) = [link for link in _clients(controller) if link.client]
            assert (link.principal.name, link.principal.tenant) == ("alice", "default")
            assert link.principal.role.value == "runner"
        with pytest.raises(sandd.ConfigurationError, match="damaged"):
            async with sandd.connect_controller(controller.url, token=made.text[:-1]):
                pytest.fail("it isn't even dialled")
        await controller.tokens.revoke(made.info.id)
        with pytest.raises(sandd.AuthenticationFailed, match="no longer valid"):
            async with sandd.connect_controller(controller.url, token=made.text):
                pytest.fail("let in")


def _clients(controller: sandd.Controller) -> Any:
    return list(controller._service.router.clients)  # type: ignore[attr-defined]


async def test_whatever_is_wrong_with_an_operator_there_is_one_refusal(tmp_path: Path) -> None:
    """Missing, wrong, unknown, expired, revoked, or one for daemons to join."""
    async with guarded(tmp_path) as controller:
        good, revoked = await operator_token(controller), await operator_token(controller)
        await controller.tokens.revoke(revoked.key_id)
        expired = await operator_token(controller, expires_in=0.001)
        join = attrs.evolve(await join_token(controller), kind=TokenKind.OPERATOR)
        await trio.sleep(0.01)  # longer than one of them is valid
        wrong = (
            *(None, SharedSecret(b"wrong"), attrs.evolve(good, secret=bytes(32))),
            *(Token.new(TokenKind.OPERATOR), revoked, expired, join),
        )
        for credential in wrong:
            async with raw_operator(controller, credential) as (_, answer):
                assert refusal_of(answer) == (RejectCode.UNAUTHENTICATED, REFUSED_OPERATOR.message)
        async with raw_operator(controller, good) as (_, answer):
            assert isinstance(answer, wire.Welcome)


async def test_a_client_can_not_come_under_anothers_name(tmp_path: Path) -> None:
    """It would end that one's jobs, and its connection: names are bound to tokens."""
    async with guarded(tmp_path) as controller:
        mallory, alice = await operator_token(controller), await operator_token(controller)
        async with raw_operator(controller, alice) as (connection, answer):
            assert isinstance(answer, wire.Welcome)
            (link,) = [link for link in _clients(controller) if link.client]
            async with raw_operator(controller, mallory, client=link.client, number=9) as (
                _,
                answer,
            ):
                assert refusal_of(answer)[0] is RejectCode.BAD_HELLO
            assert "open" in repr(connection)


# ---- before anything is proven ------------------------------------------------------------------


MESSAGES: list[wire.Control] = [
    wire.Challenge(b"n", "c"), wire.Welcome(1), wire.Reject(RejectCode.BUSY),
    wire.Ping(1), wire.Pong(1), wire.Goodbye("x"),
    wire.DaemonStatus("d", wire.DaemonState.ONLINE), wire.DaemonCloned("d", "i"), wire.DaemonsTold(),
    wire.AskStatistics(1), wire.Statistics(1),
    wire.Attach("d", "j", "c", spec=b"x"), wire.Attached(), wire.Refused(wire.RefusedCode.DENIED),
    wire.Away(), wire.Taken(), wire.Detach(), wire.Flush(), wire.Window(()), wire.End("d", "j"),
    wire.Hello(1, "d", "i", 1), wire.OperatorHello(1, "c", 1),
]  # fmt: skip


@pytest.mark.parametrize("path", ["/ws", "/operator"])
async def test_nothing_but_a_hello_is_heard_before_authentication(
    tmp_path: Path, path: str
) -> None:
    """Every other message ends the connection by 1008, and has no effect; so does a Hello of the other kind."""
    assert {type(message) for message in MESSAGES} == wire.CONTROL_TAGS.keys()
    hello = wire.Hello if path == "/ws" else wire.OperatorHello
    async with guarded(tmp_path, token="shared") as controller:
        before = len(_clients(controller))
        for message in MESSAGES:
            for channel in (0, 1):
                async with connect(f"ws://{controller.address}{path}", **OPTIONS) as connection:
                    await receive_control(connection)
                    head, body = wire.encode_control(channel, message)
                    await connection.send_message(head + body)
                    if isinstance(message, hello) and channel == 0:
                        assert refusal_of(await receive_control(connection))
                    assert await ended(connection) == 1008, message
        async with connect(f"ws://{controller.address}{path}", **OPTIONS) as connection:
            await receive_control(connection)
            await connection.send_message(b"".join(wire.encode_data(1, wire.Stream.INPUT, 0, b"x")))
            assert await ended(connection) == 1008
        assert controller.daemons() == []
        assert len(_clients(controller)) == before


# ---- without a store ----------------------------------------------------------------------------


async def test_without_a_state_directory_nobody_joins(tmp_path: Path) -> None:
    """A controller that keeps nothing has no tokens to offer, and knows none."""
    with trio.fail_after(10):
        async with sandd.open_controller(port=0) as controller:
            with pytest.raises(sandd.ConfigurationError, match="state_dir"):
                _ = controller.tokens
            with pytest.raises(sandd.ConfigurationError, match="state_dir"):
                _ = controller.enrolled
            for credential in (Token.new(TokenKind.JOIN), DaemonKey("u", 1, b"s")):
                assert refusal_of(await answer_to(controller.url, "w", credential)) == REFUSED
            assert isinstance(await answer_to(controller.url, "w", None), wire.Welcome)


async def test_without_a_token_only_loopback_is_trusted() -> None:
    """Anybody else is told how to configure one; `insecure` is the explicit way out."""
    hello = greeting(wire.Challenge(b"nonce", "c"), wire.Hello(1, "d", "i", 1))

    async def judged(gate: gate_module.Gate, *, is_loopback: bool) -> Any:
        with gate.passes.issued() as given:
            return await gate.admit_daemon(
                given, hello, is_loopback=is_loopback, channel_binding=b""
            )

    assert await judged(gate_module.Gate(), is_loopback=True) is None
    assert await judged(gate_module.Gate(insecure=True), is_loopback=False) is None
    code, text = refusal_of(await judged(gate_module.Gate(), is_loopback=False))
    assert code is RejectCode.UNAUTHENTICATED
    for words in ("loopback only", "token=", "--token-file", "insecure=True"):
        assert words in text


async def test_no_pass_outlives_its_connection(tmp_path: Path) -> None:
    """Whether it was let in or not."""
    async with guarded(tmp_path) as controller:
        token = await join_token(controller)
        async with raw_daemon(controller.url, "w", credential=token):
            assert len(gate_of(controller).passes) == 1
        await answer_to(controller.url, "x", token)
        with trio.fail_after(5):
            while len(gate_of(controller).passes):
                await trio.sleep(0.01)


# ---- what is told -------------------------------------------------------------------------------


def logged(state_dir: Path, kind: str) -> list[dict[str, Any]]:
    """What the audit log says of that type."""
    text = "".join(path.read_text() for path in sorted((state_dir / "audit").glob("*.jsonl")))
    return [each for each in map(json.loads, text.splitlines()) if each["type"] == kind]


async def test_what_commands_have_changed_is_in_the_audit_log(tmp_path: Path) -> None:
    """While no controller runs, or one without a log, it waits; each is told once, with who did it and when."""

    def change(name: str) -> None:
        made = attrs.evolve(token_changed("created", name, "join", "acme"), actor="local:eve")
        with contextlib.closing(open_database(tmp_path)) as database:
            with database.journaled(made.fields, 12.5):
                pass
            assert database.changes(0)

    change("before")
    async with guarded(tmp_path):
        await trio.sleep(0.02)
    async with guarded(tmp_path, audit=True):
        while len(logged(tmp_path, "token")) < 1:
            await trio.sleep(0.01)
        await trio.to_thread.run_sync(change, "meanwhile")
        while len(logged(tmp_path, "token")) < 2:
            await trio.sleep(0.01)
        with contextlib.closing(open_database(tmp_path)) as database:
            while database.changes(0):
                await trio.sleep(0.01)
            with database.journaled({"result": 1}, 0.0):  # by somebody who knows no better
                pass
        while len(logged(tmp_path, "token")) < 3:
            await trio.sleep(0.01)
    *told, other = logged(tmp_path, "token")
    assert [each["result"] for each in told] == [
        {"token": name, "done_at": 12.5} for name in ("before", "meanwhile")
    ]
    assert {(each["actor"], each["tenant"]) for each in told} == {("local:eve", "acme")}
    assert "can't be read" in other["reason"]


async def test_a_log_that_hangs_keeps_nobody_in_who_was_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What commands do takes effect, though it can't be told of; and is told when it can."""
    disk = threading.Event()
    monkeypatch.setattr(gate_module, "LOOK_SECONDS", 0.02)
    real_sync = segments._sync

    def sync(descriptor: int) -> None:
        assert disk.wait(LIMIT)
        real_sync(descriptor)

    async with guarded(tmp_path, audit=True) as controller:
        token = await operator_token(controller)
        async with raw_operator(controller, token) as (connection, _):
            monkeypatch.setattr(segments, "_sync", sync)
            try:
                revoked = token_changed("revoked", token.key_id, "token", None)
                with contextlib.closing(open_database(tmp_path)) as database:
                    with database.journaled(revoked.fields, 0.0):
                        assert database.revoke(token.key_id, 0.0)
                await ended(connection)
            finally:
                disk.set()
        while not any(each["outcome"] == "revoked" for each in logged(tmp_path, "token")):
            await trio.sleep(0.01)


async def test_who_cant_be_put_on_record_is_told_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The controller goes on, and its log says why; a daemon by the key that it has used is let in."""

    def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with guarded(tmp_path) as controller:
        url = controller.url
        join = await join_token(controller, uses=2)
        token = await operator_token(controller)
        async with raw_daemon(url, "w", credential=join, instance="one") as daemon:
            key = key_of(daemon)
        await answer_to(url, "w", key, instance="one", connection_number=2)
        with monkeypatch.context() as patch:
            patch.setattr(IdentityDatabase, "_login", fail)
            patch.setattr(IdentityDatabase, "join", fail)
            answer = await answer_to(url, "w", key, instance="two")
            assert isinstance(answer, wire.Welcome)
            assert answer.enrolment is None
            code, text = refusal_of(await answer_to(url, "x", join))
            assert (code, "its disk is full" in text) == (RejectCode.BUSY, True)
            patch.setattr(IdentityDatabase, "token", fail)
            async with raw_operator(controller, token) as (_, refused):
                assert refusal_of(refused)[0] is RejectCode.BUSY
        async with raw_daemon(url, "w", credential=key, instance="two", connection_number=2) as d:
            assert key_of(d).generation == key.generation + 1
    assert "login_not_recorded" in caplog.text
    assert "records_unusable" in caplog.text


async def test_the_audit_log_has_who_was_let_in_and_by_what(tmp_path: Path) -> None:
    """Tokens made and revoked, who joined, who was locked and why; and no secret of any of them."""
    async with guarded(tmp_path, audit=True) as controller:
        url = controller.url
        token = await join_token(controller, tenant="acme")
        async with raw_daemon(url, "w", credential=token, instance="original") as daemon:
            first = key_of(daemon)
        async with raw_daemon(url, "w", credential=first, instance="copy") as daemon:
            second = key_of(daemon)
        await answer_to(url, "w", second, instance="copy", connection_number=2)
        await answer_to(url, "w", first, instance="original", connection_number=2)
        await controller.enrolled.forget("acme/w")
        await controller.tokens.revoke(token.key_id)
    text = "".join(path.read_text() for path in (tmp_path / "audit").glob("*.jsonl"))
    told = [json.loads(line) for line in text.splitlines()]
    tokens = [each for each in told if each["type"] == "token"]
    assert [each["outcome"] for each in tokens] == [
        *("created", "joined", "locked", "forgotten", "revoked")
    ]
    assert tokens[1]["result"]["daemon"] == tokens[2]["daemon"] == "acme/w"
    assert "copied" in tokens[2]["reason"]
    came = [each for each in told if each["type"] == "connection"]
    assert {(each["tenant"], each["daemon"]) for each in came} == {("acme", "acme/w")}
    assert token.text[16:] not in text
