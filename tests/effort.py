"""How hard state machines are tried: harder than plain properties, which need fewer examples to say as much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis

if TYPE_CHECKING:
    from unittest import TestCase

    from hypothesis.stateful import RuleBasedStateMachine

DEEP_EXAMPLES = 20_000
"""Of each state machine, in the deep profile."""


QUICK_EXAMPLES = 100
"""In the quick one: the bugs that were put in are found by so many, where a machine does not say otherwise."""


def tried(
    machine: type[RuleBasedStateMachine], *, quick_examples: int = QUICK_EXAMPLES
) -> type[TestCase]:
    """The test of a state machine, with the loaded profile's settings.

    A machine with many parties needs more examples in the quick profile, to find every bug that was put in to see
    whether it does; one that is slow has fewer.
    """
    default = hypothesis.settings()
    is_deep = hypothesis.settings.get_current_profile_name() == "deep"
    examples = DEEP_EXAMPLES if is_deep else quick_examples
    case = machine.TestCase
    case.settings = hypothesis.settings(default, max_examples=examples)
    test: type[TestCase] = case
    return test
