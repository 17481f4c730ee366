"""An agent in trio: runs commands on a daemon, bounds their time, and tells apart what can go wrong."""

import sys

import trio

import sandd

DAEMON = [sys.executable, "-m", "sandd.daemon", "--daemon-id", "worker-1", "--log-level", "warning"]


async def main() -> None:
    """Start a controller, a daemon of our own, and work with it."""
    async with sandd.open_controller(port=0) as controller, trio.open_nursery() as nursery:
        # Elsewhere this is the sandbox' entry point. Here it is a child, ended with the nursery.
        nursery.start_soon(trio.run_process, [*DAEMON, "--server-url", controller.url])
        with trio.fail_after(30):
            worker = await controller.wait_for_daemon("worker-1")
        print(f"{worker.id} is {worker.state}, on {worker.info.platform}")
        await work(worker)
        nursery.cancel_scope.cancel()


async def work(worker: sandd.Daemon) -> None:
    """What an agent does all day."""
    result = await worker.run("printf 'b\na\nb\n' | sort | uniq -c", timeout=10)  # by the shell
    print(f"exit code {result.exit_code}, output {result.stdout.split()}")

    result = await worker.run(["sort", "-n"], input="10\n9\n8\n", timeout=10)  # without one
    print(f"success {result.success}, output {result.stdout.split()}")

    try:
        await worker.run("echo begun; sleep 60", timeout=2.0)
    except sandd.CommandTimeout as error:
        print(f"{error}; until then it wrote {error.result and error.result.stdout!r}")

    for command in (["no-such-program"], "echo wrong >&2; exit 3"):
        try:
            await worker.run(command, timeout=10, check=True)
        except sandd.SpawnFailed as error:
            print(f"nothing ran: {error}")
        except sandd.CommandFailed as error:
            print(f"it ran and failed: exit code {error.result.exit_code}, {error.result.stderr!r}")

    with trio.move_on_after(0.5):
        await worker.run("sleep 6001 & sleep 6002")
    left = await worker.run("ps -A -o args | grep -c '^sleep 600[12]'", timeout=10)
    print(f"cancelled; processes left of it: {left.stdout.strip()}")


if __name__ == "__main__":
    trio.run(main)
