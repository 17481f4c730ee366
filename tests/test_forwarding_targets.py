"""What ``[LOCAL:]HOST:PORT`` means."""

from __future__ import annotations

import pytest

from sandd.forwarding.targets import BadTarget, End, Forward

ANY = End("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("text", "listen", "target"),
    [
        pytest.param("db:5432", ANY, End("db", 5432), id="target"),
        pytest.param("80", ANY, End("127.0.0.1", 80), id="port"),
        pytest.param("8080:db:80", End("127.0.0.1", 8080), End("db", 80), id="port-target"),
        pytest.param("8080:80", End("127.0.0.1", 8080), End("127.0.0.1", 80), id="port-port"),
        pytest.param("0:80", ANY, End("127.0.0.1", 80), id="any-port"),
        pytest.param("0.0.0.0:1:db:2", End("0.0.0.0", 1), End("db", 2), id="host-port-target"),
        pytest.param("[::1]:1:[fe80::2]:2", End("::1", 1), End("fe80::2", 2), id="ipv6"),
        pytest.param("[db]:2", ANY, End("db", 2), id="brackets-without-need"),
        pytest.param("[123]:2", ANY, End("123", 2), id="a-host-of-digits"),
        pytest.param("unix:/a/b", ANY, End("", 0, "/a/b"), id="unix"),
        pytest.param("1:unix:/b", End("127.0.0.1", 1), End("", 0, "/b"), id="port-unix"),
        pytest.param("unix:/a:db:1", End("", 0, "/a"), End("db", 1), id="unix-target"),
        pytest.param("unix:/a:unix:/b", End("", 0, "/a"), End("", 0, "/b"), id="unix-unix"),
        pytest.param("unix:a:80", End("", 0, "a"), End("127.0.0.1", 80), id="relative-unix-port"),
        pytest.param("[unix]:1", ANY, End("unix", 1), id="a-host-of-that-name"),
    ],
)
def test_the_listening_end_comes_first(text: str, listen: End, target: End) -> None:
    """As for ssh's -L; what both ends are is said again in words that mean the same."""
    forward = Forward.parse(text)
    assert (forward.listen, forward.target) == (listen, target)
    if target.host != "unix" and not target.host.isdecimal():
        assert Forward.parse(f"{listen}:{target}") == forward


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("", "has nothing before a colon", id="empty"),
        pytest.param("db", "no port behind 'db'", id="no-port"),
        pytest.param("db:", "'' is no port", id="empty-port"),
        pytest.param("db:x", "'x' is no port", id="no-number"),
        pytest.param(":80", "nothing before a colon", id="no-host"),
        pytest.param("db:80:", "nothing before a colon, or behind one", id="colon-behind"),
        pytest.param("db:65536", "no TCP port", id="port-too-high"),
        pytest.param("db:" + "9" * 5000, "no TCP port", id="port-endless"),
        pytest.param("db:-1", "'-1' is no port", id="port-negative"),
        pytest.param("db:٨٠", "is no port", id="other-digits"),
        pytest.param("db:0", "leads to port 0", id="target-zero"),
        pytest.param("1:2:3", "has 3 ends", id="three-ends"),
        pytest.param("fe80::2:80", "IPv6 address needs brackets", id="ipv6-bare"),
        pytest.param("[::1:80", "a bracket where none can be", id="open-bracket"),
        pytest.param("a[::1]:80", "a bracket where none can be", id="bracket-inside"),
        pytest.param("[::1]x:80", "a bracket where none can be", id="behind-bracket"),
        pytest.param("[::1]", "no port behind '::1'", id="ipv6-no-port"),
        pytest.param("[]:80", "nothing before a colon", id="empty-brackets"),
        pytest.param("db:[80]", "'80' is no port", id="port-in-brackets"),
        pytest.param("unix:", "no path behind 'unix:'", id="no-path"),
        pytest.param("unix", "no port behind 'unix'", id="unix-alone"),
    ],
)
def test_what_means_nothing_is_refused(text: str, complaint: str) -> None:
    """With what is wrong."""
    with pytest.raises(BadTarget, match=complaint):
        Forward.parse(text)
