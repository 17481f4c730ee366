"""Figures as Prometheus reads them. The only module that knows its client library, and loads it when it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sandd._core._errors import ConfigurationError
from sandd._core.metrics.catalogue import Kind
from sandd._core.metrics.histograms import Observed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import Metric as Family

    from sandd._core.metrics.catalogue import Reading


CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The version that every Prometheus reads; later ones have other names in them, which ours are not."""


def load_exposition() -> Callable[[list[Reading]], bytes]:
    """A function from readings to a page, with those of this process beside them. It blocks, for some milliseconds.

    Raises:
        ConfigurationError: the library isn't installed.
    """
    try:
        from prometheus_client import ProcessCollector, generate_latest
    except ImportError as error:
        raise ConfigurationError(
            f"metrics need the package prometheus-client, which can't be used here ({error}): install it, or "
            "leave out --metrics-address"
        ) from error
    process = ProcessCollector(registry=None)

    def render(readings: list[Reading]) -> bytes:
        return generate_latest(_Page([*map(_family, readings), *process.collect()]))

    return render


class _Page:
    """A registry of what was read already."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        yield from self._families


def _family(reading: Reading) -> Family:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    metric = reading.metric
    kinds = {
        Kind.COUNTER: CounterMetricFamily,
        Kind.GAUGE: GaugeMetricFamily,
        Kind.HISTOGRAM: HistogramMetricFamily,
    }
    family: Any = kinds[metric.kind](metric.name, metric.help, labels=metric.labels)
    for labels, value in reading.values.items():
        if isinstance(value, Observed):
            buckets = [
                ("+Inf" if bound == float("inf") else f"{bound}", count)
                for bound, count in value.buckets
            ]
            family.add_metric(labels, buckets, value.sum)
        else:
            family.add_metric(labels, value)
    made: Family = family
    return made
