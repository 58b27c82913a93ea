"""Which metrics a dashboard may ask for: those of the catalogue, of the rules file, and what Prometheus adds."""

import re
from functools import cache
from pathlib import Path

import yaml

from exporter.metrics.catalogue import FAMILIES
from exporter.metrics.instruments import Instruments

RULES = Path(__file__).parents[1] / "config" / "prometheus" / "chatapp.rules.yml"
AROUND = frozenset(
    (
        "ALERTS",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "scrape_duration_seconds",
        "scrape_samples_scraped",
        "up",
    )
)
"""What is there for any target, or for any Python process."""

_PARTS = ("_bucket", "_count", "_sum")
_NAME = re.compile(r"(?:\w+:)?chatapp_\w+(?::\w+)?")


def checked(expression: str) -> str:
    """The PromQL expression, if it names only metrics that there are.

    Raises:
        ValueError: it names another; the message says which.
    """
    for name in _NAME.findall(expression):
        if name not in known():
            raise ValueError(f"no metric {name!r} in the catalogue or the rules: {expression}")
    return expression


@cache
def known() -> frozenset[str]:
    """The names of all series that the exporter exposes and the rules record."""
    rows: list[tuple[str, str]] = [(row.name, row.type) for row in FAMILIES]
    rows += [(family.name, family.type) for family in Instruments().collect()]
    names = {f"{name}_total" if kind == "counter" else name for name, kind in rows}
    names |= {name + part for name, kind in rows if kind == "histogram" for part in _PARTS}
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return frozenset(names | {rule["record"] for group in groups for rule in group["rules"] if "record" in rule})
