"""Formats sample lines. They are the same in text format 0.0.4 and OpenMetrics 1.0; only the headers differ."""

from collections.abc import Collection, Iterable
from functools import lru_cache

from prometheus_client.utils import floatToGoString

from exporter.metrics.catalogue import Family, Labels, Subject


def header(family: Family[Subject], *, openmetrics: bool) -> bytes:
    """Return the HELP and TYPE lines of a family."""
    name = family.name if openmetrics else sample_name(family)
    return f"# HELP {name} {family.help}\n# TYPE {name} {family.type}\n".encode()


def sample_name(family: Family[Subject]) -> str:
    """Return the name of the family's samples: counters have the suffix `_total`."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def is_selected(family: Family[Subject], names: Collection[str]) -> bool:
    """Whether `names` contains the name of the family or of its samples. Without names, all families are selected."""
    return not names or family.name in names or sample_name(family) in names


def format_labels(labels: Labels) -> str:
    """Format labels as in a sample line, without the braces."""
    return ",".join([f'{name}="{_escape(text)}"' for name, text in labels])


def sample_lines(family: Family[Subject], subjects: Iterable[tuple[Subject, str]]) -> bytes:
    """Return the sample lines of the subjects. Each subject has its formatted labels (`identity`), so that they are
    formatted only once for all families."""
    name = sample_name(family)
    lines = [
        _sample_line(name, identity, labels, value)
        for subject, identity in subjects
        for labels, value in family.samples(subject)
    ]
    return "".join(lines).encode()


def _sample_line(name: str, identity: str, labels: Labels, value: float) -> str:
    if not identity:
        return f"{name}{_after_name(labels, value)}"
    after_identity = _cached_after_identity if type(value) is int else _after_identity
    return f"{name}{{{identity}{after_identity(labels, value)}"


def _after_identity(labels: Labels, value: float) -> str:
    """Return the part of a line after the labels of the subject."""
    more = f",{format_labels(labels)}" if labels else ""
    return f"{more}}} {_format_value(value)}\n"


# only integer values are cached: they have few combinations with labels, for example a rating and 1
_cached_after_identity = lru_cache(maxsize=10_000)(_after_identity)


def _after_name(labels: Labels, value: float) -> str:
    """Return the part of a line after the metric name, for a subject without labels."""
    return f"{{{format_labels(labels)}}} {_format_value(value)}\n" if labels else f" {_format_value(value)}\n"


def _format_value(value: float) -> str:
    return str(value) if isinstance(value, int) else str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _escape(text: str) -> str:
    # faster than str.translate, because most texts need no replacement
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
