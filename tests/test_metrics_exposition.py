"""What Prometheus reads: by its own parser, by its rules for names, and all of it."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from sandd import wire
from sandd._core._errors import ConfigurationError
from sandd._core.metrics.audit_counts import AuditCounts
from sandd._core.metrics.catalogue import METRICS, Kind, Metric, Reading, one
from sandd._core.metrics.comings import PEERS, REASONS, Comings
from sandd._core.metrics.daemon_tally import DaemonTally
from sandd._core.metrics.exposition import load_exposition
from sandd._core.metrics.histograms import Histogram
from sandd._core.metrics.link_bytes import LinkBytes
from sandd._core.metrics.loop_lag import LoopLag
from sandd._core.metrics.readings import (
    ControllerFigures,
    DaemonFigures,
    read_controller,
    read_daemon,
)
from sandd._core.metrics.router_counts import RouterCounts
from sandd._core.spool import Spool

if TYPE_CHECKING:
    from prometheus_client import Metric as Family

NAME = re.compile(r"sandd(_controller|_daemon)?(_[a-z]+)+")
UNITS = ("_bytes", "_seconds")
NOT_BASE_UNITS = (
    "_ms",
    "_milliseconds",
    "_kb",
    "_kib",
    "_mib",
    "_percent",
    "_minutes",
    "_hours",
    "_kilobytes",
)
LABELS = {
    "tenant",
    "state",
    "platform",
    "peer",
    "reason",
    "outcome",
    "use",
    "by",
    "code",
    "scope",
    "version",
}
"""All that there may be: each a closed set, or bounded."""


def controller_figures() -> ControllerFigures:
    """Of a controller in which each thing has happened once."""
    counts, comings, audit, lag = RouterCounts(), Comings(), AuditCounts(), LoopLag(1.0)
    tally = counts.tallies.join("acme")
    tally.ended("exited")
    counts.population.moved(None, wire.DaemonStatus("acme/d", wire.DaemonState.ONLINE, "i"))
    limited = wire.Refused(wire.RefusedCode.RATE_LIMITED, "no", 1.0, "tenant")
    counts.turned_down(limited)
    comings.refuse("daemon", "unauthenticated")
    audit.hold.observe(0.003)
    lag.woke(lag.due(1.0))
    return ControllerFigures(
        version="1.2.3",
        counts=counts,
        comings=comings,
        daemon_links=LinkBytes(1, 2),
        operator_links=LinkBytes(3, 4),
        operators=5,
        ends_kept=6,
        certificate_failures=7,
        loop_lag=lag,
        audit=audit,
        audit_is_failing=True,
    )


def daemon_figures() -> DaemonFigures:
    """Of a daemon in which each thing has happened once."""
    tally = DaemonTally()
    tally.begun(wire.CommandSpec((b"true",)))
    tally.turned_down(wire.Refused(wire.RefusedCode.POLICY_DENIED, "no"))
    tally.jobs_ended["exited"] = 1
    lag = LoopLag(1.0)
    return DaemonFigures(
        "1.2.3", tally, LinkBytes(1, 2), True, 3, 4, 5, 6, 7, Spool(8, 9, used=1), lag
    )


def families(readings: list[Reading]) -> dict[str, Family]:
    """What Prometheus' own parser makes of the page."""
    return {family.name: family for family in parse(load_exposition()(readings).decode())}


def readings() -> list[Reading]:
    """Of both."""
    return [*read_controller(controller_figures()), *read_daemon(daemon_figures())]


def test_every_figure_is_read_and_nothing_else() -> None:
    """What is in the catalogue is on a page, with as many labels as it says."""
    read = readings()
    assert {each.metric for each in read} == set(METRICS)
    for each in read:
        assert each.values
        assert {len(labels) for labels in each.values} == {len(each.metric.labels)}


def test_a_page_is_read_by_prometheus_own_parser() -> None:
    """Each figure with its kind, its help and its labels; and those of the process."""
    found = families(readings())
    for metric in METRICS:
        family = found[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind.value, metric.help)
        assert family.samples
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)
    if sys.platform == "linux":
        assert found["process_cpu_seconds"].samples[0].value > 0
        assert {"process_resident_memory_bytes", "process_open_fds"} <= found.keys()


def test_values_are_what_was_counted() -> None:
    """Of a counter, a gauge and a histogram."""
    found = families(read_controller(controller_figures()))
    (ended,) = found["sandd_controller_jobs_ended"].samples
    assert (ended.labels, ended.value) == ({"tenant": "acme", "outcome": "exited"}, 1)
    (operators,) = found["sandd_controller_operators"].samples
    assert operators.value == 5
    hold = {
        (sample.name.rpartition("_")[2], sample.labels.get("le")): sample.value
        for sample in found["sandd_controller_audit_hold_seconds"].samples
    }
    assert (hold["bucket", "0.0025"], hold["bucket", "0.005"], hold["bucket", "+Inf"]) == (0, 1, 1)
    assert (hold["count", None], hold["sum", None]) == (1, pytest.approx(0.003))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_are_by_the_rules(metric: Metric) -> None:
    """https://prometheus.io/docs/practices/naming: a prefix, base units, a suffix that says the unit, and _total."""
    assert NAME.fullmatch(metric.name)
    assert metric.name.endswith("_total") is (metric.kind is Kind.COUNTER)
    stem = metric.name.removesuffix("_total")
    assert not stem.endswith(NOT_BASE_UNITS)
    assert not stem.endswith(("_count", "_sum", "_bucket", "_total", "_created", metric.kind.value))
    if metric.kind is Kind.HISTOGRAM:
        assert stem.endswith(UNITS)
    if "bytes" in stem:
        assert stem.endswith("_bytes")
    assert metric.help.endswith(".")
    assert "\n" not in metric.help
    assert set(metric.labels) <= LABELS
    # What is a label is no part of the name.
    assert not any(stem.endswith(f"_by_{label}") for label in metric.labels if label != "platform")


def test_names_are_given_once() -> None:
    """Two figures of one name would be none."""
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_reasons_are_a_closed_set() -> None:
    """No peer makes a series by what it says."""
    assert len(PEERS) * len(REASONS) < 50
    assert {code.value for code in wire.RejectCode} < set(REASONS)


def test_whatever_a_label_has_in_it_is_one_label() -> None:
    """A tenant's name has no such characters; but should it, it makes no other series."""
    odd = 'a"b\\c\nd'
    metric = next(each for each in METRICS if each.labels == ("tenant",))
    (sample,) = families([Reading(metric, {(odd,): 3})])[metric.name.removesuffix("_total")].samples
    assert sample.labels == {"tenant": odd}


def test_an_empty_histogram_is_one() -> None:
    """Before anything was observed it has all its buckets."""
    metric = next(each for each in METRICS if each.kind is Kind.HISTOGRAM)
    (family,) = (
        each
        for each in families([one(metric, Histogram((0.1,)).snapshot())]).values()
        if each.name == metric.name
    )
    assert [sample.value for sample in family.samples] == [0, 0, 0, 0]


def test_without_the_library_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is one file may not have it."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigurationError, match=r"metrics need the package prometheus-client"):
        load_exposition()
