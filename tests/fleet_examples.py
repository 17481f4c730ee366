"""A daemon and a job of it, as tables and figures show them."""

from __future__ import annotations

from sandd import DaemonInfo, JobInfo, JobState, KeptOutput

DAEMON = DaemonInfo(
    id="worker-1",
    hostname="box",
    platform="linux",
    arch="x86_64",
    version="0.1.0",
    labels={"zone": "b", "env": "prod"},
    instance="abc",
    connected_at=1_000_000_000.25,
)
JOB = JobInfo(
    job_id="j1",
    state=JobState.RUNNING,
    command=("make", "test"),
    pid=7,
    age=75.0,
    started_age=74.0,
    ended_age=None,
    outcome=None,
    exit_code=None,
    failure="",
    detached=False,
    terminal=False,
    owned=True,
    viewers=0,
    kept={"stdout": KeptOutput(0, 5), "stderr": KeptOutput()},
)
