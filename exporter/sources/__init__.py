"""The values of the key `source` of an account. To add a source, add a package here and its account class below."""

from exporter.config.settings import settings_of
from exporter.sources.cams.settings import CamsAccount

Settings = settings_of(CamsAccount)
"""The schema of the configuration file."""
