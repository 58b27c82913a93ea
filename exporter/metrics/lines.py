"""Sample lines as both formats have them, text 0.0.4 and OpenMetrics 1.0; only the families' headers differ."""

from collections.abc import Collection, Iterable
from functools import lru_cache

from prometheus_client.utils import floatToGoString

from exporter.metrics.catalogue import Family, Labels, Subject


def header(family: Family[Subject], *, openmetrics: bool) -> bytes:
    """The lines before a family's samples."""
    name = family.name if openmetrics else sample_name(family)
    return f"# HELP {name} {family.help}\n# TYPE {name} {family.type}\n".encode()


def sample_name(family: Family[Subject]) -> str:
    """The name that its samples have."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def is_wanted(family: Family[Subject], names: Collection[str]) -> bool:
    """Whether the names include its own or that of its samples; without names, every family is wanted."""
    return not names or family.name in names or sample_name(family) in names


def spell(labels: Labels) -> str:
    """Labels as they are written between the braces."""
    return ",".join([f'{name}="{_escape(text)}"' for name, text in labels])


def lines(family: Family[Subject], subjects: Iterable[tuple[Subject, str]]) -> bytes:
    """The sample lines of these subjects, each given with its own labels as text; b"" where there are none.

    A subject has lines in a dozen families, so its labels are written once for all of them.
    """
    name = sample_name(family)
    return "".join(
        [
            f"{name}{{{identity}{(_cached_end if type(value) is int else _end)(labels, value)}"
            if identity
            else f"{name}{_alone(labels, value)}"
            for subject, identity in subjects
            for labels, value in family.samples(subject)
        ]
    ).encode()


def _end(labels: Labels, value: float) -> str:
    """The rest of a line."""
    more = f",{spell(labels)}" if labels else ""
    return f"{more}}} {_number(value)}\n"


# mostly one of a few dozen, such as a rating and 1; a timestamp would never be found again
_cached_end = lru_cache(maxsize=10_000)(_end)


def _alone(labels: Labels, value: float) -> str:
    """The rest of a line whose subject has no labels."""
    return f"{{{spell(labels)}}} {_number(value)}\n" if labels else f" {_number(value)}\n"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _escape(text: str) -> str:
    # three scans that find nothing take a fraction of one translation
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
