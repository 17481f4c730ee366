"""``sandd cp`` with a real daemon: it copies as cp(1) does, says what it did, and leaves nothing when stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest
from controllers import running_controller
from daemons import daemon_environment, running_command, running_daemon
from forked_python import run_python
from process_tools import until_sync

import sandd
from sandd.cli import build_parser
from sandd.copying.copy import HERE, _Copies
from sandd.copying.places import Order

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Marker
    from controllers import ControllerProcess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these programs are POSIX")
SECONDS: Final = 60.0
"""For what takes one or two: the machine may be busy."""


@pytest.fixture(scope="module")
def server(_own_temporary_directory: None) -> Iterator[sandd.Server]:
    """With the daemon "w", which the tests of this module share."""
    with sandd.Server(port=0) as server, running_daemon(server.url, "w"):
        assert server.wait_for_daemon("w", timeout=SECONDS)
        yield server


@pytest.fixture(scope="module")
def controller(_own_temporary_directory: None) -> Iterator[ControllerProcess]:
    """In a process of its own; without any daemon, to begin with."""
    with running_controller() as controller:
        yield controller


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with something in it to copy."""
    place = tmp_path / "here"
    plant(place)
    monkeypatch.chdir(place)
    return place


def plant(place: Path) -> None:
    """Files, directories, links and modes; times of long ago."""
    (place / "d" / "e").mkdir(parents=True)
    (place / "empty").mkdir()
    (place / "other").mkdir()
    (place / "f").write_text("content of f")
    (place / "old").write_text("what was there")
    (place / "other" / "f").write_text("another f")
    (place / "d" / "e" / "g").write_text("content of g")
    (place / "d" / "run").write_text("#!/bin/sh\n")
    (place / "d" / "run").chmod(0o755)
    (place / "d" / "link").symlink_to("e/g")
    for path in (place / "f", place / "d" / "e" / "g", place / "d" / "run"):
        os.utime(path, (1_000_000_000, 1_000_000_000))


def snapshot(place: Path) -> dict[str, object]:
    """All that is below, with modes and times of files."""
    seen: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            what: object = os.readlink(path)
        elif stat.S_ISDIR(status.st_mode):
            what = "directory"
        else:
            what = (path.read_bytes(), status.st_mode, status.st_mtime_ns)
        seen[str(path.relative_to(place))] = what
    return seen


def copy(server: sandd.Server, *arguments: str) -> int:
    """What the command does once the daemon is there; its exit code."""
    options = build_parser().parse_args(["cp", *arguments])
    order = Order.parse(options.paths, HERE)
    daemon = server.controller.daemon("w")
    return server.call(_Copies(options, order, daemon).run)


@pytest.mark.parametrize("uploads", [True, False], ids=["up", "down"])
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param("f new", id="file-new"),
        pytest.param("f old", id="file-over-file"),
        pytest.param("f empty", id="file-into-directory"),
        pytest.param("f empty/", id="file-into-directory-slash"),
        pytest.param("f new/", id="file-new-slash"),
        pytest.param("f none/new", id="no-parent"),
        pytest.param("f old/new", id="parent-is-a-file"),
        pytest.param("f other/f", id="file-over-another"),
        pytest.param("none new", id="no-source"),
        pytest.param("none empty", id="no-source-into-directory"),
        pytest.param("f old empty", id="several"),
        pytest.param("f none old empty", id="several-one-of-them-absent"),
        pytest.param("f old new", id="several-to-nothing"),
        pytest.param("f d old", id="several-to-a-file"),
        pytest.param("f other/f empty", id="two-of-one-name"),
        pytest.param("d new", id="directory-without-r"),
        pytest.param("f d empty", id="one-directory-without-r"),
        pytest.param("-r d new", id="directory-new"),
        pytest.param("-r d new/", id="directory-new-slash"),
        pytest.param("-r d empty", id="directory-into-directory"),
        pytest.param("-r d/ empty/", id="directory-slash-into-directory"),
        pytest.param("-r d/. empty", id="content-of-directory"),
        pytest.param("-r d/. new", id="content-of-directory-new"),
        pytest.param("-r d old", id="directory-over-file"),
        pytest.param("-r d none/new", id="directory-no-parent"),
        pytest.param("-r d f empty", id="directory-and-file"),
        pytest.param("-r empty new", id="empty-directory"),
        pytest.param("-r d/link new", id="link"),
    ],
)
def test_it_copies_as_cp_does(
    arguments: str, uploads: bool, server: sandd.Server, here: Path, tmp_path: Path
) -> None:
    """The same tree as after ``cp -pH`` with these arguments, and the same of success and failure."""
    twin = tmp_path / "twin"
    shutil.copytree(here, twin, symlinks=True)
    cp = subprocess.run(
        ["cp", "-p", "-H", *arguments.split()], cwd=twin, capture_output=True, text=True
    )

    *before, destination = arguments.split()
    if uploads:
        given = [*before, f"w:{here}/{destination}"]
    else:
        given = [each if each == "-r" else f"w:{here}/{each}" for each in before] + [destination]
    code = copy(server, *given)

    assert code == (1 if cp.returncode else 0), cp.stderr
    assert snapshot(here) == snapshot(twin)


def test_each_failure_is_one_line_that_says_what_to_do(
    server: sandd.Server, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What, to where, why; the others are copied; nothing is on stdout."""
    assert copy(server, "f", "no\nne", "d", f"w:{here}/empty") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        rf"sandd: no\nne -> w:{here}/empty: No such file or directory: 'no\nne' (look at the path; "
        "directories on the way to a target must be there)",
        f"sandd: d -> w:{here}/empty: it is a directory; -r copies those, with all that is in them",
    ]
    assert (here / "empty" / "f").exists()
    assert copy(server, f"w:{here}/f", "none/x") == 1
    assert re.fullmatch(
        rf"sandd: w:{here}/f -> none/x: there is no directory 'none' to make it in: 'none/x'\n",
        capsys.readouterr().err,
    )


def test_json_has_a_line_for_each_source(
    server: sandd.Server, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was copied and how much of it was sent; of a failure, why."""
    assert copy(server, "--json", "-r", "f", "none", "d", f"w:{here}/empty") == 1
    copied, failed, tree = map(json.loads, capsys.readouterr().out.splitlines())
    digest = hashlib.sha256(b"content of f").hexdigest()
    assert (copied["source"], copied["target"]) == ("f", f"w:{here}/empty/f")
    assert (copied["error"], copied["sha256"]) == (None, digest)
    numbers = [copied[name] for name in ("bytes", "size", "files", "skipped", "resumed")]
    assert numbers == [12, 12, 1, 0, 0]
    assert failed == {
        "source": "none",
        "target": f"w:{here}/empty",
        "error": "[Errno 2] No such file or directory: 'none'",
        "errno": "ENOENT",
    }
    assert (tree["files"], tree["sha256"], tree["target"]) == (2, None, f"w:{here}/empty/d")


def test_update_skips_what_is_there(
    server: sandd.Server, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By size and time, or by content; without either it is sent again."""

    def skipped(*options: str) -> int:
        assert copy(server, *options, "--json", "f", f"w:{here}/copy") == 0
        number: int = json.loads(capsys.readouterr().out)["skipped"]
        return number

    assert skipped() == 0
    assert skipped() == 0
    assert skipped("-u") == 1
    os.utime(here / "f", (1_100_000_000, 1_100_000_000))
    assert skipped("--checksum") == 1
    os.utime(here / "f", (1_200_000_000, 1_200_000_000))
    assert skipped("-u") == 0


def test_patterns_choose_what_is_copied(server: sandd.Server, here: Path) -> None:
    """Each option may be given again; what is excluded is not copied, whatever is included."""
    (here / "d" / "x.py").touch()
    (here / "d" / "y.py").touch()
    chosen = ["--include", "*.py", "--include", "run", "--exclude", "y*"]
    assert copy(server, "-r", *chosen, "d", f"w:{here}/new") == 0
    names = [path.name for path in (here / "new").rglob("*") if path.is_file()]
    assert sorted(names) == ["run", "x.py"]


@pytest.mark.parametrize("quiet", [False, True], ids=["told", "quiet"])
def test_what_is_left_out_is_told(
    quiet: bool, server: sandd.Server, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A named pipe is no file, and no failure."""
    os.mkfifo(here / "d" / "pipe")
    assert copy(server, *(["-q"] if quiet else []), "-r", "d", f"w:{here}/new") == 0
    told = "sandd: d: left out 1 that are neither files, directories nor links: pipe\n"
    assert capsys.readouterr().err == ("" if quiet else told)


# ---- the program itself -------------------------------------------------------------------------


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """``sandd cp`` to its end."""
    return run_python(
        [sys.executable, "-m", "sandd", "cp", *arguments],
        env=daemon_environment(env),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        pytest.param(["a"], 2, "it takes two paths", id="one-path"),
        pytest.param(["a", "b"], 2, "neither side is a daemon's", id="no-daemon"),
        pytest.param(["a", "w:b", "--wait", "soon"], 2, "'soon' is no number", id="bad-wait"),
        pytest.param(["a", "w:b"], 125, "no daemon 'w'", id="no-such-daemon"),
        pytest.param(["a", "w:b", "--wait", "0.1"], 125, "'w' within 0.1 s (--wait)", id="late"),
        pytest.param(
            ["a", "w:b", "--token-file", "none"],
            125,
            "--token-file: can't read the token file none",
            id="no-token",
        ),
        pytest.param(["--local", "none", "w:b"], 1, "No such file", id="nothing-to-copy"),
    ],
)
def test_exit_codes(
    arguments: list[str], code: int, complaint: str, controller: ControllerProcess
) -> None:
    """2 for use that means nothing, 125 for what is ours, 1 for a copy that failed: each with its reason."""
    done = run(*arguments, **controller.env)
    assert (done.returncode, done.stdout) == (code, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_daemon_of_a_controller(here: Path, controller: ControllerProcess) -> None:
    """There and back, by a controller that is told by the environment."""
    with controller.daemon("w"):
        done = run("--wait", "30", "-r", "d", f"w:{here}/new", **controller.env)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        done = run(f"w:{here}/new/e/g", "back", **controller.env)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (here / "new" / "run").read_text() == "#!/bin/sh\n"
    assert (here / "back").read_text() == "content of g"


def test_a_daemon_of_its_own(here: Path, marker: Marker) -> None:
    """With ``--local`` nobody is waited for, and nothing stays of it but the copy."""
    done = run("--local", "f", f"w:{here}/new", **dict([marker]))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (here / "new").read_text() == "content of f"
    assert not marker.processes()


@pytest.mark.parametrize("uploads", [True, False], ids=["up", "down"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_part_of_a_file(
    number: signal.Signals, code: int, uploads: bool, here: Path, marker: Marker
) -> None:
    """In the middle of a large file: no partial file on either side, no process, and the old target as it was."""
    big, target = here / "big", here / "d" / "target"
    piece = os.urandom(1 << 20)
    with big.open("wb") as file:
        for _ in range(400):
            file.write(piece)
    target.write_text("old")
    source, destination = (str(big), f"w:{target}") if uploads else (f"w:{big}", str(target))
    with running_command("cp", "--local", source, destination, env=dict([marker])) as process:
        until_sync(
            lambda: any(each.stat().st_size > 1 << 20 for each in partials(target.parent)),
            within=SECONDS,
        )
        process.send_signal(number)
        output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, output, errors) == (code, "", "")
    assert not marker.processes()
    assert not partials(target.parent)
    assert target.read_text() == "old"


def partials(directory: Path) -> list[Path]:
    """Files that are there for as long as a transfer takes."""
    return list(directory.glob(".sandd-*"))
