"""/metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeinfer_cpp.server.lines import Lines


class Metrics:
    """What the server counts. Nothing of it is anybody's text."""

    def __init__(self, lines: Lines) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_OfLines(lines))
        self._requests = Counter("pipeinfer_requests", "Requests.", ["path", "status"], registry=self._registry)
        self._seconds = Histogram(
            "pipeinfer_request_seconds", "From a request to the end of its answer.", ["path"], registry=self._registry
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _OfLines(Collector):
    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def collect(self) -> Iterator[Metric]:
        counts, lines = self._lines.counts, self._lines
        yield CounterMetricFamily("pipeinfer_prompt_tokens", "Tokens of prompts.", counts.prompt_tokens)
        yield CounterMetricFamily("pipeinfer_generated_tokens", "Tokens generated.", counts.generated_tokens)
        yield CounterMetricFamily("pipeinfer_drafted_tokens", "Tokens guessed.", counts.drafted)
        yield CounterMetricFamily("pipeinfer_accepted_tokens", "Guesses that came true.", counts.accepted)
        ended = CounterMetricFamily("pipeinfer_generations", "Generations, by how they ended.", labels=["reason"])
        for reason, n in sorted(counts.ended.items()):
            ended.add_metric([reason], n)
        yield ended
        busy = sum(seat.busy for seat in lines.seats)
        yield GaugeMetricFamily("pipeinfer_requests_processing", "Requests in a slot now.", busy)
        yield GaugeMetricFamily("pipeinfer_requests_waiting", "Requests in the queue now.", lines.waiting)
        yield GaugeMetricFamily("pipeinfer_slots", "Slots.", len(lines.seats))
