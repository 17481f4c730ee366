"""What a daemon does with a Welcome."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import trio

from sandd import wire
from sandd._core import daemon_end
from sandd._core.daemon_end import DaemonEnd
from sandd._core.identity import keyring as keyring_module
from sandd._core.identity.keyring import Keyring
from sandd._core.identity.proofs import DaemonKey
from sandd._core.link import Identity
from sandd._core.state_directory import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

WELCOME = wire.Welcome(2, enrolment=wire.Enrolment("u", 1, b"secret"))


class SlowDisk:
    """One that writes keys when it is let; `begun` when it is asked to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = trio.Event()
        self._may_go_on = threading.Event()
        monkeypatch.setattr(keyring_module, "replace_file", self._replace)

    def _replace(self, path: Path, content: bytes, **options: Any) -> None:
        trio.from_thread.run_sync(self.begun.set)
        assert self._may_go_on.wait(60)
        replace_file(path, content, **options)

    def go_on(self) -> None:
        """Now it writes."""
        self._may_go_on.set()


def open_end(directory: Path) -> DaemonEnd:
    """A daemon's end that has come without a credential."""
    keyring = Keyring(directory, "d", None)
    keyring.choose("c")
    identity = Identity(daemon_id="d", instance="i")
    return DaemonEnd(identity, keyring, None)  # type: ignore[arg-type]  # it has no jobs


async def test_a_key_is_kept_before_a_daemon_that_is_stopped_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller takes it for one that has joined: without the key it might not be let in again."""
    disk, end = SlowDisk(monkeypatch), open_end(tmp_path)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.welcomed, WELCOME)
            await disk.begun.wait()
            nursery.cancel_scope.cancel()
            disk.go_on()
    assert Keyring(tmp_path, "d", None).choose("c") == DaemonKey("u", 1, b"secret")


async def test_a_disk_that_hangs_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither by a daemon that is stopped: the log says that the key was not kept."""
    monkeypatch.setattr(daemon_end, "KEEP_SECONDS", 0.05)
    disk, end = SlowDisk(monkeypatch), open_end(tmp_path)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.welcomed, WELCOME)
            nursery.cancel_scope.cancel()
    disk.go_on()
    assert "the disk took more than" in caplog.text
