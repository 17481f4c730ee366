"""``sandd bundle``. No trio: nothing waits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandd._core._errors import ConfigurationError
from sandd._core.bundle.archive import make_bundle
from sandd._core.own_output import write_text
from sandd._core.state_directory import replace_file
from sandd.command_line.stopping import Failure, fail

if TYPE_CHECKING:
    import argparse

MODE: Final = 0o755
"""Nothing in it is secret, and it may be run by its name."""


def run_bundle(options: argparse.Namespace) -> int:
    """Make the file, and tell of it as sha256sum(1) does; returns the exit code."""
    path = Path(options.output)
    try:
        content = make_bundle(bytecode=options.bytecode)
        try:
            place = path.resolve()  # what takes its place would take the link's
            if place.exists() and not place.is_file():
                raise Failure(f"can't write {path}: it is not a file")
            replace_file(place, content, mode=MODE)
        except OSError as error:
            raise Failure(f"can't write {path}: {error.strerror}") from error
    except (ConfigurationError, Failure) as error:
        return fail(str(error))
    write_text("stdout", f"{hashlib.sha256(content).hexdigest()}  {path}\n")
    return 0
