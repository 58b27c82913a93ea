"""Names, types and labels of all metric families. Dashboards and alerts depend on them."""

import asyncio
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from virtual_time import START, VirtualClock, run
from world import World, scenario

from exporter.metrics.instruments import Instruments
from exporter.simulator.demo import demo_settings
from exporter.simulator.fleet import load_scenario
from exporter.source import ServerError

NUMBER = {"account", "space", "phone_number"}
CONTRACT: dict[str, tuple[str, set[str]]] = {
    "chatapp_phone_number_quality_rating": ("gauge", {*NUMBER, "quality_rating"}),
    "chatapp_phone_number_messaging_limit": ("gauge", NUMBER),
    "chatapp_phone_number_messaging_limit_tier": ("gauge", {*NUMBER, "messaging_limit_tier"}),
    "chatapp_phone_number_status": ("gauge", {*NUMBER, "status"}),
    "chatapp_phone_number_name_status": ("gauge", {*NUMBER, "name_status"}),
    "chatapp_phone_number_new_name_status": ("gauge", {*NUMBER, "new_name_status"}),
    "chatapp_phone_number_code_verification_status": ("gauge", {*NUMBER, "code_verification_status"}),
    "chatapp_phone_number_info": (
        "gauge",
        {*NUMBER, "verified_name", "is_official", "inbound_callback", "status_callback"},
    ),
    "chatapp_phone_number_last_change_timestamp_seconds": ("gauge", {*NUMBER, "field"}),
    "chatapp_space_up": ("gauge", {"account", "space"}),
    "chatapp_space_last_success_timestamp_seconds": ("gauge", {"account", "space"}),
    "chatapp_space_phone_numbers": ("gauge", {"account", "space"}),
    "chatapp_space_info": ("gauge", {"account", "space", "name", "region"}),  # region: the demo's configuration
    "chatapp_space_polls": ("counter", {"account", "space"}),
    "chatapp_space_poll_failures": ("counter", {"account", "space", "reason"}),
    "chatapp_account_up": ("gauge", {"account"}),
    "chatapp_account_state": ("gauge", {"account", "state"}),
    "chatapp_account_spaces": ("gauge", {"account"}),
    "chatapp_account_poll_interval_seconds": ("gauge", {"account"}),
    "chatapp_account_effective_poll_interval_seconds": ("gauge", {"account"}),
    "chatapp_account_qps_limit": ("gauge", {"account"}),
    "chatapp_account_qps_current": ("gauge", {"account"}),
    "chatapp_account_qps_needed": ("gauge", {"account"}),
    "chatapp_account_due_spaces": ("gauge", {"account"}),
    "chatapp_account_discovery_up": ("gauge", {"account"}),
    "chatapp_account_discovery_last_success_timestamp_seconds": ("gauge", {"account"}),
    "chatapp_account_discovered_spaces": ("gauge", {"account"}),
    "chatapp_api_requests": ("counter", {"account", "code"}),
    "chatapp_api_request_duration_seconds": ("histogram", {"account"}),
    "chatapp_api_throttled": ("counter", {"account"}),
    "chatapp_api_unknown_values": ("counter", {"field", "value"}),
    "chatapp_poll_delay_seconds": ("histogram", {"account"}),
    "chatapp_exporter_build_info": ("gauge", {"version"}),
    "chatapp_exporter_time_seconds": ("gauge", set()),
    "chatapp_exporter_account_info": ("gauge", {"account"}),
    "chatapp_exporter_config_last_reload_successful": ("gauge", set()),
    "chatapp_exporter_config_last_reload_success_timestamp_seconds": ("gauge", set()),
    "chatapp_exporter_space_file_up": ("gauge", {"file"}),
    "chatapp_exporter_state_file_up": ("gauge", {"file"}),
    "chatapp_exporter_state_file_failures": ("counter", {"file", "reason"}),
}


def demo_world(**changes: Any) -> World:
    """Return a world with the demo. Its first account uses discovery."""
    fleet = load_scenario(None)
    first, *others = demo_settings(fleet, "http://127.0.0.1:1").accounts
    return World(fleet, accounts=[first.model_copy(update={"discover": True}), *others], **changes)


def test_the_exported_families_have_the_names_types_and_labels_of_the_contract(tmp_path: Path) -> None:
    async def main() -> str:
        world = demo_world(state_file=str(tmp_path))  # a directory, so that failures are exported too
        world.exporter.reloads.space_files = {"spaces.yml": True}
        await world.exporter.start()
        await asyncio.sleep(15)
        await world.exporter.stop()
        return b"".join(world.exporter.exposition(openmetrics=False)).decode()

    shown = {
        family.name: (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
        for family in text_string_to_metric_families(run(main()))
        if family.name.startswith("chatapp_")
    }

    assert shown == CONTRACT


def test_the_collector_returns_the_same_samples_as_the_metrics_page(tmp_path: Path) -> None:
    async def main() -> tuple[bytes, str]:
        world = demo_world(state_file=str(tmp_path))
        world.exporter.reloads.space_files = {"spaces.yml": True}
        await world.exporter.start()
        await asyncio.sleep(15)
        await world.exporter.stop()
        registry = CollectorRegistry()
        registry.register(world.exporter.view.collector())
        return generate_latest(registry), b"".join(world.exporter.exposition(openmetrics=False)).decode()

    collected, page = run(main())
    page_samples = {family.name: family.samples for family in text_string_to_metric_families(page)}
    collected_samples = {family.name: family.samples for family in text_string_to_metric_families(collected.decode())}

    assert collected_samples == {name: samples for name, samples in page_samples.items() if name.startswith("chatapp_")}
    assert collected_samples.keys() == CONTRACT.keys()
    assert all(collected_samples.values())


def test_the_number_of_codes_is_limited_and_further_codes_count_as_other() -> None:
    instruments = Instruments(["acme"])

    for number in range(60):
        instruments.request_ended("acme", 0.1, ServerError(f"Code{number}"))

    (family,) = instruments.collect(["chatapp_api_requests_total"])
    counts = {sample.labels["code"]: sample.value for sample in family.samples}
    assert len(counts) == 51
    assert counts["other"] == 10


def test_the_time_of_the_exporter_is_its_system_time_at_each_scrape() -> None:
    async def main() -> list[float]:
        clock = VirtualClock()
        world = World(scenario(), clock=clock)
        samples = world.samples("chatapp_exporter_time_seconds")
        await asyncio.sleep(60)
        clock.offset = -600.5
        samples += world.samples("chatapp_exporter_time_seconds")
        return [float(sample.split()[1]) for sample in samples]

    assert run(main()) == [START, START + 60 - 600.5]
