"""The figures that are shown to programs that watch others: what each is called, and what it means. Pure.

Names are by Prometheus' rules: ``sandd_``, whose figure it is, what it counts, its unit (seconds, bytes), and
``_total`` for what only rises. A label's values are a closed set, or tenants, of which there is a bound; never what
somebody says of itself, nor a job, a command or a path.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from sandd._core.metrics.histograms import Observed

    Value: TypeAlias = int | float | Observed


class Kind(enum.StrEnum):
    """What a figure does over time."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@frozen
class Metric:
    """One figure, for each combination of its labels."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


@frozen
class Reading:
    """What a figure is now."""

    metric: Metric
    values: Mapping[tuple[str, ...], Value]
    """By the values of its labels."""


def one(metric: Metric, value: Value) -> Reading:
    """Of a figure that has no labels."""
    return Reading(metric, {(): value})


_COUNTER, _GAUGE, _HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

BUILD: Final = Metric("sandd_build_info", _GAUGE, "1; the version is a label.", ("version",))

# ---- of a controller -----------------------------------------------------------------------------

DAEMONS: Final = Metric(
    "sandd_controller_daemons",
    _GAUGE,
    "Daemons that are known, by state: online or away.",
    ("tenant", "state"),
)
PLATFORMS: Final = Metric(
    "sandd_controller_daemons_by_platform",
    _GAUGE,
    "Daemons that are online or away, by what they run on.",
    ("platform",),
)
OPERATORS: Final = Metric(
    "sandd_controller_operators", _GAUGE, "Clients in other processes that are connected."
)
ADMITTED: Final = Metric(
    "sandd_controller_logins_total", _COUNTER, "Connections that were let in.", ("peer",)
)
TURNED_AWAY: Final = Metric(
    "sandd_controller_logins_refused_total",
    _COUNTER,
    "Connections that were not let in, by reason. A stranger has not said what it is.",
    ("peer", "reason"),
)
BARRED: Final = Metric(
    "sandd_controller_networks_barred_total",
    _COUNTER,
    "Times that a network was barred, as its credentials failed too often.",
)
UNHEARD: Final = Metric(
    "sandd_controller_connections_unheard_total",
    _COUNTER,
    "Connections from barred networks, which are answered 429.",
)
RECONNECTS: Final = Metric(
    "sandd_controller_daemon_reconnects_total",
    _COUNTER,
    "Times that a daemon came back, or came anew while it was here.",
)
LINK_RECEIVED: Final = Metric(
    "sandd_controller_link_received_bytes_total",
    _COUNTER,
    "Received from peers that were let in, before TLS and WebSocket framing.",
    ("peer",),
)
LINK_SENT: Final = Metric(
    "sandd_controller_link_sent_bytes_total",
    _COUNTER,
    "Sent to peers that were let in, before TLS and WebSocket framing.",
    ("peer",),
)
JOBS_STARTED: Final = Metric(
    "sandd_controller_jobs_started_total",
    _COUNTER,
    "Commands and sessions that were passed on to daemons.",
    ("tenant",),
)
JOBS_ENDED: Final = Metric(
    "sandd_controller_jobs_ended_total",
    _COUNTER,
    "Commands and sessions that ended, by what was heard of that.",
    ("tenant", "outcome"),
)
JOBS_RUNNING: Final = Metric(
    "sandd_controller_jobs_running",
    _GAUGE,
    "Commands and sessions of which no end was heard. A detached one that nobody is attached to counts, ended or not.",
    ("tenant",),
)
REQUESTS: Final = Metric(
    "sandd_controller_requests_total",
    _COUNTER,
    "What else was asked of daemons: files, transfers, ports, lists of jobs.",
    ("tenant",),
)
STREAM_TO_DAEMONS: Final = Metric(
    "sandd_controller_stream_to_daemons_bytes_total",
    _COUNTER,
    "What was passed on to jobs and requests, by their use: program, transfer, forward or request.",
    ("tenant", "use"),
)
STREAM_TO_CLIENTS: Final = Metric(
    "sandd_controller_stream_to_clients_bytes_total",
    _COUNTER,
    "What was passed on from jobs and requests, by their use.",
    ("tenant", "use"),
)
REFUSED: Final = Metric(
    "sandd_controller_requests_refused_total",
    _COUNTER,
    "Jobs, requests and attachments that were refused, by whom (controller or daemon) and why. A policy's denials "
    "are policy_denied.",
    ("by", "code"),
)
RATE_LIMITED: Final = Metric(
    "sandd_controller_rate_limited_total",
    _COUNTER,
    "Starts of jobs that were one too many, by whose limit it was.",
    ("scope",),
)
ENDS_KEPT: Final = Metric(
    "sandd_controller_ends_kept",
    _GAUGE,
    "Jobs that are still to be ended on daemons that are away.",
)
AUDIT_RECORDS: Final = Metric(
    "sandd_controller_audit_records_total", _COUNTER, "Records in the audit log's file."
)
AUDIT_HOLD: Final = Metric(
    "sandd_controller_audit_hold_seconds",
    _HISTOGRAM,
    "How long requests waited for their records to be on the disk.",
)
AUDIT_FAILURES: Final = Metric(
    "sandd_controller_audit_failures_total",
    _COUNTER,
    "Times that the audit log's disk began to fail.",
)
AUDIT_FAILING: Final = Metric(
    "sandd_controller_audit_failing", _GAUGE, "1 while the audit log can't be written."
)
CERTIFICATE_FAILURES: Final = Metric(
    "sandd_controller_certificate_failures_total",
    _COUNTER,
    "Times that a new certificate could not be used, and the old one stayed.",
)
CONTROLLER_LAG: Final = Metric(
    "sandd_controller_loop_lag_seconds",
    _HISTOGRAM,
    "How late the event loop was, looked at each second. More than 0.01 s means that something blocks it.",
)

# ---- of a daemon ---------------------------------------------------------------------------------

CONNECTED: Final = Metric("sandd_daemon_connected", _GAUGE, "1 while the controller has let it in.")
DIALS: Final = Metric(
    "sandd_daemon_dials_total", _COUNTER, "Times that the controller was dialled."
)
LINKS: Final = Metric(
    "sandd_daemon_links_total", _COUNTER, "Times that the controller let it in; the first is one."
)
DAEMON_RECEIVED: Final = Metric(
    "sandd_daemon_link_received_bytes_total",
    _COUNTER,
    "Received from the controller, before TLS and WebSocket framing.",
)
DAEMON_SENT: Final = Metric(
    "sandd_daemon_link_sent_bytes_total",
    _COUNTER,
    "Sent to the controller, before TLS and WebSocket framing.",
)
DAEMON_STARTED: Final = Metric(
    "sandd_daemon_jobs_started_total", _COUNTER, "Commands and sessions that were taken on."
)
DAEMON_ENDED: Final = Metric(
    "sandd_daemon_jobs_ended_total",
    _COUNTER,
    "Commands and sessions that ended, by outcome, or by why they were not started.",
    ("outcome",),
)
DAEMON_RUNNING: Final = Metric(
    "sandd_daemon_jobs_running", _GAUGE, "Commands and sessions that run."
)
DAEMON_QUEUED: Final = Metric(
    "sandd_daemon_jobs_queued", _GAUGE, "Commands and sessions that wait for others to end."
)
DAEMON_KEPT: Final = Metric(
    "sandd_daemon_jobs_kept", _GAUGE, "Jobs and requests in memory, ended ones included."
)
DAEMON_REQUESTS: Final = Metric(
    "sandd_daemon_requests_total",
    _COUNTER,
    "What was asked for besides, by use: transfer, forward (connections and listeners) or request.",
    ("use",),
)
DAEMON_REFUSED: Final = Metric(
    "sandd_daemon_requests_refused_total",
    _COUNTER,
    "Jobs and requests that were refused, by code. The policy's denials are policy_denied.",
    ("code",),
)
DAEMON_INPUT: Final = Metric(
    "sandd_daemon_stream_input_bytes_total",
    _COUNTER,
    "What jobs and requests took of their input, by use.",
    ("use",),
)
DAEMON_OUTPUT: Final = Metric(
    "sandd_daemon_stream_output_bytes_total",
    _COUNTER,
    "What jobs and requests put out, by use.",
    ("use",),
)
SPOOL_USED: Final = Metric(
    "sandd_daemon_spool_used_bytes", _GAUGE, "Output that is on the disk, of all jobs together."
)
SPOOL_QUOTA: Final = Metric(
    "sandd_daemon_spool_quota_bytes", _GAUGE, "Output that may be on the disk; 0: none."
)
DAEMON_LAG: Final = Metric(
    "sandd_daemon_loop_lag_seconds",
    _HISTOGRAM,
    "How late the event loop was, looked at each second.",
)

METRICS: Final = tuple(each for each in list(globals().values()) if isinstance(each, Metric))
"""All of them."""
