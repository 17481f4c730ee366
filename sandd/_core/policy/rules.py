"""What a policy says: rules for programs, and grants for files and ports. Whatever is not named is denied."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
from attrs import field, frozen

from sandd._core.limits import LIMIT_NAMES, NO_LIMITS, Limits
from sandd.wire import IsolationLevel

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
"""PATH of what runs under a policy that names none: never the daemon's, nor the client's."""
SHELL: Final = "/bin/sh"
"""What a shell string is given to."""
HASH_DIGITS: Final = 12
"""Of a policy's SHA-256, what is shown: enough to tell one's own policies apart, and it says nothing of them."""


@frozen
class Literal:
    """This text and no other."""

    text: str


@frozen
class Regex:
    """A text that all of the regex matches."""

    pattern: str


@frozen
class Beneath:
    """`prefix`, then the path of something in this directory, or of itself."""

    directory: str
    prefix: str = ""
    """Such as ``--file=``."""


@frozen
class Argument:
    """One or more arguments in a row that look alike."""

    matcher: Literal | Regex | Beneath
    at_least: int = 1
    at_most: int = 1


@frozen
class Rule:
    """One program that may be run, and how."""

    name: str
    exe: str
    """Absolute path of what is run, whatever the first element of the command says."""
    argv: tuple[Argument, ...] = ()
    """What follows the program's name; of a shell string, the one text."""
    sha256: str | None = None
    cwd_beneath: tuple[str, ...] = ()
    """Without any, no working directory may be asked for."""
    env_allow: tuple[str, ...] = ()
    """Names that a client may set; ``*`` at the end stands for anything."""
    env: Mapping[str, str] = field(factory=dict)
    """What the policy sets itself."""
    shell: bool = False
    """It is about shell strings, and about nothing else."""
    pty: bool = False
    """It may have a terminal."""
    user: str | None = None
    """Whom it runs as; None: as the daemon, and nobody else may be asked for."""
    may_start: tuple[str, ...] = ()
    """Under the lock: the programs that it, and what it starts, may start."""
    force: bool = False
    """Its author knows what the linter has to say."""
    limits: Limits = NO_LIMITS
    """What it may use, with all that it starts."""


class ExecLock(enum.StrEnum):
    """Whether programs are kept from starting others that their rule doesn't name."""

    REQUIRED = "required"  # where the kernel can't, the daemon does not start
    IF_AVAILABLE = "if available"
    OFF = "off"


@frozen
class Address:
    """Hosts and ports, or Unix sockets, that may be reached or listened on."""

    host: str = ""
    """``*``: any; "": there is a path."""
    ports: tuple[int, int] = (0, 65535)
    """First and last."""
    path: str = ""
    """Of a socket, or of a directory of sockets."""


@frozen
class Policy:
    """All of it."""

    rules: tuple[Rule, ...] = ()
    path: str = DEFAULT_PATH
    exec_lock: ExecLock = ExecLock.IF_AVAILABLE
    files_read: tuple[str, ...] = ()
    files_write: tuple[str, ...] = ()
    write_executables: bool = False
    """Files may also be written where programs are looked for."""
    connect: tuple[Address, ...] = ()
    listen: tuple[Address, ...] = ()
    isolation: IsolationLevel = IsolationLevel.NONE
    """The least of all that it allows."""
    limits: Limits = NO_LIMITS
    """What anything may use that it allows to be run."""

    @functools.cached_property
    def hash(self) -> str:
        """The first digits of the SHA-256 of its canonical form: the same for every way to write the same."""
        return hashlib.sha256(canonical(self)).hexdigest()[:HASH_DIGITS]

    @functools.cached_property
    def executable_directories(self) -> tuple[str, ...]:
        """Where programs are: on the PATH, and beside whatever a rule names."""
        named = [path for rule in self.rules for path in (rule.exe, *rule.may_start)]
        directories = [path.rpartition("/")[0] or "/" for path in named]
        return tuple(dict.fromkeys([*self.path.split(":"), *directories]))


_Json: TypeAlias = dict[str, Any]


def canonical(policy: Policy) -> bytes:
    """The bytes that its hash is of. The order of the rules counts, as the first that fits applies."""

    def plain(_: type, attribute: attrs.Attribute[Any] | None, value: Any) -> Any:
        # Two kinds of matcher may have the same fields, and mean different things.
        if attribute is not None and attribute.name == "matcher":
            return {type(value).__name__: attrs.asdict(value)}
        return value

    def has_meaning(attribute: attrs.Attribute[Any], value: Any) -> bool:
        if attribute.name == "isolation":
            return value is not IsolationLevel.NONE  # as one that doesn't speak of it
        # Where nothing is limited nothing is said of it: there may be other limits some day.
        return value is not None if attribute.name in LIMIT_NAMES else value != NO_LIMITS

    value: _Json = attrs.asdict(policy, filter=has_meaning, value_serializer=plain)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
