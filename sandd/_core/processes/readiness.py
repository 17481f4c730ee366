"""Waiting for any of a few descriptors, at the least cost per wait: there are two or three for each command.

Standard library only. Linux: epoll itself. Elsewhere: what `selectors` finds.
"""

from __future__ import annotations

import abc
import select
import sys

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too


class Readiness(abc.ABC):
    """Some descriptors that are waited for together."""

    @abc.abstractmethod
    def add(self, descriptor: int) -> None:
        """Wait until there is something to read from it, or it has come to its end, too."""

    @abc.abstractmethod
    def want_room(self, descriptor: int, wanted: bool) -> None:
        """Whether to wait until something can be written to it as well."""

    @abc.abstractmethod
    def wait(self, seconds: float | None) -> list[int]:
        """Those that can be read from; none, when something can be written, or so much time has passed."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what it has opened."""


if sys.platform == "linux":

    class EpollReadiness(Readiness):
        """`selectors` does as much again in Python."""

        def __init__(self) -> None:
            self._epoll = select.epoll()

        def add(self, descriptor: int) -> None:
            self._epoll.register(descriptor, select.EPOLLIN)

        def want_room(self, descriptor: int, wanted: bool) -> None:
            events = select.EPOLLIN | select.EPOLLOUT if wanted else select.EPOLLIN
            self._epoll.modify(descriptor, events)

        def wait(self, seconds: float | None) -> list[int]:
            ready = self._epoll.poll(seconds, 8)
            return [descriptor for descriptor, events in ready if events != select.EPOLLOUT]

        def close(self) -> None:
            self._epoll.close()

else:
    import selectors

    class SelectorReadiness(Readiness):
        """Whatever the system has."""

        def __init__(self) -> None:
            self._selector = selectors.DefaultSelector()

        def add(self, descriptor: int) -> None:
            self._selector.register(descriptor, selectors.EVENT_READ)

        def want_room(self, descriptor: int, wanted: bool) -> None:
            also = selectors.EVENT_WRITE if wanted else 0
            self._selector.modify(descriptor, selectors.EVENT_READ | also)

        def wait(self, seconds: float | None) -> list[int]:
            ready = self._selector.select(seconds)
            return [key.fd for key, events in ready if events & selectors.EVENT_READ]

        def close(self) -> None:
            self._selector.close()


def open_readiness() -> Readiness:
    """What fits this system."""
    if sys.platform == "linux":
        return EpollReadiness()
    else:
        return SelectorReadiness()
