"""Run `chatapp-exporter` with `python -m exporter`."""

from exporter.cli import main

main()
