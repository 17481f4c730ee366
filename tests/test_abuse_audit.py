"""Abuse of the log and the audit log of a running controller: names that are meant to forge them, and hands that do."""

from __future__ import annotations

import json
import re
import shutil
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio
from controllers import running_controller
from peers_with_credentials import OPTIONS, guarded
from raw_daemon import raw_daemon

from sandd import wire
from sandd._core.audit.segments import segments_in
from sandd._core.identity.introductions import answer_as_operator
from sandd._core.identity.proofs import SharedSecret
from sandd._core.pump import receive_control, send_control
from sandd._core.transport import connect
from sandd.cli import main as run_sandd
from sandd.testing import open_daemon_cores

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NASTY: Final = (
    'h\n2026-01-01T00:00:00Z info forged\r\x1b]0;owned\x07\x1b[2J\u202e\u2066\x7f\x9b1m"\\'
)
HARMFUL: Final = re.compile("[^\n -~]")
"""What is neither a visible character of ASCII nor the end of a line."""


@pytest.mark.skipif(sys.platform == "win32", reason="the controller is ended by a signal")
async def test_names_from_outside_forge_nothing_that_is_read(tmp_path: Path) -> None:
    """A hostname, a refused id, an operator's name: log, audit log and commands show them as text in a line."""
    with running_controller("--audit", home=tmp_path) as controller:
        token = controller.token_file.read_bytes().strip()
        url = f"ws://127.0.0.1:{controller.port}"
        async with (
            raw_daemon(f"{url}/ws", "worker-1", hostname=NASTY, instance=NASTY),
            raw_daemon(f"{url}/ws", f"x{NASTY}") as refused,
            connect(f"{url}/operator", **OPTIONS) as connection,
        ):
            assert isinstance(refused.answer, wire.Reject)
            challenge = await receive_control(connection)
            hello = answer_as_operator(challenge, "c", 1, NASTY, SharedSecret(token))
            await send_control(connection, hello)
            assert isinstance(await receive_control(connection), wire.Welcome)
            shown = {}
            for command in (["ps"], ["ps", "--json"], ["audit", "tail", str(controller.state_dir)]):
                done = await trio.to_thread.run_sync(partial(controller.run_command, *command))
                assert done.returncode == 0, done.stderr
                shown[" ".join(command)] = done.stdout + done.stderr
    (segment,) = segments_in(controller.state_dir / "audit")
    shown |= {"log": controller.log, "audit log": segment.read_bytes().decode("latin-1")}
    for what, text in shown.items():
        assert "worker-1" in text, what
        assert HARMFUL.search(text) is None, what
        assert not re.search("^2026-01-01", text, re.MULTILINE), what
    # And nothing of it is lost.
    records = list(map(json.loads, segment.read_text().splitlines()))
    assert any(each.get("result", {}).get("hostname") == NASTY for each in records)
    assert any(each.get("daemon") == f"x{NASTY}" for each in records)
    assert any(str(each.get("actor")).endswith(NASTY) for each in records)


def edit(lines: list[bytes]) -> None:
    """Another command was run."""
    (number,) = [i for i, line in enumerate(lines) if b'"mark 3"' in line and b'"request"' in line]
    lines[number] = lines[number].replace(b"mark 3", b"mark 4")


def delete(lines: list[bytes]) -> None:
    """A command was never run."""
    del lines[next(i for i, line in enumerate(lines) if b'"mark 2"' in line)]


def swap(lines: list[bytes]) -> None:
    """It was run before another one."""
    lines[4], lines[5] = lines[5], lines[4]


def repeat(lines: list[bytes]) -> None:
    """It was run twice."""
    lines.insert(5, lines[4])


def cut(lines: list[bytes]) -> None:
    """Nothing was run since then."""
    del lines[-4:]


def tear(lines: list[bytes]) -> None:
    """The controller was killed while it wrote this."""
    lines[-1] = lines[-1][:-20]


@pytest.mark.parametrize(
    ("tamper", "finding"),
    [
        (edit, "it was edited, or replaced"),
        (delete, "lines were deleted before it"),
        (swap, "it was swapped"),
        (repeat, "it was put in, or repeated"),
        (cut, "lines were cut off at the end"),
        (tear, "it is torn"),
    ],
)
async def test_no_line_of_a_running_controllers_log_can_be_changed(
    tmp_path: Path,
    tamper: Callable[[list[bytes]], None],
    finding: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What its daemons were asked for: ``sandd audit verify`` finds each change, and exits with 1."""
    state, copy = tmp_path / "state", tmp_path / "copy"
    async with (
        guarded(state, audit=True) as controller,
        open_daemon_cores(controller.url, 1) as cores,
    ):
        await cores.wait_live()
        for number in range(6):
            await controller.daemon("core-0").run(f"mark {number}")
    verify = ["audit", "verify"]
    assert run_sandd([*verify, str(state)]) == 0
    shutil.copytree(state, copy)
    (segment,) = segments_in(copy / "audit")
    lines = segment.read_bytes().splitlines(keepends=True)
    tamper(lines)
    segment.write_bytes(b"".join(lines))
    capsys.readouterr()
    assert run_sandd([*verify, str(copy)]) == 1
    said = capsys.readouterr()
    assert finding in said.out + said.err
