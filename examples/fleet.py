"""A fleet: daemons chosen by label and by name, one command on many, and word of who comes and goes."""

import os
import sys
from functools import partial

import trio

import sandd

FLEET = {"web-1": "prod", "web-2": "prod", "db-1": "staging"}


async def run_daemon(url: str, daemon_id: str, environment: str, stop: trio.Event) -> None:
    """A daemon as a child of this program, until `stop` is set or this is cancelled."""
    command = [sys.executable, "-m", "sandd.daemon", "--server-url", url, "--log-level", "warning"]
    command += ["--daemon-id", daemon_id, "--label", f"env={environment}"]
    async with trio.open_nursery() as nursery:
        # Its commands inherit the daemon's environment, without the SANDD_ options in it.
        variables = os.environ | {"MACHINE": daemon_id}
        nursery.start_soon(partial(trio.run_process, command, env=variables))
        await stop.wait()
        nursery.cancel_scope.cancel()  # that is SIGTERM: it ends its commands and says goodbye


async def main() -> None:
    """Start a controller and three daemons, and work with them."""
    async with sandd.open_controller(port=0) as controller, trio.open_nursery() as nursery:
        stops = {daemon_id: trio.Event() for daemon_id in FLEET}
        with trio.fail_after(60):
            async with controller.open_events() as events:  # before there is anything to miss
                for daemon_id, environment in FLEET.items():
                    stop = stops[daemon_id]
                    nursery.start_soon(run_daemon, controller.url, daemon_id, environment, stop)
                seen = [await anext(events) for _ in FLEET]
                print("events:", sorted(f"{event.daemon_id} {event.kind}" for event in seen))
                await work(controller)
                stops["web-2"].set()
                event = await anext(events)
                print(f"event: {event.daemon_id} {event.kind}")
        print("left:", [daemon.id for daemon in controller.daemons()])
        nursery.cancel_scope.cancel()


async def work(controller: sandd.Controller) -> None:
    """One command on many daemons."""
    print("prod:", [daemon.id for daemon in controller.daemons({"env": "prod"})])
    print("web-*:", [daemon.id for daemon in controller.daemons(match="web-*")])

    # Who fails, fails alone: its entry is the error that `run` raises.
    command = "echo I am $MACHINE; test $MACHINE != web-1"
    answers = await controller.broadcast(command, check=True, timeout=10)
    for daemon_id, answer in answers.items():
        said = answer if isinstance(answer, sandd.SanddError) else answer.stdout.strip()
        print(f"{daemon_id}: {said}")


if __name__ == "__main__":
    trio.run(main)
