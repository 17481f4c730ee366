"""Tokens and daemons' enrolment, for other event loops."""

from __future__ import annotations

from sandd._core.aio.wrapping import Wrapper, calls
from sandd._core.identity import administration


class Tokens(Wrapper[administration.Tokens]):
    """Tokens by which daemons join, and operators come in; what `Controller.tokens` is."""

    create_join = calls(administration.Tokens.create_join)
    create_operator = calls(administration.Tokens.create_operator)
    list = calls(administration.Tokens.list)
    revoke = calls(administration.Tokens.revoke)


class Enrolled(Wrapper[administration.Enrolled]):
    """Daemons that have joined, and have keys of their own; what `Controller.enrolled` is.

    A daemon is meant by its full name: its id, or ``TENANT/ID`` where its tenant isn't "default".
    """

    list = calls(administration.Enrolled.list)
    lock = calls(administration.Enrolled.lock)
    unlock = calls(administration.Enrolled.unlock)
    forget = calls(administration.Enrolled.forget)
