"""What a daemon can be told of isolation, and what it says to what can't be."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandd._core._errors import ConfigurationError
from sandd._core.daemon_options import parse_daemon_options
from sandd._core.isolation.levels import strongest
from sandd._core.isolation.options import DEFAULT_UIDS, IsolationOptions
from sandd.wire import IsolationLevel

URL = ("--server-url", "ws://127.0.0.1:1/ws")


def parse(*arguments: str, **environment: str) -> IsolationOptions:
    """The options in force."""
    return parse_daemon_options(
        [*URL, *arguments], environment, prog="sandd-daemon", version="0"
    ).isolation


def test_nothing_said_is_no_isolation() -> None:
    """Then jobs are whoever the daemon is, as they were."""
    assert parse() == IsolationOptions()
    assert IsolationOptions().level is IsolationLevel.NONE


def test_all_of_it_can_be_said() -> None:
    """On the command line, and in the environment."""
    given = parse(
        *("--isolation", "bwrap", "--require-isolation", "--isolation-uids", "70000-70009"),
        *("--isolation-read", "/srv/a", "--isolation-read", "/srv/b", "--isolation-network", "off"),
        *("--workspaces", "/srv/w"),
    )
    expected = IsolationOptions(
        level=IsolationLevel.BWRAP,
        is_required=True,
        uids=(70_000, 70_009),
        readable=(Path("/srv/a"), Path("/srv/b")),
        has_network=False,
        workspaces=Path("/srv/w"),
    )
    assert given == expected
    assert expected == parse(
        SANDD_ISOLATION="bwrap",
        SANDD_REQUIRE_ISOLATION="true",
        SANDD_ISOLATION_UIDS="70000-70009",
        SANDD_ISOLATION_READ="/srv/a:/srv/b",
        SANDD_ISOLATION_NETWORK="off",
        SANDD_WORKSPACES="/srv/w",
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--isolation", "jail"), "not one of none, user, landlock, bwrap"),
        (("--isolation-uids", "0-10"), "of whom none is root"),
        (("--isolation-uids", "10-9"), "FIRST-LAST"),
        (("--isolation-uids", "5"), "FIRST-LAST"),
        (("--isolation-uids", "1-4294967295"), "FIRST-LAST"),
        (("--isolation-read", "relative"), "not an absolute path"),
        (("--isolation-read", "/"), "all there is"),
        (("--isolation-network", "maybe"), "neither true nor false"),
        (("--isolation", "user", "--root", "/"), "--root and --isolation"),
    ],
)
def test_what_can_not_be_is_told(arguments: tuple[str, ...], complaint: str) -> None:
    """In one line, with what it must be."""
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)


def test_the_default_users_are_nobodys() -> None:
    """They fit into a container that maps 65,536 users, and are not systemd's."""
    first, last = DEFAULT_UIDS
    assert 60_577 < first < last < 61_184


def test_levels_are_ordered() -> None:
    """Each is all before it; what asks for nothing changes nothing."""
    none, user, landlock, bwrap = IsolationLevel
    assert strongest([user, None, landlock]) is landlock
    assert strongest([bwrap, landlock, none]) is bwrap
    assert strongest([user, user]) is user
    assert strongest([]) is none
