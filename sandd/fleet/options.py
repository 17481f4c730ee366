"""The command lines of these commands. Imports neither trio nor a controller."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sandd.command_line.options import (
    add_controller_options,
    add_job_argument,
    add_json_option,
    add_limit_options,
    add_process_options,
    add_wait_option,
    read_seconds,
    read_time_limit,
    read_variable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_SORTS = (
    *("id", "cpu", "memory", "load", "jobs", "in", "out", "link"),
    *("time", "processes", "output", "runtime"),
)
_ENDS = "exit code: 0 if all of it was done; 125 if not; 2 for a command line that means nothing"


def add_fleet_commands(commands: Commands) -> None:
    """Enter them all."""
    _add_ps(commands)
    _add_top(commands)
    _add_jobs(commands)
    _add_run(commands)
    _add_logs(commands)
    _add_kill(commands)
    _add_forget(commands)


def _add_ps(commands: Commands) -> None:
    parser = _add(
        commands,
        "ps",
        _run_ps,
        help="who is there: the daemons of a controller",
        description="List the daemons that are online or away, with the time of their newest connection.",
        epilog="With --watch the list changes as daemons come and go, until Ctrl-C. Where stdout is no "
        "terminal, and with --json, there is a further line for each daemon of whom anything has changed.",
    )
    _add_choice(parser)
    parser.add_argument(
        "-w", "--watch", action="store_true", help="go on, and show what changes, until Ctrl-C"
    )
    add_json_option(parser, "daemon")
    add_controller_options(parser)


def _add_top(commands: Commands) -> None:
    parser = _add(
        commands,
        "top",
        _run_top,
        help="how busy daemons and their jobs are, live",
        description="Show how busy the daemons are, or with --jobs their jobs, until Ctrl-C. CPU is that of the "
        "daemon's whole machine, 100% all of its processors; of a job, 100% is one of them. IN/S and OUT/S are bytes "
        "a second between the daemon and the controller, LINK is the age of its connection.",
        epilog="Where stdout is no terminal there is a table, and with --json a line for each daemon or job, at each "
        "interval.",
    )
    parser.add_argument(
        "daemon", metavar="DAEMON", nargs="?", help="the jobs of this daemon, and no others"
    )
    parser.add_argument("-j", "--jobs", action="store_true", help="jobs, of all that are chosen")
    _add_choice(parser)
    parser.add_argument(
        "-s",
        "--sort",
        metavar="KEY",
        choices=_SORTS,
        help="largest first, by: cpu, memory; of daemons also load, jobs, in, out, link; of jobs time, processes, "
        "output, runtime; or by id (default: daemons by id, jobs by cpu)",
    )
    parser.add_argument(
        "-i",
        "--interval",
        metavar="SECONDS",
        type=_read_interval,
        default=2.0,
        help="from one look to the next, 0.2 to 3600 (default: 2)",
    )
    parser.add_argument(
        "-1",
        "--once",
        action="store_true",
        help="show it once, after one interval, as rates take two looks",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=read_seconds,
        default=5.0,
        help="how long daemons have to answer at first, beyond the interval (default: 5)",
    )
    add_json_option(parser, "daemon or job")
    add_controller_options(parser)


def _add_jobs(commands: Commands) -> None:
    parser = _add(
        commands,
        "jobs",
        _run_jobs,
        help="what runs, and what has ended and is kept",
        description="List the jobs of one daemon, or of all. A daemon that is away, or doesn't answer in "
        "time, is listed as such, and delays no other.",
        epilog="exit code: 0, also where daemons did not answer; 125 if DAEMON did not, or sandd failed",
    )
    parser.add_argument("daemon", metavar="DAEMON", nargs="?", help="id of a daemon (default: all)")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=read_seconds,
        default=5.0,
        help="how long daemons have to answer (default: 5)",
    )
    add_json_option(parser, "job")
    add_controller_options(parser)


def _add_run(commands: Commands) -> None:
    parser = _add(
        commands,
        "run",
        _run_run,
        help="run a command on many daemons at once",
        usage="sandd run [options] -- CMD ...",
        description="Run a command on all daemons, or on those that are chosen, and show what it prints as "
        "it comes: each line behind the id of its daemon, and never torn. The command gets no input. At the "
        "end there is a summary on stderr.",
        epilog="exit code: 0 if it has ended with 0 on each of them, else 1; 125 if there is no such daemon, or "
        "sandd failed; 128+N when signal N ended sandd, and the commands with it",
    )
    _add_choice(parser)
    parser.add_argument(
        "--concurrency",
        metavar="N",
        type=_read_count,
        help="on how many daemons at the same time (default: all)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=read_time_limit,
        help="how long it may run on each; a daemon that is away then is given up (default: for ever)",
    )
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=read_seconds,
        help="how long to wait for daemons that are away before it has begun there (default: as long as it takes; "
        "that is told)",
    )
    add_process_options(parser)
    add_limit_options(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help='one line of JSON on stdout for each line that is printed ("event": "line"), and for each end '
        '("event": "ended")',
    )
    add_controller_options(parser)
    # Everything behind "--" is the command, options that look like ours included.
    parser.set_defaults(remote_command=None)


def _add_logs(commands: Commands) -> None:
    parser = _add(
        commands,
        "logs",
        _run_logs,
        help="what a job has printed",
        description="Print what is kept of a job's output, its stdout on stdout and its stderr on stderr, and "
        "leave it as it is: whoever holds it reads it as well.",
        epilog="exit code: 0; with --follow that of the job, once it has ended (124 if it ran out of time, "
        "128+N if signal N killed it); 125 if there is no such job, or sandd failed",
    )
    add_job_argument(parser)
    parser.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="go on with what it prints from now on, to its end",
    )
    add_wait_option(parser)
    add_controller_options(parser)


def _add_kill(commands: Commands) -> None:
    parser = _add(
        commands,
        "kill",
        _run_kill,
        help="end jobs, with their process trees",
        description="End jobs, whoever holds them, and name each on stdout when nothing of it is left. What "
        "they have printed is kept.",
        epilog=_ENDS,
    )
    add_job_argument(parser, several=True)
    parser.add_argument(
        "-s",
        "--signal",
        metavar="SIGNAL",
        type=_read_signal,
        default="TERM",
        help="what they get first (default: TERM, for all of the tree; another is for its process group)",
    )
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=read_seconds,
        default=5.0,
        help="from then on until what is left is killed (default: 5)",
    )
    add_wait_option(parser)
    add_controller_options(parser)


def _add_forget(commands: Commands) -> None:
    parser = _add(
        commands,
        "forget",
        _run_forget,
        help="drop jobs, and what is kept of them",
        description="Drop jobs with all that is kept of them, and name each on stdout. Those that run are ended "
        "first.",
        epilog=_ENDS,
    )
    add_job_argument(parser, several=True)
    add_wait_option(parser)
    add_controller_options(parser)


# ---- what several have ----------------------------------------------------------------------------


def _add(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    **settings: Any,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, allow_abbrev=False, **settings)
    parser.set_defaults(run=run)
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-l",
        "--label",
        metavar="K=V",
        dest="labels",
        type=read_variable,
        action="append",
        default=[],
        help="only daemons with this label (repeatable: with all of them)",
    )
    parser.add_argument(
        "-m",
        "--match",
        metavar="GLOB",
        default="*",
        help="only daemons whose id matches, as in 'worker-*'",
    )


def _read_count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 1_000_000):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of daemons: 1 or more")
    return int(text)


def _read_interval(text: str) -> float:
    seconds = read_seconds(text)
    if not 0.2 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no interval: 0.2 to 3600 seconds")
    return seconds


def _read_signal(text: str) -> str:
    from sandd._core.specs import normal_signal  # late: what that imports is for who kills

    try:
        return normal_signal(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _run_ps(options: argparse.Namespace) -> int:
    from sandd.fleet.listing import run_ps

    return run_ps(options)


def _run_top(options: argparse.Namespace) -> int:
    from sandd.fleet.busy import DAEMON_SORTS, JOB_SORTS  # late: what they import is for who looks
    from sandd.fleet.top import run_top

    options.jobs = options.jobs or options.daemon is not None
    sorts = JOB_SORTS if options.jobs else DAEMON_SORTS
    if options.sort is None:
        options.sort = "cpu" if options.jobs else "id"
    if options.sort not in sorts:
        what = "jobs" if options.jobs else "daemons"
        options.parser.error(f"{what} have no {options.sort} to sort by: {', '.join(sorts)}")
    return run_top(options)


def _run_jobs(options: argparse.Namespace) -> int:
    from sandd.fleet.listing import run_jobs

    return run_jobs(options)


def _run_run(options: argparse.Namespace) -> int:
    from sandd.fleet.broadcasting import run_broadcast

    return run_broadcast(options)


def _run_logs(options: argparse.Namespace) -> int:
    from sandd.fleet.reading import run_logs

    return run_logs(options)


def _run_kill(options: argparse.Namespace) -> int:
    from sandd.fleet.ending import run_kill

    return run_kill(options)


def _run_forget(options: argparse.Namespace) -> int:
    from sandd.fleet.ending import run_forget

    return run_forget(options)
