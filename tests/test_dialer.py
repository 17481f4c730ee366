"""Dialling for ever: how long a refusal is respected. The links are tested in tests/property/test_links.py."""

from __future__ import annotations

from typing import Any, cast

import pytest

from sandd import wire
from sandd._core.dialer import LEAST_REJECT_WAIT, Dialer, Rejected
from sandd._core.link import Backoff
from sandd.wire import RejectCode


@pytest.mark.parametrize("code", [RejectCode.STALE, RejectCode.BUSY, RejectCode.CLONED])
@pytest.mark.parametrize("asked", [0.0, None, 7.0])
def test_a_refusal_is_respected_whatever_it_says(code: RejectCode, asked: float | None) -> None:
    """For a second at least: who may come back at once would do so a hundred times a second, for ever."""
    dialer = Dialer("ws://c", cast("Any", None), Backoff(uniform=lambda low, _: low))
    for _ in range(3):
        assert dialer._after_reject(Rejected(wire.Reject(code, "", asked))) == (
            asked or LEAST_REJECT_WAIT
        )
