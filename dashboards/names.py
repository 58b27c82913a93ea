"""The metric names that dashboards may use. A query with an unknown `chatapp_` metric is an error."""

import re
from functools import cache
from pathlib import Path

import yaml

from exporter.metrics.catalogue import FAMILIES
from exporter.metrics.instruments import Instruments

RULES = Path(__file__).parents[1] / "config" / "prometheus" / "chatapp.rules.yml"
_HISTOGRAM_SUFFIXES = ("_bucket", "_count", "_sum")
_NAME = re.compile(r"(?:\w+:)?chatapp_\w+(?::\w+)?")


def validate_metrics(expression: str) -> str:
    """Return the PromQL expression unchanged if all its `chatapp_` metrics exist.

    Raises:
        ValueError: a metric does not exist; the message contains its name.
    """
    for name in _NAME.findall(expression):
        if name not in known_metric_names():
            raise ValueError(f"no metric {name!r} in the catalogue or the rules: {expression}")
    return expression


@cache
def known_metric_names() -> frozenset[str]:
    """Return the names of all series that the exporter exposes or the rules record."""
    rows: list[tuple[str, str]] = [(row.name, row.type) for row in FAMILIES]
    rows += [(family.name, family.type) for family in Instruments().collect()]
    names = {f"{name}_total" if kind == "counter" else name for name, kind in rows}
    names |= {name + suffix for name, kind in rows if kind == "histogram" for suffix in _HISTOGRAM_SUFFIXES}
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return frozenset(names | {rule["record"] for group in groups for rule in group["rules"] if "record" in rule})
