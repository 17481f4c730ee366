"""Records of tokens: what makes no sense is refused, in words, before anything is kept of it."""

from __future__ import annotations

from typing import Any

import pytest

from sandd import ConfigurationError
from sandd._core.identity.records import (
    MAX_NAME,
    MAX_USES,
    new_join_token,
    new_operator_token,
)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        pytest.param({"uses": 0}, "has 1 to", id="no use"),
        pytest.param({"uses": MAX_USES + 1}, "has 1 to", id="too many uses"),
        pytest.param({"tenant": "a/b"}, "tenant", id="no tenant's name"),
        pytest.param({"name": "n" * (MAX_NAME + 1)}, "name is printable", id="long name"),
        pytest.param({"daemons": "a\n"}, "name is printable", id="glob with a control character"),
        pytest.param({"daemons": ""}, "glob for daemons", id="no glob"),
        pytest.param({"daemons": "*" * 129}, "glob for daemons", id="long glob"),
        pytest.param({"expires_in": 0.0}, "can't be valid for", id="no time"),
        pytest.param({"expires_in": 1e300}, "can't be valid for", id="too much time"),
    ],
)
def test_a_join_token_that_makes_no_sense_is_refused(options: dict[str, Any], told: str) -> None:
    """What is wrong with it is said."""
    with pytest.raises(ConfigurationError, match=told):
        new_join_token(0.0, **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        pytest.param({"name": ""}, "needs a name", id="no name"),
        pytest.param({"name": "a\x1b"}, "name is printable", id="name with a control character"),
        pytest.param({"tenant": "a/b"}, "tenant", id="no tenant's name"),
        pytest.param({"role": "king"}, "roles are", id="no role"),
        pytest.param({"verbs": ["reign"]}, "rights are", id="no right"),
        pytest.param({"expires_in": -1.0}, "can't be valid for", id="no time"),
    ],
)
def test_an_operators_token_that_makes_no_sense_is_refused(
    options: dict[str, Any], told: str
) -> None:
    """What is wrong with it is said."""
    with pytest.raises(ConfigurationError, match=told):
        new_operator_token(0.0, **({"name": "o"} | options))


def test_the_largest_that_make_sense_are_made() -> None:
    """Bounds are within what they allow."""
    token, info = new_join_token(5.0, name="n" * MAX_NAME, uses=MAX_USES, daemons="*" * 128)
    assert (info.id, info.uses_left, info.created_at) == (token.key_id, MAX_USES, 5.0)
    _, everywhere = new_operator_token(5.0, "o", tenant="*")
    assert everywhere.principal.tenant == "*"
    assert everywhere.expires_at is None
