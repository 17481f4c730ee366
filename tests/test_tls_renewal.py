"""A running controller's certificate: renewed as time goes by, replaced as files change, kept if they can't be used."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio
from tls_peers import server_pair, write_pair

from sandd import ConfigurationError
from sandd._core.audit.records import RecordType
from sandd._core.tls.authority import DAY, new_authority
from sandd._core.tls.certificates import LOCAL_NAMES, OwnAuthority, OwnFiles, pin_of
from sandd._core.tls.files import AuthorityFiles
from sandd._core.tls.pins import Pin
from sandd._core.tls.renewal import LiveCertificates
from sandd.testing.virtual_clock import VirtualClock

if TYPE_CHECKING:
    from pathlib import Path

    from sandd._core.audit.records import Record

CA = new_authority(time.time())


def complaints(caplog: pytest.LogCaptureFixture) -> int:
    """How often the log says that a certificate could not be used."""
    return sum(
        record.msg["event"] == "certificate_reload_failed"  # type: ignore[index] # structlog's
        for record in caplog.records
        if record.name == "sandd.tls"
    )


async def test_it_is_renewed_in_time_for_ever(tmp_path: Path) -> None:
    """Over four weeks nobody ever meets one that has less than a third of its week left, or a new CA."""
    clock = VirtualClock(time.time())
    certificates = OwnAuthority(AuthorityFiles(tmp_path), LOCAL_NAMES)
    live = await LiveCertificates.load(certificates, lambda: clock.now)
    pin = certificates.pin
    seen = {live.current.channel_binding}
    renewed: list[float] = []
    begun = clock.now
    for _ in range(4 * 7 * 24):
        clock.advance(DAY / 24)
        await live.look()
        if live.current.channel_binding not in seen:
            seen.add(live.current.channel_binding)
            renewed.append((clock.now - begun) / DAY)
            begun = clock.now
    assert len(renewed) == 6  # weeks of seven days, renewed after 14/3 of them
    assert all(14 / 3 - 0.01 <= each <= 14 / 3 + 0.05 for each in renewed), renewed
    assert certificates.pin == pin
    assert live.failures == 0


async def test_a_bad_pair_keeps_the_old_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted and logged once, however often it is looked at; a good one is taken as soon as it is there."""
    path = write_pair(server_pair(CA), tmp_path)
    live = await LiveCertificates.load(OwnFiles(path, path))
    first = live.current
    path.write_text("half of")
    for _ in range(5):
        await live.look()
    assert live.current is first
    assert (live.failures, complaints(caplog)) == (1, 1)
    path.unlink()
    for _ in range(5):
        await live.look()
    assert live.current is first
    assert (live.failures, complaints(caplog)) == (2, 2)
    write_pair(server_pair(CA), tmp_path)
    await live.look()
    assert live.current.channel_binding != first.channel_binding


async def test_each_change_is_noted(tmp_path: Path) -> None:
    """For an audit log: what is presented and to be trusted, by hash, and what could not be used; not what stayed."""
    files = AuthorityFiles(tmp_path)
    live = await LiveCertificates.load(OwnAuthority(files, LOCAL_NAMES))
    noted: list[Record] = []
    live.note = noted.append
    assert await live.reload()
    assert noted == []
    rotation = files.read()
    assert rotation is not None
    files.write(rotation.begin(CA, 0.0))
    await live.look()
    (record,) = noted
    assert (record.type, record.outcome) == (RecordType.CERTIFICATE, "in_force")
    assert record == live.record()
    assert record.result["authorities"] == [str(pin_of(rotation.old)), str(pin_of(CA))]
    assert record.result["certificate"] == str(Pin(live.current.channel_binding))
    (tmp_path / "authority.json").write_text("damaged")
    await live.look()
    assert [each.outcome for each in noted[1:]] == ["refused"]
    assert "damaged" in noted[1].reason


async def test_it_looks_by_itself(tmp_path: Path) -> None:
    """As long as the controller runs; cancelled in the middle of a look it ends."""
    path = write_pair(server_pair(CA), tmp_path)
    live = await LiveCertificates.load(OwnFiles(path, path))
    live.look_seconds = 0.001
    first = live.current
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live.keep_fresh)
            write_pair(server_pair(CA), tmp_path)
            while live.current is first:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()


async def test_whoever_asks_for_a_reload_hears_of_each_failure(tmp_path: Path) -> None:
    """As SIGHUP does."""
    path = write_pair(server_pair(CA), tmp_path)
    live = await LiveCertificates.load(OwnFiles(path, path))
    assert await live.reload()
    path.write_text("")
    assert not await live.reload()
    assert not await live.reload()
    assert live.failures == 2


async def test_without_a_usable_one_there_is_no_beginning(tmp_path: Path) -> None:
    """A controller that is to speak TLS doesn't do without."""
    with pytest.raises(ConfigurationError, match="can't read"):
        await LiveCertificates.load(OwnFiles(tmp_path / "none", tmp_path / "none"))
