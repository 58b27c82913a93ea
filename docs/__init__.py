"""The pages about metrics and configuration, written from the code: `python -m docs`."""
