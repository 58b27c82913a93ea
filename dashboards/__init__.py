"""Grafana dashboards: the JSON files to import, and the code that generates them (`python -m dashboards`)."""
