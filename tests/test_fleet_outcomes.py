"""What is said of a broadcast at its end."""

from __future__ import annotations

import errno

import pytest

from sandd import CommandTimeout, DaemonGone, ExitStatus, Outcome, RequestRefused, SpawnFailed
from sandd.fleet.outcomes import Ending, Verdict, summarise


@pytest.mark.parametrize(
    ("exit_code", "outcome", "verdict", "why"),
    [
        (0, Outcome.EXITED, Verdict.OK, ""),
        (3, Outcome.EXITED, Verdict.FAILED, "exit 3"),
        (-9, Outcome.SIGNALED, Verdict.FAILED, "SIGKILL"),
        (0, Outcome.TIMED_OUT, Verdict.TIMED_OUT, ""),
        (-15, Outcome.CANCELLED, Verdict.FAILED, "cancelled"),
        (0, Outcome.CANCELLED, Verdict.FAILED, "cancelled"),
    ],
    ids=str,
)
def test_of_a_status(exit_code: int, outcome: Outcome, verdict: Verdict, why: str) -> None:
    """Only what ended by itself with 0 went well."""
    ending = Ending.of_status(ExitStatus(exit_code, outcome, 1.5))
    assert (ending.verdict, ending.why) == (verdict, why)
    told = ending.to_object("w")
    assert told["ok"] is (verdict is Verdict.OK)
    assert (told["exit_code"], told["outcome"], told["duration"]) == (exit_code, outcome, 1.5)


@pytest.mark.parametrize(
    ("error", "verdict", "why"),
    [
        (CommandTimeout("late", started=False), Verdict.TIMED_OUT, "never started"),
        (CommandTimeout("late", started=None), Verdict.TIMED_OUT, ""),
        (DaemonGone("gone", outcome_unknown=True), Verdict.LOST, ""),
        (DaemonGone("gone", outcome_unknown=False), Verdict.LOST, "it did not run"),
        (RequestRefused("no such user"), Verdict.FAILED, "no such user"),
        (SpawnFailed(errno.ENOENT, "nothing", "x"), Verdict.FAILED, "nothing: 'x'"),
    ],
    ids=repr,
)
def test_of_an_error(error: Exception, verdict: Verdict, why: str) -> None:
    """What did not run, and what may have, are told apart."""
    ending = Ending.of_error(error)  # type: ignore[arg-type] # all of them are
    assert ending.verdict is verdict
    assert why in ending.why
    assert ending.to_object("w")["exit_code"] is None


def test_a_summary_counts_and_names() -> None:
    """Who failed in the same way stands in the same line; who did well is only counted."""
    failed = Ending(Verdict.FAILED, "exit 1")
    endings = {
        "b": failed,
        "a": failed,
        "c": Ending(Verdict.FAILED, "exit 2"),
        "d": Ending(Verdict.TIMED_OUT),
        "e": Ending(Verdict.LOST, "it did not run"),
        **{f"ok-{number}": Ending(Verdict.OK) for number in range(5)},
    }
    assert summarise(endings) == [
        "5 ok, 3 failed, 1 timed out, 1 lost",
        "failed (exit 1): a, b",
        "failed (exit 2): c",
        "lost (it did not run): e",
        "timed out: d",
    ]
    assert summarise({"a": Ending(Verdict.OK)}) == ["1 ok"]
    assert summarise({"a": failed}) == ["0 ok, 1 failed", "failed (exit 1): a"]
