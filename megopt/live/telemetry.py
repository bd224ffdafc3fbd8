"""What the edge tells its operator: counters for Prometheus, and one line of JSON per request, without prompts."""

from __future__ import annotations

import json
import logging

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LOGGER = logging.getLogger("megopt.live")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class EdgeMetrics:
    """The counters of one edge service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("megopt_requests", "Requests by how they ended", ["reason"], registry=registry)
        self.refusals = Counter("megopt_refusals", "Requests that were not taken", ["reason"], registry=registry)
        self.waiting = Gauge("megopt_waiting_requests", "Requests that wait or run", registry=registry)
        self.wait_s = Gauge("megopt_wait_seconds", "Estimated time before a new request begins", registry=registry)
        self.queue_s = Histogram("megopt_queue_seconds", "Time in the queue", buckets=SECONDS, registry=registry)
        self.compute_s = Histogram("megopt_compute_seconds", "Time of the models", buckets=SECONDS, registry=registry)
        self.batch_size = Histogram(
            "megopt_batch_size", "Requests computed together", buckets=(1, 2, 4, 8, 16), registry=registry
        )
        self.sent_bytes = Counter("megopt_sent_bytes", "Bytes of frames sent", registry=registry)

    def ended(self) -> dict[str, int]:
        """Return how many requests ended, by reason."""
        samples = [sample for metric in self.requests.collect() for sample in metric.samples]
        return {str(one.labels["reason"]): int(one.value) for one in samples if one.name.endswith("_total")}

    def text(self) -> bytes:
        """Return the counters in the text format of Prometheus."""
        return generate_latest(self._registry)


def log_event(event: str, **values: str | float | None) -> None:
    """Log one event as a line of JSON; callers give no prompts."""
    LOGGER.info(json.dumps({"event": event, **values}, sort_keys=True))
