"""Secrets are masked: whole, wherever they lie across pieces, and nothing else is."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandd._core.audit.redaction import MASK, Redactor, secrets_in, without

TOKEN = "sdj_" + "0aZ" * 22
PIECES = st.lists(st.integers(1, 7), min_size=1, max_size=60)
TEXTS = st.lists(
    st.sampled_from(
        ["s", "sd", "secret", "secrets", "crets-", "ecr", "x", TOKEN, "sdo_", "\n", "tsecre"]
    ),
    max_size=12,
).map("".join)


def in_pieces(redactor: Redactor, data: bytes, sizes: list[int]) -> bytes:
    """What a stream shows of it, piece by piece."""
    stream = redactor.stream()
    shown, position, turn = b"", 0, 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        shown += stream.feed(data[position : position + size])
        position, turn = position + size, turn + 1
    return shown + stream.finish()


@given(TEXTS, PIECES)
@example("secretsecrets-crets-", [1])
def test_pieces_make_no_difference(text: str, sizes: list[int]) -> None:
    """However a stream is cut, what is shown is what would be of the whole."""
    redactor = Redactor(["secret", "secrets-crets", "crets-"])
    whole = redactor.text(text)
    assert in_pieces(redactor, text.encode(), sizes).decode() == whole
    assert "secret" not in whole
    assert "crets-" not in whole


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_secret_over_two_pieces_is_masked(cut: int) -> None:
    """Of neither half anything is shown before it is known what it is."""
    stream = Redactor(["hunter2hunter"]).stream()
    first = stream.feed(b"password: hunter2hunter"[: 10 + cut])
    assert first == b"password: "
    assert stream.feed(b"hunter2hunter"[cut:] + b"\n") == MASK.encode() + b"\n"
    assert stream.finish() == b""


def test_secrets_may_be_learned_later() -> None:
    """A stream that has begun knows them, too, across its pieces."""
    redactor = Redactor(["short1"])
    stream = redactor.stream()
    assert stream.feed(b"short") == b""
    redactor.learn(["hunter2hunter"])
    assert stream.feed(b"1 hunter2") == MASK.encode() + b" "
    assert stream.feed(b"hunter") == MASK.encode()
    assert json.loads(redactor.line({"argv": ["hunter2hunter"]})) == {"argv": [MASK]}


def test_what_only_begins_like_a_secret_is_shown() -> None:
    """As soon as it is known, or there is no more to come."""
    stream = Redactor(["hunter2hunter"]).stream()
    assert stream.feed(b"hunt") == b""
    assert stream.feed(b"ing") == b"hunting"
    assert stream.feed(b"hunter2") == b""
    assert stream.finish() == b"hunter2"


def test_tokens_are_known_by_their_form() -> None:
    """Nobody has to say which there are; a word that only looks like one stays."""
    redactor = Redactor()
    assert redactor.text(f"--token={TOKEN} sdj_short") == f"--token={MASK} sdj_short"
    assert in_pieces(redactor, f"a {TOKEN} b".encode(), [3]).decode() == f"a {MASK} b"


def test_short_secrets_are_none() -> None:
    """A password of three letters would mask half of all words, and tell itself by that."""
    assert Redactor(["abc", b"", "12345"]).text("abcdef 12345") == "abcdef 12345"


def test_secrets_are_found_at_any_depth() -> None:
    """In all that JSON is made of; what isn't text stays what it is."""
    redactor = Redactor([b"s3cr3t\xff!"])
    value = {"a": ["s3cr3t\udcff!", 1, None, {"b": ("x", True)}], "c": 1.5}
    assert redactor.value(value) == {"a": [MASK, 1, None, {"b": ["x", True]}], "c": 1.5}


def test_special_characters_are_only_characters() -> None:
    """A secret is no pattern."""
    redactor = Redactor([".*.*.*", "(((((("])
    assert redactor.text("harmless ((((((") == f"harmless {MASK}"


def test_variables_are_secret_by_their_name() -> None:
    """What is called a token or a password there is one wherever else it stands."""
    variables = {
        b"API_TOKEN": b"t0k3n-t0k3n",
        b"db_password": b"passpass",
        b"PATH": b"/usr/bin:/bin",
        b"MY_SECRET": b"short",
    }
    assert sorted(secrets_in(variables)) == [b"passpass", b"t0k3n-t0k3n"]


def test_what_it_knows_is_not_shown() -> None:
    """Not by a repr either, which a log may have."""
    assert not re.search("hunter", repr(Redactor(["hunter2hunter"])))


def test_a_secret_of_several_lines_is_masked_line_by_line() -> None:
    """A terminal shows them with other ends than the file had that they are from."""
    key = "-----BEGIN KEY-----\nMIIEvQIBADAN\nabc\n-----END KEY-----\n"
    assert (
        Redactor([key]).text(key.replace("\n", "\r\n")) == f"{MASK}\r\n{MASK}\r\nabc\r\n{MASK}\r\n"
    )


def test_a_long_secret_leaves_nothing() -> None:
    """Whatever its length, no part of it is left over, and little of a stream is held back."""
    for length in (255, 256, 257, 1000, 100_003):
        secret = "".join(chr(33 + number * number % 90) for number in range(length))
        redactor = Redactor([secret])
        assert redactor.text(f"<{secret}>").replace(MASK, "") == "<>"
        assert max(map(len, redactor.pieces)) <= 256


@pytest.mark.parametrize(
    "secret",
    ['quo"ted\\slash', "umläut-ßecret", "tab\tand more", "\x7f\x7f\x7f\x7f\x7f\x7f", "🙂🙂🙂🙂"],
)
def test_a_secret_is_found_as_json_writes_it(secret: str) -> None:
    """Escapes hide nothing from the look at a whole line."""
    line = Redactor([secret]).line({"argv": [f"a {secret} b"]})
    assert json.loads(line) == {"argv": [f"a {MASK} b"]}


def test_few_secrets_are_left_out_of_one_record() -> None:
    """Those of its own environment, wherever they stand in it."""
    assert without(
        {"a": ["x open sesame", 7], "b": "\\xffbytes!"}, [b"open sesame", b"\xffbytes!"]
    ) == {
        "a": [f"x {MASK}", 7],
        "b": MASK,
    }


def test_secret_variables_are_bounded() -> None:
    """Whoever gives thousands costs no more than who gives some."""
    variables = {b"TOKEN_%d" % number: b"secret-%d" % number for number in range(5000)}
    assert len(secrets_in(variables)) == 64
