"""The daemon as one file: what is in it, and that a Python without any packages runs it, with all that it can do."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio
from daemons import daemon_environment, open_daemon
from metrics_client import ask
from peers_with_credentials import guarded
from process_tools import spawner_pids, until

import sandd
from sandd._core._errors import ConfigurationError
from sandd._core.bundle import archive, modules
from sandd._core.bundle.modules import CARRIED, find_modules
from sandd._core.bundle.trimming import without_words
from sandd.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT: Final = 50.0
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="a bundle doesn't run there")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``sandd bundle`` makes."""
    path = tmp_path_factory.mktemp("bundle") / "sandd-daemon.pyz"
    done = subprocess.run(
        [sys.executable, "-m", "sandd", "bundle", "-o", str(path)],
        env=daemon_environment({"PYTHONHASHSEED": "1"}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n"
    return path


@pytest.fixture
def names(bundle: Path) -> Iterator[dict[str, bytes]]:
    """What is in it."""
    with zipfile.ZipFile(bundle) as file:
        yield {name: file.read(name) for name in file.namelist()}


def test_the_same_packages_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order they are found, and whenever; so a hash tells which one it is."""
    found = find_modules(("attrs", "msgpack"))
    monkeypatch.setattr(archive, "find_modules", lambda: found)
    content = archive.make_bundle()
    monkeypatch.setattr(archive, "find_modules", lambda: dict(reversed(found.items())))
    assert archive.make_bundle() == content
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_bundle_is_small(bundle: Path) -> None:
    """It is fetched by every new daemon; what is carried by mistake, as data or as bytecode, would show here."""
    assert 400_000 < bundle.stat().st_size < 800_000


def test_all_is_carried_with_its_licence(names: dict[str, bytes]) -> None:
    """Each package's, ours too, beside its name and version."""
    licensed = {name.partition(".dist-info/licenses/")[0] for name in names if "/licenses/" in name}
    told = {name.partition(".dist-info/METADATA")[0] for name in names if "/METADATA" in name}
    assert licensed == told
    assert f"trio_sandd-{sandd.__version__}" in told
    assert {name.partition("/")[0].partition(".py")[0] for name in names} >= CARRIED
    assert b"Changed: comments and docstrings" in names["sortedcontainers/sortedlist.py"]


def test_nothing_of_the_controller_is_carried(names: dict[str, bytes]) -> None:
    """Nor what is for tests, nor anything compiled, nor another package's files."""
    ours = {name for name in names if name.startswith("sandd/")}
    assert "sandd/_core/processes/spawner.py" in ours
    for absent in ("controller.py", "_core/router.py", "_core/identity/gate.py", "cli.py"):
        assert f"sandd/{absent}" not in ours
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops <= CARRIED | {"__main__.py", "typing_extensions.py"}
    assert {Path(name).suffix for name in names if ".dist-info" not in name} == {".py"}


def test_a_package_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, by its name, rather than by every daemon later."""
    missing = ("cattrs", "msgpack")
    find = modules.find_spec
    monkeypatch.setattr(modules, "find_spec", lambda name: None if name in missing else find(name))
    with pytest.raises(
        ConfigurationError, match=r"a daemon needs cattrs, msgpack, .* no files of that"
    ):
        find_modules(("sandd.wire",))


def test_a_package_that_nothing_asks_for_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of what is carried may do without it."""
    monkeypatch.setattr(modules, "CARRIED", CARRIED | {"once_needed"})
    assert "msgpack" in find_modules(("sandd.wire",))


def test_a_place_that_can_not_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, with exit code 125."""
    monkeypatch.setattr("sandd.bundling.commands.make_bundle", lambda bytecode: b"")
    path = tmp_path / "none" / "x.pyz"
    assert main(["bundle", "-o", str(path)]) == 125
    assert capsys.readouterr().err == f"sandd: can't write {path}: No such file or directory\n"


def test_only_a_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a link leads to, and not the link; nothing that isn't a file, which for root may be a device."""
    monkeypatch.setattr("sandd.bundling.commands.make_bundle", lambda bytecode: b"new")
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "null").symlink_to(os.devnull)
    assert main(["bundle", "-o", str(tmp_path / "link")]) == 0
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "file").read_bytes()) == (True, b"new")
    capsys.readouterr()
    assert main(["bundle", "-o", str(tmp_path / "null")]) == 125
    assert capsys.readouterr().err == f"sandd: can't write {tmp_path / 'null'}: it is not a file\n"


def test_bytecode_is_for_this_python_and_beside_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can't use it goes by the text, and one that can needs nothing else."""
    monkeypatch.setattr(archive, "find_modules", lambda: find_modules(("sandd._core._errors",)))
    content = archive.make_bundle(bytecode=True)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert "sandd/_core/_errors.py" in file.namelist()
        assert "sandd/_core/_errors.pyc" in file.namelist()


# ---- what nobody runs ---------------------------------------------------------------------------


def trim(source: str) -> str:
    """What is left of a module's text."""
    return without_words(source.encode(), ast.parse(source)).decode()


WORDS: Final = '''\
#!/usr/bin/python
"""A module's own,
in two lines."""
x = "#not one"  # one  \n
def f(ä="é"):  # ünd ö
    """Alone."""
class C:
    r"""Raw, é."""; y = """kept
  as it is #
"""
    "an attribute's"
    def g(self): """In a line."""  # and more
'''


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(WORDS, id="words"),
        pytest.param("", id="nothing"),
        pytest.param("x = 1", id="no newline"),
        *(
            pytest.param(Path(str(module.__file__)).read_text("utf-8"), id=module.__name__)
            for module in (sandd.wire, trio.socket)
        ),
    ],
)
def test_what_is_left_is_the_same_program(source: str) -> None:
    """But for texts that stand alone, which are empty; and each line is where it was."""
    trimmed = trim(source)
    emptied = ast.parse(source)
    for node in ast.walk(emptied):
        match node:
            case ast.Expr(value=ast.Constant(value=str()) as text):
                text.value, text.kind = "", None
    assert ast.dump(ast.parse(trimmed)) == ast.dump(emptied)
    numbers = [node.lineno for node in ast.walk(emptied) if isinstance(node, ast.stmt)]
    assert [n.lineno for n in ast.walk(ast.parse(trimmed)) if isinstance(n, ast.stmt)] == numbers


def test_no_word_is_left() -> None:
    """Nor white space behind what is."""
    trimmed = trim(WORDS)
    assert trimmed.splitlines()[:5] == ["", '""', "", 'x = "#not one"', ""]
    for word in ("usr", "one  ", "ünd", "Alone", "Raw", "attribute", "In a line", "more"):
        assert word not in trimmed


# ---- a bare Python ------------------------------------------------------------------------------


def bare(bundle: Path) -> list[str]:
    """A Python without packages, environment or user's files, that runs it."""
    return [sys.executable, "-I", "-S", str(bundle)]


@posix_only
async def test_a_bare_python_does_all_that_a_daemon_does(bundle: Path, tmp_path: Path) -> None:
    """It joins by a token over TLS, by a pin; commands, a terminal, files, copies, and a spawner that was killed."""
    with trio.fail_after(LIMIT):
        async with guarded(tmp_path / "controller", tls="auto") as controller:
            made = await controller.tokens.create_join()
            assert controller.ca_pin is not None
            async with open_daemon(
                controller.url,
                arguments=["--ca-pin", controller.ca_pin],
                env={"SANDD_TOKEN": made.text},
                program=bare(bundle),
            ) as daemon:
                worker = await controller.wait_for_daemon("worker-1")
                result = await worker.run("echo $SANDD_TOKEN; echo out; echo err >&2; exit 3")
                assert (result.stdout, result.stderr) == ("\nout\n", "err\n")
                assert result.exit_code == 3

                async with worker.open_session(
                    "test -t 0 && stty size", rows=7, cols=33
                ) as session:
                    seen = b"".join([piece async for piece in session])
                assert b"7 33" in seen

                path = worker.path(tmp_path / "there")
                await path.write_text("text")
                assert await path.read_text() == "text"
                tree = tmp_path / "tree"
                (tree / "below").mkdir(parents=True)
                (tree / "below" / "file").write_bytes(os.urandom(100_000))
                await worker.upload(tree, tmp_path / "copy", exclude=["*.no"])
                await worker.download(tmp_path / "copy", tmp_path / "back")
                names = ("tree", "back")
                sent, received = ((tmp_path / n / "below" / "file").read_bytes() for n in names)
                assert sent == received

                (spawner,) = spawner_pids(daemon.pid)
                os.kill(spawner, signal.SIGKILL)
                await until(lambda: spawner_pids(daemon.pid) not in ([], [spawner]))
                assert (await worker.run("echo again")).stdout == "again\n"


@posix_only
async def test_a_bare_python_holds_itself_to_a_policy(bundle: Path, tmp_path: Path) -> None:
    """What is imported for that alone is carried, too, and for its figures; and its log is as ever."""
    policy = tmp_path / "policy.toml"
    policy.write_text('version = 1\n[[rule]]\nname = "e"\nexe = "/bin/echo"\nargv = ["hi"]\n')
    with trio.fail_after(LIMIT):
        async with sandd.open_controller(port=0) as controller:
            async with open_daemon(
                controller.url,
                arguments=[
                    *("--policy", str(policy), "--log-format", "json"),
                    *("--metrics-address", "127.0.0.1:0"),
                ],
                program=bare(bundle),
            ) as daemon:
                worker = await controller.wait_for_daemon("worker-1")
                assert (await worker.run(["/bin/echo", "hi"])).stdout == "hi\n"
                with pytest.raises(sandd.PolicyDenied):
                    await worker.run(["/bin/echo", "ho"])
                events = [json.loads(line) for line in daemon.log.splitlines()]
                (served,) = [each for each in events if each["event"] == "metrics_served"]
                figures = await ask(served["address"])
                assert figures.value("sandd_build_info", version=sandd.__version__) == 1


@posix_only
def test_a_bundle_says_what_can_not_be(bundle: Path) -> None:
    """A bad option as ever; and the text that an old Python runs first is one that it understands."""
    done = subprocess.run([*bare(bundle), "--no"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "sandd-daemon.pyz: error: unrecognized arguments: --no\n"
    assert sys.version_info >= (3, 11)
    ast.parse(archive.MAIN, feature_version=(3, 4))
    assert archive.MAIN.index("version_info < (3, 11)") < archive.MAIN.index("from sandd")
