"""Which log is meant, and by whose key it is checked."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from sandd._core._errors import ConfigurationError
from sandd._core.audit.keys import KEY_FILE, PublicKey, read_key
from sandd._core.audit.segments import segments_in
from sandd._core.audit.writer import LOG_DIRECTORY
from sandd._core.controller_state import default_state_dir

if TYPE_CHECKING:
    import argparse

DEFAULT_PORT: Final = 8765


@frozen
class Place:
    """Where a log is."""

    directory: Path

    @classmethod
    def of(cls, options: argparse.Namespace) -> Place:
        """The log that the command line means.

        Raises:
            ConfigurationError: it names two, or there is none.
        """
        if options.directory is not None and options.state_dir is not None:
            raise ConfigurationError("name the audit log once: as DIR, or by --state-dir")
        named = options.directory or options.state_dir
        path = default_state_dir(DEFAULT_PORT) if named is None else Path(named)
        for each in (path / LOG_DIRECTORY, path):
            if segments_in(each):
                return cls(each)
        raise ConfigurationError(
            f"there is no audit log in {path}; 'sandd controller --audit' keeps one in its --state-dir"
        )

    def public_key(self, given: str | None) -> PublicKey | None:
        """The key that was given, as such or as a file; else the controller's own, if it is there."""
        if given is not None:
            path = Path(given)
            text = path.read_text("utf-8") if path.is_file() else given
            return PublicKey.parse(text)
        with contextlib.suppress(OSError):  # elsewhere, or not ours to read
            return read_key(self.directory.parent / KEY_FILE).public
        return None
