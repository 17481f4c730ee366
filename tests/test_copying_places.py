"""Which argument of ``sandd cp`` is whose, and what each copy is to be called."""

from __future__ import annotations

import pytest

from sandd.copying.places import BadUse, Kind, Order, Place, Refused, System, Targets

POSIX, WINDOWS = System(windows=False), System(windows=True)


@pytest.mark.parametrize(
    ("text", "system", "place"),
    [
        pytest.param("f", POSIX, (None, "f"), id="plain"),
        pytest.param("w:/etc/hosts", POSIX, ("w", "/etc/hosts"), id="remote"),
        pytest.param("w:rel/f", POSIX, ("w", "rel/f"), id="remote-relative"),
        pytest.param("w:", POSIX, ("w", "."), id="remote-top"),
        pytest.param("w:a:b", POSIX, ("w", "a:b"), id="remote-with-colon"),
        pytest.param(r"w:C:\x", POSIX, ("w", r"C:\x"), id="remote-drive"),
        pytest.param("./a:b", POSIX, (None, "./a:b"), id="local-with-colon"),
        pytest.param("/a:b", POSIX, (None, "/a:b"), id="local-absolute-with-colon"),
        pytest.param("C:/x", POSIX, ("C", "/x"), id="no-drives-here"),
        pytest.param("C:/x", WINDOWS, (None, "C:/x"), id="drive"),
        pytest.param("c:x", WINDOWS, (None, "c:x"), id="drive-relative"),
        pytest.param(r".\a:b", WINDOWS, (None, r".\a:b"), id="backslash-before-colon"),
        pytest.param("worker:/x", WINDOWS, ("worker", "/x"), id="remote-on-windows"),
    ],
)
def test_a_colon_before_any_slash_makes_a_path_a_daemons(
    text: str, system: System, place: tuple[str | None, str]
) -> None:
    """As for scp; on Windows a single letter is a drive. Written out again it means the same."""
    parsed = Place.parse(text, system)
    assert (parsed.daemon_id, parsed.path) == place
    assert Place.parse(str(parsed), system) == parsed


@pytest.mark.parametrize(
    ("arguments", "daemon_id", "uploads", "sources", "destination"),
    [
        pytest.param(["f", "w:g"], "w", True, ("f",), "g", id="up"),
        pytest.param(["f", "d", "w:/dir"], "w", True, ("f", "d"), "/dir", id="several-up"),
        pytest.param(["w:f", "g"], "w", False, ("f",), "g", id="down"),
        pytest.param(["w:f", "w:d", "."], "w", False, ("f", "d"), ".", id="several-down"),
    ],
)
def test_one_side_is_a_daemons(
    arguments: list[str], daemon_id: str, uploads: bool, sources: tuple[str, ...], destination: str
) -> None:
    """The other side is this machine's; each argument can be written as it was given."""
    order = Order.parse(arguments, POSIX)
    assert order == Order(daemon_id, uploads, sources, destination)
    assert [*map(order.source, sources), order.target(destination)] == arguments


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param(["a", "b"], "neither side is a daemon's: .*'a', 'b'", id="both-local"),
        pytest.param(["w:a", "v:b"], "'w:a' and 'v:b' are both a daemon's", id="both-remote"),
        pytest.param(["w:a", "b", "c"], "on one side: 'w:a', 'b'", id="mixed-sources"),
        pytest.param(["w:a", "v:b", "c"], "on one side: 'w:a', 'v:b'", id="two-daemons"),
        pytest.param([":a", "b"], r"no daemon's id .* '\./:a'", id="no-id"),
        pytest.param(["", "w:b"], "an empty path", id="empty"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: list[str], complaint: str) -> None:
    """With what is wrong and how to write it."""
    with pytest.raises(BadUse, match=complaint):
        Order.parse(arguments, POSIX)


@pytest.mark.parametrize(
    ("source", "source_system", "destination", "system", "target"),
    [
        pytest.param("a/f", POSIX, "d", POSIX, "d/f", id="name"),
        pytest.param("a/f/", POSIX, "d/", POSIX, "d/f", id="slashes"),
        pytest.param("a/.", POSIX, "d", POSIX, "d", id="dot"),
        pytest.param("..", POSIX, "d", POSIX, "d", id="dots"),
        pytest.param("/", POSIX, "d", POSIX, "d", id="root"),
        pytest.param(r"C:\a\f", WINDOWS, "/d", POSIX, "/d/f", id="from-windows"),
        pytest.param("C:f", WINDOWS, "/d", POSIX, "/d/f", id="from-a-drive"),
        pytest.param("C:\\", WINDOWS, "/d", POSIX, "/d", id="a-drive"),
        pytest.param("/a/f", POSIX, r"C:\d", WINDOWS, r"C:\d\f", id="to-windows"),
        pytest.param(r"a\b", POSIX, "/d", POSIX, r"/d/a\b", id="backslash-in-a-name"),
    ],
)
def test_a_copy_into_a_directory_has_the_name_of_its_source(
    source: str, source_system: System, destination: str, system: System, target: str
) -> None:
    """By the rules of each side's system; what has no name there gives its content to the directory."""
    targets = Targets(destination, Kind.DIRECTORY, source_system, system, several=False)
    assert targets.of(source, Kind.DIRECTORY, recursive=True) == target


@pytest.mark.parametrize("name", [r"a\b", r"..\b", "C:b", "file:stream"])
def test_a_name_that_would_lead_elsewhere_is_refused(name: str) -> None:
    """What is one name here may be several, or another drive, there: nothing is written."""
    targets = Targets(r"C:\d", Kind.DIRECTORY, POSIX, WINDOWS, several=False)
    with pytest.raises(Refused, match="name the copy"):
        targets.of(name, Kind.OTHER, recursive=False)


@pytest.mark.parametrize(
    ("destination", "there", "source", "outcome"),
    [
        pytest.param("new", Kind.ABSENT, Kind.OTHER, "new", id="file-new"),
        pytest.param("new", Kind.ABSENT, Kind.DIRECTORY, "new", id="directory-new"),
        pytest.param("new/", Kind.ABSENT, Kind.DIRECTORY, "new/", id="directory-new-slash"),
        pytest.param("new/", Kind.ABSENT, Kind.OTHER, None, id="file-new-slash"),
        pytest.param("old", Kind.OTHER, Kind.OTHER, "old", id="file-over-file"),
        pytest.param("old/", Kind.OTHER, Kind.OTHER, None, id="file-slash-over-file"),
        pytest.param("old/", Kind.OTHER, Kind.DIRECTORY, None, id="directory-slash-over-file"),
    ],
)
def test_what_is_no_directory_is_the_copy_itself(
    destination: str, there: Kind, source: Kind, outcome: str | None
) -> None:
    """A slash at its end says that it is a directory, and then it must be one, or become one."""
    targets = Targets(destination, there, POSIX, POSIX, several=False)
    if outcome is None:
        with pytest.raises(Refused, match="ends with a slash"):
            targets.of("f", source, recursive=True)
    else:
        assert targets.of("f", source, recursive=True) == outcome


def test_directories_are_copied_if_that_was_said() -> None:
    """Without -r none is, and -r is what it says."""
    with pytest.raises(Refused, match="-r copies those"):
        Targets("new", Kind.ABSENT, POSIX, POSIX, several=False).of(
            "d", Kind.DIRECTORY, recursive=False
        )


@pytest.mark.parametrize("kind", Kind)
def test_several_go_into_a_directory_only(kind: Kind) -> None:
    """One can't be the target of many."""
    targets = Targets("x", kind, POSIX, POSIX, several=True)
    if kind is Kind.DIRECTORY:
        targets.check()
    else:
        with pytest.raises(Refused, match="several sources need a directory"):
            targets.check()
