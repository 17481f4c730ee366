"""A proof is for one challenge, one claim, one channel and one secret; and tells nobody the secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd import wire
from sandd._core.identity.introductions import answer_as_operator, answer_challenge
from sandd._core.identity.proofs import (
    DaemonKey,
    SharedSecret,
    daemon_secret,
    proves_secret,
    proves_token,
    sign,
)
from sandd._core.identity.tokens import Token, TokenKind
from sandd._core.link import Identity

if TYPE_CHECKING:
    from sandd._core.identity.proofs import Credential

CHALLENGE = wire.Challenge(b"n" * 32, "controller-1")
IDENTITY = Identity("worker-1", "instance-1", {"env": "prod"}, "host", "linux", "x86_64", "1.0")
BINDING = b"b" * 32
MASTER = b"m" * 32
SHARED = SharedSecret(b"secret")
JOIN = Token.new(TokenKind.JOIN)
OPERATOR = Token.new(TokenKind.OPERATOR)
KEY = DaemonKey("uid", 3, daemon_secret(MASTER, "uid", 3))

CHANGES: dict[str, Any] = {
    "version": 2,
    "daemon_id": "worker-2",
    "client": "other",
    "name": "root@here",
    "instance": "instance-2",
    "connection": 4,
    "hostname": "elsewhere",
    "platform": "win32",
    "arch": "arm64",
    "daemon_version": "2.0",
    "labels": {"env": "dev"},
    "ancestors": ("instance-0",),
    "credential": wire.CredentialKind.OPERATOR,
    "key_id": "another",
    "generation": 7,
    "channel_binding": b"c" * 32,
    "isolation": wire.IsolationLevel.LANDLOCK,
    "isolation_levels": (wire.IsolationLevel.LANDLOCK,),
}
"""Another value of each field of a Hello."""


def hello_by(credential: Credential | None, binding: bytes = BINDING) -> wire.Hello:
    """What an honest daemon says."""
    return answer_challenge(CHALLENGE, IDENTITY, 3, credential, binding)


def is_proven(
    hello: wire.Hello | wire.OperatorHello,
    credential: Credential,
    challenge: wire.Challenge = CHALLENGE,
) -> bool:
    """What the controller says to it, that knows the credential."""
    if isinstance(credential, Token):
        return proves_token(hello, challenge, credential.digest)
    return proves_secret(hello, challenge, credential.secret)


@pytest.mark.parametrize("credential", [SHARED, JOIN, KEY], ids=["shared", "join", "key"])
def test_an_honest_daemon_proves_what_it_has(credential: Credential) -> None:
    """And says all that it was told to say of itself."""
    hello = hello_by(credential)
    assert is_proven(hello, credential)
    said = {field.name: getattr(hello, field.name) for field in attrs.fields(Identity)}
    assert Identity(**said) == IDENTITY
    assert (hello.version, hello.connection, hello.channel_binding) == (1, 3, BINDING)


def test_a_hello_says_by_what_it_is_proven() -> None:
    """The kind of the credential and which it is, and nothing of its secret."""
    kinds = wire.CredentialKind
    for credential, said in (
        (None, (kinds.SHARED, "", 0)),
        (SHARED, (kinds.SHARED, "", 0)),
        (JOIN, (kinds.JOIN, JOIN.key_id, 0)),
        (KEY, (kinds.KEY, "uid", 3)),
    ):
        hello = hello_by(credential)
        assert (hello.credential, hello.key_id, hello.generation) == said
        if credential is not None:
            encoded = b"".join(wire.encode_control(0, hello))
            assert credential.secret not in encoded
    operator = answer_as_operator(CHALLENGE, "c", 1, "me", OPERATOR, BINDING)
    assert (operator.credential, operator.key_id) == (kinds.OPERATOR, OPERATOR.key_id)
    assert is_proven(operator, OPERATOR)
    assert hello_by(None).proof == b""


def test_every_field_has_a_change() -> None:
    """The test below would pass over a new one."""
    fields = {each.name for cls in (wire.Hello, wire.OperatorHello) for each in attrs.fields(cls)}
    assert fields - {"proof"} == CHANGES.keys()


@pytest.mark.parametrize("field", CHANGES)
def test_a_proof_is_for_one_claim_only(field: str) -> None:
    """Who overhears a Hello can't say anything else with its proof, in no field of it."""
    hellos: list[tuple[wire.Hello | wire.OperatorHello, Credential]] = [
        *((hello_by(credential), credential) for credential in (SHARED, JOIN, KEY)),
        (answer_as_operator(CHALLENGE, "c", 1, "me", OPERATOR), OPERATOR),
    ]
    tried = 0
    for hello, credential in hellos:
        if hasattr(hello, field) and getattr(hello, field) != CHANGES[field]:
            tried += 1
            assert is_proven(hello, credential)
            forged = attrs.evolve(hello, **{field: CHANGES[field]})
            assert not is_proven(forged, credential)
    assert tried


@pytest.mark.parametrize("changes", [{"nonce": b"m" * 32}, {"controller_id": "controller-2"}])
@pytest.mark.parametrize("credential", [SHARED, JOIN, KEY], ids=["shared", "join", "key"])
def test_a_proof_is_for_one_challenge_only(credential: Credential, changes: dict[str, Any]) -> None:
    """Who overhears a Hello can't use it again, here or elsewhere."""
    other = attrs.evolve(CHALLENGE, **changes)
    assert not is_proven(hello_by(credential), credential, other)


def test_a_proof_is_by_one_secret_only() -> None:
    """Another's, an earlier generation's, a stolen digest, none or a piece of one prove nothing."""
    other = Token.new(TokenKind.JOIN)
    assert not is_proven(hello_by(JOIN), other)
    assert not is_proven(hello_by(SHARED), SharedSecret(b"secret\n"))
    earlier = DaemonKey("uid", 2, daemon_secret(MASTER, "uid", 2))
    assert not is_proven(hello_by(earlier), KEY)
    thief = attrs.evolve(JOIN, secret=JOIN.digest)  # all that a controller's store has
    assert not is_proven(hello_by(thief), JOIN)
    for proof in (b"", b"\0", b"x" * 31, b"x" * 64, hello_by(JOIN).proof[:-1]):
        for credential in (SHARED, JOIN, KEY):
            forged = attrs.evolve(hello_by(credential), proof=proof)
            assert not is_proven(forged, credential)


def test_a_proof_of_a_token_tells_its_secret_to_no_listener() -> None:
    """It is masked anew for each challenge."""
    first = hello_by(JOIN)
    again = answer_challenge(attrs.evolve(CHALLENGE, nonce=b"o" * 32), IDENTITY, 3, JOIN, BINDING)
    assert first.proof != again.proof
    assert JOIN.secret not in (first.proof, again.proof)


def test_fields_at_their_default_add_nothing() -> None:
    """So who doesn't know a field that a newer peer has, and that isn't used, has the same text."""
    plain = wire.Hello(1, "d", "i", 1)
    spelled_out = wire.Hello(1, "d", "i", 1, labels={}, ancestors=(), hostname="")
    credential = SharedSecret(b"x")
    assert (
        sign(plain, CHALLENGE, credential, b"").proof
        == sign(spelled_out, CHALLENGE, credential, b"").proof
    )


def test_every_generation_of_every_daemon_has_a_secret_of_its_own() -> None:
    """None of which tells another."""
    made = {
        daemon_secret(master, uid, generation)
        for master in (MASTER, b"o" * 32)
        for uid in ("uid", "uid2", "")
        for generation in (1, 2, 256)
    }
    assert len(made) == 18


words = st.text("a=\0", max_size=3)  # so few that they are often the same, but for where one ends
labels = st.dictionaries(words, words, max_size=3)
identities = st.builds(
    Identity,
    daemon_id=words,
    instance=words,
    labels=labels,
    hostname=words,
    ancestors=st.lists(words, max_size=3).map(tuple),
)


@given(identities, identities, st.integers(0, 3), st.integers(0, 3))
def test_no_two_claims_have_one_proof(
    first: Identity, second: Identity, first_connection: int, second_connection: int
) -> None:
    """Nothing can be moved from one part of a claim to the next; of a map the order doesn't count."""
    same = (first, first_connection) == (second, second_connection)
    proofs = {
        answer_challenge(CHALLENGE, first, first_connection, SHARED).proof,
        answer_challenge(CHALLENGE, second, second_connection, SHARED).proof,
    }
    assert (len(proofs) == 1) is same
