"""`python -m exporter` is the command `chatapp-exporter`."""

from exporter.cli import main

main()
