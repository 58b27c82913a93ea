"""The documents: generated pages are up to date, and the facts on the other pages match the code."""

import re
from pathlib import Path

import pytest
import yaml

import exporter
from docs.__main__ import main
from exporter.cli import main as command_line
from exporter.metrics.catalogue import FAMILIES
from exporter.metrics.instruments import Instruments

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "config" / "prometheus" / "chatapp.rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
METRIC = re.compile(r"(?:[a-z_]+:)?\bchatapp_[a-z]\w+(?::\w+)?")
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
COMMAND = re.compile(r"`chatapp-exporter ([^`]*)`|^chatapp-exporter (.*)$", re.MULTILINE)
TARGET = re.compile(r"`make ([a-z]+)|^make ([a-z]+)(?=\s+#|$)", re.MULTILINE)
SUFFIXES = {"counter": ("_total",), "histogram": ("", "_bucket", "_count", "_sum")}

every_page = pytest.mark.parametrize("page", PAGES)


def metric_names() -> set[str]:
    families = [(family.name, str(family.type)) for family in FAMILIES]
    families += [(family.name, family.type) for family in Instruments().collect()]
    samples = {name + suffix for name, kind in families for suffix in SUFFIXES.get(kind, ("",))}
    return samples | {rule["record"] for rule in RULES if "record" in rule}


def anchors(page: str) -> set[str]:
    """Return the anchors of the headings of a page, in GitHub's format."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(page)}


def test_the_generated_pages_match_the_code() -> None:
    assert main(["--check"]) == 0


@every_page
def test_a_page_names_only_metrics_that_exist(page: str) -> None:
    assert set(METRIC.findall(PAGES[page])) <= metric_names()


@every_page
def test_the_links_of_a_page_are_not_broken(page: str) -> None:
    for target, anchor in LINK.findall(PAGES[page]):
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        if path.is_relative_to(ROOT / "exporter"):  # the package can be installed in another directory
            path = Path(exporter.__file__).parent / path.relative_to(ROOT / "exporter")
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text("utf-8")), f"{target}#{anchor}"


@every_page
def test_a_page_names_only_commands_and_flags_that_exist(page: str) -> None:
    for words in (f"{inline}{line}".split("#")[0].split() for inline, line in COMMAND.findall(PAGES[page])):
        name = words[0] if words and not words[0].startswith("-") else "serve"
        if name != "COMMAND":
            flags = {flag for option in command_line.commands[name].params for flag in option.opts}
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= {*flags, "--version"}, words


@every_page
def test_a_page_names_only_make_targets_that_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))

    assert {inline or line for inline, line in TARGET.findall(PAGES[page])} <= targets


def test_the_readme_lists_every_alert_by_severity() -> None:
    alerts: dict[str, list[str]] = {"critical": [], "warning": [], "info": []}
    for rule in RULES:
        if "alert" in rule:
            alerts[rule["labels"]["severity"]].append(rule["alert"])
    rows = re.findall(r"^\| (\w+) \| (`ChatApp.+`) \|$", PAGES["README.md"], re.MULTILINE)

    assert {severity: re.findall(r"`(\w+)`", names) for severity, names in rows} == {
        severity: sorted(names) for severity, names in alerts.items()
    }


def test_the_operations_page_lists_every_logged_error_and_warning() -> None:
    sources = "".join(path.read_text("utf-8") for path in Path(exporter.__file__).parent.rglob("*.py"))
    calls = r"_log\.(?:error|exception|warning)|_report|_fail|_set_down|_record_failure"
    events = re.findall(rf'(?:{calls})\(\s*"([^"]+)"', sources)
    events += re.findall(r'(?:\bevent|_FAILED) = "([^"]+)"', sources)
    page = PAGES["docs/operations.md"]

    assert len(events) > 15
    assert [event for event in sorted(events) if event not in page and not event.endswith("please report it")] == []
    assert "`please report it`" in page


def test_each_module_imports_only_modules_listed_before_it_in_the_architecture_table() -> None:
    cells = re.findall(r"^\| (`[a-z`, ]+`) \| [^|]+ \|$", PAGES["docs/architecture.md"], re.MULTILINE)
    modules = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    package = Path(exporter.__file__).parent
    files = [path for path in package.rglob("*.py") if not path.name.startswith("__")]

    assert {path.relative_to(package).parts[0].removesuffix(".py") for path in files} == set(modules)
    for path in files:
        module = path.relative_to(package).parts[0].removesuffix(".py")
        imported = set(re.findall(r"^\s*(?:from|import) exporter\.(\w+)", path.read_text("utf-8"), re.MULTILINE))
        assert imported <= set(modules[: modules.index(module) + 1]), path
