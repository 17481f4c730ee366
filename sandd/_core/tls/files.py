"""Where a controller keeps its CA: the directory ``tls`` in its state directory. Every call blocks.

    authority.json   the CAs with their keys, and how far a rotation is: one file, so that no crash leaves half a step
    server.pem       the certificate it serves by, and its key
    ca.pem           what its peers are to trust: a copy for commands on this machine, while a controller serves by it

Its owner alone may read them. A running controller and ``sandd ca`` write here both, each under the directory's lock.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, Final

from attrs import define

from sandd._core._errors import ConfigurationError
from sandd._core.state_directory import lock_directory, replace_file
from sandd._core.tls.key_pair import KeyPair
from sandd._core.tls.rotation import Phase, Rotation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIRECTORY: Final = "tls"
"""In a state directory."""
PUBLIC_FILE: Final = "ca.pem"
_AUTHORITY_FILE: Final = "authority.json"
_SERVER_FILE: Final = "server.pem"
_FORMAT: Final = 1
LOCK_SECONDS: Final = 10.0
"""How long another writer is waited for: making keys and writing takes a few milliseconds."""
_OWNER_ONLY: Final = 0o600


@define
class AuthorityFiles:
    """A controller's CA on the disk."""

    directory: Path

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other writer out. The directory is made if it is missing.

        ConfigurationError if it can't be used, or another one doesn't let go of it.
        """
        give_up = time.monotonic() + LOCK_SECONDS
        try:
            while (lock := lock_directory(self.directory)) is None:
                if time.monotonic() > give_up:
                    raise ConfigurationError(
                        f"{self.directory} is locked by another process, for {LOCK_SECONDS:.0f} s"
                    )
                time.sleep(0.01)
        except OSError as error:
            raise ConfigurationError(f"can't use {self.directory}: {error.strerror}") from error
        with lock:
            yield

    def read(self) -> Rotation | None:
        """The CAs; None: none was made yet. ConfigurationError if what is there can't be used."""
        path = self.directory / _AUTHORITY_FILE
        try:
            state = json.loads(path.read_bytes())
            if (its_format := state["format"]) == _FORMAT:
                return _rotation(state)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"can't read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path} is damaged ({type(error).__name__}): put a copy in its place; without it all peers have "
                "to be given a new pin"
            ) from error
        raise ConfigurationError(f"{path} is of another version of sandd: format {its_format!r}")

    def write(self, rotation: Rotation) -> None:
        """Keep these CAs, and no others; hold the lock. ConfigurationError if that can't be done."""
        state = {
            "format": _FORMAT,
            "phase": rotation.phase.value,
            "since": rotation.since,
            "old": _dict(rotation.old),
            "new": None if rotation.new is None else _dict(rotation.new),
        }
        self._replace(_AUTHORITY_FILE, json.dumps(state, indent=1).encode())

    @property
    def server_file(self) -> Path:
        """What it serves by: certificate and key in one."""
        return self.directory / _SERVER_FILE

    def write_server(self, pair: KeyPair) -> None:
        """Serve by this one; hold the lock. ConfigurationError if that can't be done."""
        self._replace(_SERVER_FILE, pair.pem)

    def publish(self, bundle: bytes) -> None:
        """Have commands on this machine trust these CAs. ConfigurationError if that can't be done."""
        with contextlib.suppress(OSError):
            if (self.directory / PUBLIC_FILE).read_bytes() == bundle:
                return
        self._replace(PUBLIC_FILE, bundle)

    def withdraw(self) -> None:
        """Nobody serves by them now."""
        with contextlib.suppress(OSError):
            (self.directory / PUBLIC_FILE).unlink(missing_ok=True)

    def state(self) -> tuple[object, ...]:
        """Changes with every write to what is served by, by whomever."""
        return tuple(file_state(self.directory / name) for name in (_AUTHORITY_FILE, _SERVER_FILE))

    def _replace(self, name: str, content: bytes) -> None:
        path = self.directory / name
        try:
            # `sandd ca rotate` may be an administrator's, and the controller a service without root's rights.
            replace_file(path, content, mode=_OWNER_ONLY, for_owner=True)
        except OSError as error:
            raise ConfigurationError(f"can't write {path}: {error.strerror}") from error


def file_state(path: Path) -> object:
    """Changes whenever the file is replaced or written to; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _rotation(state: dict[str, Any]) -> Rotation:
    new = state["new"]
    return Rotation(
        Phase(state["phase"]),
        float(state["since"]),
        _pair(state["old"]),
        None if new is None else _pair(new),
    )


def _pair(state: dict[str, str]) -> KeyPair:
    return KeyPair(str(state["certificate"]), str(state["key"]))


def _dict(pair: KeyPair) -> dict[str, str]:
    return {"certificate": pair.certificate, "key": pair.key}
