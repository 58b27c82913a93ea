"""Settings for all tests. Hypothesis has no deadline, so that tests pass on a slow machine."""

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
