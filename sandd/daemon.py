"""The program that runs inside a sandbox: ``python -m sandd.daemon --server-url ws://HOST:8765/ws``.

It dials out to its controller, runs what that asks for, and keeps at it through every outage;
nothing listens on this side. ``--help`` lists its options.

Exit codes: 0 after SIGTERM or SIGINT, 1 when the controller refuses it for good, 2 for a bad option, 70 for a defect,
125 where its help can't be written.
"""

from __future__ import annotations

import gc
import os
import sys

# Nothing heavy up here: a signal that arrives while the rest is imported must find a handler.
from sandd._core.early_stop import EarlyStop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CANT_WRITE = 125
"""Exit code where ``--help`` can't be written: that of all our commands."""
CRASHED = 70
"""Exit code of a defect of ours: EX_SOFTWARE of sysexits.h."""
COLLECTED_OBJECTS = (5_000, 5, 5)
"""New objects, in containers, after which cycles are looked for: Python's 700 come with every command. Of
those who have lived longer more often than Python does, since a lost connection is a cycle with buffers in it."""


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m sandd.daemon") -> int:
    """Run the daemon; returns the process' exit code."""
    early = EarlyStop()
    early.install()

    from sandd import __version__
    from sandd._core import logs
    from sandd._core._errors import ConfigurationError, RequestRefused
    from sandd._core.daemon_options import TOKEN_VARIABLE, parse_daemon_options
    from sandd._core.own_output import CantWrite, ReaderGone
    from sandd._core.secret_environment import scrub

    given = sys.argv[1:] if arguments is None else arguments
    try:
        options = parse_daemon_options(given, os.environ, prog=prog, version=__version__)
        scrub(TOKEN_VARIABLE)  # before there is any child
        logs.configure(options.log_level, options.log_format)

        # Not before: --help, --version and a bad option are answered in half the time without.
        import trio

        from sandd._core.daemon_program import run_daemon
        from sandd._core.service_manager import open_service_manager

        # What is here now stays: it need not be looked through again and again, least of all while a
        # command waits. The rest is rarely a cycle.
        gc.freeze()
        gc.set_threshold(*COLLECTED_OBJECTS)
        early.running = True

        with open_service_manager(os.environ, os.getpid()) as manager:

            async def program() -> None:
                await run_daemon(
                    options,
                    version=__version__,
                    stop_requested=lambda: early.requested,
                    manager=manager,
                )

            trio.run(program)
    except ConfigurationError as error:
        print(f"{prog}: error: {logs.masked(logs.printable(str(error)))}", file=sys.stderr)
        return 2
    except RequestRefused as error:
        print(f"{prog}: refused: {logs.printable(str(error))}", file=sys.stderr)
        return 1
    except ReaderGone:  # of --help
        return 128 + 13  # as if SIGPIPE had ended us
    except CantWrite as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return CANT_WRITE
    except Exception:  # a defect of ours: told as all else is, whatever reads the log
        logs.get_logger("daemon").exception("crashed")
        return CRASHED
    finally:
        early.over()
    return 0


if __name__ == "__main__":
    sys.exit(main())
