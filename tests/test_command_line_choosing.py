"""Which job somebody means, and what they are told when it can't be said."""

from __future__ import annotations

import pytest

from sandd import JobInfo, JobState
from sandd.command_line.choosing import MOST_LISTED, JobName, NoSuchJob


def job(job_id: str, *, age: float = 1.0, owned: bool = False, command: str = "bash") -> JobInfo:
    """A job that is running."""
    return JobInfo(
        job_id=job_id,
        state=JobState.RUNNING,
        command=command,
        pid=1,
        age=age,
        started_age=age,
        ended_age=None,
        outcome=None,
        exit_code=None,
        failure="",
        detached=False,
        terminal=True,
        owned=owned,
        viewers=0,
        kept={},
    )


JOBS = {"one": [job("abc"), job("abd"), job("xyz")], "two": [job("ab"), job("xyz")]}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        pytest.param("one/abc", ("one", "abc"), id="all-of-it"),
        pytest.param("one/x", ("one", "xyz"), id="a-beginning"),
        pytest.param("abc", ("one", "abc"), id="without-the-daemon"),
        pytest.param("ab", ("two", "ab"), id="a-whole-id-wins"),
        pytest.param("two/a", ("two", "ab"), id="one-there"),
    ],
)
def test_a_job_is_found(text: str, meant: tuple[str, str]) -> None:
    """By its daemon and id, or by a beginning that no other one has."""
    daemon_id, found = JobName.parse(text).choose(JOBS)

    assert (daemon_id, found.job_id) == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("a", r"may be any of these on one, two:\n(  .*\n?){3}$", id="ambiguous"),
        pytest.param("xyz", r"may be any of these on one, two:\n(  .*/xyz .*\n?){2}$", id="on-two"),
        pytest.param("one/q", r"no job 'q' on one; these there are:\n(  one/.*\n?){3}$", id="none"),
        pytest.param(
            "three/q", "no job 'q' on three, and no other job there either", id="none-at-all"
        ),
    ],
)
def test_what_is_not_one_job_is_explained(text: str, said: str) -> None:
    """With the jobs that may have been meant."""
    with pytest.raises(NoSuchJob, match=said):
        JobName.parse(text).choose(JOBS)


@pytest.mark.parametrize("text", ["", "/", "/x", "one/"])
def test_what_names_no_job_is_refused(text: str) -> None:
    """Before anybody is waited for."""
    with pytest.raises(ValueError, match="names no job"):
        JobName.parse(text)


def test_the_list_says_what_a_person_looks_for() -> None:
    """The newest first, how old, what it runs, and whether somebody has it; and not thousands."""
    many = [job(f"job-{n}", age=n * 100.0, command="x" * 99) for n in range(MOST_LISTED + 5)]
    many.append(job("mine", age=7200.0, owned=True, command=""))
    with pytest.raises(NoSuchJob) as raised:
        JobName.parse("w/z").choose({"w": many})
    lines = str(raised.value).splitlines()
    assert lines[1] == f"  w/job-0  running, 0 s old: {'x' * 60}"
    assert lines[-1] == "  ... and 6 older ones"
    with pytest.raises(
        NoSuchJob, match="w/mine  running, somebody is attached, 2 h old: login shell"
    ):
        JobName.parse("w/z").choose({"w": [many[-1]]})
