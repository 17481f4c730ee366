"""Figures of whole programs: what they say is what happened, and what they are told about it makes sense."""

from __future__ import annotations

import errno
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from controllers import running_controller
from daemons import running_daemon
from metrics_client import ask
from peers_with_credentials import guarded
from process_tools import until, until_sync
from prometheus_client.parser import text_string_to_metric_families

import sandd
from sandd._core.audit.records import Record, RecordType
from sandd._core.controller_options import parse_controller_options
from sandd._core.daemon_options import parse_daemon_options
from sandd._core.metrics.catalogue import METRICS
from sandd.testing.daemon_cores import open_daemon_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DASHBOARD = ROOT / "deploy" / "grafana" / "sandd.json"


def fetch(port: int, path: str = "/metrics") -> tuple[int, str]:
    """What any program gets there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def served_by(log: str) -> int:
    """The port that a program's log tells of."""
    found = re.search(r"metrics_served.*?127\.0\.0\.1:(\d+)", log)
    return int(found[1]) if found else 0


# ---- a controller in this program ----------------------------------------------------------------


async def test_a_controller_tells_what_happened() -> None:
    """The same as its statistics: they have one source."""
    async with (
        sandd.open_controller(port=0, metrics="127.0.0.1:0", operator_token="secret") as controller,
        open_daemon_cores(controller.url, 2) as cores,
    ):
        await cores.wait_live()
        async with sandd.connect_controller(controller.url, token="secret") as remote:
            for daemon in remote.daemons():
                await daemon.run("echo hello")
            answer = await ask(controller.metrics_address or "")
            told = await controller.fetch_statistics()
        assert answer.value("sandd_controller_daemons", tenant="default", state="online") == 2
        assert answer.value("sandd_controller_operators") == told.operators == 1
        assert answer.value("sandd_controller_logins_total", peer="daemon") == 2
        assert answer.value("sandd_controller_jobs_started_total", tenant="default") == 2
        ended = {"tenant": "default", "outcome": "exited"}
        assert answer.value("sandd_controller_jobs_ended_total", **ended) == 2
        assert told.total_jobs_ended == {"exited": 2}
        use = {"tenant": "default", "use": "program"}
        sent = answer.value("sandd_controller_stream_to_clients_bytes_total", **use)
        assert sent == told.bytes_to_clients
        received = answer.value("sandd_controller_link_received_bytes_total", peer="daemon")
        assert received
        assert received <= controller.statistics().bytes_received
        for peer in ("daemon", "operator"):
            assert answer.value("sandd_controller_link_sent_bytes_total", peer=peer)


async def test_nothing_listens_unless_it_is_asked_for() -> None:
    """A library opens no ports of its own accord."""
    async with sandd.open_controller(port=0) as controller:
        assert controller.metrics_address is None


def fill_up(*_: object, **_given: object) -> None:
    """A disk that has no room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_readiness_is_that_of_the_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An audit log that can't be written, and a state directory that takes nothing; then a farewell."""
    async with guarded(tmp_path, metrics="127.0.0.1:0", audit=True) as controller:
        service = controller._service
        address = controller.metrics_address or ""
        assert (await ask(address, "/readyz")).status == 200
        log = service._log_written  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setattr(type(log._file), "append", fill_up)
            log.note(Record(type=RecordType.LOST, outcome="lost"))
            await until(lambda: log.failure is not None)
            answer = await ask(address, "/readyz")
        assert answer.status == 503
        assert (
            answer.body == b"not ready: the audit log can't be written: No space left on device\n"
        )
        await until(lambda: log.failure is None)
        stores = service._stores  # type: ignore[attr-defined]
        stores.path, stores._latest = tmp_path / "gone", None
        answer = await ask(address, "/readyz")
        assert (answer.status, b"can't be written: No such file" in answer.body) == (503, True)
        service._closing.set()  # as leaving the block does
        assert await service._why_not_ready() == "it is closing"  # type: ignore[attr-defined]


async def test_held_requests_are_timed(tmp_path: Path) -> None:
    """From when they came until their records were on the disk."""
    async with (
        guarded(tmp_path, metrics="127.0.0.1:0", audit=True) as controller,
        open_daemon_cores(controller.url, 1) as cores,
    ):
        await cores.wait_live()
        await controller.daemon("core-0").run("echo hello")
        answer = await ask(controller.metrics_address or "")
        assert answer.value("sandd_controller_audit_hold_seconds_count") == 1
        assert (answer.value("sandd_controller_audit_records_total") or 0) >= 3
        assert answer.value("sandd_controller_audit_failing") == 0


async def test_a_refused_metrics_address_is_one_clear_line() -> None:
    """Taken, open to others without a token, or none at all."""
    async with sandd.open_controller(port=0, metrics="127.0.0.1:0") as controller:
        for metrics, why in (
            (controller.metrics_address, "can't serve metrics on"),
            ("0.0.0.0:0", "needs? a token|give it a token"),
            ("nonsense", "is not HOST:PORT"),
            (9464, "an address to listen on"),
        ):
            with pytest.raises(sandd.ConfigurationError, match=why):
                async with sandd.open_controller(port=0, metrics=metrics):  # type: ignore[arg-type]
                    pytest.fail("it was opened")
        with pytest.raises(sandd.ConfigurationError, match="there is no address for them"):
            async with sandd.open_controller(port=0, metrics_token="secret"):
                pytest.fail("it was opened")


# ---- programs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages() -> Iterator[tuple[str, str]]:
    """What a controller and a daemon tell after a command, and one that could not be started."""
    arguments = ["--metrics-address", "127.0.0.1:0"]
    with (
        running_controller(*arguments, "--audit") as controller,
        running_daemon(controller.url, "worker", arguments=arguments) as daemon,
        sandd.connect(controller.url, token=controller.token_file.read_text()) as client,
    ):
        assert client.wait_for_daemon("worker", timeout=60)
        assert client.exec("worker", "echo hello").stdout == "hello\n"
        with pytest.raises(sandd.SpawnFailed):
            client.exec("worker", ["no-such-program"])
        until_sync(lambda: served_by(controller.log) and served_by(daemon.log))
        ports = served_by(controller.log), served_by(daemon.log)
        for port in ports:
            assert fetch(port, "/healthz") == fetch(port, "/readyz") == (200, "ok\n")
        yield fetch(ports[0])[1], fetch(ports[1])[1]


def values(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Of each series."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_a_daemon_tells_what_happened(pages: tuple[str, str]) -> None:
    """As a controller does, from its own side."""
    told = values(pages[1])
    assert told["sandd_daemon_connected", frozenset()] == 1
    assert told["sandd_daemon_links_total", frozenset()] == 1
    assert told["sandd_daemon_jobs_started_total", frozenset()] == 2
    ended = {
        dict(labels)["outcome"]: value
        for (name, labels), value in told.items()
        if name == "sandd_daemon_jobs_ended_total"
    }
    assert ended == {"exited": 1, "spawn": 1}
    assert told["sandd_daemon_jobs_running", frozenset()] == 0
    use = frozenset({("use", "program")})
    assert told["sandd_daemon_stream_output_bytes_total", use] == len("hello\n")
    assert told["sandd_daemon_link_received_bytes_total", frozenset()] > 0
    assert told["sandd_daemon_spool_quota_bytes", frozenset()] > 0


def test_a_daemon_that_has_no_controller_is_not_ready() -> None:
    """It says whom it can't reach; it is healthy all the same."""
    arguments = ["--metrics-address", "127.0.0.1:0"]
    with running_daemon("ws://127.0.0.1:9/ws", "lonely", arguments=arguments) as daemon:
        until_sync(lambda: served_by(daemon.log) and "dial_failed" in daemon.log)
        port = served_by(daemon.log)
        status, text = fetch(port, "/readyz")
        assert (status, "the controller is not reached: could not connect" in text) == (503, True)
        assert fetch(port, "/healthz") == (200, "ok\n")


def test_programs_can_be_told_by_option_variable_and_file(tmp_path: Path) -> None:
    """The same of both."""
    token = tmp_path / "token"
    token.write_text("secret\n")
    said = ["--metrics-address", "0.0.0.0:9464", "--metrics-token-file", str(token)]
    url = ["--server-url", "ws://localhost:1"]
    daemon = parse_daemon_options([*url, *said], {}, prog="p", version="0")
    controller = parse_controller_options(said, {}, prog="p", version="0")
    variables = {
        f"{prefix}{name}": value
        for prefix in ("SANDD_", "SANDD_CONTROLLER_")
        for name, value in (("METRICS_ADDRESS", said[1]), ("METRICS_TOKEN_FILE", str(token)))
    }
    assert daemon.metrics == controller.metrics
    assert daemon.metrics is not None
    assert (str(daemon.metrics), daemon.metrics.token) == ("0.0.0.0:9464", b"secret")
    assert parse_daemon_options(url, variables, prog="p", version="0").metrics == daemon.metrics
    assert parse_controller_options([], variables, prog="p", version="0").metrics == daemon.metrics
    assert parse_controller_options([], {}, prog="p", version="0").metrics is None
    for wrong in (said[:2], said[2:], ["--metrics-address", "x"]):
        with pytest.raises(sandd.ConfigurationError, match="metrics"):
            parse_daemon_options([*url, *wrong], {}, prog="p", version="0")


# ---- what is said about it -----------------------------------------------------------------------


def test_the_guide_has_every_figure() -> None:
    """With its labels, its kind and its meaning, in a table; and no others."""
    text = (ROOT / "docs" / "observing.rst").read_text("utf-8")
    rows = re.findall(r"^   \* - ``(sandd_\w+)``(.*)\n     - (\w+)\n     - (.*)$", text, re.M)
    told = {
        (name, tuple(re.findall(r"``(\w+)``", labels)), kind, meaning)
        for name, labels, kind, meaning in rows
    }
    assert told == {(each.name, each.labels, each.kind.value, each.help) for each in METRICS}


def test_the_dashboard_asks_for_what_there_is(pages: tuple[str, str]) -> None:
    """Each name in each query is a series, with the labels that it is asked for by."""
    series: dict[str, set[str]] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                series.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    # What has not happened in so short a time has no series: only its name and labels can be known.
    for metric in METRICS:
        series.setdefault(metric.name, {"job", "instance", *metric.labels})
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    panels = dashboard["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    variables = [each["query"]["query"] for each in dashboard["templating"]["list"][1:]]
    for name, label in re.findall(r"label_values\((\w+), (\w+)\)", " ".join(variables)):
        assert label in series[name]
    assert len(queries) > 15
    for query in queries:
        asked = names_and_labels(query)
        assert asked, query
        for name, labels in asked:
            assert name in series, (name, query)
            assert labels <= series[name], (name, labels - series[name], query)


WORDS = {
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "and",
    "or",
    "unless",
    "bool",
    "offset",
}
"""Of PromQL, that are followed by something else than a name of a series."""


def names_and_labels(query: str) -> list[tuple[str, set[str]]]:
    """What a PromQL expression asks for: each series' name, with its matchers' labels and those of the expression's
    groupings. No parser: words that are neither functions nor keywords, which is what our queries are made of."""
    grouped = {
        label.strip()
        for labels in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", query)
        for label in labels.split(",")
        if label.strip()
    }
    bare = re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", query)
    found = []
    for match in re.finditer(
        r"([a-zA-Z_:][\w:]*)\s*(\(|\{[^}]*\})?", re.sub(r"\[[^\]]*\]", " ", bare)
    ):
        name, rest = match[1], match[2] or ""
        if rest == "(" or name in WORDS:
            continue
        matchers = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", rest))
        found.append((name, (matchers | grouped) - {"le"} | ({"le"} & grouped)))
    return found


def test_names_are_found_in_queries() -> None:
    """Of the kinds that the dashboard has."""
    query = 'sum by (tenant) (rate(a_total{job=~"$job", use!="x"}[$__rate_interval])) / on (job) b'
    assert names_and_labels(query) == [
        ("a_total", {"job", "use", "tenant"}),
        ("b", {"job", "tenant"}),
    ]
    assert names_and_labels("histogram_quantile(0.99, sum by (le) (rate(c_bucket[5m])))") == [
        ("c_bucket", {"le"})
    ]
