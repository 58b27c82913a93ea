"""A simulated API for the demo and the tests. It checks requests as strictly as the real API."""
