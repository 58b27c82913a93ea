"""The HTTP server: metrics, status pages and JSON API."""
