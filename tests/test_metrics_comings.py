"""Who was let in, and who wasn't: each counted once, by a reason of ours."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from peers_with_credentials import guarded, operator_token
from process_tools import until
from raw_daemon import raw_daemon

import sandd
from sandd import wire
from sandd._core.pump import receive_control, send_control
from sandd._core.services import LocalService
from sandd._core.transport import connect

if TYPE_CHECKING:
    from pathlib import Path

    from sandd._core.metrics.comings import Comings


def comings_of(controller: sandd.Controller) -> Comings:
    """What it has counted."""
    assert isinstance(controller._service, LocalService)
    return controller._service.comings


async def say(controller: sandd.Controller, message: wire.Control, path: str = "") -> None:
    """A stranger says this, until the controller closes."""
    url = controller.url.removesuffix(wire.DAEMON_PATH) + (path or wire.DAEMON_PATH)
    async with connect(url, subprotocol=wire.SUBPROTOCOL, max_message_bytes=1 << 16) as stranger:
        await receive_control(stranger)
        await send_control(stranger, message)
        with contextlib.suppress(sandd.SanddError):
            while True:
                await stranger.receive_message()


async def test_everybody_is_counted_once(tmp_path: Path) -> None:
    """Who comes in, who has a wrong secret, who is at the wrong door, and who is none of ours."""
    async with guarded(tmp_path, token="secret") as controller:
        comings = comings_of(controller)
        token = await operator_token(controller, "somebody", role="viewer")
        async with (
            raw_daemon(controller.url, "d", token=b"secret"),
            sandd.connect_controller(controller.url, token=token.text),
        ):
            assert comings.admitted == {"daemon": 1, "operator": 1}
        async with raw_daemon(controller.url, "d", token=b"wrong") as daemon:
            assert isinstance(daemon.answer, wire.Reject)
        with pytest.raises(sandd.AuthenticationFailed):
            async with sandd.connect_controller(controller.url, token="wrong"):
                pytest.fail("it was let in")
        await say(controller, wire.Ping(1))
        await say(controller, wire.Hello(1, "d", "i", 1), wire.OPERATOR_PATH)
        assert comings.refused == {
            ("daemon", "unauthenticated"): 1,
            ("operator", "unauthenticated"): 1,
            ("stranger", "protocol"): 1,
            ("stranger", "bad_hello"): 1,
        }
        assert comings.admitted == {"daemon": 1, "operator": 1}


async def test_bytes_of_links_outlive_them(tmp_path: Path) -> None:
    """What is counted only rises, whoever comes and goes."""
    async with guarded(tmp_path, token="secret") as controller:
        seen: list[tuple[int, int]] = []
        for _ in range(2):
            async with raw_daemon(controller.url, "d", token=b"secret") as daemon:
                await daemon.control(0, wire.Ping(7))
                await daemon.receive()
            await until(lambda: controller.statistics().daemons_away)
            told = controller.statistics()
            seen.append((told.bytes_received, told.bytes_sent))
        assert seen[1][0] > seen[0][0] > 0
        assert seen[1][1] > seen[0][1] > 0


async def test_barred_networks_and_those_who_come_from_them_are_counted(tmp_path: Path) -> None:
    """Each bar, and each connection that isn't heard for it."""
    async with guarded(tmp_path, token="secret") as controller:
        service = controller._service
        assert isinstance(service, LocalService)
        barred = partial(service._barred_for, "192.0.2.1", wire.DAEMON_PATH)
        assert (barred(), service.comings.unheard) == (0.0, 0)
        while not service._failures.failed("192.0.2.1", wire.DAEMON_PATH, trio.current_time()):
            pass
        assert barred() > 0
        assert service.comings.unheard == 1
