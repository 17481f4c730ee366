"""Daemons that join, as processes: by a token once, by their own key from then on; and what they say when refused."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from daemons import open_daemon, start_daemon
from peers_with_credentials import guarded

from sandd._core.identity.keyring import KEYS_FILE

if TYPE_CHECKING:
    from pathlib import Path

    import sandd

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and files are POSIX ones")

LIMIT = 80.0


async def token_file(controller: sandd.Controller, path: Path) -> list[str]:
    """A daemon's options for a new join token."""
    made = await controller.tokens.create_join()
    await trio.Path(path).write_text(made.text + "\n")
    return ["--token-file", str(path)]


async def test_a_daemon_needs_its_token_once(tmp_path: Path) -> None:
    """Then it has a key, which no other user can read, and comes by that after each restart; each has the next."""
    state = ["--state-dir", str(tmp_path / "daemon")]
    keys = tmp_path / "daemon" / KEYS_FILE
    generations = []
    with trio.fail_after(LIMIT):
        async with guarded(tmp_path / "controller") as controller:
            arguments = [*state, *await token_file(controller, tmp_path / "token")]
            for start in range(3):
                async with open_daemon(controller.url, "w", arguments=arguments):
                    worker = await controller.wait_for_daemon("w")
                    assert (await worker.run("echo $SANDD_TOKEN")).stdout == "\n"
                (key,) = json.loads(keys.read_text())["keys"]
                generations.append(key["generation"])
                assert stat.S_IMODE(keys.stat().st_mode) == 0o600
                if start == 0:
                    (tmp_path / "token").unlink()
                arguments = state
            (record,) = await controller.enrolled.list()
            assert record.uid == key["uid"]
    assert generations == [1, 2, 3]


async def test_a_daemon_that_dies_before_its_key_is_kept_joins_all_the_same(tmp_path: Path) -> None:
    """It is started again with the token that it has used, and then has a key."""
    keys = tmp_path / "daemon" / KEYS_FILE
    with trio.fail_after(LIMIT):
        async with guarded(tmp_path / "controller") as controller:
            arguments = ["--state-dir", str(tmp_path / "daemon")]
            arguments += await token_file(controller, tmp_path / "token")
            async with open_daemon(controller.url, "w", arguments=arguments):
                await controller.wait_for_daemon("w")
            keys.unlink(missing_ok=True)  # as if it had been killed a moment earlier
            async with open_daemon(controller.url, "w", arguments=arguments) as daemon:
                await daemon.wait_for_log("connected")
            assert json.loads(keys.read_text())["keys"]
            (record,) = await controller.enrolled.list()
            (made,) = await controller.tokens.list()
    assert (record.token_id, made.uses_left) == (made.id, 0)


async def test_a_token_in_the_environment_is_seen_by_no_job(tmp_path: Path) -> None:
    """Neither in its own variables nor in those of the daemon, which it could read as the same user."""
    with trio.fail_after(LIMIT):
        async with guarded(tmp_path) as controller:
            made = await controller.tokens.create_join()
            env = {"SANDD_TOKEN": made.text, "SANDD_TEST_MARK": "here"}
            async with open_daemon(controller.url, "w", env=env) as daemon:
                worker = await controller.wait_for_daemon("w")
                assert "SANDD_TOKEN" not in (await worker.run("env")).stdout
                if sys.platform == "linux":
                    result = await worker.run(
                        f"cat /proc/{daemon.pid}/environ /proc/[0-9]*/environ 2>/dev/null; true"
                    )
                    assert "SANDD_TEST_MARK=here" in result.stdout
                    theirs = (await worker.run(f"cat /proc/{daemon.pid}/environ")).stdout
                    assert made.text not in theirs
                    assert "SANDD_TOKEN=\0" in theirs
                assert made.text not in daemon.log


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"sdj_short", "the token is damaged", id="truncated"),
        pytest.param("sdj_\u00e9\u00e9".encode() * 9, "the token is damaged", id="non-ASCII"),
        pytest.param(b"sdo_" + b"0" * 61, "that token is an operator's", id="an operator's"),
        pytest.param(b" \n", "is empty", id="empty"),
    ],
)
def test_a_token_that_can_be_none_is_told_before_anybody_is_dialled(
    tmp_path: Path, content: bytes, said: str
) -> None:
    """In one line, with the file's name and nothing of what is in it; exit code 2."""
    path = tmp_path / "token"
    path.write_bytes(content)
    daemon = start_daemon("ws://127.0.0.1:9", "w", arguments=["--token-file", str(path)])
    with daemon._put_away_at_the_end():
        daemon._end_expected = True
        assert daemon.wait_sync() == 2
        (line,) = daemon.log.splitlines()
        assert said in line
        assert str(path) in line
        assert "Traceback" not in line


async def test_a_refused_daemon_says_so_and_ends(tmp_path: Path) -> None:
    """With the controller's one refusal, and exit code 1; nothing of its token is in either log."""
    with trio.fail_after(LIMIT):
        async with guarded(tmp_path / "c") as controller:
            arguments = await token_file(controller, tmp_path / "token")
            (info,) = await controller.tokens.list()
            await controller.tokens.revoke(info.id)
            async with open_daemon(controller.url, "w", arguments=arguments) as daemon:
                assert await daemon.wait() == 1
    assert "missing or wrong, or no longer valid" in daemon.log
    assert "Traceback" not in daemon.log
    secret = (tmp_path / "token").read_text().strip()[16:]
    assert secret not in daemon.log


async def test_a_forgotten_daemon_joins_anew_by_a_token(tmp_path: Path) -> None:
    """Its key is refused, so it comes by the token that it was given; then it has another key."""
    state = ["--state-dir", str(tmp_path / "daemon")]
    with trio.fail_after(LIMIT):
        async with guarded(tmp_path / "c") as controller:
            arguments = [*state, *await token_file(controller, tmp_path / "token")]
            async with open_daemon(controller.url, "w", arguments=arguments) as daemon:
                await daemon.wait_for_log("connected")
            (before,) = await controller.enrolled.list()
            await controller.enrolled.forget("w")
            async with open_daemon(controller.url, "w", arguments=state) as daemon:
                assert await daemon.wait() == 1
            arguments = [*state, *await token_file(controller, tmp_path / "token")]
            async with open_daemon(controller.url, "w", arguments=arguments) as daemon:
                await daemon.wait_for_log("connected")
                (after,) = await controller.enrolled.list()
                assert after.uid != before.uid
                assert "key_refused" in daemon.log


async def test_a_locked_daemon_waits_to_be_unlocked(tmp_path: Path) -> None:
    """It doesn't end: whoever unlocks it needs nobody to start it."""
    with trio.fail_after(LIMIT):
        async with guarded(tmp_path / "c") as controller:
            arguments = await token_file(controller, tmp_path / "token")
            async with open_daemon(controller.url, "w", arguments=arguments) as daemon:
                await controller.wait_for_daemon("w")
                await controller.enrolled.lock("w")
                await daemon.wait_for_log("is locked")
                assert daemon.exit_code is None


async def test_a_copied_state_directory_is_found_out(tmp_path: Path) -> None:
    """The copy comes first, and has used its next key when the original is started again: then neither is let in."""
    original, copy = tmp_path / "original", tmp_path / "copy"
    with trio.fail_after(LIMIT):
        async with guarded(tmp_path / "c") as controller:
            first = ["--state-dir", str(original)]
            arguments = [*first, *await token_file(controller, tmp_path / "token")]
            async with open_daemon(controller.url, "w", arguments=arguments) as daemon:
                await daemon.wait_for_log("connected")  # it has its key then
            shutil.copytree(original, copy)
            second = ["--state-dir", str(copy)]
            for _ in range(2):
                async with open_daemon(controller.url, "w", arguments=second) as daemon:
                    await daemon.wait_for_log("connected")
            async with open_daemon(controller.url, "w", arguments=first) as daemon:
                await daemon.wait_for_log("is locked")
            async with open_daemon(controller.url, "w", arguments=second) as daemon:
                await daemon.wait_for_log("is locked")
