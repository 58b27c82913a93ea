"""The sources that an account can name by its key `source`. To add one: a package beside this file, and a name here."""

from exporter.config.settings import settings_of
from exporter.sources.cams.settings import CamsAccount

Settings = settings_of(CamsAccount)
"""The shape of the configuration file."""
