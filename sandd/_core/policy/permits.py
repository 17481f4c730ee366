"""What stands between a job that was asked for and its process, and what that has opened meanwhile."""

from __future__ import annotations

import abc
import contextlib
import os
import threading
from typing import TYPE_CHECKING

from sandd._core.spawn_requests import UNLIMITED, Allowance

if TYPE_CHECKING:
    from sandd import wire
    from sandd._core.job import Job
    from sandd._core.processes import SpawnRequest


class Permit:
    """The descriptors of one check, which may be given up by its task while its thread still opens some."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened = contextlib.ExitStack()
        self._is_closed = False

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hold(self, descriptor: int) -> int:
        """Keep it until `close`; OSError where that was already."""
        with self._lock:
            if not self._is_closed:
                self._opened.callback(os.close, descriptor)
                return descriptor
        os.close(descriptor)
        raise OSError("nobody waits for this check any more")

    def close(self) -> None:
        """Close all that was opened, and what will be."""
        with self._lock:
            self._is_closed = True
            opened = self._opened.pop_all()
        opened.close()


class Gate(abc.ABC):
    """A daemon's policy, as whoever starts its jobs sees it."""

    @abc.abstractmethod
    def judge(self, spec: wire.Spec) -> wire.Refused | None:
        """The refusal of a job before there is one; None if it may be tried. It looks at no disk."""

    @abc.abstractmethod
    def check(
        self,
        job: Job,
        spec: wire.ProgramSpec,
        instance: str,
        permit: Permit,
        allowance: Allowance = UNLIMITED,
    ) -> SpawnRequest:
        """What to start for an allowed job. What it has opened is the permit's: close that behind the start.

        Blocking: call it in a thread.

        Raises:
            PolicyDenied: what is on the disk is not what the policy allows, or can't be looked at. Nothing ran.
            SpawnFailed: descriptors or memory are short. Nothing ran.
        """
