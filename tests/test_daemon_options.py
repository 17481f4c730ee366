"""The daemon's options: command line over environment over file, and one clear line for what can't be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sandd import ConfigurationError
from sandd._core.daemon_options import DaemonOptions, default_max_running, parse_daemon_options
from sandd._core.identity.proofs import SharedSecret
from sandd._core.limits import Limits
from sandd._core.program_options import MAX_TOKEN_BYTES
from sandd._core.tls.pins import Pin
from sandd._core.tls.trust_options import TrustOptions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

URL = "wss://controller:8765/ws"
PIN = Pin(bytes(range(32)))


def parse(*arguments: str, env: Mapping[str, str] | None = None) -> DaemonOptions:
    """The options in force; the URL is given unless the test says its own."""
    given = (
        () if any(a.startswith(("-s", "--server", "--config")) for a in arguments) else ("-s", URL)
    )
    return parse_daemon_options(
        [*given, *arguments], env or {}, prog="test-daemon", version="1.2.3"
    )


def complaint(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What is said about options that can't be used; always one line."""
    with pytest.raises(ConfigurationError) as caught:
        parse(*arguments, env=env)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


# ---- what they mean -----------------------------------------------------------------------------


def test_a_url_is_all_that_is_needed() -> None:
    """Everything else has a default."""
    assert parse() == DaemonOptions(server_url=URL)
    assert parse().reconnect_max == 30.0


def test_options_are_taken(tmp_path: Path) -> None:
    """Long and short, with labels as often as one likes."""
    token = tmp_path / "token"
    token.write_text("  s3cret\n")
    options = parse(
        *("--server-url", "wss://h/x", "-d", "worker-1", "-l", "env=prod", "--label", "zone=a=b"),
        *("--token-file", str(token), "--state-dir", str(tmp_path / "state")),
        *(
            "--log-level",
            "DEBUG",
            "--log-format",
            "Json",
            "--reconnect-max",
            "2.5",
            "--max-running",
            "7",
            "--root",
            str(tmp_path),
        ),
    )
    assert options == DaemonOptions(
        server_url="wss://h/x",
        daemon_id="worker-1",
        labels={"env": "prod", "zone": "a=b"},
        credential=SharedSecret(b"s3cret"),
        state_dir=tmp_path / "state",
        log_level="debug",
        log_format="json",
        reconnect_max=2.5,
        max_running=7,
        root=tmp_path,
    )
    assert "s3cret" not in repr(options)


@pytest.mark.parametrize("given", ["wss://h:1", "wss://h:1/"])
def test_a_url_without_a_path_gets_ours(given: str) -> None:
    """Nobody has to remember /ws; another path is left alone."""
    assert parse("-s", given).server_url == "wss://h:1/ws"
    assert parse("-s", "wss://h:1/tunnel").server_url == "wss://h:1/tunnel"


def test_every_option_is_also_a_variable(tmp_path: Path) -> None:
    """SANDD_... with the option's name; labels are divided by commas."""
    token = tmp_path / "token"
    token.write_bytes(b"t")
    options = parse_daemon_options(
        [],
        {
            "SANDD_SERVER_URL": URL,
            "SANDD_DAEMON_ID": "d",
            "SANDD_LABELS": "a=1, b=2",
            "SANDD_TOKEN_FILE": str(token),
            "SANDD_STATE_DIR": str(tmp_path),
            "SANDD_LOG_LEVEL": "error",
            "SANDD_LOG_FORMAT": "json",
            "SANDD_RECONNECT_MAX": "9",
            "SANDD_MAX_RUNNING": "3",
            "SANDD_ROOT": str(tmp_path),
        },
        prog="p",
        version="v",
    )
    assert options == DaemonOptions(
        URL,
        "d",
        {"a": "1", "b": "2"},
        SharedSecret(b"t"),
        tmp_path,
        "error",
        "json",
        9.0,
        3,
        root=tmp_path,
    )


def test_what_is_known_of_the_controller(tmp_path: Path) -> None:
    """A pin or CA file and a client certificate, by options, by variables and from the file; the pin in any case."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    by_pin = TrustOptions(pins=(PIN,), client_certificate=certificate, client_key=key)
    given = ("--client-cert", str(certificate), "--client-key", str(key))
    assert parse("--ca-pin", str(PIN), *given).trust == by_pin
    env = {
        "SANDD_CA_PIN": f"sha256:{PIN.digest.hex().upper()}",
        "SANDD_CLIENT_CERT": str(certificate),
        "SANDD_CLIENT_KEY": str(key),
    }
    assert parse(env=env).trust == by_pin
    config = tmp_path / "daemon.toml"
    config.write_text(f'server_url = "{URL}"\nca_file = "{certificate}"\n')
    assert parse("--config", str(config)).trust == TrustOptions(ca_file=certificate)
    assert parse(env={"SANDD_CA_FILE": str(certificate)}).trust == TrustOptions(ca_file=certificate)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.9.9.9"])
def test_on_this_machine_no_tls_is_needed(host: str) -> None:
    """Nobody else is on the way."""
    assert parse("-s", f"ws://{host}:1/ws").server_url == f"ws://{host}:1/ws"


@pytest.mark.parametrize("host", ["controller", "192.0.2.1", "localhost.example", "[2001:db8::1]"])
def test_to_another_machine_without_tls_has_to_be_asked_for(host: str) -> None:
    """Whoever is on the way could command the daemon: what would do is said, and the way out."""
    text = complaint("-s", f"ws://{host}:1/ws")
    assert all(word in text for word in (host, "wss://", "--ca-pin", "--insecure"))
    assert parse("-s", f"ws://{host}:1/ws", "--insecure").insecure
    assert parse("-s", f"ws://{host}:1/ws", env={"SANDD_INSECURE": "1"}).insecure


def test_the_originals_variables_are_understood() -> None:
    """SERVER_URL and DAEMON_ID count where ours are not set."""
    env = {"SERVER_URL": "wss://theirs/ws", "DAEMON_ID": "theirs"}
    options = parse_daemon_options([], env, prog="p", version="v")
    assert (options.server_url, options.daemon_id) == ("wss://theirs/ws", "theirs")
    env |= {"SANDD_SERVER_URL": "wss://ours/ws", "SANDD_DAEMON_ID": "ours"}
    options = parse_daemon_options([], env, prog="p", version="v")
    assert (options.server_url, options.daemon_id) == ("wss://ours/ws", "ours")


def test_an_empty_variable_is_not_set() -> None:
    """``SANDD_DAEMON_ID=`` in a unit file means nothing."""
    assert parse(env={"SANDD_DAEMON_ID": "", "SANDD_LABELS": ""}).daemon_id is None


def test_the_command_line_wins_then_the_environment_then_the_file(tmp_path: Path) -> None:
    """Option by option."""
    config = tmp_path / "daemon.toml"
    config.write_text(
        'server_url = "wss://file/ws"\ndaemon_id = "file"\nreconnect_max = 1\nlog_level = "error"\n'
        'labels = { from = "file", number = 5 }\n'
    )
    env = {"SANDD_DAEMON_ID": "env", "SANDD_RECONNECT_MAX": "2", "SANDD_CONFIG": str(config)}
    options = parse_daemon_options(["--reconnect-max", "3"], env, prog="p", version="v")
    assert options == DaemonOptions(
        server_url="wss://file/ws",
        daemon_id="env",
        labels={"from": "file", "number": "5"},
        log_level="error",
        reconnect_max=3.0,
    )


def test_a_file_may_list_labels_too(tmp_path: Path) -> None:
    """As a list of KEY=VALUE, or as a table."""
    config = tmp_path / "daemon.toml"
    config.write_text(f'server_url = "{URL}"\nlabels = ["a=1", "b=2"]\nmax_running = 4\n')
    options = parse("--config", str(config))
    assert (options.labels, options.max_running) == ({"a": "1", "b": "2"}, 4)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1000 B", 1000),
        ("8GiB", 8 * 2**30),
        ("8g", 8 * 2**30),
        ("1.5 MiB", 3 * 2**19),
        ("20 MB", 20_000_000),
        ("3kb", 3000),
        ("1T", 2**40),
    ],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    """GiB and G are binary, GB is decimal; capitals don't matter."""
    options = parse("--spool-quota", text, env={"SANDD_JOB_SPOOL_QUOTA": text})
    assert (options.spool_quota, options.job_spool_quota) == (size, size)


def test_a_file_may_give_sizes_as_numbers(tmp_path: Path) -> None:
    """TOML has them."""
    config = tmp_path / "daemon.toml"
    config.write_text(f'server_url = "{URL}"\nspool_quota = 1000\njob_spool_quota = "2 KiB"\n')
    options = parse("--config", str(config))
    assert (options.spool_quota, options.job_spool_quota) == (1000, 2048)


@pytest.mark.parametrize("text", ["", "-1", "x", "1 XiB", "1 ib", "1e9", "nan", "9" * 30, "1,5G"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    """With how to write one."""
    assert "--spool-quota" in complaint("--spool-quota", text)
    assert "GiB" in complaint("--job-spool-quota", text)


def test_a_later_option_wins() -> None:
    """As on any command line; labels add up, and the last of one key counts."""
    assert parse("-d", "one", "-d", "two").daemon_id == "two"
    assert parse("-l", "a=1", "-l", "b=2", "-l", "a=3").labels == {"a": "3", "b": "2"}


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` needs nothing else, and ends the program well."""
    with pytest.raises(SystemExit) as caught:
        parse_daemon_options(["--version"], {}, prog="p", version="1.2.3")
    assert caught.value.code == 0
    assert capsys.readouterr().out == "sandd 1.2.3\n"


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """And the way to the environment and the file."""
    with pytest.raises(SystemExit) as caught:
        parse_daemon_options(["--help"], {}, prog="p", version="v")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in ("server-url", "daemon-id", "label", "token-file", "state-dir", "config"):
        assert f"--{name}" in text
    for name in ("log-level", "log-format", "reconnect-max", "max-running", "version"):
        assert f"--{name}" in text
    for name in ("ca-pin", "ca-file", "client-cert", "client-key", "insecure"):
        assert f"--{name}" in text
    for name in ("spool-quota", "job-spool-quota", "root"):
        assert f"--{name}" in text
    assert "SANDD_SERVER_URL" in text


@pytest.mark.parametrize(("files", "jobs"), [(1024, 128), (8, 1), (0, 1), (1 << 20, 256)])
def test_how_many_jobs_run_at_once_follows_from_open_files(files: int, jobs: int) -> None:
    """An eighth of the descriptors, at least one, at most 256."""
    assert default_max_running(files) == jobs


# ---- what can't be used -------------------------------------------------------------------------


def test_without_a_url_the_way_to_give_one_is_told() -> None:
    """By its option and its variable."""
    with pytest.raises(ConfigurationError, match=r"--server-url ws://.*SANDD_SERVER_URL"):
        parse_daemon_options([], {}, prog="p", version="v")


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "h:8765",
        "ws://",
        "ws:///ws",
        "ws://[::1",
        "ws://h:99999/",
        "ws://h:0/",
        "ws://h:x/",
    ],
)
def test_a_url_that_cannot_be_is_quoted(url: str) -> None:
    """With an example of one that can."""
    text = complaint("-s", url)
    assert url in text
    assert "ws://HOST:PORT/ws" in text


@pytest.mark.parametrize("daemon_id", ["", "a b", "../x", "-x", "x" * 129, "ä", "a\nb"], ids=repr)
def test_an_id_that_cannot_be_says_what_can(daemon_id: str) -> None:
    """Ids go into file names and command lines."""
    assert "daemon id" in complaint(f"--daemon-id={daemon_id}")


@pytest.mark.parametrize(
    "label", ["", "novalue", "=x", " =x", "a\x1b=x", "k" * 300 + "=x"], ids=repr
)
def test_a_label_that_cannot_be_is_named(label: str) -> None:
    """A label is KEY=VALUE, printable and of bounded length."""
    assert "label" in complaint(f"--label={label}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--log-level", "loud"], ["--log-level", "'loud'", "debug, info"]),
        (["--log-format", "xml"], ["--log-format", "'xml'", "text, json"]),
        (["--reconnect-max", "soon"], ["--reconnect-max", "'soon'"]),
        (["--reconnect-max", "0"], ["--reconnect-max", "0.05"]),
        (["--reconnect-max", "-1"], ["--reconnect-max"]),
        (["--reconnect-max", "nan"], ["--reconnect-max"]),
        (["--reconnect-max", "inf"], ["--reconnect-max"]),
        (["--max-running", "0"], ["--max-running", "1"]),
        (["--max-running", "many"], ["--max-running", "'many'"]),
        (["--nonsense"], ["--nonsense"]),
        (["--daemon"], ["--daemon"]),  # no abbreviations: they would change with every new option
        (["stray"], ["stray"]),
        (["--daemon-id"], ["--daemon-id"]),
        (["--token-file", "/no/such/file"], ["token file", "/no/such/file", "No such file"]),
        (["--token-file", "/no/such/file"], ["has joined", "needs none", "leave the option out"]),
        (["--token-file", "/"], ["token file", "directory"]),
        (["--ca-pin", "sha256:12"], ["'sha256:12'", "64 hexadecimal digits"]),
        (["--ca-pin", "x" * 64], ["CA pin"]),
        (["--ca-pin", str(PIN), "--ca-file", "x"], ["CA pin", "CA file", "one"]),
        (["--client-key", "x"], ["client key", "client certificate"]),
        (["-s", "ws://127.0.0.1", "--ca-pin", str(PIN)], ["--ca-pin", "wss://"]),
        (["--insecure", "--config", "/dev/null"], ["--server-url"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_what_cannot_be_used_is_named_in_one_line(arguments: list[str], words: list[str]) -> None:
    """With the option, what was given, and what would do."""
    text = complaint(*arguments)
    for word in words:
        assert word in text


def test_a_bad_variable_is_as_bad_as_a_bad_option() -> None:
    """And named like one."""
    assert "--log-level 'loud'" in complaint(env={"SANDD_LOG_LEVEL": "loud"})


@pytest.mark.parametrize("content", [b"", b" \n\t", b"x" * (MAX_TOKEN_BYTES + 1)], ids=len)
def test_an_empty_or_endless_token_is_an_error(tmp_path: Path, content: bytes) -> None:
    """An empty file never means that no token is needed."""
    path = tmp_path / "token"
    path.write_bytes(content)
    assert str(path) in complaint("--token-file", str(path))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"server_url = ", "config file"),
        (b"\xff\xfe", "config file"),
        (b'server_uri = "x"', "'server_uri'"),
        (b'config = "other"', "'config'"),
        (b"server_url = 5", "'5'"),
        (b'server_url = "wss://h"\nmax_running = true', "--max-running"),
        (b'server_url = "wss://h"\nreconnect_max = []', "--reconnect-max"),
        (b'server_url = "wss://h"\nlabels = 7', "label"),
        (b'server_url = "wss://h"\nlabels = [1]', "label"),
        (b'server_url = "wss://h"\nlog_level = {}', "--log-level"),
        (b'server_url = "wss://h"\ndaemon_id = []', "daemon id"),
        (b'server_url = "wss://h"\ntoken_file = 5', "token file"),
    ],
    ids=repr,
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    """Bad TOML, unknown options and values of the wrong kind."""
    config = tmp_path / "daemon.toml"
    config.write_bytes(content)
    assert word in complaint("--config", str(config))


def test_a_missing_file_is_named() -> None:
    """A path that was given must be there."""
    assert "/no/such.toml" in complaint("--config", "/no/such.toml")


def test_a_root_has_to_be_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that isn't there would let nobody in, or everybody; a relative one is that of the start."""
    (tmp_path / "file").write_text("")
    (tmp_path / "root").mkdir()
    for name in ("missing", "file"):
        with pytest.raises(ConfigurationError, match=f"--root .*{name}.* is not a directory"):
            parse("-s", URL, "--root", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    assert parse("-s", URL, "--root", "root").root == tmp_path / "root"
    (tmp_path / "config").write_text(f'server_url = "{URL}"\nroot = "root"\n')
    assert parse("--config", "config").root == tmp_path / "root"


# ---- limits -------------------------------------------------------------------------------------


def test_limits_are_given_often_in_one_variable_or_as_a_table(tmp_path: Path) -> None:
    """Those of each job and those of all together; the command line wins as a whole, as ever."""
    limits = Limits(memory_bytes=64 << 20, processes=9)
    options = parse("--limit", "memory=64M", "--limit", "processes=9", "--limit-total", "cpus=2")
    assert (options.limits, options.limit_total) == (limits, Limits(cpus=2.0))
    assert not options.require_limits
    assert parse(env={"SANDD_LIMIT": "memory=64M,processes=9"}).limits == limits
    file = tmp_path / "config.toml"
    file.write_text(
        f'server_url = "{URL}"\nrequire_limits = true\n[limit]\nmemory = "64M"\nprocesses = 9\n'
    )
    options = parse("--config", str(file))
    assert options.limits == limits
    assert options.require_limits
    assert parse("--config", str(file), "--limit", "wall=3").limits == Limits(wall=3.0)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--limit", "memory"], "--limit 'memory' is not of the form KEY=VALUE"),
        (["--limit", "speed=1"], "--limit: there is no limit 'speed'"),
        (["--limit", "memory=1"], "1 MiB or more"),
        (["--limit-total", "wall=1"], "--limit-total: wall is no limit of all jobs together"),
    ],
)
def test_a_limit_that_is_none_is_told(arguments: list[str], part: str) -> None:
    """In one line, with the option."""
    assert part in complaint(*arguments)
