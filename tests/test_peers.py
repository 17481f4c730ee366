"""The benchmarks' peers, in their smallest form, where their packages are installed: each does all that is measured."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

if sys.platform != "linux":
    pytest.skip("the peers need Linux", allow_module_level=True)

from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import TextMessage

from benchmarks.peers import __main__ as program
from benchmarks.peers import contestants as who
from benchmarks.peers import frames
from benchmarks.peers.figures import (
    Section,
    at_least,
    at_most,
    columns,
    figure,
    sections_of,
    told,
)
from benchmarks.peers.hosting import share_out
from benchmarks.peers.works.turns import in_turns
from benchmarks.report import Machine, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.peers.contestants import Contestant

MB = 1_000_000


def skip_unless_here(name: str) -> None:
    """Skip the test where this peer can't be had."""
    if reason := who.missing().get(name):
        pytest.skip(reason)


def run_commands(contestant: Contestant) -> None:
    """What everybody can do who runs commands for a controller."""
    answer = contestant.ask("exec", count=2)
    assert len(answer.value) == 2
    assert answer.cpu > 0
    assert contestant.ask("many", count=4, in_flight=2).value > 0
    write = f"head -c {MB} /dev/zero | tr '\\0' x"
    assert contestant.ask("output", command=write, size=MB).value > 0


def use_session(contestant: Contestant) -> None:
    """Keystrokes, also beside a command that writes."""
    assert len(contestant.ask("type", count=2).value) == 2
    contestant.ask("load", command=f"head -c {MB} /dev/zero | tr '\\0' x")
    assert len(contestant.ask("type", count=2).value) == 2
    contestant.ask("load", command=None)


def copy_files(contestant: Contestant, directory: Path) -> None:
    """One file each way."""
    source = directory / "source"
    source.write_bytes(bytes(100_000))
    for way in ("upload", "download"):
        target = directory / way
        assert contestant.ask(way, source=str(source), target=str(target)).value > 0
        assert target.read_bytes() == source.read_bytes()


def copy_tree(contestant: Contestant, directory: Path, way: str = "upload_tree") -> None:
    """A directory up."""
    (directory / "tree").mkdir(exist_ok=True)
    (directory / "tree" / "file").write_bytes(b"x")
    target = directory / way
    assert contestant.ask(way, source=str(directory / "tree"), target=str(target)).value > 0
    assert [each.name for each in target.rglob("*")] == ["file"]


def test_ours_do_all_the_works(tmp_path: Path) -> None:
    """They are asked as the peers are."""
    with who.open_contestants(who.OURS) as (ours,):
        run_commands(ours)
        use_session(ours)
        copy_files(ours, tmp_path)
        copy_tree(ours, tmp_path)
        assert ours.ask("stream", command="echo hello", size=6).value > 0


def test_ours_run_commands_on_a_bare_daemon() -> None:
    """As the original's are run on its stand-in."""
    with who.open_contestants(who.OURS_BARE) as (ours,):
        assert len(ours.ask("exec", count=2).value) == 2
        assert ours.ask("many", count=4, in_flight=2).value > 0
        assert ours.ask("output", command="echo hello; echo not >&2", size=6).value > 0


def test_ours_do_it_over_tls_and_so_does_a_plain_copy(tmp_path: Path) -> None:
    """Both copy the same file."""
    with who.open_contestants(who.OURS_TLS, who.RAW_TLS) as everybody:
        for each in everybody:
            (tmp_path / each.name).mkdir()
            copy_files(each, tmp_path / each.name)


@pytest.mark.parametrize("name", [who.ORIGINAL, who.ORIGINAL_AT_ONCE])
def test_original_does_its_works(name: str) -> None:
    """Its server is the one from PyPI, and the daemon our stand-in, of either kind."""
    skip_unless_here(who.ORIGINAL)
    with who.open_contestants(name) as (original,):
        run_commands(original)
        use_session(original)


def test_asyncssh_does_its_works(tmp_path: Path) -> None:
    """Server and client are each a process."""
    skip_unless_here(who.ASYNCSSH)
    with who.open_contestants(who.ASYNCSSH) as (asyncssh,):
        run_commands(asyncssh)
        use_session(asyncssh)
        copy_files(asyncssh, tmp_path)
        copy_tree(asyncssh, tmp_path)


def test_openssh_does_its_works(tmp_path: Path) -> None:
    """With keys of its own, on loopback."""
    skip_unless_here(who.OPENSSH)
    with who.open_contestants(who.OPENSSH) as (openssh,):
        use_session(openssh)
        copy_files(openssh, tmp_path)
        copy_tree(openssh, tmp_path)
        copy_tree(openssh, tmp_path, "pipe_tree")


@pytest.mark.parametrize("name", [who.OURS, who.OURS_BARE, who.ORIGINAL, who.STOCK])
def test_a_crowd_connects_and_is_idle(name: str) -> None:
    """Its memory and processor time are those of the controller's process."""
    skip_unless_here(name)
    with who.open_crowds(3, name) as (crowd,):
        assert crowd.ask("memory").value > 1_000
        assert crowd.ask("connect").value > 0
        assert crowd.ask("idle", seconds=0.01).cpu >= 0
        if name != who.STOCK:
            assert crowd.ask("broadcast").value > 0


def test_a_work_that_fails_says_what_the_driver_said() -> None:
    """The driver goes on."""
    with (
        who.open_crowds(1, who.STOCK) as (stock,),
        pytest.raises(RuntimeError, match="unexpected keyword argument 'colour'"),
    ):
        stock.ask("connect", colour="red")


def test_floors_are_asked_as_peers_are() -> None:
    """Whatever they are compared with."""
    floor = who.Local()
    assert floor.ask("output", command="echo hello", size=6).value > 0
    assert floor.ask("stream", command="echo hello", size=6).value > 0
    assert len(floor.ask("type", count=2).value) == 2


def test_everybody_takes_a_turn_in_each_round() -> None:
    """Who was first comes last in the next."""
    everybody = [who.Local(), who.RawTls()]
    assert [each.name for each in in_turns(everybody, 2)] == [
        *("floor", "raw TLS copy"),
        *("raw TLS copy", "floor"),
    ]


def test_daemons_are_shared_out_evenly() -> None:
    """No program is without any."""
    assert share_out(5, 2) == [(0, 3), (1, 2)]
    assert share_out(1, 2) == [(0, 1)]


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 100_000])
def test_frames_are_what_a_server_of_websockets_reads_and_writes(size: int) -> None:
    """Of each length that has a form of its own."""
    text = "x" * size
    server = Connection(ConnectionType.SERVER)
    server.receive_data(frames.frame(text.encode()))
    assert "".join(event.data for event in server.events()) == text
    received = bytearray(server.send(TextMessage(text)))
    last = received.pop()
    assert frames.take_frame(received) is None
    received.append(last)
    assert frames.take_frame(received) == (frames.TEXT, text.encode())
    assert not received


def test_a_target_is_held_against_the_ratio_within_each_round() -> None:
    """The machine was twice as slow in the second round: that says nothing."""
    rounds = {"ours": [1.0, 2.0, 1.0], "original": [2.0, 4.0, 2.0]}
    fast = figure("p50", "ms", rounds, at_most(0.5, "original"), at_least(3, "nobody"))
    assert fast.values["ours"].median == 1.0
    assert [told(verdict) for verdict in fast.verdicts] == ["at most 0.5 x original: 0.50, met"]
    (verdict,) = figure("p50", "ms", rounds, at_least(3)).verdicts
    assert told(verdict) == "at least 3: 1.00, missed"


def test_command_shows_a_table_and_writes_the_same_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A work is measured quickly if that was asked for; who couldn't take part is named."""
    asked = []

    def measure(quick: bool) -> list[object]:
        asked.append(quick)
        return [figure("p50", "ms", {"ours": [1.25], "original": [2.5]}, at_most(1, "original"))]

    monkeypatch.setattr(program, "WORKS", {"exec": program.Work("a command", measure)})
    monkeypatch.setattr(who, "missing", lambda: {"asyncssh": "it is not here"})
    file = tmp_path / "figures.json"
    assert program.main(["--quick", "--no-install", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "asyncssh was skipped: it is not here." in shown
    assert "at most 1 x original: 0.50, met" in shown
    assert asked == [True]
    (section,) = sections_of(json.loads(file.read_text()))
    assert section.figures == measure(True)


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    """All of it, who is in a table in the same order; what was there of other works stays."""
    fast = figure("p50", "ms", {"ours": [1.0], "floor": [0.5]}, at_least(2, "floor"))
    section, other = Section("exec", "a command", [fast]), Section("files", "many", [])
    file = tmp_path / "figures.json"
    for each in (other, section):
        write_json(file, [each], Machine(), ["a note"], ["exec", "files"])
    assert sections_of(json.loads(file.read_text())) == [section, other]
    assert columns(section) == ["ours", "floor"]
