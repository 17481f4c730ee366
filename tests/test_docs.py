"""The documentation tells the truth: the guide's code runs, and every public name is in the reference."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import inspect
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
import trio
from daemons import daemon_environment, open_daemon
from forked_python import copies

import sandd
import sandd.cli
import sandd.testing
from sandd._core import controller_options as standalone
from sandd._core.daemon_options import _VARIABLES, build_parser, parse_daemon_options
from sandd._core.identity.proofs import SharedSecret
from sandd._core.policy.linting import errors
from sandd._core.policy.reading import read_policy
from sandd._core.policy.refusing import judge_spec
from sandd.testing import open_fault_proxy
from sandd.wire import CommandSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS: Final = Path(__file__).parent.parent / "docs"
LIMITS: Final = (DOCS / "limits.rst").read_text("utf-8")
GUIDE: Final = (DOCS / "guide.rst").read_text("utf-8")
WAIT: Final = 30.0


class Piece(NamedTuple):
    """A code block of the guide."""

    line: int
    """Where it begins."""
    code: str

    @property
    def promised(self) -> list[str]:
        """What it says it prints: whatever stands behind ``# ->``, in order."""
        return [match.strip() for match in re.findall(r"# -> (.*)", self.code)]


def pieces(language: str, page: str = GUIDE) -> Iterator[Piece]:
    """The code blocks of a page, of the guide mostly, in that language."""
    block = rf"^\.\. code-block:: {language}\n\n((?:   .*\n|\n)+)"
    for match in re.finditer(block, page, re.MULTILINE):
        line = page.count("\n", 0, match.start(1)) + 1
        yield Piece(line, textwrap.dedent(match[1]))


async def printed_by(piece: Piece, names: dict[str, object]) -> list[str]:
    """Run it, as if it were the body of an async function; the lines it prints, empty ones left out."""
    tree = ast.parse(piece.code)
    ast.increment_lineno(tree, piece.line - 1)  # so that a traceback points into the guide
    compiled = compile(tree, str(DOCS / "guide.rst"), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        running = eval(compiled, names)
        if inspect.iscoroutine(running):
            await running
    return [line for line in output.getvalue().splitlines() if line]


@pytest.mark.skipif(sys.platform == "win32", reason="the guide's commands are POSIX'")
async def test_guide_code_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece of Python in the guide runs, after those before it, and prints what stands beside it."""
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.chdir(tmp_path)
    async with (
        sandd.open_controller(port=0, operator_token="an operator's") as controller,
        open_daemon(controller.url, "worker-1", labels={"env": "prod"}),
        open_daemon(controller.url, "worker-2", labels={"env": "staging"}),
    ):
        with trio.fail_after(WAIT):
            for daemon_id in ("worker-1", "worker-2"):
                await controller.wait_for_daemon(daemon_id)
        names = {"sandd": sandd, "trio": trio, "Path": Path, "controller": controller}
        for piece in pieces("python"):
            assert await printed_by(piece, names) == piece.promised, f"guide.rst:{piece.line}"


def test_the_tables_of_the_protocol_can_be_made() -> None:
    """Of every message, with what each of its fields lets through."""
    spec = importlib.util.spec_from_file_location("wire_tables", DOCS / "wire_tables.py")
    assert spec is not None
    assert spec.loader is not None
    wire_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wire_tables)
    made = {name: "\n".join(make()) for name, make in wire_tables.CONTENTS.items()}
    assert all(made.values())
    assert "- at most 255 long" in made["specs"]


@pytest.mark.skipif(sys.platform == "win32", reason="the page's commands are POSIX'")
async def test_code_about_limits_prints_what_it_says() -> None:
    """As the guide's does."""
    async with sandd.open_controller(port=0) as controller, open_daemon(controller.url):
        with trio.fail_after(WAIT):
            await controller.wait_for_daemon("worker-1")
            names = {"controller": controller}
            for piece in pieces("python", LIMITS):
                assert await printed_by(piece, names) == piece.promised, f"limits.rst:{piece.line}"


AGENT_THAT_DIES: Final = """
import os, signal, sys, trio, sandd

async def main():
    async with sandd.open_controller(port=0) as controller:
        print(controller.address.rpartition(":")[2], flush=True)
        worker = await controller.wait_for_daemon("worker-1")
        async with worker.open_process(sys.argv[1], job_id="mine") as process:
            await process.stdout.receive_some()
            os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the guide's commands are POSIX'")
async def test_job_id_outlives_the_program(tmp_path: Path) -> None:
    """As the guide says: the same command under the same `job_id` takes over what a dead program ran."""
    starts = tmp_path / "starts"
    command = f"echo started >> {shlex.quote(str(starts))}; echo begun; read line; echo $line"
    with copies():
        program = await trio.lowlevel.open_process(
            [sys.executable, "-c", AGENT_THAT_DIES, command],
            stdout=subprocess.PIPE,
            env=daemon_environment(),
        )
    assert program.stdout is not None
    async with program.stdout, open_fault_proxy(int(await program.stdout.receive_some())) as proxy:
        with trio.fail_after(WAIT):
            async with open_daemon(proxy.url), sandd.open_controller(port=0) as controller:
                assert await program.wait() == -signal.SIGKILL
                proxy.redirect(controller.address)
                worker = await controller.wait_for_daemon("worker-1")
                async with worker.open_process(command, job_id="mine") as process:
                    await process.stdin.send_all(b"done\n")
                    output = b"".join([chunk async for chunk in process.stdout])
                    assert (await process.wait()).success
    assert output.endswith(b"done\n")
    assert starts.read_text() == "started\n"


def test_guide_code_is_found() -> None:
    """The test above would pass if it saw nothing."""
    assert len(list(pieces("python"))) > 10
    assert sum(len(piece.promised) for piece in pieces("python")) > 20


def test_guide_config_file_is_valid(tmp_path: Path) -> None:
    """The file shown in the guide is understood, whatever else is said."""
    (piece,) = [each for each in pieces("toml") if "daemon_id" in each.code]
    token = tmp_path / "token"
    token.write_text("secret\n")
    config = tmp_path / "sandd.toml"
    config.write_text(re.sub('token_file = ".*"', f"token_file = {str(token)!r}", piece.code))
    options = parse_daemon_options(["--config", str(config)], {}, prog="sandd", version="0")
    assert options.credential == SharedSecret(b"secret")
    assert options.labels == {"env": "prod", "arch": "arm"}


def test_guide_rate_limits_are_valid(tmp_path: Path) -> None:
    """The table shown in the guide is one of a controller's file."""
    (piece,) = [each for each in pieces("toml") if "rate_limits" in each.code]
    config = tmp_path / "controller.toml"
    config.write_text(piece.code)
    options = standalone.parse_controller_options(
        ["--config", str(config)], {}, prog="sandd", version="0"
    )
    limits = sandd.RateLimits(operator=sandd.Rate(10, burst=50), daemon=sandd.Rate(5))
    assert options.rate_limits == limits


def test_guide_policy_is_one() -> None:
    """The one that is shown has nothing that a daemon would refuse, the hash that is shown, and allows what it says."""
    (piece,) = [each for each in pieces("toml") if "[[rule]]" in each.code]
    policy = read_policy(piece.code.encode(), name="guide")
    assert errors(policy) == []
    assert f"policy {policy.hash}: 1 rule" in GUIDE
    command = (b"run-tests", b"run", b"--fast", b"unit")
    assert judge_spec(policy, CommandSpec(command, cwd=b"/work")) is None


def test_guide_has_every_option_of_the_daemon() -> None:
    """With its names on the command line, in the environment and in the file."""
    parser = build_parser("sandd", "0")
    options = {name for action in parser._actions for name in action.option_strings}
    variables = {name for names in _VARIABLES.values() for name in names}
    keys = _VARIABLES.keys() - {"config"}
    for name in (options | variables | keys) - {"-h", "--help", "--version"}:
        assert f"``{name}``" in GUIDE, name


def test_guide_has_every_option_of_the_controller() -> None:
    """With the rule by which they are named in the environment."""
    parser = standalone.build_parser("sandd", "0")
    for action in parser._actions:
        for name in set(action.option_strings) - {"-h", "--help", "--version"}:
            assert f"``{name}``" in GUIDE, name
    assert "SANDD_CONTROLLER_STATE_DIR" in standalone.VARIABLES["state_dir"]
    assert "``SANDD_CONTROLLER_STATE_DIR``" in GUIDE


def test_guide_has_every_command() -> None:
    """Of those that a person types."""
    (choices,) = [
        action.choices
        for action in sandd.cli.build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    for name in choices:
        assert re.search(rf"sandd {name}\b|``{name}``", GUIDE), name


@pytest.mark.skipif(sys.platform == "win32", reason="the guide's commands are POSIX'")
def test_guide_token_command_makes_a_token(tmp_path: Path) -> None:
    """The line of shell that the guide shows for it works."""
    (line,) = re.findall(r"\$ (python -c .*)", GUIDE)
    command = line.replace("python", shlex.quote(sys.executable), 1)
    assert os.system(f"cd {shlex.quote(str(tmp_path))}; {command}") == 0
    token = tmp_path / "token"
    assert len(token.read_text().strip()) == 64
    assert token.stat().st_mode & 0o777 == 0o600


def test_guide_has_every_error() -> None:
    """Each error that a caller may get is in the guide's table; the others are said to be none."""
    abstract = {"SanddError", "ProtocolError", "LocalProtocolError", "RemoteProtocolError"}
    for name in set(sandd.__all__) - abstract:
        value = getattr(sandd, name)
        if isinstance(value, type) and issubclass(value, sandd.SanddError):
            assert f"   * - `{name}`" in GUIDE, name


def test_reference_has_every_public_name() -> None:
    """What can be imported from sandd is documented there."""
    documented = re.findall(
        r"^\.\. auto\w+:: sandd\.(\w+)$", (DOCS / "reference.rst").read_text(), re.M
    )
    assert sorted(documented) == sorted(set(sandd.__all__) - {"__version__"})


def test_reference_has_every_name_for_tests() -> None:
    """What can be imported from sandd.testing is documented there, and can be imported."""
    documented = re.findall(
        r"^\.\. auto\w+:: sandd\.testing\.(\w+)$", (DOCS / "reference.rst").read_text(), re.M
    )
    for name in sandd.testing.__all__:
        assert getattr(sandd.testing, name) is not None
    directions = {"UP", "DOWN"}  # members of Direction
    assert sorted(documented) == sorted(set(sandd.testing.__all__) - directions)
    with pytest.raises(AttributeError, match="no attribute 'open_flood'"):
        sandd.testing.open_flood  # noqa: B018 - asking for it is the test


def test_reference_has_every_name_for_asyncio() -> None:
    """What can be imported from sandd.aio is documented there."""
    documented = re.findall(
        r"^\.\. auto\w+:: sandd\.aio\.(\w+)$", (DOCS / "reference.rst").read_text(), re.M
    )
    assert sorted(documented) == sorted(sandd.aio.__all__)


@pytest.mark.parametrize(("page", "count"), [("testing.rst", 50), ("security.rst", 50)])
def test_tests_named_in_tables_exist(page: str, count: int) -> None:
    """Faults and promises name tests, and each name is that of a test there is."""
    tests = Path(__file__).parent
    named = re.findall(r"``(test_\w+\.py)::(test_\w+)``", (DOCS / page).read_text("utf-8"))
    assert len(named) > count
    for file, name in named:
        texts = [path.read_text("utf-8") for path in tests.rglob(file)]
        found = [text for text in texts if re.search(rf"^(async )?def {name}\(", text, re.M)]
        assert len(found) == 1, (file, name)


def test_each_promise_of_security_is_tested() -> None:
    """Each has a number, and each number has rows in the table, all of which name a test."""
    text = (DOCS / "security.rst").read_text("utf-8")
    promised = re.findall(r"^(\d+)\. \*\*", text, re.M)
    rows = re.findall(r"^   \* - ([\d, ]+)\n     - .*\n     - \| ``test_", text, re.M)
    assert promised == [str(number + 1) for number in range(len(promised))]
    assert {each for row in rows for each in row.split(", ")} == set(promised)
    assert len(rows) == len(re.findall(r"^   \* - \d", text, re.M))
