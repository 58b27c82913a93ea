"""Grafana dashboards: the JSON that people import, and the Python that writes it (`python -m dashboards`)."""
