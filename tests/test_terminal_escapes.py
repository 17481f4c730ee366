"""``~.`` and its like: recognised where OpenSSH does, and the same however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd.terminal.escapes import HELP, Escape, Escapes

TYPED = st.lists(st.sampled_from([*b"~~~.d?\r\nx\x1a\x00\xff"]), max_size=40).map(bytes)
CUTS = st.lists(st.integers(0, 40), max_size=12)


def joined(said: list[bytes | Escape]) -> list[bytes | Escape]:
    """The same, with bytes that stand together in one piece."""
    whole: list[bytes | Escape] = []
    for each in said:
        if whole and isinstance(each, bytes) and isinstance(whole[-1], bytes):
            whole[-1] += each
        else:
            whole.append(each)
    return whole


def by_openssh(typed: bytes) -> list[bytes | Escape]:
    """The same by clientloop.c, line by line: `last_was_cr` and `escape_pending`."""
    said: list[bytes | Escape] = []
    last_was_cr, escape_pending = True, False
    keys = {ord("."): Escape.LEAVE, ord("d"): Escape.DETACH, ord("?"): Escape.HELP}
    keys[0x1A] = Escape.SUSPEND
    for ch in typed:
        if escape_pending:
            escape_pending = False
            if ch in keys:
                said.append(keys[ch])
                if keys[ch] is Escape.LEAVE:
                    break
                continue
            if ch != ord("~"):
                said.append(b"~")
        elif last_was_cr and ch == ord("~"):
            escape_pending = True
            continue
        last_was_cr = ch in b"\r\n"
        said.append(bytes([ch]))
    return said


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        pytest.param(b"~.", [Escape.LEAVE], id="at-the-beginning"),
        pytest.param(b"ls\r~.", [b"ls\r", Escape.LEAVE], id="after-CR"),
        pytest.param(b"ls\n~.", [b"ls\n", Escape.LEAVE], id="after-LF"),
        pytest.param(b"~.more", [Escape.LEAVE], id="nothing-after-it"),
        pytest.param(b"ls ~.", [b"ls ~."], id="in-mid-line"),
        pytest.param(b"~~.", [b"~."], id="two-are-one"),
        pytest.param(b"~~~.", [b"~~."], id="one-is-enough"),
        pytest.param(b"~/bin\r", [b"~/bin\r"], id="a-path"),
        pytest.param(b"~\r~.", [b"~\r", Escape.LEAVE], id="a-tilde-alone"),
        pytest.param(b"~?~d", [Escape.HELP, Escape.DETACH], id="the-line-has-not-begun"),
        pytest.param(b"~d.", [Escape.DETACH, b"."], id="detach"),
        pytest.param(b"~\x1als", [Escape.SUSPEND, b"ls"], id="suspend"),
        pytest.param(b"~", [], id="pending"),
        pytest.param(b"\x03\x1a\x00\xff", [b"\x03\x1a\x00\xff"], id="everything-else"),
    ],
)
def test_escapes_are_openssh_s(typed: bytes, expected: list[bytes | Escape]) -> None:
    """Recognised at the beginning and after a newline, and nowhere else."""
    assert Escapes().feed(typed) == expected


@given(TYPED)
def test_escapes_agree_with_openssh(typed: bytes) -> None:
    """Whatever is typed means what clientloop.c would make of it."""
    assert joined(Escapes().feed(typed)) == joined(by_openssh(typed))


@given(TYPED, CUTS)
def test_escapes_are_the_same_however_they_are_cut(typed: bytes, cuts: list[int]) -> None:
    """Where the pieces end has no meaning."""
    machine = Escapes()
    ends = sorted({0, len(typed), *(min(cut, len(typed)) for cut in cuts)})
    said = [each for start, end in pairwise(ends) for each in machine.feed(typed[start:end])]

    assert joined(said) == joined(Escapes().feed(typed))


@given(TYPED)
def test_nothing_is_held_back_but_a_tilde(typed: bytes) -> None:
    """After each key the session has all of it, but for one ``~`` that may begin an escape."""
    machine, sent = Escapes(), b""
    for position, byte in enumerate(typed, start=1):
        sent += b"".join(each for each in machine.feed(bytes([byte])) if isinstance(each, bytes))
        whole = [each for each in by_openssh(typed[:position] + b"x") if isinstance(each, bytes)]
        if machine.left:
            break
        # What OpenSSH has sent once the next key is known, without that key and one tilde.
        assert b"".join(whole)[:-1] in (sent, sent + b"~")


def test_help_names_every_escape() -> None:
    """``~?`` lists what there is."""
    for escape in Escape:
        key = "^Z" if escape is Escape.SUSPEND else chr(escape.value)
        assert f"~{key} " in HELP
