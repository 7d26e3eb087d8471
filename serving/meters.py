"""What Prometheus reads at `/metrics`. No label ever holds what a client sent."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serving.messages import EventsAnswer, ModelName

MEDIA_TYPE = CONTENT_TYPE_LATEST.encode()
SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class Meters:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        """Start every counter at nothing."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("requests", "Requests by route and status", "route", "status")
        self._seconds = Histogram(
            "recsys_request_seconds",
            "From the end of a request to its answer",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._degraded = self._counter("degraded", "Answers with less than the whole model", "reason")
        self._events = self._counter("events", "Events by what became of them", "outcome")
        self._rejected = self._counter("bundle_rejected", "Bundles that were refused", "reason")
        self._dropped = self._counter("log_lines_dropped", "Log lines that nobody read in time")
        self._model = Gauge(
            "recsys_model_info", "The version that answers", ("name", "version"), registry=self.registry
        )
        self._waiting = Gauge("recsys_waiting", "Requests that wait for a turn", registry=self.registry)
        self._reasons: dict[str, Counter] = {}
        self._answers: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        pair = self._answers.get((route, status))
        if pair is None:
            pair = (self._requests.labels(route, str(status)), self._seconds.labels(route))
            self._answers[route, status] = pair
        pair[0].inc()
        pair[1].observe(seconds)

    def degraded(self, reason: str) -> None:
        """Count one answer that was made with less."""
        if reason not in self._reasons:
            self._reasons[reason] = self._degraded.labels(reason)
        self._reasons[reason].inc()

    def events(self, answer: EventsAnswer) -> None:
        """Count a batch."""
        for outcome, count in (
            ("accepted", answer.accepted),
            ("duplicate", answer.duplicate),
            ("rejected", len(answer.rejected)),
        ):
            if count:
                self._events.labels(outcome).inc(count)

    def model(self, name: ModelName) -> None:
        """Name the version that answers from now on."""
        self._model.clear()
        self._model.labels(name.name, str(name.version)).set(1)

    def bundle_rejected(self, reason: str) -> None:
        """Count one refused bundle by its code."""
        self._rejected.labels(reason).inc()

    def lines_dropped(self, count: int) -> None:
        """Count log lines that were thrown away."""
        self._dropped.inc(count)

    def waiting(self, count: int) -> None:
        """Say how many requests wait."""
        self._waiting.set(count)

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"recsys_{name}", help_text, labels, registry=self.registry)
