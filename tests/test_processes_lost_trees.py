"""What the daemon does by itself for a dead spawner's jobs, also where it can't adopt orphans."""

from __future__ import annotations

import errno
import os
import sys
from types import SimpleNamespace

import pytest
from process_tools import alive, is_alive, linux_only, shell, the_spawner, until

if sys.platform == "win32":
    pytest.skip("POSIX process trees", allow_module_level=True)

from sandd._core.processes import ChildLost, culling, lost_trees, open_process_host, process_table
from sandd._core.processes.process_table import Process

pytestmark = linux_only


@pytest.fixture
def not_a_subreaper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system on which orphans go to process 1."""

    def refuse(_: bool) -> bool:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(process_table, "set_subreaper", refuse)


@pytest.mark.usefixtures("not_a_subreaper")
async def test_without_adoption_the_lost_are_found_by_session_and_marker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What went to process 1 when the spawner died is killed all the same, if it shows whose it is."""
    wanted = shell("setsid sleep 1000 & (setsid sleep 1000 &); exec env -i sleep 1000")
    async with open_process_host() as host:
        child = await host.spawn(wanted)
        await until(lambda: len(alive(wanted.marker)) == 2)
        spawner = await the_spawner()
        os.kill(spawner, 9)
        with pytest.raises(ChildLost):
            await child.wait_exited()
        assert alive(wanted.marker) == []
        assert not is_alive(child.pid)
        child.close_pipes()
    assert "subreaper_refused" in caplog.text


async def test_hopeless_survivors_are_told_instead_of_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bounded: who does not die of SIGKILL is named."""
    stubborn = Process(4711, 1, 4711, 4711, 1, False, 1)
    monkeypatch.setattr(lost_trees, "CULL_SECONDS", 0.05)
    monkeypatch.setattr(lost_trees, "_recognised", lambda *_: [stubborn])
    monkeypatch.setattr(culling, "send_signal", lambda *_: None)
    left = await lost_trees.cull_lost_trees(leaders=[], markers=[], spared=[], adopted=False)
    assert left == [4711]


@pytest.fixture
def on_macos(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Process, bytes]]:
    """The module believes to be there; what ps(1) shows is in the list."""
    rows: list[tuple[Process, bytes]] = []
    monkeypatch.setattr(lost_trees, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(process_table, "list_by_ps", lambda: rows)
    return rows


def test_on_macos_ps_tells_session_and_marker(on_macos: list[tuple[Process, bytes]]) -> None:
    """Leaders' groups and marked processes are found, zombies and others are not."""
    for pid, group, dead, text in [
        (10, 10, False, b""),
        (11, 10, True, b""),
        (12, 12, False, b"sleep SANDD_JOB=a/1 X=y"),
        (13, 13, False, b"sleep SANDD_JOB=a/2"),
    ]:
        on_macos.append((Process(pid, 1, group, group, 0, dead, 1), text))
    assert [each.pid for each in lost_trees._recognised({10}, {b"a/1"})] == [10, 12]
    assert lost_trees.children_now() == frozenset()
    with lost_trees.adopting_orphans() as adopts:
        assert not adopts


@pytest.mark.usefixtures("on_macos")
def test_on_macos_a_failing_ps_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is killed on a guess."""

    def fail() -> None:
        raise OSError(errno.EIO, "ps ended with 1")

    monkeypatch.setattr(process_table, "list_by_ps", fail)
    assert lost_trees._recognised({10}, {b"a/1"}) == []
    assert "process_list_failed" in caplog.text
