"""How hard state machines are tried: harder than plain properties, which need fewer examples to say as much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis

if TYPE_CHECKING:
    from unittest import TestCase

    from hypothesis.stateful import RuleBasedStateMachine

DEEP_EXAMPLES = 20_000
"""Of each state machine, in the deep profile."""


def tried(machine: type[RuleBasedStateMachine], *, at_least: int = 0) -> type[TestCase]:
    """The test of a state machine, with the loaded profile's settings.

    A machine with many parties needs more examples than the quick profile gives, `at_least` so many, to
    find every bug that was put in to see whether it does.
    """
    default = hypothesis.settings()
    is_deep = hypothesis.settings.get_current_profile_name() == "deep"
    usual = DEEP_EXAMPLES if is_deep else default.max_examples
    case = machine.TestCase
    case.settings = hypothesis.settings(default, max_examples=max(usual, at_least))
    test: type[TestCase] = case
    return test
