"""Runs the exporter with a rate above the limit of the API: `custom_qps.py QPS FLAGS...` sets `qps` of each account."""

import sys

import exporter.runtime.service
from exporter.cli import main
from exporter.config.loading import Configuration
from exporter.config.settings import Settings

QPS = float(sys.argv.pop(1))
load = Configuration.load


def load_with_qps(configuration: Configuration) -> Settings:
    settings = load(configuration)
    return settings.model_copy(
        update={"accounts": [account.model_copy(update={"qps": QPS}) for account in settings.accounts]}
    )


exporter.runtime.service.API_LIMIT_QPS = QPS  # type: ignore[attr-defined]  # the limit for accounts that share a key
Configuration.load = load_with_qps  # type: ignore[method-assign, assignment]
main()
