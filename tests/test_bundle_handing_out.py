"""A machine with only Python, curl and a shell has a daemon by one line; and what nobody gets, or does, on the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
import trio.testing
from controllers import ControllerProcess, running_controller

import sandd
from sandd._core._errors import ConfigurationError
from sandd._core.bundle import handing_out
from sandd._core.bundle.handing_out import FILE_PATH, SCRIPT_PATH, Bootstrap
from sandd._core.bundle.script import bootstrap_script
from sandd._core.services import LocalService
from sandd._core.transport import Document, Question, Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

if sys.platform == "win32":
    pytest.skip("there is no sh, and a bundle doesn't run", allow_module_level=True)

LIMIT: Final = 50.0
FILE: Final = b"a daemon" * 100
DIGEST: Final = hashlib.sha256(FILE).hexdigest()
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")

# ---- what is handed out -------------------------------------------------------------------------


def question(path: str = SCRIPT_PATH, host: str = "h:1", *, is_private: bool = True) -> Question:
    """Somebody asks."""
    return Question(path, host, is_private)


async def test_the_file_is_made_once_and_when_it_is_asked_for() -> None:
    """It takes a processor for seconds: a controller that nobody asks doesn't, and a crowd doesn't twice."""
    made = []

    def make() -> bytes:
        made.append(1)
        return FILE

    bootstrap = Bootstrap(lambda: None, make=make)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bootstrap.run)
            await trio.testing.wait_all_tasks_blocked()
            assert not made
            answers = []

            async def ask() -> None:
                answers.append(await bootstrap.answer(question(FILE_PATH)))

            async with trio.open_nursery() as askers:
                for _ in range(3):
                    askers.start_soon(ask)
    assert answers == 3 * [Document(FILE, "application/octet-stream")]
    assert made == [1]


async def test_what_can_not_be_made_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """To whoever asks: that it is so; why, to whoever reads the log."""

    def make() -> bytes:
        raise ConfigurationError("no files here")

    bootstrap = Bootstrap(lambda: None, make=make)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bootstrap.run)
            answer = await bootstrap.answer(question())
    assert isinstance(answer, Refusal)
    assert answer.status == 503
    assert "no files here" not in answer.reason
    assert [record.msg.get("error") for record in caplog.records] == ["no files here"]


@pytest.mark.parametrize("is_in_the_clear", [False, True])
async def test_in_the_clear_nothing_is_handed_out_that_would_be_run(is_in_the_clear: bool) -> None:
    """Unless somebody has said that this is as it should be; and then nothing else is in the way."""
    bootstrap = Bootstrap(lambda: None, is_in_the_clear=is_in_the_clear, make=lambda: FILE)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bootstrap.run)
            answer = await bootstrap.answer(question(is_private=is_in_the_clear))
            answer = await bootstrap.answer(question(is_private=False))
            nursery.cancel_scope.cancel()
    assert isinstance(answer, Document) is is_in_the_clear
    assert isinstance(answer, Document) or answer.status == 403


# ---- by HTTP ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def handing_out_files(
    monkeypatch: pytest.MonkeyPatch, **options: Any
) -> AsyncIterator[sandd.Controller]:
    """A controller whose daemon is quickly made."""
    monkeypatch.setattr(handing_out, "make_bundle", lambda: FILE)
    async with sandd.open_controller(port=0, bootstrap=True, **options) as controller:
        with trio.fail_after(LIMIT):
            yield controller


async def talk(controller: sandd.Controller, request: str) -> bytes:
    """All that is answered to a request."""
    host, _, port = controller.address.rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(request.replace("\n", "\r\n").encode("latin-1"))
        return b"".join([piece async for piece in stream])


async def test_who_asks_gets_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script, with the address that was asked for, and the file that it is for; by GET, and of HEAD the head."""
    async with handing_out_files(monkeypatch) as controller:
        answer = await talk(controller, f"GET {SCRIPT_PATH} HTTP/1.1\nHost: a.example:17\n\n")
        head, _, script = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert script == bootstrap_script("ws://a.example:17/ws", FILE_PATH, DIGEST, len(FILE))
        answer = await talk(controller, f"GET {FILE_PATH} HTTP/1.1\nHost: a\n\n")
        assert answer.endswith(b"\r\n\r\n" + FILE)
        answer = await talk(controller, f"HEAD {FILE_PATH} HTTP/1.1\nHost: a\n\n")
        assert f"Content-Length: {len(FILE)}\r\n".lower().encode() in answer.lower()
        assert answer.endswith(b"\r\n\r\n")
        assert b" 405 " in await talk(controller, f"POST {FILE_PATH} HTTP/1.1\nHost: a\n\n")


@pytest.mark.parametrize(
    "host", ["a'b", "a;b", "$(x)", "a b", "", "a:b", "a/b", "[::1", "x" * 256, "a\xe4", "`id`"]
)
async def test_no_host_gets_into_the_script_that_means_more_there(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody asked for, or had another ask for, is run by a shell."""
    async with handing_out_files(monkeypatch) as controller:
        answer = await talk(controller, f"GET {SCRIPT_PATH} HTTP/1.1\nHost: {host}\n\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"#!/bin/sh" not in answer


async def test_nothing_is_handed_out_unless_that_is_asked_for() -> None:
    """It is one more thing that strangers may have the controller do."""
    async with sandd.open_controller(port=0) as controller:
        assert controller.bootstrap_command is None
        for path in (SCRIPT_PATH, FILE_PATH):
            answer = await talk(controller, f"GET {path} HTTP/1.1\nHost: a\n\n")
            assert answer.startswith(b"HTTP/1.1 404 ")


async def test_an_address_that_is_barred_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with anything else that it asks for."""
    monkeypatch.setattr(LocalService, "_barred_for", lambda self, host, path: 7.0)
    async with handing_out_files(monkeypatch) as controller:
        answer = await talk(controller, f"GET {FILE_PATH} HTTP/1.1\nHost: a\n\n")
    assert answer.startswith(b"HTTP/1.1 429 ")


# ---- the script ---------------------------------------------------------------------------------


def run_script(
    script: bytes, *arguments: str, home: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    """By ``sh``, from its standard input, as behind a pipe."""
    return subprocess.run(
        ["sh", "-s", "--", *arguments],
        input=script.decode(),
        env={"PATH": os.environ["PATH"], "HOME": str(home), "SANDD_PYTHON": sys.executable, **env},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


SHOWS: Final = b"""
import json, os, sys
print(json.dumps([sys.argv[1:], os.environ.get("SANDD_TOKEN"), os.path.dirname(__file__)]))
"""


@contextlib.contextmanager
def web_server(content: bytes) -> Iterator[str]:
    """Where that is, whatever is asked for; its URL for daemons."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listening.server_port}/ws"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def script_for(url: str, content: bytes, **options: Any) -> bytes:
    """The script for that file."""
    digest = hashlib.sha256(content).hexdigest()
    return bootstrap_script(url, FILE_PATH, digest, len(content), **options)


def test_the_script_runs_what_it_is_for(tmp_path: Path) -> None:
    """With the options given to it, and with the token in the environment, where no other user sees it."""
    with web_server(SHOWS) as url:
        script = script_for(url, SHOWS, pins=("sha256:aa", "sha256:bb"))
        done = run_script(script, "--label", "a b", home=tmp_path, SANDD_TOKEN="t")
        arguments, token, place = json.loads(done.stdout)
        assert arguments == [
            *("--server-url", url, "--ca-pin", "sha256:aa,sha256:bb", "--label", "a b")
        ]
        assert (token, place, done.stderr) == ("t", str(tmp_path / ".cache" / "sandd"), "")

    # Nobody is there any more: what was fetched once is known by its hash.
    again = run_script(script, home=tmp_path)
    assert json.loads(again.stdout)[1] is None
    (kept,) = (tmp_path / ".cache" / "sandd").iterdir()
    kept.write_bytes(b"print('something else')")
    changed = run_script(script, home=tmp_path)
    assert changed.returncode == 1
    assert changed.stdout == ""


def test_the_script_runs_nothing_else(tmp_path: Path) -> None:
    """What answers in the controller's place, or was changed on the way, has another hash."""
    with web_server(b"print('owned')") as url:
        done = run_script(script_for(url, SHOWS), home=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"sandd: error: what came from http{url[2:-3]}{FILE_PATH} is not what this script is for: "
        "fetch the script again\n"
    )
    assert list((tmp_path / ".cache" / "sandd").iterdir()) == []


def test_a_script_that_breaks_off_does_nothing(tmp_path: Path) -> None:
    """Wherever that is: a shell runs what it has, unless it is told to wait for the end."""
    with web_server(b"") as url:
        script = script_for(url, SHOWS).rstrip()
    for size in range(len(script) - 1, 0, -max(1, len(script) // 20)):
        done = run_script(script[:size], home=tmp_path)
        assert done.stdout == ""
        assert not (tmp_path / ".cache").exists()


@pytest.mark.parametrize(
    ("env", "part"),
    [
        ({"PATH": "/nowhere", "SANDD_PYTHON": "/no/python"}, "no Python 3.11 or later here"),
        ({"SANDD_SERVER_URL": "http://x"}, "SANDD_SERVER_URL must be ws://"),
        ({}, "can not fetch http://127.0.0.1:9/sandd-daemon.pyz: "),
        (
            {"SANDD_SERVER_URL": "ws://127.0.0.1:9/"},
            "can not fetch http://127.0.0.1:9/sandd-daemon.pyz: ",
        ),
    ],
)
def test_the_script_says_what_is_missing(env: dict[str, str], part: str, tmp_path: Path) -> None:
    """In one line, and exits with 1."""
    sh = shutil.which("sh")
    assert sh is not None
    done = subprocess.run(
        [sh, "-s"],
        input=script_for("ws://127.0.0.1:9/ws", SHOWS),
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SANDD_PYTHON": sys.executable}
        | env,
        capture_output=True,
        timeout=LIMIT,
    )
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"sandd: error: {part}")


@pytest.mark.parametrize("others", ["caches/sandd", "caches"])
def test_a_cache_that_others_may_write_to_is_not_used(others: str, tmp_path: Path) -> None:
    """They would choose what is run; a directory of this run's own takes its place."""
    cache = tmp_path / "caches" / "sandd"
    cache.mkdir(parents=True)
    (tmp_path / others).chmod(0o777)
    with web_server(SHOWS) as url:
        env = {"XDG_CACHE_HOME": str(cache.parent), "TMPDIR": str(tmp_path)}
        done = run_script(script_for(url, SHOWS), home=tmp_path, **env)
    place = Path(json.loads(done.stdout)[2])
    assert place.parent == tmp_path
    assert place != cache
    assert place.stat().st_mode & 0o077 == 0


# ---- the whole line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def controller(_own_temporary_directory: None) -> Iterator[ControllerProcess]:
    """One that tells the line, and has made what it is for: that takes longest."""
    with running_controller("--tls", "auto", "--print-join") as controller:
        script = subprocess.run(["sh", "-c", fetching(controller)], capture_output=True, check=True)
        assert script.stdout.startswith(b"#!/bin/sh\n")
        assert b"sdj_" not in script.stdout
        yield controller


def fetching(controller: ControllerProcess) -> str:
    """The line's first half, which fetches the script."""
    return told_line(controller).partition(" | ")[0]


def told_line(controller: ControllerProcess) -> str:
    """What it tells a person to type where there is nothing yet."""
    return controller.wait_for_log(r"a fresh one:  (.*)\n")[1]


@needs_curl
def test_one_line_has_a_daemon_where_there_is_only_python(
    controller: ControllerProcess, tmp_path: Path
) -> None:
    """Typed as it is told: from a controller that is known by its key, with a token that nobody sees."""
    line = told_line(controller)
    token = (controller.state_dir / "join.token").read_text().strip()
    assert token not in line
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", line],
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "SANDD_PYTHON": sys.executable,
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        controller.wait_for_daemon("worker-1")
        look = "echo $SANDD_TOKEN; ps ax -ww -o args"
        done = controller.run_command("exec", "worker-1", "--", "sh", "-c", look)
        assert done.returncode == 0
        assert token not in done.stdout
        assert "sandd-daemon-" in done.stdout
        shown = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,pgid=,args="], capture_output=True, text=True
        )
        (daemon,) = re.findall(rf"(?m)^ *(\d+) +{process.pid} .*sandd-daemon-", shown.stdout)
        os.kill(int(daemon), signal.SIGTERM)
        assert process.wait(LIMIT) == 0, (tmp_path / "log").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@needs_curl
def test_whoever_has_another_key_is_not_asked(controller: ControllerProcess) -> None:
    """It is of a certificate, and so of who holds its key, whoever has the address."""
    right = fetching(controller)
    (pin,) = re.findall(r"sha256//(\S+)", right)
    wrong = right.replace(pin, "A" * 43 + "=")
    done = subprocess.run(["sh", "-c", wrong], capture_output=True, timeout=LIMIT)
    assert done.returncode == 90  # CURLE_SSL_PINNEDPUBKEYNOTMATCH
    assert done.stdout == b""
