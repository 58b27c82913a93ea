"""A simulated API for the demo and the tests: as strict as the real one."""
