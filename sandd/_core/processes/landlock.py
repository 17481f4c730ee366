"""Landlock, as the kernel has it: rulesets, and this process and all that descends from it under one, for good.

Standard library only; Linux only. A ruleset is made by whoever knows what it is to allow, and travels as a
descriptor to the child that is to be held to it (landlock(7)). Of several that a process is under all must allow
what it does.
"""

from __future__ import annotations

import functools
import os
import struct
import sys

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

# What may be done to files: linux/landlock.h, LANDLOCK_ACCESS_FS_...
EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIRECTORY: Final = 1 << 3
REFER: Final = 1 << 13
"""Renaming and linking between directories. The first version always forbids it."""
TRUNCATE: Final = 1 << 14
USE_DEVICE: Final = 1 << 15
"""ioctl(2) on devices."""
OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | USE_DEVICE
"""What a rule for something that is no directory may name."""
_ACCESS_BITS: Final = (0, 13, 14, 15, 15, 16)
"""How many rights each version knows, from the one that is none; later ones have no more that we use."""

# What may be reached outside the domain: LANDLOCK_SCOPE_...
ABSTRACT_SOCKETS: Final = 1 << 0
SIGNALS: Final = 1 << 1
RENAMES_VERSION: Final = 2
"""The first version that can allow renaming between directories."""
SCOPES_VERSION: Final = 6
"""The first version that has these two."""

# The same number on every architecture (since Linux 5.1).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG: Final = 1
_RULE_PATH_BENEATH: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38


def version() -> int:
    """The version of this kernel's Landlock, from 1. OSError where there is none."""
    return call(_CREATE_RULESET, None, 0, _VERSION_FLAG)


def all_access(known: int) -> int:
    """Every right that this version knows, and we do."""
    return (1 << _ACCESS_BITS[min(known, len(_ACCESS_BITS) - 1)]) - 1


def open_ruleset(*, access: int, scopes: int = 0) -> int:
    """A descriptor of a new ruleset: what of `access` no rule grants is denied, and all of `scopes`."""
    # Older kernels take the shorter structure alone.
    attributes = struct.pack("=QQQ", access, 0, scopes) if scopes else struct.pack("=Q", access)
    return call(_CREATE_RULESET, attributes, len(attributes), 0)


def allow(ruleset: int, access: int, file: int) -> None:
    """Grant this to what `file` is open for: a file, or a directory with all beneath it."""
    call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", access, file), 0)


def restrict(ruleset: int) -> None:
    """Hold this process to the ruleset, and all that it ever starts. It gains no privileges any more."""
    forbid_new_privileges()
    call(_RESTRICT_SELF, ruleset, 0)


def forbid_new_privileges() -> None:
    """From now on no program that is executed gives more rights than there are; without it, nobody is confined."""
    control_process(_PR_SET_NO_NEW_PRIVS, 1)


def prepare() -> None:
    """Load what the calls here need: so a child that was forked since finds it."""
    _libc()


@functools.cache
def _libc() -> Any:
    import ctypes  # late: it takes the spawner 5 ms, and most never need it

    return ctypes.CDLL(None, use_errno=True)


def call(number: int, *arguments: Any) -> int:
    """A system call by its number. OSError as it fails."""
    import ctypes

    # A bare int would be passed as one of 32 bits, with whatever is in the rest of the register.
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = _libc().syscall(ctypes.c_long(number), *converted)
    if result < 0:
        raise _error()
    return result


def control_process(option: int, *arguments: Any) -> None:
    """As prctl(2). OSError as it fails."""
    import ctypes

    padded = [*arguments, *[0] * (4 - len(arguments))]
    converted = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in padded]
    if _libc().prctl(option, *converted):
        raise _error()


def _error() -> OSError:
    import ctypes

    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
