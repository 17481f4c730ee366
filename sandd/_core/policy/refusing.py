"""What is said to whoever asked for something that a policy doesn't allow: the policy's hash, and nothing of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandd import wire
from sandd._core.limits import Limits
from sandd._core.policy.judging import Allowed, Denied, judge
from sandd.wire import RefusedCode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandd._core.policy.judging import Category
    from sandd._core.policy.rules import Policy


def denial(policy: Policy, category: Category) -> str:
    """One line for people."""
    return f"policy {policy.hash} does not allow {category}"


def judge_spec(policy: Policy, spec: wire.Spec) -> wire.Refused | None:
    """The refusal of a spec; None if the policy allows it."""
    verdict = judge(policy, spec)
    if isinstance(verdict, Denied):
        text = denial(policy, verdict.category)
        return wire.Refused(RefusedCode.POLICY_DENIED, text, policy_hash=policy.hash)
    return None


def limits_of_attach(policies: Iterable[Policy], attach: wire.Attach) -> Limits:
    """What these policies, which allow it, let what the Attach would start use."""
    held_to = []
    spec: wire.Spec | None = None
    for policy in policies:
        if attach.spec is None:
            break
        try:
            spec = spec or wire.decode_spec(attach.spec)
        except wire.UnsupportedSpec:
            break  # the daemon, which knows no more, starts nothing by it
        verdict = judge(policy, spec)
        held_to.append(policy.limits)
        if isinstance(verdict, Allowed) and verdict.rule is not None:
            held_to.append(verdict.rule.limits)
    return Limits.least(*held_to)


def judge_attach(policies: Iterable[Policy], attach: wire.Attach) -> wire.Refused | None:
    """The refusal of an Attach by the first of these policies that doesn't allow what it would start.

    One that can only attach to a job that exists starts nothing, whatever spec it carries: the daemon sees to that.
    """
    resumes = attach.generation is not None or any(cursor.offset for cursor in attach.cursors)
    if attach.spec is None or resumes:
        return None
    spec: wire.Spec | None = None
    for policy in policies:
        if spec is None:
            try:
                spec = wire.decode_spec(attach.spec)
            except wire.UnsupportedSpec as error:
                # A later daemon may well know it; but what we can't read we can't allow.
                return wire.Refused(RefusedCode.UNSUPPORTED, f"the controller's policy: {error}")
        refused = judge_spec(policy, spec)
        if refused is not None:
            return refused
    return None
