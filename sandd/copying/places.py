"""Which side an argument is on, and what each copy is to be called: cp(1)'s rules, without I/O.

A path of the daemon's is ``DAEMON:PATH``, as for scp: a colon before the first slash. A path of this machine
that has one there is written ``./a:b``; on Windows ``C:`` is a drive, and a backslash a slash.

Paths follow the rules of the system that they are on, which may differ between the two sides.
"""

from __future__ import annotations

import ntpath
import posixpath
from enum import Enum
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ITSELF = {"", ".", ".."}
"""What is copied from here has no name that it could have there: as with cp, its content goes to the target."""


class BadUse(ValueError):
    """The arguments mean nothing; says why."""


class Refused(Exception):
    """A copy that can't be as it was asked for; says why. Nothing was touched."""


class Kind(Enum):
    """What is at a path."""

    ABSENT = "absent"
    DIRECTORY = "directory"
    OTHER = "other"
    """A file, or something that no file can be copied over; whoever copies finds that out."""


@frozen
class System:
    """Whose rules a path follows."""

    windows: bool

    @property
    def slashes(self) -> str:
        """What separates components."""
        return "/\\" if self.windows else "/"

    def ends_with_slash(self, path: str) -> bool:
        """It was said that the path is that of a directory."""
        return path != "" and path[-1] in self.slashes

    def name(self, path: str) -> str:
        """The last component, slashes at the end not counted; "" of a root."""
        split = ntpath.splitdrive(path)[1] if self.windows else path
        for slash in self.slashes:
            split = split.replace(slash, "/")
        return posixpath.basename(split.rstrip("/"))

    def join(self, directory: str, name: str) -> str:
        """The path of what has that name in the directory."""
        return ntpath.join(directory, name) if self.windows else posixpath.join(directory, name)

    def can_name(self, name: str) -> bool:
        """It names something in a directory, and nothing elsewhere."""
        return name not in _ITSELF and not any(
            each in name for each in self.slashes + ":" * self.windows
        )


@frozen
class Place:
    """An argument: a path, and whose it is."""

    daemon_id: str | None
    """None: this machine's."""
    path: str

    @classmethod
    def parse(cls, text: str, here: System) -> Place:
        """Tell a daemon's path from one of this machine.

        Raises:
            BadUse: it is neither.
        """
        before, colon, behind = text.partition(":")
        is_drive = here.windows and len(before) == 1 and before.isalpha()
        if not colon or is_drive or any(each in before for each in here.slashes):
            if not text:
                raise BadUse("an empty path names nothing")
            return cls(None, text)
        if not before:
            raise BadUse(
                f"{text!r} has no daemon's id before the colon; a local path is './{text}'"
            )
        # As with scp, no path is where paths begin: there the daemon's working directory, or its root.
        return cls(before, behind or ".")

    def __str__(self) -> str:
        return self.path if self.daemon_id is None else f"{self.daemon_id}:{self.path}"


@frozen
class Order:
    """What the command line asks for."""

    daemon_id: str
    uploads: bool
    sources: tuple[str, ...]
    destination: str

    @classmethod
    def parse(cls, arguments: Sequence[str], here: System) -> Order:
        """``SRC ... DST``, of which one side is a daemon's.

        Raises:
            BadUse: it isn't so.
        """
        *sources, destination = [Place.parse(each, here) for each in arguments]
        sides = {each.daemon_id for each in sources}
        if len(sides) > 1:
            raise BadUse(f"all sources must be on one side: {_listed(sources)}")
        (side,) = sides
        if side is None and destination.daemon_id is None:
            raise BadUse(
                f"neither side is a daemon's: write DAEMON:PATH for one of {_listed([*sources, destination])}"
            )
        if side is not None and destination.daemon_id is not None:
            raise BadUse(
                f"{_listed(sources)} and {str(destination)!r} are both a daemon's; copy by way of this "
                "machine, or write a local path that has a colon as ./a:b"
            )
        daemon_id = side if destination.daemon_id is None else destination.daemon_id
        assert daemon_id is not None
        paths = tuple(each.path for each in sources)
        return cls(daemon_id, side is None, paths, destination.path)

    def source(self, path: str) -> str:
        """One of the sources, as it was written."""
        return str(Place(None if self.uploads else self.daemon_id, path))

    def target(self, path: str) -> str:
        """A target, as it would be written."""
        return str(Place(self.daemon_id if self.uploads else None, path))


@frozen
class Targets:
    """What the copies of an order are to be called, once it is known what is at its destination."""

    destination: str
    kind: Kind
    """Of what is at the destination, a link followed."""
    source_system: System
    system: System
    """Of the destination."""
    several: bool
    """There is more than one source."""

    def check(self) -> None:
        """Raise Refused if nothing at all can be copied there."""
        if self.several and self.kind is not Kind.DIRECTORY:
            there = "there is none" if self.kind is Kind.ABSENT else "it is something else"
            raise Refused(f"several sources need a directory to go to, and {there}")

    def of(self, source: str, kind: Kind, *, recursive: bool) -> str:
        """The path of the copy of one source.

        Raises:
            Refused: it can't be.
        """
        if kind is Kind.DIRECTORY and not recursive:
            raise Refused("it is a directory; -r copies those, with all that is in them")
        said_directory = self.system.ends_with_slash(self.destination)
        if self.kind is Kind.DIRECTORY:
            name = self.source_system.name(source)
            if name in _ITSELF:
                return self.destination
            if not self.system.can_name(name):
                raise Refused(
                    f"{name!r} can't be a name on the other side; name the copy: .../NEWNAME"
                )
            return self.system.join(self.destination, name)
        if said_directory and not (self.kind is Kind.ABSENT and kind is Kind.DIRECTORY):
            raise Refused(
                "its target ends with a slash, and there is no such directory; make it, or leave the slash out"
            )
        return self.destination


def _listed(places: Iterable[Place]) -> str:
    return ", ".join(repr(str(each)) for each in places)
