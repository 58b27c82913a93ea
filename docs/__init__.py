"""Generators of docs/metrics.md and docs/configuration.md. Run them with `python -m docs`."""
