"""A directory into which nobody but root may write, for programs of tests that a policy shall trust."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def trusted_directory() -> Iterator[Path]:
    """An empty one, for as long as the block lasts; in /tmp anybody might have made it. Only root has any."""
    path = Path(tempfile.mkdtemp(prefix="sandd-test-", dir="/var/lib"))
    try:
        path.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(path)


def write_program(path: Path, text: str | bytes) -> Path:
    """A file that can be executed."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o755)
    return path
