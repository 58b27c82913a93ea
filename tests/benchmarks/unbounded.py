"""The exporter with another limit than the API's: `unbounded.py QPS FLAGS...` gives every account that budget."""

import sys

import exporter.runtime.service
from exporter.cli import main
from exporter.config.loading import Configuration
from exporter.config.settings import Settings

QPS = float(sys.argv.pop(1))
load = Configuration.load


def faster(configuration: Configuration) -> Settings:
    settings = load(configuration)
    return settings.model_copy(
        update={"accounts": [account.model_copy(update={"qps": QPS}) for account in settings.accounts]}
    )


exporter.runtime.service.API_LIMIT_QPS = QPS  # type: ignore[attr-defined]  # that of the access key
Configuration.load = faster  # type: ignore[method-assign, assignment]
main()
