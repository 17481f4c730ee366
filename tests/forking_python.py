"""The program that other Python processes are forked from, with all of sandd imported; see forked_python.py.

It has one thread, and answers one request at a time, which is a marshalled dict with three descriptors: the pid of a
process that is a copy of this one up to there, and then runs ``python -m MODULE ARGUMENTS``. That process is a child
of whoever started this one, who waits for it as for any other: it is cloned with CLONE_PARENT (clone(2)).
"""

from __future__ import annotations

import array
import atexit
import ctypes
import functools
import gc
import importlib
import io
import itertools
import json
import marshal
import os
import pkgutil
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

from forked_python import HURRY, ForkingPython, Program, PythonProcess

PROGRAMS: Final = ("sandd.__main__", "sandd.daemon")
"""Are not imported here: they are what is run, as ``__main__``."""

IMPORTED_LATE: Final = (
    "argparse", "concurrent.futures", "encodings.idna", "locale", "prometheus_client", "sqlite3", "structlog",
    "trio._core._run",
)  # fmt: skip
"""What all of it imports when it needs it. structlog, with what it has of rich, was half of a copy's time."""

SYS_CLONE3: Final = 435  # the same number on every architecture
CLONE_PARENT: Final = 0x8000
CLONE_CHILD_CLEARTID: Final = 0x200000
CLONE_CHILD_SETTID: Final = 0x1000000
PR_SET_MM: Final = 35
PR_SET_MM_MAP: Final = 14
PR_GET_TID_ADDRESS: Final = 40

LIBC: Final = ctypes.PyDLL(None, use_errno=True)
"""Keeps the interpreter's lock: the copy goes on as its holder."""
LIBC.syscall.restype = LIBC.sbrk.restype = ctypes.c_long


def import_all() -> None:
    """Import all of sandd, and what it imports when it is needed."""
    import sandd

    for module in pkgutil.walk_packages(sandd.__path__, "sandd."):
        if module.name not in PROGRAMS and "windows" not in module.name:
            importlib.import_module(module.name)
    for name in IMPORTED_LATE:
        importlib.import_module(name)


def make_codecs() -> None:
    """Have cattrs write its functions for all messages: each copy would write a dozen of them, 2 ms each."""
    from sandd import wire

    for value in list(vars(wire).values()):
        if isinstance(value, wire._Codec):
            for tag in value._known:
                message, _ = value._from_wire[tag]
                value._to_wire[message]
    for spec in wire.SPEC_KINDS.values():
        wire._SPEC_TO_WIRE[spec], wire._SPEC_FROM_WIRE[spec]


def make_parsers() -> None:
    """Have argparse build the grammars of all our command lines: each copy would build its own, 5 to 15 ms."""
    from sandd import __version__, cli
    from sandd._core import controller_options, daemon_options

    for module in (cli, controller_options, daemon_options):
        module.build_parser = functools.cache(module.build_parser)  # type: ignore[attr-defined]
    cli.build_parser()
    controller_options.build_parser("sandd controller", __version__)
    for program in ("sandd daemon", "python -m sandd.daemon"):
        daemon_options.build_parser(program, __version__)


def try_isolation() -> None:
    """Find out once what this machine has for it: each daemon would run bubblewrap to see that it works, 10 ms.

    One with other options still does.
    """
    from sandd._core.isolation import probing
    from sandd._core.isolation.options import IsolationOptions

    probing._no_bwrap = functools.cache(probing._no_bwrap)  # type: ignore[assignment]
    probing.probe(IsolationOptions())


def fork_for_parent() -> int:
    """`os.fork`, but the copy is a child of our parent; OSError where the system can't."""
    thread_id = (
        ctypes.c_void_p()
    )  # where the C library keeps it: it is the copy's own from its first instruction
    if LIBC.prctl(PR_GET_TID_ADDRESS, ctypes.byref(thread_id), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_GET_TID_ADDRESS)")
    flags = CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
    request = struct.pack("8Q", flags, 0, thread_id.value, 0, 0, 0, 0, 0)
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid: int = LIBC.syscall(SYS_CLONE3, request, len(request))
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    return pid


def show_in_proc(arguments: list[bytes], environment: dict[bytes, bytes]) -> list[object]:
    """Have /proc/PID/cmdline and environ tell these; what is returned has to be kept.

    The C library's variables are in the same memory, as in any process: who overwrites one there does it here, too.
    """
    words = b"".join(word + b"\0" for word in arguments)
    variables = [b"%b=%b\0" % each for each in environment.items()]
    memory = ctypes.create_string_buffer(words + b"".join(variables))
    start = ctypes.addressof(memory)
    middle = start + len(words)
    ends = list(itertools.accumulate(map(len, variables), initial=middle))
    pointers = (ctypes.c_void_p * len(ends))(*ends[:-1], None)
    ctypes.c_void_p.in_dll(LIBC, "environ").value = ctypes.addressof(pointers)
    stat = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    # proc(5) counts its fields from 1, and the two before these have been cut off.
    code, data_and_break = stat[26 - 3 : 28 - 3], stat[45 - 3 : 48 - 3]
    numbers = [*code, *data_and_break, LIBC.sbrk(0), stat[28 - 3], start, middle, middle, ends[-1]]
    layout = struct.pack("12QIi", *map(int, numbers), 0, 0, -1)
    if LIBC.prctl(PR_SET_MM, PR_SET_MM_MAP, layout, len(layout), 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_MM_MAP)")
    return [memory, pointers]


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork what is asked for; returns the request in each copy, and never in the original."""
    while True:
        head, ancillary, _, _ = requests.recvmsg(4, socket.CMSG_SPACE(3 * 4))
        if not head:
            os._exit(0)  # who started us is gone, or wants no more
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        (size,) = struct.unpack("I", head)
        body = b""
        while len(body) < size:
            body += requests.recv(size - len(body))
        request: dict[str, Any] = marshal.loads(body)
        try:
            pid = fork_for_parent()
        except OSError as error:
            pid = -(error.errno or 1)
        if pid == 0:
            requests.close()
            for ours, theirs in enumerate(descriptors):
                os.dup2(theirs, ours)
            for each in descriptors:
                os.close(each)
            return request
        for each in descriptors:
            os.close(each)
        requests.sendall(struct.pack("i", pid))


def with_own_source(request: dict[str, Any]) -> dict[str, Any]:
    """In a copy that may start others: let it fork them, too, from a child of its own that is what this process is yet.

    Returns the request in the copy; and that of each such other, in it.
    """
    while request["arguments"] and program_of(request).starts_others:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            # Whoever reads what the copy writes is not to wait for us.
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(nothing, number)
            os.close(nothing)
            request = serve(theirs)
        else:
            theirs.close()
            environment = request["environment"].items()
            settled = {os.fsdecode(name): os.fsdecode(value) for name, value in environment}
            PythonProcess.source = ForkingPython(ours, settled)
            PythonProcess.runs_any = True
            subprocess.Popen = PythonProcess  # type: ignore[misc]
            break
    return request


def program_of(request: dict[str, Any]) -> Program:
    """What it asks for."""
    program = Program.of(request["arguments"])
    assert program is not None
    return program


def open_standard_streams() -> None:
    """sys.stdin and the others for what is behind their descriptors now, as Python opens them at its start."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        binary = open(number, "rb" if name == "stdin" else "wb", closefd=False)  # noqa: SIM115 - stays open
        binary.raw.name = f"<{name}>"
        line_buffering = name == "stderr" or binary.raw.isatty()
        stream = io.TextIOWrapper(
            binary, before.encoding, before.errors, newline="\n", line_buffering=line_buffering
        )
        stream.mode = before.mode
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def become(request: dict[str, Any]) -> object:
    """Be the process that was asked for; what is returned has to be kept."""
    if request["start_new_session"]:
        os.setsid()
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    environment: dict[bytes, bytes] = request["environment"]
    for name in set(os.environb) - set(environment):
        del os.environb[name]
    os.environb.update(environment)
    for name, seconds in json.loads(os.environ.pop(HURRY, "{}")).items():
        module, _, constant = name.rpartition(".")
        assert isinstance(getattr(sys.modules[module], constant), float), name
        setattr(sys.modules[module], constant, seconds)
    arguments: list[str] = request["arguments"]
    shown = show_in_proc([os.fsencode(each) for each in (sys.executable, *arguments)], environment)
    sys.orig_argv[:] = [sys.executable, *arguments]
    program = program_of(request)
    sys.argv = [program.kind or program.name, *program.arguments]
    in_path = {"-m": os.getcwd(), "-c": "", "": os.path.dirname(os.path.abspath(program.name))}
    sys.path[0] = in_path[program.kind]
    warnings._processoptions(program.warnings)  # type: ignore[attr-defined]
    open_standard_streams()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return shown


def try_out() -> NoReturn:
    """End with status 0 where all that a copy needs of the system is to be had."""
    try:
        show_in_proc([b"trial"], {})
    except OSError:
        os._exit(1)
    os._exit(0)


def run(program: Program) -> int | str | None:
    """Run it as Python does; what it gave to `sys.exit`."""
    try:
        if program.kind == "-m":
            runpy._run_module_as_main(program.name)
        elif program.kind == "-c":
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(program.name, "<string>", "exec"), vars(main))
        else:
            runpy.run_path(program.name, run_name="__main__")
    except SystemExit as error:
        return error.code  # type: ignore[return-value]
    return 0


def leave(code: int | str | None) -> None:
    """End as Python does, but for its taking apart what was imported, which would copy all of that first."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    gc.collect()  # what would complain of its end still does
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            print(f"Exception ignored in: {stream!r}\n{error!r}", file=sys.stderr)
            code = 120  # as Python does
    os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for those who started us
    import_all()
    make_codecs()
    make_parsers()
    try_isolation()
    gc.collect()
    gc.freeze()
    REQUEST = serve(socket.socket(fileno=int(sys.argv[1])))
    if REQUEST["arguments"] == []:
        try_out()
    REQUEST = with_own_source(REQUEST)
    SHOWN = become(REQUEST)
    leave(run(program_of(REQUEST)))  # any other exception is left to Python
