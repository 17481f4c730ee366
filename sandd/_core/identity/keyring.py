"""A daemon's credentials: what it was told at its start, and the keys that controllers have given it since.

Keys are in one file of the state directory, by controller and daemon id. Only the file's owner may read it; but what
the daemon runs as that owner may, too.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sandd._core.identity.proofs import Credential, DaemonKey
from sandd._core.logs import get_logger
from sandd._core.state_directory import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sandd import wire

log = get_logger("identity")

KEYS_FILE: Final = "keys.json"
MAX_KEYS: Final = 16
"""Controllers of which a daemon keeps a key: the latest."""
_MAX_BYTES: Final = 64 * 1024
"""More than what we write; a file that is larger is none of ours."""


class Keyring:
    """What one daemon can prove, towards any controller."""

    def __init__(self, directory: Path | None, daemon_id: str, given: Credential | None) -> None:
        self._path = None if directory is None else directory / KEYS_FILE
        self._daemon_id = daemon_id
        self._given = given
        self._keys: dict[tuple[str, str], DaemonKey] = {}
        self._refused: set[str] = set()
        """Controllers that didn't take our key."""
        self._latest: tuple[str, bool] = ("", False)
        """The controller that was told last, and whether by our key."""
        self._one_at_a_time = threading.Lock()
        self._made = 0
        """How often `keeper` was called,"""
        self._kept = 0
        """and which of those calls' keys were the latest to be kept."""
        with contextlib.suppress(FileNotFoundError):
            self._read()

    def choose(self, controller_id: str) -> Credential | None:
        """What to come with: the key that this controller has given us, or else what we were told at our start."""
        key = self._keys.get((controller_id, self._daemon_id))
        if controller_id in self._refused:
            key = None
        self._latest = (controller_id, key is not None)
        return key or self._given

    def has_another(self) -> bool:
        """What was chosen last was refused; whether there is something else to come with."""
        controller_id, was_key = self._latest
        if not was_key or self._given is None:
            return False
        self._refused.add(controller_id)
        return True

    def keeper(self, enrolment: wire.Enrolment) -> Callable[[], None]:
        """What keeps the key that the controller gives us which was told last: call it once, in a thread.

        The key is on the disk when that returns. A thread may be left alone with it, as a disk may hang: then it
        disturbs no later one, and what it has after a later one's does not take that one's place.

        Where that can't be, the one before is used on: to use the new one would make that on the disk look like a
        copy's at the next start. Where there was none, it is kept in memory, and a later start needs a token again.
        """
        self._made += 1
        return partial(self._keep, enrolment, self._latest[0], self._made)

    def _keep(self, enrolment: wire.Enrolment, controller_id: str, number: int) -> None:
        with self._one_at_a_time:
            if number > self._kept:
                self._kept = number
                self._keep_latest(enrolment, controller_id)

    def _keep_latest(self, enrolment: wire.Enrolment, controller_id: str) -> None:
        place = (controller_id, self._daemon_id)
        known = self._keys.get(place)
        keys = {other: key for other, key in self._keys.items() if other != place}
        keys[place] = DaemonKey(enrolment.uid, enrolment.generation, enrolment.secret)
        if len(keys) > MAX_KEYS:
            del keys[next(iter(keys))]
        try:
            if self._path is not None:
                replace_file(self._path, _written(keys), mode=0o600)
        except OSError as error:
            log.warning("key_not_kept", path=str(self._path), error=str(error))
            if known is not None and known.uid == enrolment.uid:
                return
        self._keys = keys
        self._refused.discard(controller_id)

    def _read(self) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
            if len(content) > _MAX_BYTES:
                raise ValueError("it is too large")
            for each in json.loads(content)["keys"]:
                self._keys[str(each["controller"]), str(each["daemon_id"])] = _key(each)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("keys_unreadable", path=str(self._path), error=repr(error))


def _written(keys: Mapping[tuple[str, str], DaemonKey]) -> bytes:
    said = [
        {
            "controller": controller_id,
            "daemon_id": daemon_id,
            "uid": key.uid,
            "generation": key.generation,
            "secret": base64.b64encode(key.secret).decode(),
        }
        for (controller_id, daemon_id), key in keys.items()
    ]
    return json.dumps({"keys": said}, indent=1).encode()


def _key(each: dict[str, Any]) -> DaemonKey:
    try:
        secret = base64.b64decode(each["secret"], validate=True)
    except binascii.Error as error:
        raise ValueError("a secret in it is damaged") from error
    return DaemonKey(str(each["uid"]), int(each["generation"]), secret)
