"""The daemon's state directory: one daemon each, told when it can't be, and an id that lasts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
from process_tools import posix_only

from sandd import ConfigurationError
from sandd._core import state_directory
from sandd._core.link import check_daemon_id
from sandd._core.state_directory import (
    default_daemon_id,
    open_state_directory,
    record_start,
    state_home,
    write_new,
)
from sandd.wire import MAX_ANCESTORS


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of our own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))


# ---- the lock -----------------------------------------------------------------------------------


def test_a_chosen_directory_is_made_and_held(tmp_path: Path) -> None:
    """With its parents, for its owner's eyes only; it stays, and is free again afterwards."""
    chosen = tmp_path / "a" / "b"
    for _ in range(2):
        with open_state_directory(chosen, "d") as state:
            assert (state.path, state.temporary) == (chosen, False)
            if sys.platform != "win32":
                assert chosen.stat().st_mode & 0o777 == 0o700
            with pytest.raises(
                ConfigurationError, match="belongs to another running daemon"
            ) as caught:
                with open_state_directory(chosen, "d"):
                    pytest.fail("it is held")
            assert str(chosen) in str(caught.value)
            assert "--state-dir" in str(caught.value)
    assert chosen.is_dir()


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    """A daemon that was killed leaves nothing to clean up."""
    program = (
        "import os, sys, signal; from pathlib import Path\n"
        "from sandd._core.state_directory import open_state_directory\n"
        "with open_state_directory(Path(sys.argv[1]), 'd'):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        with pytest.raises(ConfigurationError), open_state_directory(tmp_path, "d"):
            pytest.fail("it is held")
        holder.kill()
        holder.wait()
        with open_state_directory(tmp_path, "d") as state:
            assert state.path == tmp_path


def test_a_chosen_directory_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    """A file in its place, for instance; it is never quietly replaced by another."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match="can't use the state directory") as caught:
            with open_state_directory(path, "d"):
                pytest.fail("it can't be")
        assert str(path) in str(caught.value)


@posix_only
def test_a_file_system_without_locks_is_not_another_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The complaint is about the lock, and names the system's reason."""
    import fcntl

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigurationError, match=r"can't use the state directory.*No locks"):
        with open_state_directory(tmp_path, "d"):
            pytest.fail("it can't be")
    with open_state_directory(None, "d") as state:
        assert state.temporary


def test_the_default_is_below_the_state_home() -> None:
    """One for each id, so that several daemons of a user don't meet."""
    with open_state_directory(None, "one") as one, open_state_directory(None, "two") as two:
        assert one.path == state_home() / "daemons" / "one"
        assert two.path == state_home() / "daemons" / "two"
        assert not one.temporary


def test_a_default_that_is_held_is_replaced_by_a_temporary_one() -> None:
    """Nobody asked for that very directory, so it is no reason not to run; the other goes away again."""
    with open_state_directory(None, "d") as first:
        with open_state_directory(None, "d") as second:
            assert second.temporary
            assert second.path != first.path
            assert second.path.is_dir()
        assert not second.path.exists()
    assert first.path.exists()


def test_a_default_that_cannot_be_is_replaced_by_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No home, or one that can't be written."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(state_directory, "_state_home", lambda: tmp_path / "file" / "below")
    with open_state_directory(None, "d") as state:
        assert state.temporary

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(state_directory, "_state_home", homeless)
    with open_state_directory(None, "d") as state:
        assert state.temporary
    assert check_daemon_id(default_daemon_id(None)) is None


def test_temporary_ones_of_killed_daemons_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next daemon that needs one: its spool may be large. Those of living ones, and others', stay."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(state_directory, "_state_home", homeless)
    others = Path(tempfile.mkdtemp(prefix="sandd-state-"))  # no lock: it is being made
    with open_state_directory(None, "d") as living:
        stale = Path(tempfile.mkdtemp(prefix="sandd-state-"))
        (stale / "lock").touch()
        (stale / "spool").mkdir()
        (stale / "spool" / "0.0").write_bytes(b"output")
        link = stale.with_name("sandd-state-link")
        link.symlink_to(others)
        with open_state_directory(None, "d") as another:
            assert not stale.exists()
            assert living.path.is_dir()
            assert others.is_dir()
            assert another.path not in (stale, living.path)
        link.unlink()
    others.rmdir()
    assert not living.path.exists()


def test_a_temporary_one_that_was_taken_for_a_stale_one_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two that start at once: one finds the other's, before that has locked it."""
    taken = state_directory.lock_directory
    refused: list[Path] = []

    def lock(directory: Path) -> IO[str] | None:
        if "state-" in directory.name and not refused:
            refused.append(directory)
            directory.rmdir()
            return None
        return taken(directory)

    monkeypatch.setattr(state_directory, "lock_directory", lock)
    monkeypatch.setattr(state_directory, "state_home", lambda: Path(os.devnull))
    with open_state_directory(None, "d") as state:
        assert state.temporary
        assert [state.path] != refused
        assert state.path.is_dir()


def test_errors_of_the_body_are_the_bodys(tmp_path: Path) -> None:
    """An OSError in the block comes out as itself, and the lock is free."""
    for chosen in (None, tmp_path):
        error = OSError(5, "ours")
        with pytest.raises(OSError, match="ours") as caught, open_state_directory(chosen, "d"):
            raise error
        assert caught.value is error
        with open_state_directory(chosen, "d") as state:
            assert not state.temporary


# ---- the id -------------------------------------------------------------------------------------


def test_the_default_id_lasts(tmp_path: Path) -> None:
    """Host name and a random suffix, usable as an id, and the same at the next start."""
    for chosen in (None, tmp_path / "chosen"):
        first = default_daemon_id(chosen)
        assert check_daemon_id(first) is None
        assert "-" in first
        assert default_daemon_id(chosen) == first
    assert default_daemon_id(tmp_path / "other") != first


@pytest.mark.parametrize(
    "hostname", ["", "ünïcode", "under_score.example", "-.-", "h" * 300, "a b"]
)
def test_any_host_name_makes_a_usable_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostname: str
) -> None:
    """Whatever the host is called."""
    monkeypatch.setattr("socket.gethostname", lambda: hostname)
    assert check_daemon_id(default_daemon_id(tmp_path)) is None


def test_daemons_that_start_at_once_agree_on_the_id(tmp_path: Path) -> None:
    """One makes it, and all have it; nothing half-written is ever read."""
    with ThreadPoolExecutor(16) as pool:
        ids = set(pool.map(lambda _: default_daemon_id(tmp_path), range(64)))
    assert len(ids) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["daemon-id"]


@pytest.mark.parametrize("content", [b"", b"a b", b"\xff\xfe", b"../../etc"], ids=repr)
def test_a_kept_id_that_was_spoilt_is_not_used(tmp_path: Path, content: bytes) -> None:
    """The daemon runs, under a new id."""
    (tmp_path / "daemon-id").write_bytes(content)
    assert check_daemon_id(default_daemon_id(tmp_path)) is None


def test_a_directory_that_cannot_be_written_costs_only_the_lasting(tmp_path: Path) -> None:
    """There is an id all the same; it differs at the next start."""
    (tmp_path / "file").write_text("")
    ids = {default_daemon_id(tmp_path / "file") for _ in range(3)}
    assert len(ids) == 3


# ---- the starts ---------------------------------------------------------------------------------


def test_each_start_knows_the_latest_before_it(tmp_path: Path) -> None:
    """Newest first, and no more than a Hello may hold; the directory has no other file."""
    names = [f"instance{number}" for number in range(MAX_ANCESTORS + 5)]
    for count, name in enumerate(names):
        expected = tuple(reversed(names[:count]))[:MAX_ANCESTORS]
        assert record_start(tmp_path, name) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["starts"]


def test_an_empty_directory_has_no_ancestors(tmp_path: Path) -> None:
    """One on a tmpfs that vanished, say: its daemon is nobody's relative."""
    record_start(tmp_path, "one")
    (tmp_path / "starts").unlink()
    assert record_start(tmp_path, "two") == ()
    assert record_start(tmp_path, "three") == ("two",)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"../../etc\n", b"a" * 5000, b"one " * 2000],
    ids=["empty", "binary", "path", "one long word", "too many"],
)
def test_spoilt_starts_are_no_ancestors(tmp_path: Path, content: bytes) -> None:
    """The daemon runs, and what it records is good again."""
    (tmp_path / "starts").write_bytes(content)
    assert record_start(tmp_path, "two") == ()
    assert record_start(tmp_path, "three") == ("two",)


@pytest.mark.parametrize("step", ["open", "fsync", "rename"])
def test_a_start_that_was_not_recorded_claims_no_ancestors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    """Or its successor, which can't name it, would pass for a copy; what was there before stays whole."""
    caplog.set_level("WARNING", logger="sandd")
    record_start(tmp_path, "one")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if step == "open":
            (tmp_path / "starts.new").mkdir()  # root may write anywhere, but not there
        elif step == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(os, "replace", fail)
        assert record_start(tmp_path, "two") == ()
    assert "start_not_recorded" in caplog.text
    if step == "open":
        (tmp_path / "starts.new").rmdir()
    assert record_start(tmp_path, "three") == ("one",)


def test_a_start_cut_off_in_the_middle_leaves_the_old_starts(tmp_path: Path) -> None:
    """What a crash left half-written is nobody's: the next start replaces it."""
    record_start(tmp_path, "one")
    (tmp_path / "starts.new").write_text("tw")
    assert record_start(tmp_path, "three") == ("one",)
    assert record_start(tmp_path, "four") == ("three", "one")


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="tells descriptors apart by /proc")
def test_a_new_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves no empty one, in which a token should be; the directory is synced behind it."""
    synced: list[tuple[str, int, bool]] = []
    fsync = os.fsync

    def note_fsync(descriptor: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((name[:5], os.fstat(descriptor).st_size, (tmp_path / "token").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note_fsync)
    write_new(tmp_path / "token", "a secret")
    assert synced[0] == ("token", 8, False)
    assert [(name, there) for name, _, there in synced[1:]] == [(tmp_path.name[:5], True)]
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_a_start_is_on_the_disk_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's content is synced before it gets its name, and then the directory."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        done.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_replace(source: str, target: str) -> None:
        done.append(f"rename to {os.path.basename(target)}")
        replace(source, target)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc to tell descriptors apart")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    record_start(tmp_path, "one")
    assert done == ["sync starts.new", "rename to starts", f"sync {tmp_path.name}"]
