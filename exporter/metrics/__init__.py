"""What Prometheus sees: the catalogue of families, the rendered page, the exporter's own counters."""
