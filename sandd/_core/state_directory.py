"""The daemon's state directory: its lock, and what survives a restart."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from attrs import define

from sandd._core._errors import ConfigurationError
from sandd._core.link import check_daemon_id
from sandd._core.logs import get_logger
from sandd.wire import MAX_ANCESTORS

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_NAME = "lock"
TEMPORARY_PREFIX = "sandd-state-"
ID_NAME = "daemon-id"
STARTS_NAME = "starts"
_MAX_STARTS_BYTES = 4096
"""More than what we write; a file that is larger is none of ours."""
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""What a lock that another process holds is told by, from system to system."""

log = get_logger("daemon")


@define
class StateDirectory:
    """A directory of one daemon's own; held by a lock while the daemon lives."""

    path: Path
    temporary: bool = False
    """Made for this process, because nobody asked for a lasting one that could be had."""


@contextlib.contextmanager
def open_state_directory(chosen: Path | None, name: str) -> Iterator[StateDirectory]:
    """Lock the state directory `chosen`; without one, a directory for `name` below the user's state home.

    ConfigurationError if a chosen one can't be used, or another process has it. A default one that
    can't be had is no reason not to run: a temporary one takes its place.
    """
    with contextlib.ExitStack() as stack:
        if chosen is not None:
            try:
                lock = lock_directory(chosen)
            except OSError as error:
                raise ConfigurationError(
                    f"can't use the state directory {chosen}: {error}"
                ) from error
            if lock is None:
                raise ConfigurationError(
                    f"the state directory {chosen} belongs to another running daemon; "
                    "give this one its own (--state-dir)"
                )
            stack.enter_context(lock)
            yield StateDirectory(chosen)
            return
        default = None
        with contextlib.suppress(OSError):
            directory = state_home() / "daemons" / name
            lock = lock_directory(directory)
            if lock is not None:
                stack.enter_context(lock)
                default = StateDirectory(directory)
        if default is None:
            _remove_stale_temporaries()
            path, lock = _make_temporary()
            stack.callback(shutil.rmtree, path, ignore_errors=True)
            if lock is not None:
                stack.enter_context(lock)
            default = StateDirectory(path, temporary=True)
        # Not inside the `suppress`: an OSError of the body is the body's.
        yield default


def record_start(directory: Path, instance: str) -> tuple[str, ...]:
    """The instances that started in this directory before, newest first; `instance` is one from now on.

    That is on the disk, and proof against a power cut, when this returns. Where it can't be, the answer
    is empty: who leaves no trace must not claim ancestors either, or the next start, which can't name
    this one, would pass for a copy's.

    Hold the directory's lock.
    """
    path = directory / STARTS_NAME
    earlier: list[str] = []
    try:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            text = file.read(_MAX_STARTS_BYTES + 1)
            if len(text) <= _MAX_STARTS_BYTES:
                words = text.decode("ascii", "replace").split()
                earlier = [word for word in words if word.isalnum()][:MAX_ANCESTORS]
        starts = "\n".join([instance, *earlier][:MAX_ANCESTORS]) + "\n"
        # For nobody else: where there are workspaces in the directory, tenants' users pass through it.
        replace_file(path, starts.encode(), mode=0o600)
    except OSError as error:
        log.warning("start_not_recorded", path=str(path), error=str(error))
        return ()
    return tuple(earlier)


def replace_file(path: Path, content: bytes, *, mode: int = 0o666, for_owner: bool = False) -> None:
    """Write a whole file in the place of another, durably: at every moment one of the two is there.

    Args:
        path: where.
        content: all of it.
        mode: its permissions, less the umask; whatever the other one's were.
        for_owner: where root writes it, it is that of the directory's owner, for whom that is done.
    """
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)  # left by a crash; it would keep its own permissions
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
        if sys.platform != "win32" and for_owner and os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    if sys.platform != "win32":  # directories can't be opened there
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def state_home() -> Path:
    """Where this user's programs keep state: ``$XDG_STATE_HOME/sandd`` and its like; OSError if nowhere."""
    try:
        return _state_home()
    except RuntimeError as error:  # a user id without an entry, and no HOME: usual in containers
        raise OSError(str(error)) from error


def _state_home() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "sandd"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "sandd"
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "sandd"


def default_daemon_id(chosen: Path | None) -> str:
    """The host's name and a random suffix, the same after a restart if the directory can be written."""
    host = "".join(
        c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in socket.gethostname()
    )
    fresh = f"{(host.strip('._-') or 'daemon')[:100]}-{secrets.token_hex(3)}"
    with contextlib.suppress(OSError):
        directory = chosen if chosen is not None else state_home()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = directory / ID_NAME
        # Exclusive creation: of two daemons that start at once, one makes the id and both use it.
        with contextlib.suppress(FileExistsError):
            write_new(path, fresh)
        kept = path.read_text(encoding="utf-8", errors="replace").strip()
        return fresh if check_daemon_id(kept) else kept
    return fresh


def write_new(path: Path, text: str) -> None:
    """Make a file for its owner alone, durably, whole or not at all; FileExistsError if there is one of that name."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if sys.platform == "win32":
            temporary.rename(path)
        else:
            path.hardlink_to(temporary)  # whole, or not at all: rename would replace another's
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _make_temporary() -> tuple[Path, IO[str] | None]:
    """A directory of our own and its lock; none where its file system has no locks."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
        try:
            lock = lock_directory(path)
        except OSError:
            return path, None
        if lock is not None:
            return path, lock
        # Another daemon that starts has just taken it for a stale one, and removes it.


def _remove_stale_temporaries() -> None:
    """Remove what daemons of this user left that were killed: nobody else would, and spools are large."""
    for path in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            is_ours = sys.platform == "win32" or path.lstat().st_uid == os.getuid()
            # Without a lock file it is being made right now.
            if not is_ours or path.is_symlink() or not (path / LOCK_NAME).is_file():
                continue
            lock = lock_directory(path)
            if lock is not None:  # else its daemon lives
                with lock:
                    shutil.rmtree(path, ignore_errors=True)
                log.info("stale_state_removed", path=str(path))


def lock_directory(directory: Path) -> IO[str] | None:
    """The open lock file, or None if another process holds it. OSError if the directory can't be used."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = (directory / LOCK_NAME).open("a+", encoding="utf-8")
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in _HELD:
            return None
        raise  # a file system without locks, for instance
    return file
