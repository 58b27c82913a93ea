"""Configuration files as the program reads them."""

from collections.abc import Mapping
from pathlib import Path

from exporter import sources
from exporter.config.loading import Configuration
from exporter.config.settings import Settings


def configuration(path: Path | None, environ: Mapping[str, str] | None = None) -> Configuration:
    """The file, or the environment without one."""
    return Configuration(path, environ or {}, sources.Settings)


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings in it. Raises ConfigError."""
    return configuration(path, environ).load()
