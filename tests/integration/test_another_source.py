"""Another source: phone numbers in a JSON file. Polling, state, metrics, pages and rules do not change."""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from prometheus_client import REGISTRY, Counter, generate_latest
from structlog.testing import capture_logs
from virtual_time import VirtualClock, run
from world import Exporter

from exporter.clock import SystemClock
from exporter.config.fields import FileName
from exporter.config.loading import Configuration
from exporter.config.problems import ConfigError
from exporter.config.settings import Account, Settings, settings_of
from exporter.http import http_client
from exporter.model import Answer, PhoneNumber, Space
from exporter.runtime.service import Service
from exporter.runtime.view import ReloadState, View
from exporter.source import Attempt, DeniedError, RejectedError, Source, SourceContext, SourceError, TransportError
from exporter.sources.cams.settings import CamsAccount
from exporter.web.routes import create_app

# ---- the source: its configuration keys and its queries


class FileAccount(Account):
    """An account whose phone numbers are in a JSON file: a list of pages for each space. A request reads one page."""

    source: Literal["file"] = "file"
    path: FileName

    @property
    def identity(self) -> str:
        return self.path

    def problems(self, environ: Mapping[str, str]) -> Iterator[SourceError]:
        if not Path(self.path).is_file():
            yield SourceError("path", "expected a file, found none")

    def open(self, context: SourceContext) -> Source:
        return FileSource(Path(self.path))


class FileSource(Source):
    """Reads the file at each request. The key `$denied` in the file denies access to the account."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def query(self, space: Space, attempt: Attempt) -> Answer:
        numbers: list[PhoneNumber] = []
        page_count = 1
        while len(numbers) < page_count:
            async with attempt():
                pages = self._read().get(space.id)
                if pages is None:
                    raise RejectedError("UnknownSpace", space.id)
                page_count = len(pages)
                numbers.append(PhoneNumber(**pages[len(numbers)]))
        return Answer(tuple(numbers))

    async def list_spaces(self, attempt: Attempt) -> Mapping[str, str]:
        async with attempt():
            return {space: f"Space {space}" for space in self._read()}

    def _read(self) -> dict[str, list[dict[str, Any]]]:
        try:
            document: dict[str, list[dict[str, Any]]] = json.loads(self._path.read_text())
        except OSError as error:
            raise TransportError("transport", str(error.strerror)) from error
        if "$denied" in document:
            raise DeniedError("AccessDenied")
        return document


# ---- the tests


RED = {"phone_number": "15550100001", "quality_rating": "RED", "status": "CONNECTED", "messaging_limit_tier": "TIER_1K"}
BANNED = {"phone_number": "15550100002", "quality_rating": "GREEN", "status": "BANNED"}
CONFIG = """
accounts:
  - {name: acme, access_key_id: id, access_key_secret: secret, endpoint: "http://127.0.0.1:1"}
  - name: local
    source: file
    path: numbers.json
    qps: 1
    spaces: [{id: s1, name: Contoso}]
"""


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.json"
    path.write_text(json.dumps({"s1": [RED, BANNED], "s2": [BANNED]}))
    return path


def load_settings(directory: Path, text: str = CONFIG) -> Settings:
    (directory / "exporter.yml").write_text(text)
    return Configuration(directory / "exporter.yml", {}, settings_of(CamsAccount, FileAccount)).load()


def with_local_account_only(settings: Settings, **changes: object) -> Settings:
    account = settings.accounts[1].model_copy(update=changes)
    return settings.model_copy(update={"accounts": [account]})


def create_exporter(settings: Settings) -> Exporter:
    return Exporter(settings, SourceContext({}, VirtualClock(), http_client))


def write_or_delete(path: Path, content: str | None) -> None:
    path.write_text(content) if content is not None else path.unlink()


def samples(exporter: Exporter, prefix: str) -> list[str]:
    lines = b"".join(exporter.exposition()).decode().splitlines()
    return [line for line in lines if line.startswith(prefix)]


def test_the_configuration_selects_the_source_of_each_account_and_cams_is_the_default(numbers: Path) -> None:
    acme, local = load_settings(numbers.parent).accounts

    assert isinstance(acme, CamsAccount)
    assert isinstance(local, FileAccount)
    assert local.path == str(numbers)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("path: numbers.json", "path: missing.json", "exporter.yml:6: accounts[1].path: expected a file, found none"),
        ("path: numbers.json", "endpoint: x", "exporter.yml:6: accounts[1].endpoint: unknown key"),
        ("source: file", "source: fiel", "exporter.yml:4: accounts[1]: "),
        ("qps: 1", "qps: many", "exporter.yml:7: accounts[1].qps: "),
    ],
)
def test_errors_in_the_keys_of_the_source_have_a_line_number(numbers: Path, old: str, new: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(numbers.parent, CONFIG.replace(old, new))

    assert any(line.startswith(f"{numbers.parent}/{problem}") for line in str(error.value).splitlines())


def test_the_numbers_of_the_source_are_exported_and_each_page_requires_a_permit(numbers: Path) -> None:
    async def main() -> tuple[list[str], list[str], list[str], str]:
        exporter = create_exporter(with_local_account_only(load_settings(numbers.parent)))
        await exporter.start()
        await asyncio.sleep(0.9)
        before = samples(exporter, "chatapp_phone_number_status")
        await asyncio.sleep(1)
        transport = httpx.ASGITransport(create_app(exporter.view))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
            page = (await http.get("/")).text
        shown, requests = samples(exporter, "chatapp_phone_number_status"), samples(exporter, "chatapp_api_requests")
        requests += samples(exporter, "chatapp_poll_delay_seconds_count")
        await exporter.stop()
        return before, shown, requests, page

    before, shown, requests, page = run(main())

    assert before == []
    assert shown == [
        'chatapp_phone_number_status{account="local",space="s1",phone_number="15550100001",status="CONNECTED"} 1',
        'chatapp_phone_number_status{account="local",space="s1",phone_number="15550100002",status="BANNED"} 1',
    ]
    assert requests == [
        'chatapp_api_requests_total{account="local",code="OK"} 2.0',
        'chatapp_poll_delay_seconds_count{account="local"} 1.0',  # the poll delay ends at the first page
    ]
    assert re.findall(r"</span> (down|RED)</span></td>", page) == ["down", "RED"]


def test_spaces_of_the_source_are_discovered_and_its_values_are_kept_after_a_restart(numbers: Path) -> None:
    async def main() -> tuple[list[str], list[str]]:
        settings = with_local_account_only(load_settings(numbers.parent), discover=True)
        settings = settings.model_copy(update={"state_file": str(numbers.with_name("state.db"))})
        first = create_exporter(settings)
        await first.start()
        await asyncio.sleep(20)
        before = samples(first, "chatapp_phone_number_status")
        await first.stop()
        write_or_delete(numbers, None)
        second = create_exporter(settings)
        restored = samples(second, "chatapp_phone_number_status")
        await second.stop()
        return before, restored

    before, restored = run(main())

    assert len(before) == 3
    assert restored == before


def test_failures_of_the_source_set_account_up_and_are_counted_by_reason(numbers: Path) -> None:
    async def main() -> list[list[str]]:
        exporter = create_exporter(with_local_account_only(load_settings(numbers.parent)))
        await exporter.start()
        results = []
        for content in ('{"$denied": []}', '{"s9": []}', None):
            write_or_delete(numbers, content)
            await asyncio.sleep(900)
            results.append(samples(exporter, "chatapp_account_up") + samples(exporter, "chatapp_space_poll_failures"))
        await exporter.stop()
        return results

    with capture_logs() as logs:
        denied, rejected, unreachable = run(main())

    assert denied[0] == 'chatapp_account_up{account="local"} 0'
    assert rejected[0] == 'chatapp_account_up{account="local"} 1'
    assert [re.search('reason="(.*)"', line)[1] for line in unreachable[1:]] == ["denied", "rejected", "transport"]  # type: ignore[index]
    assert not [line for line in logs if "bug" in line["event"]]


def test_an_embedding_program_can_register_the_collector_with_its_default_registry(numbers: Path) -> None:
    """The registry is collected in threads during polls. It keeps its process metrics and its settings."""
    counter = Counter("requests_of_the_program", "A counter of the program that embeds the exporter.")

    async def main() -> str:
        service = Service(SourceContext({}, SystemClock(), http_client))
        await service.apply(with_local_account_only(load_settings(numbers.parent)), hold_off=False)
        collector = View(service, ReloadState(last_success=0.0), SystemClock()).collector()
        REGISTRY.register(collector)
        scrapes = await asyncio.gather(*(asyncio.to_thread(generate_latest, REGISTRY) for _ in range(20)))
        REGISTRY.unregister(collector)
        await service.stop()
        return scrapes[-1].decode()

    page = asyncio.run(main())
    REGISTRY.unregister(counter)

    assert 'chatapp_account_spaces{account="local"} 1.0' in page
    assert "requests_of_the_program_created" in page
    assert "chatapp_api_request_duration_seconds_created" not in page
