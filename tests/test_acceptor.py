"""The controller's end of daemon connections, where a real daemon would not show the point."""

from __future__ import annotations

from typing import cast

import pytest
import trio

import sandd
from sandd import wire
from sandd._core.acceptor import Acceptor
from sandd._core.fencing import Claim
from sandd._core.identity.gate import Gate
from sandd._core.pump import Pump, receive_control, send_control
from sandd._core.registry import Registry
from sandd._core.router import Router
from sandd._core.transport import connect


class _StillPump:
    """A pump that never sends: what is scheduled stays to be looked at."""

    goodbye = None

    def wake(self) -> None:
        pass


async def test_farewell_stands_behind_the_ends() -> None:
    """A daemon reads nothing behind a Goodbye, so whatever ends its jobs must come before."""
    router, registry = Router(), Registry()
    client = router.add_client()
    link = router.add_daemon("d", "one")
    claim = Claim("one", 1, challenged_at=0.0)
    registry.online("d", wire.UNDESCRIBED, claim, link, cast("Pump", _StillPump()))
    for sequence in range(3):
        end = wire.End("d", f"{'a' * 16}.{sequence}")
        router.receive(client, wire.as_frame(wire.encode_control(0, end)))
    Acceptor(router, registry, lambda: None, Gate()).say_goodbye()
    sent = [wire.decode_control(wire.as_frame(frame)) for frame in link.scheduler.next_frames()]
    assert [type(message) for message in sent] == [wire.End, wire.End, wire.End, wire.Goodbye]


async def test_a_stranger_is_held_to_the_size_of_a_hello() -> None:
    """Before the Hello nobody makes the controller hold more; behind it the limits are those of a daemon."""
    options = {"subprotocol": wire.SUBPROTOCOL, "max_message_bytes": wire.MAX_MESSAGE_BYTES}
    with trio.fail_after(10):
        async with sandd.open_controller(port=0) as controller:
            async with connect(controller.url, **options) as stranger:  # type: ignore[arg-type]
                await receive_control(stranger)
                await stranger.send_message(bytes(wire.MAX_HELLO_BYTES + 1))
                with pytest.raises(sandd.SanddError) as caught:
                    await stranger.receive_message()
                assert getattr(caught.value, "code", None) == 1009
            async with connect(controller.url, **options) as daemon:  # type: ignore[arg-type]
                await receive_control(daemon)
                await send_control(daemon, wire.Hello(1, "d", "instance", 1))
                assert isinstance(await receive_control(daemon), wire.Welcome)
                large = wire.encode_control(0, wire.Ping(7))
                await daemon.send_message(b"".join(large) * 20_000)
                assert isinstance(
                    wire.decode_control(next(wire.decode_frames(await daemon.receive_message()))),
                    wire.Pong,
                )


async def test_nobody_waits_for_a_closed_controller() -> None:
    """wait_for_daemon and open_events end when the controller closes, in whatever task they are."""
    seen: list[str] = []
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            async with sandd.open_controller(port=0) as controller:

                async def wait() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await controller.wait_for_daemon("nobody")
                    seen.append("wait")

                async def watch() -> None:
                    async with controller.open_events() as events:
                        async for _ in events:
                            pass
                    seen.append("watch")

                nursery.start_soon(wait)
                nursery.start_soon(watch)
                await trio.testing.wait_all_tasks_blocked()
    assert sorted(seen) == ["wait", "watch"]


async def test_broadcast_raises_one_error_for_what_makes_no_sense() -> None:
    """A bad argument is one ValueError, however many daemons there are."""
    options = {"subprotocol": wire.SUBPROTOCOL, "max_message_bytes": wire.MAX_MESSAGE_BYTES}
    with trio.fail_after(10):
        async with sandd.open_controller(port=0) as controller:
            async with (
                connect(controller.url, **options) as a,
                connect(controller.url, **options) as b,
            ):  # type: ignore[arg-type]
                for name, daemon in (("a", a), ("b", b)):
                    await receive_control(daemon)
                    await send_control(daemon, wire.Hello(1, name, name, 1))
                    await receive_control(daemon)
                with pytest.raises(ValueError, match="empty"):
                    await controller.broadcast("")
