"""Configuration files as the program reads them."""

from collections.abc import Mapping
from pathlib import Path

from exporter import sources
from exporter.config.loading import Configuration
from exporter.config.settings import Settings


def configuration(
    path: Path | None, environ: Mapping[str, str] | None = None, *, expand: bool = False
) -> Configuration:
    """The file, or the environment without one."""
    return Configuration(path, {} if environ is None else environ, sources.Settings, expand=expand)


def load(path: Path | None, environ: Mapping[str, str], *, expand: bool = False) -> Settings:
    """The settings in it. Raises ConfigError."""
    return configuration(path, environ, expand=expand).load()
