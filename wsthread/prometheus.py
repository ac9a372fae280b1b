"""A manager's numbers for Prometheus, by way of prometheus_client (``pip install wsthread[prometheus]``).

::

    from prometheus_client import REGISTRY, make_wsgi_app
    from wsthread.prometheus import Collector

    REGISTRY.register(Collector(manager))
    application = DispatcherMiddleware(application, {"/metrics": make_wsgi_app()})

Each worker process counts for itself. What the backplane does is shown as soon as it has started.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .manager import Manager

_COUNTERS = {
    "accepted": "Connections accepted",
    "greedy": "Connections cut because too much was held for them",
    "slow": "Times that a peer became too slow for broadcasts",
    "messages_received": "Messages received",
    "messages_sent": "Messages sent",
    "messages_dropped": "Broadcast messages given up for slow peers",
    "bytes_received": "Bytes received, with frame headers",
    "bytes_sent": "Bytes sent, with frame headers",
}


_BACKPLANE_GAUGES = {
    "healthy": "Whether what is published leaves, and what others publish comes",
    "lag": "Seconds that the last entry took which came from another process",
    "queued": "Entries that wait to leave",
    "peers": "Other processes that are known",
}
_BACKPLANE_COUNTERS = {
    "published": "Entries published",
    "received": "Entries of other processes received",
    "dropped": "Entries that came twice, or that nobody can read",
    "resent": "Entries that were sent again",
    "gaps": "Entries of other processes that were missed",
}


class Collector:
    """A collector for a prometheus_client registry.

    Args:
        manager: whose numbers to show.
        **labels: constant labels, for processes with several managers.
    """

    def __init__(self, manager: Manager, **labels: str) -> None:
        self._manager = manager
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; prometheus_client calls it for each scrape."""
        stats = self._manager.stats()
        names, values = list(self._labels), list(self._labels.values())
        connections = GaugeMetricFamily("wsthread_connections", "Open connections by state", labels=[*names, "state"])
        for state, number in stats["connections"].items():
            connections.add_metric([*values, state], number)
        yield connections
        queued = GaugeMetricFamily("wsthread_queued_bytes", "Bytes that wait for slow peers", labels=names)
        queued.add_metric(values, stats["queued_bytes"])
        yield queued
        inbox = GaugeMetricFamily("wsthread_inbox_bytes", "Bytes that wait for busy handlers", labels=names)
        inbox.add_metric(values, stats["inbox_bytes"])
        yield inbox
        lingering = GaugeMetricFamily("wsthread_lingering", "Handlers whose connections have ended", labels=names)
        lingering.add_metric(values, stats["lingering"])
        yield lingering
        for name, help_text in _COUNTERS.items():
            counter = CounterMetricFamily(f"wsthread_{name}", help_text, labels=names)
            counter.add_metric(values, stats[name])
            yield counter
        for name, label in (("closed", "code"), ("refused", "status")):
            by_label = CounterMetricFamily(f"wsthread_{name}", f"Connections {name}", labels=[*names, label])
            for key, number in stats[name].items():
                by_label.add_metric([*values, key], number)
            yield by_label
        backplane = stats["backplane"] or {}
        for name, help_text in _BACKPLANE_GAUGES.items():
            if backplane.get(name) is not None:
                gauge = GaugeMetricFamily(f"wsthread_backplane_{name}", help_text, labels=names)
                gauge.add_metric(values, backplane[name])
                yield gauge
        for name, help_text in _BACKPLANE_COUNTERS.items():
            if name in backplane:
                counter = CounterMetricFamily(f"wsthread_backplane_{name}", help_text, labels=names)
                counter.add_metric(values, backplane[name])
                yield counter
