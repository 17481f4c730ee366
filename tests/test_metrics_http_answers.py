"""Which figures who asks may have, and how who may not is told."""

from __future__ import annotations

import pytest

from sandd._core._errors import ConfigurationError
from sandd._core.metrics.http_answers import (
    Answer,
    MetricsAddress,
    Page,
    Wanted,
    health,
    read_metrics_address,
)

HERE = MetricsAddress("127.0.0.1", 9464)
ELSEWHERE = MetricsAddress("10.0.0.1", 9464, b"secret")
LOCAL = [(b"host", b"127.0.0.1:9464")]


def knowing(authorization: str) -> list[tuple[bytes, bytes]]:
    """The headers of who says this."""
    return [(b"host", b"10.0.0.1"), (b"authorization", authorization.encode("latin-1"))]


def status(found: Wanted | Answer) -> int:
    """Of an answer; 200 if a page is to be had."""
    return found.status if isinstance(found, Answer) else 200


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("page", Page, ids=lambda page: page.name)
def test_on_this_machine_everything_is_to_be_had(page: Page, method: bytes) -> None:
    """Without a token, by any address of loopback, whatever stands behind the path."""
    assert HERE.judge(method, page.value, LOCAL) == Wanted(page, is_trusted=True)
    assert HERE.judge(method, page.value + b"?x=1", LOCAL) == Wanted(page, is_trusted=True)


@pytest.mark.parametrize(
    "host", [b"localhost", b"localhost:9464", b"[::1]:9464", b"127.1.2.3"], ids=bytes.decode
)
def test_loopback_has_many_names(host: bytes) -> None:
    """Whoever says one of them is here."""
    assert status(HERE.judge(b"GET", b"/metrics", [(b"host", host)])) == 200


@pytest.mark.parametrize(
    "host", [b"evil.example", b"10.0.0.1:9464", b"", b"[", b"\xff", b"localhost.evil.example"]
)
def test_a_page_in_a_browser_is_not_on_this_machine(host: bytes) -> None:
    """A name that was made to lead here is refused, as no program that was told the address would say it."""
    assert status(HERE.judge(b"GET", b"/metrics", [(b"host", host)])) == 403
    assert status(HERE.judge(b"GET", b"/metrics", [])) == 403
    # The first counts, as it does for whoever stands in between.
    assert status(HERE.judge(b"GET", b"/metrics", [(b"host", host), *LOCAL])) == 403


@pytest.mark.parametrize("said", ["Bearer secret", "bearer secret", "BEARER  secret "])
def test_the_token_opens_everything(said: str) -> None:
    """Its scheme is written as one likes, and any host will do."""
    for page in Page:
        assert ELSEWHERE.judge(b"GET", page.value, knowing(said)) == Wanted(page, is_trusted=True)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "secret",
        "Bearer",
        "Bearer ",
        "Bearer secre",
        "Bearer secrets",
        "Basic secret",
        "Bearer sécret",
    ],
    ids=repr,
)
def test_without_the_token_there_are_no_figures(said: str) -> None:
    """401 says what is asked for; the state is for anybody, without a reason."""
    refused = ELSEWHERE.judge(b"GET", b"/metrics", knowing(said))
    assert isinstance(refused, Answer)
    assert (refused.status, refused.headers) == (
        401,
        (("WWW-Authenticate", 'Bearer realm="sandd"'),),
    )
    for page in (Page.HEALTH, Page.READINESS):
        assert ELSEWHERE.judge(b"GET", page.value, knowing(said)) == Wanted(page, is_trusted=False)


def test_a_token_counts_on_this_machine_too() -> None:
    """Where there is one."""
    guarded = MetricsAddress("127.0.0.1", 9464, b"secret")
    assert status(guarded.judge(b"GET", b"/metrics", LOCAL)) == 401


@pytest.mark.parametrize("path", [b"/", b"/metrics/", b"/metricsx", b"//metrics", b"*", b"metrics"])
def test_there_is_nothing_else(path: bytes) -> None:
    """404 says what there is."""
    found = HERE.judge(b"GET", path, LOCAL)
    assert isinstance(found, Answer)
    assert (found.status, b"/metrics" in found.body) == (404, True)


@pytest.mark.parametrize(
    "method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"get"], ids=bytes.decode
)
def test_nothing_can_be_done_here(method: bytes) -> None:
    """405 says what is allowed."""
    found = HERE.judge(method, b"/metrics", LOCAL)
    assert isinstance(found, Answer)
    assert (found.status, found.headers) == (405, (("Allow", "GET, HEAD"),))


def test_a_reason_is_for_who_may_have_everything() -> None:
    """503 for all of them."""
    trusted, stranger = Wanted(Page.READINESS, True), Wanted(Page.READINESS, False)
    assert health(trusted, None) == health(stranger, None) == Answer(200, b"ok\n")
    assert health(trusted, "disk full") == Answer(503, b"not ready: disk full\n")
    assert health(stranger, "disk full") == Answer(503, b"not ready\n")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:9464", "127.0.0.1", 9464), ("localhost:0", "localhost", 0), ("[::1]:1", "::1", 1)],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    """And is told as it was given."""
    address = read_metrics_address(text, option="metrics")
    assert (address.host, address.port, str(address)) == (host, port, text)


@pytest.mark.parametrize(
    "text",
    ["", "9464", ":9464", "localhost", "localhost:", "h:99999", "h:x", "h:1/x", "u@h:1", "[::1"],
)
def test_what_is_no_address_is_said_so(text: str) -> None:
    """In one line, with one that would be."""
    with pytest.raises(ConfigurationError, match=r"is not HOST:PORT, such as 127\.0\.0\.1:9464"):
        read_metrics_address(text, b"t", option="metrics")


@pytest.mark.parametrize("text", ["0.0.0.0:9464", "[::]:9464", "10.0.0.1:9464", "example.org:1"])
def test_other_machines_need_a_token(text: str) -> None:
    """There is no open door by mistake."""
    with pytest.raises(ConfigurationError, match="other machines: give it a token"):
        read_metrics_address(text, option="--metrics-address")
    assert read_metrics_address(text, b"secret", option="--metrics-address").token == b"secret"


def test_a_token_is_not_shown() -> None:
    """Not by accident, in a log or a traceback."""
    assert "secret" not in repr(ELSEWHERE)
