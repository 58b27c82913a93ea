"""Prometheus metrics: the catalogue of metric families, the rendered exposition, and counters of API requests."""
