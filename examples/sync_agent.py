"""An agent without trio: `Server` is the same controller, for plain code and any number of threads."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sandd

HERE = str(Path(__file__).parent)
DAEMON = [sys.executable, "-m", "sandd.daemon", "--daemon-id", "worker-1", "--log-level", "warning"]


def main() -> None:
    """Start a controller, a daemon of our own, and work with it."""
    with sandd.Server(port=0) as server:
        # Elsewhere this is the sandbox' entry point.
        daemon = subprocess.Popen([*DAEMON, "--server-url", server.url, "--label", "env=prod"])
        try:
            if not server.wait_for_daemon("worker-1", timeout=30):
                sys.exit("the daemon did not come")
            work(server)
        finally:
            daemon.terminate()
            print(f"the daemon ended with {daemon.wait()}")


def work(server: sandd.Server) -> None:
    """What an agent does all day."""
    result = server.exec("worker-1", "echo $GREETING", env={"GREETING": "hello"}, timeout=10)
    print(f"exit code {result.exit_code}, output {result.stdout!r}")

    # Threads share the server; each call blocks its own thread only.
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda n: server.exec("worker-1", f"echo $(({n} * {n}))"), range(8))
        print("squares:", [int(result.stdout) for result in results])

    try:
        server.exec("worker-1", "sleep 60", timeout=0.5)
    except TimeoutError as error:
        print(f"{type(error).__name__}: {error}")
    try:
        server.exec("worker-2", "true")
    except sandd.DaemonNotFound as error:
        print(f"{type(error).__name__}: {error}")

    for daemon_id, result in server.broadcast({"env": "prod"}, "exit 3").items():
        print(f"{daemon_id} ended with {result.exit_code}")

    # Output as it comes. Any thread may end it: by `kill`, or by `close`, as leaving the block does.
    with server.open_process("worker-1", "echo begun; sleep 60", stderr="merge") as process:
        for piece in process.stdout:
            print(f"streamed: {piece!r}")
            process.kill()
        process.wait()
        print(f"it ended with {process.exit_code}")

    # Whatever only the trio API has runs in the server's own thread.
    async def names(daemon_id: str, path: str) -> list[str]:
        directory = server.controller.daemon(daemon_id).path(path)
        return [entry.name for entry in await directory.iterdir()]

    print("here it found the program:", "sync_agent.py" in server.call(names, "worker-1", HERE))


if __name__ == "__main__":
    main()
