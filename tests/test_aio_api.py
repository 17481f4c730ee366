"""`sandd.aio` is the trio API: by the same names, with the same arguments, and documented."""

from __future__ import annotations

import asyncio
import inspect
import re
from typing import TYPE_CHECKING, Any

import pytest

import sandd
from sandd import aio

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

STREAM_NAMES = {"send_all", "receive_some", "wait_send_all_might_not_block", "is_readable"}
"""What trio's streams have and anyio's call otherwise, or don't have."""
INTERNAL = {"at_end", "ended_well", "abort", "wait_ended", "wait_connected", "close"}
"""Of streams: for `sandd._core` alone."""

CLASSES = [name for name in aio.__all__ if isinstance(getattr(aio, name), type)]


def public_members(kind: type) -> dict[str, object]:
    """Its members, inherited ones too, but for those of trio's and anyio's own classes."""
    return {
        name: inspect.getattr_static(kind, name)
        for name in dir(kind)
        if not name.startswith("_") and name not in STREAM_NAMES | INTERNAL
    }


@pytest.mark.parametrize("name", aio.__all__)
def test_every_name_is_that_of_the_trio_api(name: str) -> None:
    """And says what it is."""
    assert getattr(aio, name).__name__ == getattr(sandd, name).__name__ == name
    assert getattr(aio, name).__doc__


@pytest.mark.parametrize("name", CLASSES)
def test_every_member_is_there_with_the_same_arguments(name: str) -> None:
    """Whoever knows the one API knows the other."""
    ours = public_members(getattr(aio, name))
    for member, theirs in public_members(getattr(sandd, name)).items():
        assert member in ours, member
        assert isinstance(theirs, property) == isinstance(ours[member], property), member
        if inspect.isfunction(theirs) and member not in {"aclose", "send_eof"}:
            assert parameters(ours[member]) == parameters(theirs), member


@pytest.mark.parametrize("name", ["open_controller", "connect_controller"])
def test_controllers_are_opened_with_the_same_arguments(name: str) -> None:
    """With the same defaults, too."""
    assert parameters(getattr(aio, name)) == parameters(getattr(sandd, name))


def parameters(function: object) -> list[tuple[str, object, object]]:
    """Names, kinds and defaults."""
    assert callable(function)
    found = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default) for each in found]


@pytest.mark.parametrize("name", aio.__all__)
def test_no_documentation_is_of_trio(name: str) -> None:
    """What is said of errors and time-outs is said of anyio's; and every member has something to say."""
    value = getattr(aio, name)
    assert not re.search(r"\btrio\.", value.__doc__ or "")
    if isinstance(value, type) and name != "FileChange":
        for member, there in public_members(value).items():
            if member not in {"extra", "extra_attributes"}:  # of anyio's own
                assert there.__doc__, member
                assert not re.search(r"\btrio\.", there.__doc__), member


def test_it_comes_with_the_package() -> None:
    """As an attribute, without an import of its own."""
    assert "aio" in dir(sandd)
    assert sandd.aio is aio


@pytest.mark.parametrize(
    "block",
    [
        lambda: sandd.open_controller(port=0),
        lambda: sandd.connect_controller("ws://127.0.0.1", token="secret"),
    ],
    ids=["open", "connect"],
)
def test_the_trio_api_on_asyncio_names_it(block: Any) -> None:
    """Whoever took the wrong one of the two learns which is right, instead of how trio works inside."""

    async def enter(block: AbstractAsyncContextManager[object]) -> None:
        async with block:
            pytest.fail("it was opened")

    with pytest.raises(RuntimeError, match=r"API for trio.*on asyncio use .* sandd\.aio"):
        asyncio.run(enter(block()))
