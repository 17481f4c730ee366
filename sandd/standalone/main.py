"""``sandd controller`` as a process.

Exit codes: 0 after SIGTERM or SIGINT, 2 for a bad option, 125 if it can't listen, or can't use its state
directory.
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

    from sandd._core.controller_options import ControllerOptions

CANT_SERVE = 125
CRASHED = 70
"""Exit code of a defect of ours: EX_SOFTWARE of sysexits.h, as of the daemon."""
COLLECTED_OBJECTS = (50_000, 20, 50)
"""New objects, in containers, after which cycles are looked for: with thousands of connections Python's 700
would cost a quarter of a processor."""


def main(arguments: Sequence[str], *, prog: str = "sandd controller") -> int:
    """Run the controller; returns the process' exit code."""
    early = EarlyStop()
    early.install(reloads=True)

    from sandd import __version__
    from sandd._core import logs
    from sandd._core._errors import ConfigurationError
    from sandd._core.controller_options import parse_controller_options

    def fail(why: object, code: int) -> int:
        sys.stderr.write(f"{prog}: error: {logs.masked(logs.printable(str(why)))}\n")
        return code

    def read_options() -> ControllerOptions:
        return parse_controller_options(arguments, os.environ, prog=prog, version=__version__)

    try:
        try:
            options = read_options()
        except ConfigurationError as error:
            return fail(error, 2)
        logs.configure(options.log_level, options.log_format)

        # Not before: --help, --version and a bad option are answered in half the time without.
        import trio

        from sandd._core.service_manager import open_service_manager
        from sandd.command_line.stopping import Failure
        from sandd.standalone.program import run_controller

        gc.freeze()
        gc.set_threshold(*COLLECTED_OBJECTS)
        early.running = True

        try:
            with open_service_manager(os.environ, os.getpid()) as manager:

                async def program() -> None:
                    await run_controller(
                        options,
                        read_again=read_options,
                        stop_requested=lambda: early.requested,
                        reload_requested=lambda: early.reload_requested,
                        manager=manager,
                    )

                trio.run(program)
        except (ConfigurationError, Failure) as error:
            return fail(error, CANT_SERVE)
        except Exception:  # a defect of ours: told as all else is, whatever reads the log
            logs.get_logger("controller").exception("crashed")
            return CRASHED
        return 0
    finally:
        early.over()
