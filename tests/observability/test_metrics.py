"""Metrics: what `promtool`, Prometheus's own judge, says of them, and what they hold."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from solowire.algorithms.histogram import BOUNDS, Histogram
from solowire.observability.metrics import Distribution, LabelledSample, Metrics, MultiLabelledSample, Sample
from solowire.observability.stats_summary import MOST_VALUES
from tests.support.requirements import need_program


def samples() -> Iterator[Sample]:
    latency = Histogram()
    latency.add(0.004, 3)
    latency.add(100.0)
    yield "connections", "Open connections.", 7
    yield "events_total", "Events taken.", 12
    yield LabelledSample("group_connections", "Open connections by group.", "group", {"viewer": 5, 'ad"min': 2})
    yield LabelledSample("refusals_total", "Refused, by code.", "code", {})
    yield MultiLabelledSample("links", "Of two labels.", ("group", "codec"), {("viewer", "json"): 4})
    yield Distribution("delivery_latency_seconds", "How long.", latency)


def test_promtool_finds_nothing_to_say() -> None:
    """Counters, gauges, labels and histograms are as Prometheus wants them."""
    promtool = need_program("promtool")
    for labels in (None, {"shard": "0"}):
        text = Metrics("shard", samples, labels).render()
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False, timeout=30)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_what_is_read_at_a_scrape_is_what_is_told() -> None:
    """Numbers are those of the moment, with the process's label on each."""
    text = Metrics("shard", samples, {"shard": "0"}).render().decode()
    assert 'solowire_shard_connections{shard="0"} 7.0' in text
    assert 'solowire_shard_events_total{shard="0"} 12.0' in text
    assert 'solowire_shard_group_connections{group="ad\\"min",shard="0"} 2.0' in text
    assert f'solowire_shard_delivery_latency_seconds_bucket{{le="{BOUNDS[-1]}",shard="0"}} 3.0' in text
    assert 'solowire_shard_delivery_latency_seconds_bucket{le="+Inf",shard="0"} 4.0' in text
    assert 'solowire_shard_delivery_latency_seconds_count{shard="0"} 4.0' in text
    assert 'solowire_shard_delivery_latency_seconds_sum{shard="0"} 100.012' in text


def test_each_name_begins_with_its_process() -> None:
    """What two processes count alike has a name in each; none is told without its process."""
    for process in ("gateway", "router", "shard"):
        text = Metrics(process, samples).render().decode()
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
        ours = [name for name in names if not name.startswith("process_")]
        assert len(ours) == len(list(samples())) + 1  # the clock's, which each process has
        assert all(name.startswith(f"solowire_{process}_") for name in ours)


def test_several_labels_are_told_together() -> None:
    """A sample with several labels is one series for each set of their values."""
    text = Metrics("shard", samples, {"shard": "0"}).render().decode()
    assert 'solowire_shard_links{codec="json",group="viewer",shard="0"} 4.0' in text


def test_a_label_has_only_so_many_values() -> None:
    """Ten thousand tenants are no ten thousand series: the largest, and the rest as one."""
    values = {f"tenant-{n}": n for n in range(10_000)}
    text = (
        Metrics("shard", lambda: [LabelledSample("group_connections", "By group.", "group", values)]).render().decode()
    )
    told = [line for line in text.splitlines() if line.startswith("solowire_shard_group_connections{")]
    assert len(told) == MOST_VALUES
    assert sum(float(line.rsplit(" ", 1)[1]) for line in told) == sum(values.values())
    assert 'solowire_shard_group_connections{group="tenant-9999"} 9999.0' in told


def test_nothing_is_read_until_somebody_scrapes() -> None:
    """Making metrics costs the data path nothing."""
    read = []

    def counting() -> Iterator[Sample]:
        read.append(True)
        yield "connections", "Open connections.", 7

    metrics = Metrics("shard", counting)
    before = len(read)  # the registry looks once, for names that clash
    metrics.render()
    assert len(read) == before + 1


def test_a_flood_of_scrapes_renders_once_a_second() -> None:
    """Whoever asks within a second gets what the first got; a second later numbers are those of then."""
    now = 100.0
    read = []

    def counting() -> Iterator[Sample]:
        read.append(now)
        yield "connections", "Open connections.", len(read)

    metrics = Metrics("shard", counting, clock=lambda: now)
    read.clear()
    first = metrics.render()
    assert [metrics.render() for _ in range(1000)] == [first] * 1000
    now = 100.9
    assert metrics.render() == first
    now = 101.0
    assert metrics.render() != first
    assert read == [100.0, 101.0]


def test_a_reading_that_fails_is_not_kept() -> None:
    """Whoever asks next gets numbers again, not the fault."""
    broken = False

    def failing() -> Iterator[Sample]:
        if broken:
            raise RuntimeError("no numbers")
        yield "connections", "Open connections.", 7

    metrics = Metrics("shard", failing)
    broken = True
    with pytest.raises(RuntimeError, match="no numbers"):
        metrics.render()
    broken = False
    assert b"solowire_shard_connections 7.0" in metrics.render()
