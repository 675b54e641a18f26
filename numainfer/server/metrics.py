"""What the server counts, for Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_NEXT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters of one server.

    Parameters
    ----------
    running, waiting : callable
        Numbers of answers that have, and that have not, their first token.
    kv_bytes : callable
        Bytes of KV memory in use.
    """

    def __init__(self, running, waiting, kv_bytes):
        self._registry = registry = CollectorRegistry()

        def gauge(name, help_, function):
            Gauge(name, help_, registry=registry).set_function(function)

        gauge("numainfer_running", "Answers that have their first token and are not complete", running)
        gauge("numainfer_waiting", "Answers that have no token yet", waiting)
        gauge("numainfer_kv_bytes", "KV memory in use, bytes", kv_bytes)
        self._requests = Counter("numainfer_requests", "Requests that ended, by path and HTTP status (499: the client left)",
                                 ["path", "status"], registry=registry)  # fmt: skip
        self._seconds = Histogram("numainfer_request_seconds", "From a request to the end of its answer, by path", ["path"],
                                  registry=registry, buckets=_FIRST)  # fmt: skip
        self._prompt = Counter("numainfer_prompt_tokens", "Tokens of prompts", registry=registry)
        self._cached = Counter("numainfer_cached_prompt_tokens", "Tokens of prompts that KV memory already held", registry=registry)
        self._hits = Counter("numainfer_prefix_hits", "Prompts whose beginning KV memory already held", registry=registry)
        self._generated = Counter("numainfer_generated_tokens", "Tokens of answers", registry=registry)
        self._first = Histogram("numainfer_time_to_first_token_seconds", "From the request to the first token, waiting included",
                                registry=registry, buckets=_FIRST)  # fmt: skip
        self._next = Histogram("numainfer_time_per_token_seconds", "Between two tokens of an answer", registry=registry, buckets=_NEXT)
        self.mean_wait = 1.0
        """Seconds to a first token, lately."""

    def request(self, path, status, started):
        """A request ended; ``started`` by time.monotonic()."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(time.monotonic() - started)

    def first_token(self, seconds):
        """An answer got its first token after so many seconds."""
        self._first.observe(seconds)
        self.mean_wait += 0.1 * (seconds - self.mean_wait)

    def tokens(self, n, seconds):
        """An answer got n more tokens in so many seconds."""
        if n:
            self._next.observe(seconds / n)

    def usage(self, usage):
        """An answer is complete, or as complete as it gets."""
        self._prompt.inc(usage.prompt_tokens)
        self._cached.inc(usage.cached_tokens)
        self._hits.inc(usage.cached_tokens > 0)
        self._generated.inc(usage.completion_tokens)

    def page(self):
        """(bytes, content type) of /metrics."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
