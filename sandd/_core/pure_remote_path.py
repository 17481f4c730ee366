"""A path on a daemon's machine as far as nobody has to look there: as `pathlib.PurePath` is for this machine."""

from __future__ import annotations

from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Protocol

from sandd._core.file_status import decode_path, encode_path

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Self

    from sandd._core.directory import DaemonInfo


class _Daemon(Protocol):
    """Whose path it is."""

    @property
    def id(self) -> str: ...

    @property
    def info(self) -> DaemonInfo: ...


class PureRemotePath:
    """What can be said of a path by itself; made by `Daemon.path`."""

    __slots__ = ("_daemon", "_pure")

    _daemon: _Daemon
    _pure: PurePath

    def __init__(self) -> None:
        raise TypeError("use Daemon.path()")

    @classmethod
    def _create(
        cls, daemon: _Daemon, path: str | bytes | os.PathLike[str] | PureRemotePath
    ) -> Self:
        flavour = PureWindowsPath if daemon.info.platform == "win32" else PurePosixPath
        if isinstance(path, PureRemotePath):
            path = path._checked_by(daemon)
        return cls._wrap(daemon, flavour(decode_path(path) if isinstance(path, bytes) else path))

    @classmethod
    def _wrap(cls, daemon: _Daemon, pure: PurePath) -> Self:
        self = object.__new__(cls)
        self._daemon = daemon
        self._pure = pure
        return self

    @property
    def daemon_id(self) -> str:
        """Id of the daemon whose path it is."""
        return self._daemon.id

    def __repr__(self) -> str:
        return f"<sandd.RemotePath {self.daemon_id}:{self}>"

    def __str__(self) -> str:
        return str(self._pure)

    def __bytes__(self) -> bytes:
        return encode_path(str(self._pure))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PureRemotePath):
            return NotImplemented
        return (self.daemon_id, self._pure) == (other.daemon_id, other._pure)

    def __lt__(self, other: PureRemotePath) -> bool:
        if not isinstance(other, PureRemotePath):
            return NotImplemented
        return (self.daemon_id, self._pure) < (other.daemon_id, other._pure)

    def __hash__(self) -> int:
        return hash((self.daemon_id, self._pure))

    def __truediv__(self, other: str | PureRemotePath) -> Self:
        return self.joinpath(other)

    def __rtruediv__(self, other: str) -> Self:
        return self._like(other / self._pure)

    def joinpath(self, *others: str | PureRemotePath) -> Self:
        """This path with others behind it; an absolute one takes its place."""
        return self._like(self._pure.joinpath(*map(self._text, others)))

    @property
    def parts(self) -> tuple[str, ...]:
        """Its components."""
        return self._pure.parts

    @property
    def drive(self) -> str:
        """On Windows the drive, or the share; else empty."""
        return self._pure.drive

    @property
    def root(self) -> str:
        """The slash that an absolute path begins with, or empty."""
        return self._pure.root

    @property
    def anchor(self) -> str:
        """`drive` and `root`."""
        return self._pure.anchor

    @property
    def name(self) -> str:
        """The last component."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The last component without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The last component's last suffix, with its dot, or empty."""
        return self._pure.suffix

    @property
    def suffixes(self) -> list[str]:
        """All of the last component's suffixes."""
        return self._pure.suffixes

    @property
    def parent(self) -> Self:
        """The path without its last component."""
        return self._like(self._pure.parent)

    @property
    def parents(self) -> Sequence[Self]:
        """All that it is below of, the nearest first."""
        return tuple(self._like(each) for each in self._pure.parents)

    def with_name(self, name: str) -> Self:
        """The path with another last component."""
        return self._like(self._pure.with_name(name))

    def with_stem(self, stem: str) -> Self:
        """The path with another last component, but for its suffix."""
        return self._like(self._pure.with_stem(stem))

    def with_suffix(self, suffix: str) -> Self:
        """The path with another suffix."""
        return self._like(self._pure.with_suffix(suffix))

    def relative_to(self, other: str | PureRemotePath) -> Self:
        """The way from `other`, which it must begin with, else ValueError."""
        return self._like(self._pure.relative_to(self._text(other)))

    def is_relative_to(self, other: str | PureRemotePath) -> bool:
        """Whether it begins with `other`."""
        return self._pure.is_relative_to(self._text(other))

    def is_absolute(self) -> bool:
        """Whether it starts at the top."""
        return self._pure.is_absolute()

    def match(self, pattern: str) -> bool:
        """Whether its end matches a pattern, or all of it does if the pattern is absolute."""
        return self._pure.match(pattern)

    def as_posix(self) -> str:
        """The path with forward slashes."""
        return self._pure.as_posix()

    # -- for those that look

    def _like(self, pure: PurePath) -> Self:
        return self._wrap(self._daemon, pure)

    def _checked_by(self, daemon: _Daemon) -> PurePath:
        if self.daemon_id != daemon.id:
            raise ValueError(f"{self!r} is a path of another daemon than {daemon.id!r}")
        return self._pure

    def _text(self, path: str | PureRemotePath) -> str:
        return str(path._checked_by(self._daemon)) if isinstance(path, PureRemotePath) else path
