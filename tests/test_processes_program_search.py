"""What a program's name means is what execvp(3) would make of it."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING

import pytest
from trusted_files import write_program

if sys.platform == "win32":
    pytest.skip("POSIX only", allow_module_level=True)

from sandd._core.processes import program_search

if TYPE_CHECKING:
    from pathlib import Path


def test_the_first_that_can_be_executed_is_meant(tmp_path: Path) -> None:
    """In the order of PATH; what is no program is passed over."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "tool").mkdir()
    (tmp_path / "b" / "tool").write_text("")
    write_program(tmp_path / "c" / "tool", "#!/bin/sh\n")
    path = b":".join(bytes(tmp_path / name) for name in ("a", "b", "c", "missing"))
    assert program_search.find(b"tool", {b"PATH": path}) == bytes(tmp_path / "c" / "tool")
    assert [*program_search.candidates(b"tool", {b"PATH": path})] == [
        bytes(tmp_path / name / "tool") for name in ("a", "b", "c")
    ]


@pytest.mark.parametrize(("name", "number"), [("none", errno.ENOENT), ("plain", errno.EACCES)])
def test_what_is_not_to_be_had_is_told(tmp_path: Path, name: str, number: int) -> None:
    """There is none; or there is one, and it can't be executed."""
    (tmp_path / "plain").write_text("")
    for search in (
        lambda: program_search.find(name.encode(), {b"PATH": bytes(tmp_path)}),
        lambda: program_search.find(bytes(tmp_path / name), {}),
    ):
        with pytest.raises(OSError, match=name) as caught:
            search()
        assert caught.value.errno == number


def test_a_name_with_a_slash_is_a_path(tmp_path: Path) -> None:
    """From the directory that is said, and PATH has no part in it."""
    assert [*program_search.candidates(b"bin/x", {b"PATH": b"/bin"}, bytes(tmp_path))] == [
        bytes(tmp_path / "bin" / "x")
    ]
