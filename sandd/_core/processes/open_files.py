"""The limit of open descriptors: high for the daemon, the original for its children."""

from __future__ import annotations

import sys

MAX_OPEN_FILES = 65_536
"""Enough for 256 jobs with three pipes each and 20,000 connections. More is of no use: a hard limit
of 2^30, as container engines set it, would only make the kernel's tables grow."""

_original_soft_limit: int | None = None  # a property of the process, hence of the module


def raise_open_files_limit() -> int:
    """Raise our soft RLIMIT_NOFILE as far as allowed and useful; returns the original one.

    Idempotent. Children of a `ProcessHost` opened afterwards start with the original limit, since
    programs that use select(2) break above 1,024. Without effect on Windows, where nothing like it
    exists.
    """
    global _original_soft_limit  # one process has one limit
    if sys.platform == "win32":
        return MAX_OPEN_FILES
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _original_soft_limit is None:
        _original_soft_limit = soft
    # macOS refuses anything above OPEN_MAX (10,240), though it says "infinity" (setrlimit(2),
    # COMPATIBILITY).
    ceiling = 10_240 if sys.platform == "darwin" else MAX_OPEN_FILES
    wanted = ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return _original_soft_limit


def limit_for_children() -> int | None:
    """The soft limit that children must get; None if it was never raised and they inherit it."""
    return _original_soft_limit
