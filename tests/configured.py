"""Load configurations like the exporter."""

from collections.abc import Mapping
from pathlib import Path

from exporter import sources
from exporter.config.loading import Configuration
from exporter.config.settings import Settings


def configuration(
    path: Path | None, environ: Mapping[str, str] | None = None, *, expand: bool = False
) -> Configuration:
    """Return the configuration of this file, or of the environment if there is no file."""
    return Configuration(path, {} if environ is None else environ, sources.Settings, expand=expand)


def load(path: Path | None, environ: Mapping[str, str], *, expand: bool = False) -> Settings:
    """Return the settings of this configuration. Raises ConfigError."""
    return configuration(path, environ, expand=expand).load()
