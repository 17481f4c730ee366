"""What ``sandd controller`` is told: command line over environment over file; and what it says when it is ready."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandd import ConfigurationError, Rate, RateLimits
from sandd._core.controller_options import (
    VARIABLES,
    ControllerOptions,
    build_parser,
    parse_controller_options,
)
from sandd.standalone.announcing import Announcement

if TYPE_CHECKING:
    from collections.abc import Mapping


def parse(*arguments: str, env: Mapping[str, str] | None = None) -> ControllerOptions:
    """The options in force."""
    return parse_controller_options(arguments, env or {}, prog="p", version="1.2.3")


def complaint(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What is said about options that can't be used; always one line."""
    with pytest.raises(ConfigurationError) as caught:
        parse(*arguments, env=env)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


@pytest.fixture
def token(tmp_path: Path) -> str:
    """The path of a file with a token."""
    path = tmp_path / "token"
    path.write_text(" s3cret\n")
    return str(path)


# ---- what they mean -----------------------------------------------------------------------------


def test_nothing_is_needed() -> None:
    """Loopback, the usual port, and a state directory of the user's."""
    assert parse() == ControllerOptions()
    assert (parse().host, parse().port, parse().state_dir) == ("127.0.0.1", 8765, None)


def test_options_are_taken(token: str, tmp_path: Path) -> None:
    """All of them; and no secret is ever shown."""
    options = parse(
        *("--host", "::1", "--port", "0", "--state-dir", str(tmp_path), "--token-file", token),
        *("--operator-token-file", token, "--insecure", "--heartbeat", "1.5", "--dead-after", "4"),
        *("--max-handshakes-per-second", "5", "--log-level", "DEBUG", "--log-format", "json"),
        *("--rate-limits", "operator=10:50,daemon=0.5"),
        *("--tls", "auto", "--tls-name", "a.example", "--tls-name", "192.0.2.1"),
        *("--client-certificates", "Optional"),
    )
    assert options == ControllerOptions(
        host="::1",
        port=0,
        state_dir=tmp_path,
        token_file=Path(token),
        token=b"s3cret",
        operator_token_file=Path(token),
        operator_token=b"s3cret",
        insecure=True,
        heartbeat=1.5,
        dead_after=4.0,
        max_handshakes_per_second=5.0,
        rate_limits=RateLimits(operator=Rate(10.0, 50), daemon=Rate(0.5, 1)),
        tls="auto",
        tls_names=("a.example", "192.0.2.1"),
        client_certificates="optional",
        log_level="debug",
        log_format="json",
    )
    assert "s3cret" not in repr(options)


def test_the_command_line_wins_then_the_environment_then_the_file(
    token: str, tmp_path: Path
) -> None:
    """Option by option."""
    config = tmp_path / "controller.toml"
    config.write_text(
        f'host = "0.0.0.0"\nport = 1\nheartbeat = 3\ninsecure = true\ntoken_file = "{token}"\n'
    )
    env = {
        "SANDD_CONTROLLER_PORT": "2",
        "SANDD_CONTROLLER_HEARTBEAT": "4",
        "SANDD_CONTROLLER_CONFIG": str(config),
        "SANDD_CONTROLLER_INSECURE": "no",
    }
    assert parse("--heartbeat", "5", env=env) == ControllerOptions(
        host="0.0.0.0", port=2, heartbeat=5.0, token_file=Path(token), token=b"s3cret"
    )


def test_rate_limits_are_a_text_or_a_table(tmp_path: Path) -> None:
    """In a variable as on the command line; in the file a table of scopes. Who names one of them says all."""
    limits = RateLimits(operator=Rate(10.0), tenant=Rate(2.5, 5))
    config = tmp_path / "controller.toml"
    config.write_text('[rate_limits]\noperator = 10\ntenant = "2.5:5"\n')
    assert parse("--config", str(config)).rate_limits == limits
    env = {"SANDD_CONTROLLER_RATE_LIMITS": "operator=10, tenant=2.5:5"}
    assert parse(env=env).rate_limits == limits
    assert parse("--rate-limits", "daemon=1", env=env).rate_limits == RateLimits(daemon=Rate(1.0))


def test_certificates_may_be_files_of_one_s_own(tmp_path: Path) -> None:
    """From options, variables and the file alike; a list of names may have commas, or be one."""
    pair = (tmp_path / "cert", tmp_path / "key")
    assert parse("--tls-cert", str(pair[0]), "--tls-key", str(pair[1])).tls == pair
    env = {
        "SANDD_CONTROLLER_TLS_CERT": str(pair[0]),
        "SANDD_CONTROLLER_TLS_KEY": str(pair[1]),
        "SANDD_CONTROLLER_CLIENT_CERTIFICATES": "required",
    }
    assert parse(env=env) == ControllerOptions(tls=pair, client_certificates="required")
    named = {"SANDD_CONTROLLER_TLS": "auto", "SANDD_CONTROLLER_TLS_NAME": "a, b"}
    assert parse(env=named).tls_names == ("a", "b")
    config = tmp_path / "controller.toml"
    config.write_text('tls = "auto"\ntls_name = ["a", "b"]\n')
    assert parse("--config", str(config)) == ControllerOptions(tls="auto", tls_names=("a", "b"))
    assert parse("--tls", "off").tls is None


def test_every_option_is_also_a_variable() -> None:
    """And those of a daemon or a command, which may be set beside them, mean nothing here."""
    dests = {action.dest for action in build_parser("p", "v")._actions}
    assert dests - {"help", "version"} == VARIABLES.keys()
    theirs = {
        "SANDD_TOKEN_FILE": "/none",
        "SANDD_OPERATOR_TOKEN_FILE": "/none",
        "SANDD_STATE_DIR": "/none",
        "SANDD_CONFIG": "/none",
        "SANDD_CONTROLLER": "ws://elsewhere",
    }
    assert parse(env=theirs) == ControllerOptions()


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Each option is in the help, and so is what a supervisor wants to know."""
    for option in ("--help", "--version"):
        with pytest.raises(SystemExit) as caught:
            parse(option)
        assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in VARIABLES:
        assert f"--{name.replace('_', '-')}" in text
    assert "SIGHUP" in text
    assert "ready URL" in text
    assert text.endswith("sandd 1.2.3\n")


def test_what_a_reload_can_not_change_is_known() -> None:
    """Tokens and the log are changed at once; an address, or whom to trust, by a new start."""
    before = ControllerOptions()
    after = ControllerOptions(
        host="x", insecure=True, token=b"x", operator_token=b"y", log_level="debug"
    )
    assert before.differing_for_good(after) == ["host", "insecure"]
    assert before.differing_for_good(before) == []


# ---- what can't be used -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "x"], ["--port", "'x'", "0 to 65535"]),
        (["--port", "65536"], ["--port"]),
        (["--port", "-1"], ["--port"]),
        (["--heartbeat", "0"], ["--heartbeat", "0.05"]),
        (["--heartbeat", "nan"], ["--heartbeat"]),
        (["--heartbeat", "3601"], ["--heartbeat", "at most 3600"]),
        (["--heartbeat", "45"], ["--heartbeat (45) must be below --dead-after (45)"]),
        (["--dead-after", "7201"], ["--dead-after"]),
        (["--tls", "on"], ["--tls", "'on'", "auto"]),
        (["--tls", "auto", "--tls-cert", "x"], ["--tls auto", "--tls-cert"]),
        (["--tls-cert", "x"], ["--tls-cert", "--tls-key"]),
        (["--tls-key", "x"], ["--tls-cert", "--tls-key"]),
        (["--tls-name", "x"], ["--tls-name", "--tls auto"]),
        (["--client-certificates", "optional"], ["--client-certificates", "--tls auto"]),
        (["--tls", "auto", "--client-certificates", "x"], ["--client-certificates", "'x'"]),
        (["--max-handshakes-per-second", "0"], ["--max-handshakes-per-second"]),
        (["--rate-limits", "10"], ["--rate-limits", "'10'", "SCOPE=N[:BURST]"]),
        (["--rate-limits", "robot=1"], ["--rate-limits", "'robot'", "operator, tenant, daemon"]),
        (["--rate-limits", "daemon=x"], ["--rate-limits daemon", "'x'"]),
        (["--rate-limits", "daemon=0"], ["--rate-limits daemon", "'0'"]),
        (["--rate-limits", "daemon=1:0"], ["--rate-limits daemon", "burst of 0"]),
        (["--rate-limits", "daemon=1:1.5"], ["--rate-limits daemon", "burst of '1.5'"]),
        (["--log-level", "loud"], ["--log-level", "'loud'"]),
        (["--token-file", "/no/such"], ["token file", "/no/such", "No such file"]),
        (["--operator-token-file", "/"], ["token file", "directory"]),
        (["--config", "/no/such.toml"], ["/no/such.toml"]),
        (["--nonsense"], ["--nonsense"]),
        (["--hos", "x"], ["--hos"]),
        (["stray"], ["stray"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_what_cannot_be_used_is_named_in_one_line(arguments: list[str], words: list[str]) -> None:
    """With the option, what was given, and what would do."""
    text = complaint(*arguments)
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("port = true", "--port"),
        ("insecure = 5", "--insecure 5 is neither true nor false"),
        ("[rate_limits]\nrobot = 1", "'robot'"),
        ("rate_limits = 5", "'5'"),
        ("rate_limits = { daemon = [1] }", "'[1]'"),
        ('hots = "x"', "'hots'"),
        ('config = "other"', "'config'"),
        ('server_url = "ws://x"', "'server_url'"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: str, word: str) -> None:
    """Also one that is a daemon's."""
    config = tmp_path / "controller.toml"
    config.write_text(content)
    assert word in complaint("--config", str(config))


def test_an_empty_token_never_means_that_none_is_needed(tmp_path: Path) -> None:
    """Neither for daemons nor for operators."""
    path = tmp_path / "token"
    path.write_bytes(b" \n")
    for option in ("--token-file", "--operator-token-file"):
        assert str(path) in complaint(option, str(path))


# ---- what it says -------------------------------------------------------------------------------


def test_the_usual_controller_needs_few_words() -> None:
    """Commands find it, and its token, by themselves."""
    said = Announcement.of("ws://127.0.0.1:8765/ws", ControllerOptions(), None)
    assert said.operator_command == "sandd ps"
    assert (
        said.daemon_command
        == "sandd daemon --server-url ws://127.0.0.1:8765/ws --daemon-id worker-1"
    )
    assert "elsewhere" not in str(said)
    assert len(str(said).splitlines()) == 3


def test_what_tls_needs_is_in_the_command_lines(token: str) -> None:
    """The pin of its own CA; by default a command on this machine finds the CA by itself, but not one in files."""
    url, pin = "wss://127.0.0.1:8765/ws", f"sha256:{'0' * 64}"
    own = ControllerOptions(tls="auto")
    said = Announcement.of(url, own, None, ca_pin=pin)
    assert said.operator_command == "sandd ps"
    assert f"--ca-pin {pin}" in said.daemon_command
    said = Announcement.of(url, own, Path(token), ca_pin=pin)
    assert shlex.split(said.operator_command) == [
        *("sandd", "ps", "--controller", "wss://127.0.0.1:8765"),
        *("--ca-pin", pin, "--token-file", token),
    ]
    files = ControllerOptions(tls=(Path("c"), Path("k")))
    said = Announcement.of(url, files, None)
    assert said.operator_command == "sandd ps --controller wss://127.0.0.1:8765"
    assert "--ca-pin" not in said.daemon_command


def test_what_is_unusual_is_in_the_command_lines(token: str) -> None:
    """Every path is whole, and quoted for a shell."""
    options = ControllerOptions(host="0.0.0.0", port=0, token_file=Path("a b"), token=b"x")
    said = Announcement.of("ws://127.0.0.1:4321/ws", options, Path(token))
    assert shlex.split(said.operator_command) == [
        *("sandd", "ps", "--controller", "ws://127.0.0.1:4321", "--token-file", token)
    ]
    assert shlex.split(said.daemon_command)[-2:] == ["--token-file", str(Path("a b").absolute())]
    assert "elsewhere with this machine's name" in str(said)
