"""A token as text: it comes back as it was, shows nothing of its secret, and tells when it was damaged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd import ConfigurationError
from sandd._core.identity.proofs import SharedSecret, read_credential
from sandd._core.identity.tokens import (
    ALPHABET,
    TOKEN_LENGTH,
    Token,
    TokenKind,
    client_prefix,
    is_client_of,
    parse_token,
)

tokens = st.builds(
    Token,
    kind=st.sampled_from(TokenKind),
    key_id=st.text(ALPHABET, min_size=12, max_size=12),
    secret=st.binary(min_size=32, max_size=32),
)


@given(tokens)
def test_a_token_is_what_its_text_says(token: Token) -> None:
    """Whatever its secret; and all texts have one length."""
    assert parse_token(token.text.encode(), token.kind) == token
    assert len(token.text) == TOKEN_LENGTH
    assert token.text.startswith(f"{token.kind.value}{token.key_id}")


@given(tokens, st.data())
def test_a_damaged_token_is_told(token: Token, data: st.DataObject) -> None:
    """Cut off, or with another character somewhere."""
    text = token.text
    cut = data.draw(st.integers(4, TOKEN_LENGTH - 1))
    place = data.draw(st.integers(4, TOKEN_LENGTH - 1))
    other = data.draw(st.sampled_from(ALPHABET.replace(text[place], "")))
    for damaged in (text[:cut], text[:place] + other + text[place + 1 :], text + "x"):
        with pytest.raises(ConfigurationError, match="damaged"):
            parse_token(damaged.encode(), token.kind)


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"", id="nothing"),
        pytest.param("é".encode() * 30 + b"x", id="no ASCII"),
        pytest.param(b"\xff" * 61, id="no text"),
        pytest.param(b"-" * 61, id="no digits"),
        pytest.param(b"z" * 61, id="too large a number"),
        pytest.param(b"0" * 100_000, id="too long"),
    ],
)
def test_no_token_at_all_is_told_in_a_line(rest: bytes) -> None:
    """Whatever follows the prefix, the answer is one line, and has nothing of it in it."""
    with pytest.raises(ConfigurationError, match="damaged") as caught:
        parse_token(b"sdj_" + rest, TokenKind.JOIN)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_a_token_of_the_other_kind_is_told() -> None:
    """An operator's token is none to join by, and the other way round."""
    join, operator = (
        Token.new(kind).text.encode() for kind in (TokenKind.JOIN, TokenKind.OPERATOR)
    )
    with pytest.raises(ConfigurationError, match="an operator's"):
        parse_token(operator, TokenKind.JOIN)
    with pytest.raises(ConfigurationError, match="for daemons to join"):
        parse_token(join, TokenKind.OPERATOR)
    assert read_credential(b"of our own choice", TokenKind.JOIN) == SharedSecret(
        b"of our own choice"
    )


def test_no_credential_shows_its_secret() -> None:
    """Neither in a log nor in a traceback; its key id is there, to know it by."""
    token = Token.new(TokenKind.OPERATOR)
    secret = token.text.removeprefix(f"{token.kind.value}{token.key_id}")
    for shown in (str(token), repr(token), f"{token!s:>80}"):
        assert token.key_id in shown
        assert secret[:8] not in shown
        assert repr(token.secret) not in shown
    assert "chosen" not in repr(SharedSecret(b"chosen"))


def test_no_two_tokens_are_the_same() -> None:
    """Neither their key ids nor their secrets, nor the names of their clients."""
    made = [Token.new(TokenKind.JOIN) for _ in range(100)]
    assert len({token.key_id for token in made}) == len({token.secret for token in made}) == 100
    one, other = made[:2]
    client = client_prefix(one.key_id) + "0123456789abcdef"
    assert is_client_of(client, one.key_id)
    assert not is_client_of(client, other.key_id)
    assert not is_client_of(client + "0", one.key_id)
    assert not is_client_of(client.upper().replace("0", "g"), one.key_id)
