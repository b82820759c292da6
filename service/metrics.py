"""What Prometheus is told (OpenMetrics 1.0, or its text format 0.0.4).

`tomotrain_api_*`, `process_*` and `python_*` are of this process: sum them over replicas. All else is counted
in the catalogue at the time of the scrape and is the same from every replica: take one, by `max`. No label
holds an id, a name or anything that a request said.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Histogram,
    exposition,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from service.errors import MEANINGS
from service.observing import Served
from storage.census import Census

log = logging.getLogger("tomotrain.service")

OPENMETRICS = "application/openmetrics-text"
LATENCIES_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
KEPT_S = 10.0
"""Scrapes within this time are answered by one count of the catalogue."""
OTHER_CODE = "other"
_as_openmetrics: Callable[[CollectorRegistry], bytes] = openmetrics.generate_latest


class Metrics:
    """The metrics of one process: `count` asks the catalogue, `data_root` lies on the watched disk."""

    def __init__(self, count: Callable[[], Census], data_root: Path) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        route = ("method", "route")
        self._requests = Counter(
            "tomotrain_api_requests",
            "Requests that this process has answered, by status class.",
            (*route, "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tomotrain_api_request_duration_seconds",
            "From a request's first byte to the last of its answer, in this process.",
            route,
            buckets=LATENCIES_S,
            registry=self._registry,
        )
        self._received = Counter(
            "tomotrain_api_received_bytes",
            "Bytes of bodies that this process has received: uploads, mostly.",
            route,
            registry=self._registry,
        )
        self._sent = Counter(
            "tomotrain_api_sent_bytes",
            "Bytes of bodies that this process has sent.",
            route,
            registry=self._registry,
        )
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self._registry.register(collector)
        self._registry.register(_Whole(count, data_root))

    def observe(self, served: Served) -> None:
        """Count a request that has ended."""
        route = served.method, served.route
        self._requests.labels(*route, f"{served.status // 100}xx").inc()
        self._seconds.labels(*route).observe(served.seconds)
        if served.received:
            self._received.labels(*route).inc(served.received)
        if served.sent:
            self._sent.labels(*route).inc(served.sent)

    def exposed(self, accept: str) -> tuple[bytes, str]:
        """What a scraper is sent, and its media type: OpenMetrics where it takes that."""
        if OPENMETRICS in accept:
            return _as_openmetrics(self._registry), openmetrics.CONTENT_TYPE_LATEST
        return exposition.generate_latest(self._registry), exposition.CONTENT_TYPE_PLAIN_0_0_4


class _Whole(Collector):
    """What is the same in every process: the catalogue's counts, and the disk."""

    def __init__(self, count: Callable[[], Census], data_root: Path) -> None:
        self._count, self._data_root = count, data_root
        self._lock = threading.Lock()
        self._kept: tuple[float, Census] | None = None

    def collect(self) -> Iterator[Metric]:
        """The families; without those of the catalogue while that does not answer."""
        census = self._census()
        up = GaugeMetricFamily("tomotrain_catalogue_up", "1 where the catalogue could be counted.")
        up.add_metric([], 0.0 if census is None else 1.0)
        yield up
        yield from _disk(self._data_root)
        if census is not None:
            yield from _jobs(census)
            yield from _recent(census)
            yield from _volumes(census)

    def _census(self) -> Census | None:
        with self._lock:
            moment = time.monotonic()
            if self._kept is None or moment - self._kept[0] > KEPT_S:
                try:
                    self._kept = (moment, self._count())
                except Exception as error:  # whatever the database raises: the other metrics are of use now
                    log.warning("the catalogue could not be counted: %s", type(error).__name__)
                    self._kept = None
            return None if self._kept is None else self._kept[1]


def _disk(data_root: Path) -> Iterator[Metric]:
    usage = shutil.disk_usage(data_root)
    for name, help_text, value in (
        ("tomotrain_disk_free_bytes", "Free on the disk of the data root.", usage.free),
        ("tomotrain_disk_size_bytes", "Size of the disk of the data root.", usage.total),
    ):
        yield GaugeMetricFamily(name, help_text, value=value)


def _jobs(census: Census) -> Iterator[Metric]:
    still = GaugeMetricFamily(
        "tomotrain_jobs_open", "Jobs that have not ended.", labels=("kind", "queue", "state")
    )
    for labels, count in census.open.items():
        still.add_metric(labels, count)
    yield still
    ended = GaugeMetricFamily(
        "tomotrain_jobs_ended", "Jobs that have ended and are kept.", labels=("queue", "state")
    )
    for pair, count in census.ended.items():
        ended.add_metric(pair, count)
    yield ended
    oldest = GaugeMetricFamily(
        "tomotrain_oldest_queued_seconds",
        "Age of the queued job that was submitted first; 0 where none is queued.",
        labels=("queue",),
    )
    for queue, age in census.oldest_queued_s.items():
        oldest.add_metric((queue,), age)
    yield oldest
    yield GaugeMetricFamily(
        "tomotrain_leases_expired",
        "Jobs whose worker has fallen silent and that nobody has taken back yet.",
        value=census.expired_leases,
    )
    workers = GaugeMetricFamily(
        "tomotrain_workers_alive", "Workers seen of late, by the queue that they serve.", labels=("queue",)
    )
    for queue, count in census.workers.items():
        workers.add_metric((queue,), count)
    yield workers


def _recent(census: Census) -> Iterator[Metric]:
    jobs = GaugeMetricFamily(
        "tomotrain_day_jobs", "Jobs submitted within a day (10 000 at most).", labels=("kind", "state")
    )
    attempts = GaugeMetricFamily(
        "tomotrain_day_attempts", "Attempts that were made at them.", labels=("kind", "state")
    )
    failures = GaugeMetricFamily(
        "tomotrain_day_failures", "Those that failed, by the error's code.", labels=("kind", "code")
    )
    for labels, (count, tried) in _summed(census).items():
        jobs.add_metric(labels, count)
        attempts.add_metric(labels, tried)
    for labels, count in _failed(census).items():
        failures.add_metric(labels, count)
    yield from (jobs, attempts, failures)


def _summed(census: Census) -> dict[tuple[str, str], tuple[int, int]]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for recent in census.recent:
        count, tried = sums.get((recent.kind, recent.state), (0, 0))
        sums[recent.kind, recent.state] = (count + recent.jobs, tried + recent.attempts)
    return sums


def _failed(census: Census) -> dict[tuple[str, str], int]:
    """By kind and code; codes that this release does not know are counted together."""
    sums: dict[tuple[str, str], int] = {}
    for recent in census.recent:
        if recent.state == "failed":
            labels = recent.kind, recent.code if recent.code in MEANINGS else OTHER_CODE
            sums[labels] = sums.get(labels, 0) + recent.jobs
    return sums


def _volumes(census: Census) -> Iterator[Metric]:
    counts = GaugeMetricFamily("tomotrain_volumes", "Volumes by state.", labels=("state",))
    sizes = GaugeMetricFamily(
        "tomotrain_volumes_bytes", "Bytes of their uploads, as sent.", labels=("state",)
    )
    for state, (count, size) in census.volumes.items():
        counts.add_metric((state,), count)
        sizes.add_metric((state,), size)
    yield from (counts, sizes)
