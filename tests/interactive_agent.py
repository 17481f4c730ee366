"""A program that doesn't use trio, with a session at its terminal: ``python interactive_agent.py PORT``."""

from __future__ import annotations

import signal
import sys

import sandd


def main() -> None:
    """Hold a session of the daemon that looks for a controller at that port, then say how it ended."""
    # As in any program that says nothing of it: where coverage is measured, that has taken it for itself.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with sandd.Server(port=int(sys.argv[1])) as server:
        assert server.wait_for_daemon("worker-1", timeout=20)
        session = server.new_session(
            "worker-1",
            interactive=True,
            command=["bash", "--norc", "--noprofile"],
            env={"PS1": "remote> "},
        )
        print(f"back {session.exit_code}.")


if __name__ == "__main__":
    main()
