"""``sandd ca``: what it shows, makes and changes, beside a controller that runs or without one."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from controllers import running_controller
from daemons import running_daemon
from forked_python import hurried
from tls_peers import write_pair

from sandd._core.identity.database import open_database
from sandd._core.tls import authority
from sandd._core.tls.authority import DAY
from sandd._core.tls.certificates import LOCAL_NAMES, OwnAuthority
from sandd._core.tls.files import AuthorityFiles
from sandd._core.tls.rotation import Phase
from sandd.cli import main
from sandd.command_line.journaling import local_user

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> AuthorityFiles:
    """Those of a controller that has run once."""
    files = AuthorityFiles(tmp_path / "state" / "tls")
    OwnAuthority(files, LOCAL_NAMES).load(time.time())
    return files


class Command:
    """``sandd ca`` for one state directory."""

    def __init__(self, state_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self._state_dir, self._capfd = state_dir, capfd

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What it says; on stderr, if it is to fail."""
        action, *others = arguments
        assert main(["ca", action, "--state-dir", str(self._state_dir), *others]) == code
        out, err = self._capfd.readouterr()
        assert not (err if code == 0 else out)
        return err if code else out

    def objects(self) -> list[dict[str, Any]]:
        """What ``show --json`` says."""
        return [json.loads(line) for line in self("show", "--json").splitlines()]


@pytest.fixture
def ca(tmp_path: Path, files: AuthorityFiles, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command, for that controller."""
    return Command(tmp_path / "state", capfd)


def test_show_says_what_peers_need(ca: Command, files: AuthorityFiles) -> None:
    """The pin, how long all of it lasts, and by which names it can be dialled; no key."""
    rotation = files.read()
    assert rotation is not None
    pin = authority.read_facts(rotation.old.certificate).pin
    text = ca("show")
    assert text.splitlines()[0].startswith("CA ")
    assert str(pin) in text
    assert "localhost" in text
    assert "PRIVATE" not in text
    shown, server = ca.objects()
    assert (shown["kind"], shown["pin"]) == ("CA", str(pin))
    assert server["kind"] == "server"
    assert server["not_after"] - server["not_before"] == 7 * DAY + 300
    assert set(server["names"]) == set(LOCAL_NAMES)


def test_rotate_takes_one_step_at_a_time(ca: Command, files: AuthorityFiles) -> None:
    """Each says what it did, which pins there are, and what comes next; none comes before its time."""
    first = ca.objects()[0]["pin"]
    text = ca("rotate")
    assert text.startswith("trust-both: ")
    assert "sandd ca rotate" in text
    assert first in text
    kinds = [each["kind"] for each in ca.objects()]
    assert kinds == ["old CA, signs", "new CA", "server"]
    assert "rotation     trust-both, since " in ca("show")
    assert "24.0 of 24 hours" in ca("rotate", code=125)
    assert ca("rotate", "--now").startswith("issue-new: ")
    assert [each["kind"] for each in ca.objects()][:2] == ["new CA, signs", "old CA"]
    done = ca("rotate", "--now")
    assert done.startswith("steady: ")
    assert first not in done
    rotation = files.read()
    assert rotation is not None
    assert rotation.phase is Phase.STEADY


def test_issue_makes_what_can_be_shown(ca: Command, tmp_path: Path) -> None:
    """In one file, for its owner alone, for as long as was said; over what was there only by force."""
    out = tmp_path / "me.pem"
    out.write_text("old")
    out.chmod(0o644)
    asked = ("issue", "operator", "alice", "--out", str(out), "--days", "30")
    assert "--force" in ca(*asked, code=125)
    assert out.read_text() == "old"
    text = ca(*asked, "--force")
    assert "sandd:operator:alice" in text
    assert out.stat().st_mode & 0o777 == 0o600
    facts = authority.read_facts(out.read_text())
    assert facts.names == {"sandd:operator:alice"}
    assert not facts.serves
    assert facts.not_after - time.time() == pytest.approx(30 * DAY, abs=60)


def test_what_changes_certificates_is_told_to_the_controller(
    ca: Command, files: AuthorityFiles, tmp_path: Path
) -> None:
    """Which writes it to its audit log: who did it, and what; and what can't be done isn't told."""
    state, out = files.directory.parent, tmp_path / "me.pem"
    with contextlib.closing(open_database(state)) as database:
        ca("rotate")
        ca("issue", "operator", "alice", "--out", str(out))
        ca("issue", "operator", "alice", "--out", str(out), code=125)
        rotated, issued = (json.loads(each.said) for each in database.changes(0))
        before = files.read()
        database._connection.execute("DROP TABLE changes")
        database._connection.execute("CREATE TABLE changes (seq INTEGER)")
        assert "on record" in ca("rotate", "--now", code=125)
        assert files.read() == before
    assert rotated["actor"] == issued["actor"] == f"local:{local_user()}"
    assert (rotated["type"], rotated["outcome"]) == ("ca", "rotated")
    assert len(rotated["result"]["authorities"]) == 2
    facts = authority.read_facts(out.read_text())
    assert issued["result"] == {
        "name": "sandd:operator:alice",
        "serial": f"{facts.serial:x}",
        "not_after": facts.not_after,
    }


def test_in_a_rotation_the_newest_ca_issues(
    ca: Command, files: AuthorityFiles, tmp_path: Path
) -> None:
    """What the old one signs would soon be worth nothing."""
    ca("rotate")
    ca("issue", "daemon", "u", "--out", str(tmp_path / "u.pem"))
    rotation = files.read()
    assert rotation is not None
    assert rotation.new is not None
    assert authority.is_issued_by((tmp_path / "u.pem").read_text(), rotation.new)


def test_what_can_not_be_is_told(
    ca: Command, tmp_path: Path, files: AuthorityFiles, capfd: pytest.CaptureFixture[str]
) -> None:
    """A name that is none, a file that can't be written, a directory without a CA, a CA that is damaged."""
    out = str(tmp_path / "out")
    assert "'a b'" in ca("issue", "daemon", "a b", "--out", out, code=125)
    assert "/no/such" in ca("issue", "daemon", "a", "--out", "/no/such/file", code=125)
    for days in ("0", "x", "4000"):
        with pytest.raises(SystemExit) as caught:
            main(["ca", "issue", "daemon", "a", "--out", out, "--days", days])
        assert caught.value.code == 2
        assert "number of days" in capfd.readouterr().err
    nowhere = Command(tmp_path / "nowhere", capfd)
    for arguments in (["show"], ["rotate"], ["issue", "daemon", "u", "--out", out]):
        told = nowhere(*arguments, code=125)
        assert "--tls auto" in told
        assert "nowhere" in told
    assert not (tmp_path / "nowhere").exists()
    (files.directory / "authority.json").write_text("{}")
    assert "damaged" in ca("show", code=125)


def test_the_directory_may_be_said_by_the_environment(
    files: AuthorityFiles, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the controller itself; without either it is that of one's own on the usual port."""
    monkeypatch.setenv("SANDD_CONTROLLER_STATE_DIR", str(files.directory.parent))
    assert main(["ca", "show"]) == 0
    assert "sha256:" in capfd.readouterr().out
    monkeypatch.delenv("SANDD_CONTROLLER_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(files.directory.parent / "none"))
    monkeypatch.setenv("HOME", str(files.directory.parent / "none"))
    assert main(["ca", "show"]) == 125
    assert "controller-8765" in capfd.readouterr().err


async def test_a_running_controller_notices(tmp_path: Path) -> None:
    """By itself: a rotation needs no signal and no restart."""
    hurry = hurried(**{"sandd._core.tls.renewal.LOOK_SECONDS": 0.2})
    with running_controller("--tls", "auto", env=hurry) as controller:
        told = controller.run_command("ca", "rotate", "--state-dir", str(controller.state_dir))
        assert told.returncode == 0, told.stderr
        await trio.to_thread.run_sync(controller.wait_for_log, "certificate_reloaded")
        (pin,) = {
            each["pin"]
            for each in controller.objects(
                "ca", "show", "--json", "--state-dir", str(controller.state_dir)
            )
            if each["kind"] == "old CA, signs"
        }
        with running_daemon(controller.url, "worker-1", arguments=["--ca-pin", pin]):
            controller.wait_for_daemon("worker-1")


def test_a_certificate_is_one_file_for_both_options(
    ca: Command, tmp_path: Path, files: AuthorityFiles
) -> None:
    """Certificate and key, as OpenSSL reads them, and nothing of the CA's key."""
    out = tmp_path / "u.pem"
    ca("issue", "daemon", "u", "--out", str(out))
    rotation = files.read()
    assert rotation is not None
    text = out.read_text()
    assert text.count("BEGIN CERTIFICATE") == text.count("BEGIN PRIVATE KEY") == 1
    assert rotation.old.key not in text
    assert write_pair(rotation.old, tmp_path).read_text() != text
