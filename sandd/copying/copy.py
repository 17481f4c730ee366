"""``sandd cp``: from a command line to copies, and to an exit code.

Each source is a copy of its own: one that fails is said, and the others are made all the same.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import asdict, define, field

from sandd._core._errors import RequestRefused, TransferError
from sandd._core.logs import printable
from sandd.command_line.outages import minding_outages
from sandd.command_line.reaching import reach_daemon
from sandd.command_line.stopping import run_command
from sandd.command_line.telling import put_json, say, say_nothing
from sandd.copying.places import BadUse, Kind, Order, Refused, System, Targets
from sandd.copying.progress import showing_progress

if TYPE_CHECKING:
    import argparse
    from typing import Literal

    from sandd import TransferResult
    from sandd.command_line.stopping import Stop
    from sandd.controller import Daemon

COPY_FAILED: Final = 1
MOST_NAMED: Final = 5
"""Special files that were left out, by name."""
HERE: Final = System(windows=sys.platform == "win32")
_OF_ONE_COPY: Final = (TransferError, RequestRefused, OSError, Refused)
"""What goes wrong with one copy, and need not with the next."""
_ABSENT: Final = (FileNotFoundError, NotADirectoryError)
_ADVICE: Final = {
    errno.ENOENT: "look at the path; directories on the way to a target must be there",
    errno.EACCES: "look at the permissions there, and at the user who runs sandd on that side",
    errno.EPERM: "look at the permissions there, and at the user who runs sandd on that side",
    errno.EISDIR: "-r copies directories; a file can't take the place of one",
    errno.ENOTDIR: "a directory can't take the place of a file; name another target, or remove that",
    errno.ENOSPC: "make room, and run it again",
    errno.EDQUOT: "make room, and run it again",
    errno.EROFS: "name a target that can be written to",
    errno.EBUSY: "run it again when nothing writes to it",
}
"""What somebody can do about it, by errno."""


def run_copy(options: argparse.Namespace) -> int:
    """Copy what the command line says; returns the exit code."""
    try:
        if len(options.paths) < 2:
            raise BadUse("it takes two paths: what to copy, and to where")
        order = Order.parse(options.paths, HERE)
    except BadUse as error:
        options.parser.error(printable(str(error)))
    return run_command(partial(_copy, options, order))


async def _copy(options: argparse.Namespace, order: Order, stop: Stop) -> int:
    async with (
        reach_daemon(options, order.daemon_id, stop) as (controller, daemon),
        minding_outages(
            controller, daemon, wait=options.wait, say=say_nothing if options.quiet else say
        ),
    ):
        return await _Copies(options, order, daemon).run()


@define(eq=False)
class _Copies:
    """The copies of one order."""

    _options: argparse.Namespace
    _order: Order
    _daemon: Daemon
    _made: set[str] = field(factory=set)
    """Targets of this order: with cp no source is written over the copy of another."""
    _failed: bool = False

    async def run(self) -> int:
        """Make all of them; returns the exit code."""
        order, there = self._order, System(windows=self._daemon.info.platform == "win32")
        to_there = order.uploads
        try:
            try:
                kind = await self._kind(order.destination, remote=to_there)
            except _ABSENT:
                kind = Kind.ABSENT
            targets = Targets(
                order.destination,
                kind,
                source_system=HERE if to_there else there,
                system=there if to_there else HERE,
                several=len(order.sources) > 1,
            )
            targets.check()
        except _OF_ONE_COPY as error:
            for source in order.sources:
                await self._tell_failure(source, order.destination, error)
            return COPY_FAILED
        for source in order.sources:
            await self._copy_one(source, targets)
        return COPY_FAILED if self._failed else 0

    async def _copy_one(self, source: str, targets: Targets) -> None:
        target = targets.destination
        try:
            kind = await self._kind(source, remote=not self._order.uploads)
            target = targets.of(source, kind, recursive=self._options.recursive)
            if target in self._made and target != targets.destination:
                raise Refused("another source has been copied there just now, under the same name")
            self._made.add(target)
            result = await self._transfer(source, target)
        except _OF_ONE_COPY as error:
            await self._tell_failure(source, target, error)
        else:
            await self._tell_result(source, target, result)

    async def _transfer(self, source: str, target: str) -> TransferResult:
        options = self._options
        update: bool | Literal["hash"] = "hash" if options.checksum else options.update
        copy = self._daemon.upload if self._order.uploads else self._daemon.download
        async with AsyncExitStack() as stack:
            progress = None
            if sys.stderr.isatty() and not options.quiet:
                showing = showing_progress(self._order.source(source), sys.stderr)
                progress = await stack.enter_async_context(showing)
            return await copy(
                source,
                target,
                progress=progress,
                update=update,
                include=options.include or None,
                exclude=options.exclude or None,
            )

    async def _kind(self, path: str, *, remote: bool) -> Kind:
        """What is there, links followed; raises what prevents telling, such as FileNotFoundError."""
        found = await (self._daemon.path(path).stat() if remote else trio.Path(path).stat())
        return Kind.DIRECTORY if stat.S_ISDIR(found.st_mode) else Kind.OTHER

    # -- what is said

    async def _tell_result(self, source: str, target: str, result: TransferResult) -> None:
        order = self._order
        if self._options.json:
            await put_json(
                {"source": order.source(source), "target": order.target(target), "error": None}
                | asdict(result)
            )
        if result.unsupported and not self._options.quiet:
            names = ", ".join(result.unsupported_names[:MOST_NAMED])
            more = "" if result.unsupported <= MOST_NAMED else ", ..."
            text = (
                f"{order.source(source)}: left out {result.unsupported} that are neither files, directories "
                f"nor links: {names}{more}"
            )
            await say(f"sandd: {printable(text)}")

    async def _tell_failure(self, source: str, target: str, error: Exception) -> None:
        self._failed = True
        order = self._order
        if self._options.json:
            number = error.errno if isinstance(error, OSError) else None
            await put_json(
                {
                    "source": order.source(source),
                    "target": order.target(target),
                    "error": str(error),
                    "errno": errno.errorcode.get(number) if number else None,
                }
            )
        # One line, whatever the names are.
        text = f"{order.source(source)} -> {order.target(target)}: {_reason(error)}"
        await say(f"sandd: {printable(text)}")


def _reason(error: Exception) -> str:
    """Why, on which file, and what to do about it, if that is known."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    where = f": {error.filename!r}" if error.filename else ""
    number = error.errno or 0
    # Who says it in words of their own has said more than the number does.
    advice = _ADVICE.get(number) if error.strerror == os.strerror(number) else None
    return f"{error.strerror}{where}" + (f" ({advice})" if advice else "")
