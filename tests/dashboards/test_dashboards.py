"""The committed dashboards: as the code writes them, complete for those who read them, and answered by Prometheus."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from processes import free_port, is_serving, program, running, wait_until
from programs import require_program
from shortened import shortened

from dashboards.__main__ import DASHBOARDS, DIRECTORY, main
from dashboards.names import RULES, validate_metrics

WRITTEN: dict[str, dict[str, Any]] = {name: json.loads((DIRECTORY / name).read_text()) for name in DASHBOARDS}
UIDS = {document["uid"] for document in WRITTEN.values()}
EVERYTHING = {"job": ".+", "account": ".+", "space": ".+", "phone_number": "", "__rate_interval": "10s"}


def panels(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in document["panels"] if panel["type"] != "row"]


def expressions(document: dict[str, Any]) -> Iterator[str]:
    """Of panels, annotations and variables, with every variable chosen."""
    for panel in panels(document):
        yield from (target["expr"] for target in panel["targets"])
    yield from (a["expr"] for a in document.get("annotations", {}).get("list", []) if "expr" in a)
    for variable in document["templating"]["list"]:
        if values := re.fullmatch(r"label_values\((.*), \w+\)", str(variable.get("query"))):
            yield values[1]


def chosen(expression: str) -> str:
    return re.sub(r"\$(\w+)", lambda match: EVERYTHING[match[1]], expression)


every_dashboard = pytest.mark.parametrize("document", WRITTEN.values(), ids=list(WRITTEN))


def test_they_are_as_the_code_writes_them() -> None:
    assert main(["--check"]) == 0


def test_a_metric_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no metric 'chatapp_space_upp'"):
        validate_metrics("sum(chatapp_space_upp)")


@every_dashboard
def test_every_metric_is_in_the_catalogue_or_the_rules(document: dict[str, Any]) -> None:
    assert [validate_metrics(expression) for expression in expressions(document)]


@every_dashboard
def test_ids_are_unique_and_no_panels_overlap(document: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in document["panels"]]
    cells = [
        (x, y)
        for position in (panel["gridPos"] for panel in document["panels"])
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]

    assert len(set(ids)) == len(ids)
    assert 0 not in ids
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


@every_dashboard
def test_every_panel_says_what_it_shows_in_which_unit_and_what_nothing_means(document: dict[str, Any]) -> None:
    for panel in panels(document):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert defaults["unit"], panel["title"]
        assert defaults["noValue"], panel["title"]


@every_dashboard
def test_links_lead_to_the_others(document: dict[str, Any]) -> None:
    linked = set(re.findall(r"/d/([\w-]+)", json.dumps(document)))

    assert UIDS - {document["uid"]} <= linked <= UIDS


@every_dashboard
def test_no_variable_lists_all_numbers(document: dict[str, Any]) -> None:
    kinds = {variable["name"]: variable["type"] for variable in document["templating"]["list"]}

    assert {"datasource", "job", "account", "space"} <= set(kinds)
    assert kinds.get("phone_number", "textbox") == "textbox"


@every_dashboard
def test_nothing_is_dropped_when_the_sdk_reads_it_back(document: dict[str, Any]) -> None:
    register_default_plugins()

    assert json.loads(json.dumps(Dashboard.from_json(document), cls=JSONEncoder)) == document


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One that has scraped the demo, with the rules' durations shortened."""
    directory = tmp_path_factory.mktemp("dashboards")
    demo, port = free_port(), free_port()
    (directory / "rules.yml").write_text(shortened(RULES.read_text(), 60))
    scrape = {"job_name": "chatapp-exporter", "static_configs": [{"targets": [f"127.0.0.1:{demo}"]}]}
    config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": ["rules.yml"]}
    (directory / "prometheus.yml").write_text(yaml.safe_dump({**config, "scrape_configs": [scrape]}))
    command = (
        require_program("prometheus", package="prometheus"),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with ExitStack() as stack:
        stack.enter_context(program("demo", "--web.listen-address", f"127.0.0.1:{demo}", log=directory / "demo.log"))
        stack.enter_context(running(*command, log=directory / "prometheus.log"))
        wait_until(is_serving(f"http://127.0.0.1:{port}/-/ready"), "Prometheus answers")
        yield stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False))


def test_every_query_is_answered_by_a_prometheus_that_scraped_the_demo(prometheus: httpx.Client) -> None:
    waiting = {chosen(expression) for document in WRITTEN.values() for expression in expressions(document)}
    assert len(waiting) > 40

    def all_answered() -> bool:
        for expression in sorted(waiting):
            answer = prometheus.get("/api/v1/query", params={"query": expression}).json()
            assert answer["status"] == "success", (expression, answer)
            if answer["data"]["result"]:
                waiting.discard(expression)
        return not waiting

    wait_until(all_answered, waiting, seconds=150)
