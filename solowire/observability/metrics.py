"""Metrics for Prometheus: the only module that imports prometheus_client.

The data path counts in plain integers. They become metrics only while somebody scrapes, and once in FRESH_SECONDS
however many do, so that a process which can't be scraped, or is scraped too often, never slows what it is for. Names
are `solowire_<process>_<noun>_<unit>[_total]`, in base units, so that a name means one thing: what two processes count
alike has a name in each, but for what operators ask of all of them at once, which is named in full. Labels are few,
and none of them is a user.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPEN_METRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics
from prometheus_client.registry import Collector

from solowire.algorithms.histogram import BOUNDS, Histogram
from solowire.algorithms.histogram import Exemplar as HistogramExemplar
from solowire.model.trace_context import parse_traceparent
from solowire.observability.stats_summary import top_n_with_other

FRESH_SECONDS = 1.0
"""For so long a rendering is given to whoever asks: anybody may, as often as he likes, and each takes milliseconds."""
_SYSTEM = "solowire_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What everybody gets who doesn't ask for another."""


_NO_QUALITY = re.compile(r"q\s*=\s*0(\.0*)?")


class LabelledSample(NamedTuple):
    """One number for each value of a label, such as {"viewer": 3}; of many, the largest. Otherwise as Sample."""

    name: str
    help: str
    label: str
    values: Mapping[str, float]


class MultiLabelledSample(NamedTuple):
    """One number for each set of values of several labels, which the caller bounds. Otherwise as Sample."""

    name: str
    help: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]


class Distribution(NamedTuple):
    """A histogram of how long something took, in seconds. Otherwise as Sample."""

    name: str
    help: str
    histogram: Histogram


Sample = tuple[str, str, float] | LabelledSample | MultiLabelledSample | Distribution
"""Name without the prefix, or in full, help, value. A name that ends in `_total` is a counter, others are gauges."""


class Metrics(Collector):
    """Renders what `read` returns at the moment of a scrape.

    process: `gateway`, `router` or `shard`; every name begins with `solowire_<process>_`. labels: on every sample, such
    as {"shard": "0"}. clock: seconds, monotonic. wall: unix seconds, which each process tells, so that somebody may
    compare them.
    """

    def __init__(
        self,
        process: str,
        read: Callable[[], Iterable[Sample]],
        labels: dict[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._prefix = f"solowire_{process}_"
        self._read_samples = read
        self._clock = clock
        self._wall = wall
        self._rendered: dict[str, tuple[bytes, float]] = {}  # by content type, and until when it is fresh
        self._names = list(labels or {})
        self._labels = list((labels or {}).values())
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        yield self._family("clock_seconds", "Unix time by the clock of the process.", (), [((), self._wall())])
        for sample in self._read_samples():
            match sample:
                case LabelledSample(name, help, label, values):
                    yield self._family(name, help, (label,), [((v,), n) for v, n in top_n_with_other(values).items()])
                case MultiLabelledSample(name, help, labels, sets):
                    yield self._family(name, help, labels, sets.items())
                case Distribution(name, help, histogram):
                    yield self._histogram(name, help, histogram)
                case (name, help, value):
                    yield self._family(name, help, (), [((), value)])

    def render(self, content_type: str = CONTENT_TYPE) -> bytes:
        """The text of a scrape; the last one's, if that is not FRESH_SECONDS old.

        content_type: of those that `choose_content_type` chooses from.
        """
        now = self._clock()
        text, fresh_until = self._rendered.get(content_type, (b"", float("-inf")))
        if now >= fresh_until:
            text = (generate_open_metrics if content_type == OPEN_METRICS else generate_latest)(self._registry)
            self._rendered[content_type] = (text, now + FRESH_SECONDS)
        return text

    def _family(
        self, name: str, help: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
    ) -> Metric:
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        family = kind(name if name.startswith(_SYSTEM) else self._prefix + name, help, labels=[*self._names, *labels])
        for of, value in values:
            family.add_metric([*self._labels, *of], value)
        return family

    def _histogram(self, name: str, help: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(self._prefix + name, help, labels=self._names)
        bounds = [*map(str, BOUNDS), "+Inf"]
        counts = zip(bounds, accumulate(histogram.counts), strict=True)
        exemplars = histogram.exemplars
        buckets = [(bound, float(count), _make_exemplar(exemplars.get(at))) for at, (bound, count) in enumerate(counts)]
        family.add_metric(self._labels, buckets, histogram.sum)  # type: ignore[arg-type] # it takes None for none
        return family


def _make_exemplar(found: HistogramExemplar | None) -> Exemplar | None:
    context = parse_traceparent(found.traceparent) if found is not None else None
    if found is None or context is None:
        return None
    return Exemplar({"trace_id": context.trace_id}, found.seconds, found.at)


def choose_content_type(accept: str) -> str:
    """In which form to answer who sends this `Accept`: in OpenMetrics 1.0, which has exemplars, who names that."""
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        if name == "application/openmetrics-text" and not any(_NO_QUALITY.fullmatch(part) for part in parameters):
            return OPEN_METRICS
    return CONTENT_TYPE
