"""A controller's state directory: the operators' token, and what is still to be said to absent daemons."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Final

from attrs import define

from sandd import wire
from sandd._core._errors import ConfigurationError, RemoteProtocolError
from sandd._core.logs import get_logger
from sandd._core.state_directory import lock_directory, replace_file, state_home, write_new

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

log = get_logger("controller")

TOKEN_FILE: Final = "operator.token"  # noqa: S105 - its name
"""In the state directory: what operators have to know. Only its owner may read it."""
ENDS_FILE: Final = "ends"
"""In the state directory: jobs that are to be ended on daemons that are away."""
MAX_ENDS_BYTES: Final = 32 * wire.MIB
"""More than what we write, which is 10,000 Ends with four ids of 512 bytes at most; a larger file is none of ours."""


def default_state_dir(port: int) -> Path:
    """Where a controller of this user keeps its state if nobody says otherwise; OSError if there is no such place."""
    return state_home() / f"controller-{port}"


class DirectoryTaken(ConfigurationError):
    """The state directory belongs to another controller, which runs."""


@define
class EndFile:
    """The Ends on the disk. Each call blocks."""

    path: Path

    def read(self) -> list[wire.End]:
        """Those that were kept; none, and a line in the log, where they can't be read."""
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_ENDS_BYTES)
            messages = [
                wire.decode_control(frame)
                for frame in wire.decode_frames(content, max_bytes=MAX_ENDS_BYTES)
            ]
        except FileNotFoundError:
            return []
        except (OSError, RemoteProtocolError) as error:
            log.warning("ends_unreadable", path=str(self.path), error=str(error))
            return []
        return [message for message in messages if isinstance(message, wire.End)]

    def write(self, ends: Iterable[wire.End]) -> None:
        """Keep these, and no others. OSError if that can't be done; then the former ones are kept."""
        parts: list[wire.Buffer] = []
        for end in ends:
            parts += wire.encode_control(0, end)
        replace_file(self.path, b"".join(parts))


@define
class ControllerState:
    """A directory of one controller's own; held by a lock while that lives."""

    operator_token: bytes
    ends: EndFile


@contextlib.contextmanager
def open_controller_state(path: Path) -> Iterator[ControllerState]:
    """Lock the directory, which is made if it is missing; and so is its token.

    Raises:
        DirectoryTaken: another controller has it.
        ConfigurationError: it can't be used.
    """
    with contextlib.ExitStack() as stack:
        try:
            lock = lock_directory(path)
            if lock is None:
                raise DirectoryTaken(
                    f"the state directory {path} belongs to another running controller; give this one its own"
                )
            stack.enter_context(lock)
            opened = ControllerState(_token(path / TOKEN_FILE), EndFile(path / ENDS_FILE))
        except OSError as error:
            raise ConfigurationError(f"can't use the state directory {path}: {error}") from error
        # Not inside the `try`: an OSError of the body is the body's.
        yield opened


def _token(path: Path) -> bytes:
    """The token in the file, made where there is none."""
    with contextlib.suppress(FileExistsError):
        write_new(path, secrets.token_urlsafe(32) + "\n")
    token = path.read_bytes().strip()
    if not token:
        raise ConfigurationError(f"{path} is empty: remove it, and another is made")
    return token
