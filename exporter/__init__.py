"""A Prometheus exporter: measures at the time of the scrape, and probes services from outside; see docs/exporter.md."""
