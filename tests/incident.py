"""Incidents: events of the API and the exporter, and the alerts that must fire.

`record_series` runs the exporter against the simulated API in virtual time and scrapes `/metrics` every minute.
`promtool_test` converts the recorded series to the input of `promtool test rules`. The clocks of the exporter and of
promtool start at 0, so that timestamps in samples match the evaluation time.
"""

import asyncio
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote_plus

import yaml
from programs import require_program
from pydantic import Field
from starlette.responses import JSONResponse
from virtual_time import START, VirtualClock, run
from world import Exporter, World, scenario

from exporter.config.effective import Shard
from exporter.config.fields import Duration, Strict, parse_duration
from exporter.config.problems import ConfigError, Problem
from exporter.config.settings import Settings
from exporter.config.validation import load_document
from exporter.runtime.reload import StaticLoader
from exporter.simulator.demo import demo_settings
from exporter.simulator.scenario import Event, Moment

INCIDENTS = Path(__file__).parent / "rules" / "incidents"
RULES = Path(__file__).parents[1] / "config" / "prometheus" / "chatapp.rules.yml"
JOB = "chatapp-exporter"
GROUPS = [group["name"] for group in yaml.safe_load(RULES.read_text())["groups"]]
"""The names of the rule groups, in the order in which promtool must evaluate them."""
MINUTE = 60
LOOKBACK = 5 * MINUTE
"""A sample is visible for this time."""
Series = dict[str, list[str]]
"""The values of each series in promtool's notation, one per minute."""
OnScrape = Callable[[int, Exporter], None]
"""Called with the minute and a running exporter."""

_ACCOUNT_NAMES = ("acme", "globex", "umbrella")
"""Each of three shards polls one of these accounts."""
_DEFAULT_ACCOUNT: Mapping[str, Any] = {"spaces": "3", "qps": "5", "poll_interval": "5m", "latency": "100ms"}
_IDENTITY = "alertname, job, account, space, phone_number, field, value"
FIRING = f'group by ({_IDENTITY}) (ALERTS{{alertstate="firing"}})'
"""The firing alerts, with the labels that identify an alert."""


class _ProcessEvent(Strict):
    """An event of all processes of the exporter, or only of one `shard` or `replica`. The first has number 1."""

    at: Moment
    shard: int | None = None
    replica: int | None = None

    def affects(self, process: "Process") -> bool:
        return {self.shard, self.replica} <= {None, process.number}


class ConfigChange(_ProcessEvent):
    """A new configuration: the accounts in `removed` are removed, and `renamed` maps names of accounts to new names."""

    removed: list[str] = Field([])
    renamed: dict[str, str] = Field({})

    def apply(self, settings: Settings) -> Settings:
        accounts = [
            account.model_copy(update={"name": self.renamed.get(account.name, account.name)})
            for account in settings.accounts
            if account.name not in self.removed
        ]
        return settings.model_copy(update={"accounts": accounts})


class Outage(ConfigChange):
    """The exporter does not run for the time `down`. Then it starts with the changed configuration.

    If the exporter `moves`, its target is removed, and the restarted exporter has another label `instance`. After the
    restart, the exporter polls only the first `spaces` spaces (default: all). `damages_state_file` overwrites the state
    file while the exporter is down.
    """

    down: Duration
    moves: bool = False
    spaces: int | None = None
    damages_state_file: bool = False


class Reload(ConfigChange):
    """A configuration reload. It fails if the configuration is `invalid`, for example because of `invalid_space_files`.

    A successful reload adds the spaces that the exporter did not poll at its start, and sets these `keys` of all spaces
    of the first account.
    """

    invalid: bool = False
    invalid_space_files: list[str] = Field([])
    keys: dict[str, Any] = Field({})


class NetworkOutage(_ProcessEvent):
    """The exporter cannot connect to the API, or cannot poll these `spaces` of the first account."""

    lasts: Duration = Field(alias="for")
    spaces: list[int] = Field([])


class ClockChange(_ProcessEvent):
    """From now on, the system clock of the exporter is `offset` seconds ahead (negative: behind)."""

    offset: float


class Move(Strict):
    """A phone number moves to a space of another account."""

    at: Moment
    account: str = _ACCOUNT_NAMES[0]
    space: int
    number: int
    to_account: str
    to_space: int


class EmptyResponse(Strict):
    """The next response for this space of the first account lists no phone numbers."""

    at: Moment
    space: int


class Competitor(Strict):
    """Another client that uses the rate limit of the first account."""

    at: Moment
    lasts: Duration = Field(alias="for")
    qps: float


class Firing(Strict):
    """An alert that must fire from `since` to `until`, and at no other time.

    `since` and `until` do not include the time for polls, scrapes and rule evaluations. Each may be up to `slack`
    later. The default slack is the sum of one poll interval, one scrape interval and one evaluation interval. If
    `until` is after the end of the incident, the alert must still fire at the end. `spaces` and `numbers` are
    positions, starting with 1, in the account in `labels` (default: the first account). With a `description`, the test
    compares all labels and annotations of the alert, at the time `checked_at` (default: the middle of the span).
    """

    alert: str
    spaces: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    labels: dict[str, str] = Field({})
    since: Moment = Field(alias="from")
    until: Moment = Field(alias="to")
    slack: Duration | None = None
    description: str | None = None
    checked_at: Moment | None = None
    instance: str | None = None
    team: str | None = None


class Incident(Strict):
    """A script. Times are relative to the first start of the exporter.

    `events` are events of a scenario. Their default account is the first account. With `every` and `until`, an event
    repeats. There are `accounts` accounts, each with the settings of `account`. `settings` maps names of accounts to
    settings that replace those of `account`. With `discover`, the exporter discovers the spaces. With
    `spaces_at_start`, the exporter first polls only this number of spaces. Each of the `replicas` polls all accounts,
    and `jobs` are the scrape jobs of the replicas.
    """

    incident: str
    lasts: Duration
    accounts: int = 1
    account: dict[str, str] = Field({})
    settings: dict[str, dict[str, str]] = Field({})
    discover: bool = False
    spaces_at_start: int | None = None
    events: list[dict[str, Any]] = Field([])
    exporter: list[Outage] = Field([])
    shards: int = 1
    replicas: int = 1
    jobs: list[str] = Field([])
    network: list[NetworkOutage] = Field([])
    clock: list[ClockChange] = Field([])
    moves: list[Move] = Field([])
    state_file: bool = False
    reloads: list[Reload] = Field([])
    competitor: Competitor | None = None
    empty_responses: list[EmptyResponse] = Field([])
    firing: list[Firing] = Field([])

    @property
    def minutes(self) -> range:
        return range(int(self.lasts // MINUTE) + 1)

    @property
    def processes(self) -> list["Process"]:
        if self.replicas > 1:
            return [Process(number, Shard(1, 1)) for number in range(1, self.replicas + 1)]
        return [Process(number, Shard(number, self.shards)) for number in range(1, self.shards + 1)]

    def outages(self, process: "Process") -> list[Outage]:
        return [outage for outage in self.exporter if outage.affects(process)]

    def outage(self, process: "Process", elapsed: float) -> Outage | None:
        return next(
            (outage for outage in self.outages(process) if outage.at <= elapsed < outage.at + outage.down), None
        )

    def ended_outages(self, process: "Process", elapsed: float) -> list[Outage]:
        return [outage for outage in self.outages(process) if outage.at + outage.down <= elapsed]

    def configured(self, settings: Settings, process: "Process", elapsed: float) -> Settings:
        """Return the settings after all changes of the configuration so far."""
        reloads = [reload for reload in self.reloads if reload.affects(process) and reload.at <= elapsed]
        for change in sorted([*reloads, *self.ended_outages(process, elapsed)], key=lambda change: change.at):
            settings = change.apply(settings)
        return settings

    def instance(self, process: "Process", elapsed: float) -> str:
        moves = sum(outage.moves for outage in self.ended_outages(process, elapsed))
        return f"exporter-{process.number}-{moves}:10144"

    def target(self, process: "Process", elapsed: float) -> str:
        """Return the labels that Prometheus adds to the samples."""
        job = self.jobs[process.number - 1] if self.jobs else JOB
        return f'job="{job}",instance="{self.instance(process, elapsed)}"'


@dataclass(frozen=True)
class Process:
    """A process of the exporter: a shard or a replica. The first has number 1."""

    number: int
    shard: Shard


@dataclass(frozen=True)
class Span:
    """The time in which an alert must fire, in seconds from the start. Both ends may be up to `slack` later."""

    labels: Mapping[str, str]
    since: float
    until: float
    slack: float

    @property
    def selector(self) -> str:
        return "{" + ", ".join(f'{name}="{value}"' for name, value in self.labels.items()) + "}"

    @property
    def exact_selector(self) -> str:
        """A selector of alerts with these labels and without other labels that identify an alert."""
        labels = {**dict.fromkeys(_IDENTITY.split(", "), ""), **self.labels}
        return replace(self, labels=labels).selector


def load_incident(path: Path) -> Incident:
    """Return the incident of this file."""
    return load_document(path, Incident)


def record_series(incident: Incident, on_scrape: OnScrape = lambda _minute, _exporter: None) -> tuple[World, Series]:
    """Run the incident and return its world and the series that Prometheus would scrape."""
    with TemporaryDirectory() as directory:
        return run(_run_incident(incident, Path(directory) / "state.db", on_scrape))


def _create_world(incident: Incident, state_file: Path) -> World:
    accounts = _ACCOUNT_NAMES[: incident.accounts]
    events = tuple(event for scripted in incident.events for event in _repeated(scripted))
    fleet = scenario(
        accounts=accounts, events=events, settings=incident.settings, **{**_DEFAULT_ACCOUNT, **incident.account}
    )
    configured = demo_settings(fleet, "http://127.0.0.1:1").accounts
    discovering = [account.model_copy(update={"discover": True, "spaces": None}) for account in configured]
    world = World(
        fleet,
        accounts=discovering if incident.discover else configured,
        clock=VirtualClock(offset=-START),
        state_file=str(state_file) if incident.state_file else None,
    )
    for move in incident.moves:
        _move(world, move)
    return world


def _move(world: World, move: Move) -> None:
    """Add the event to both spaces. An event of a scenario moves a number only within its account."""
    effect = {"account": move.account, "space": move.space, "number": move.number, "move_to": move.to_space}
    event = Event.model_validate({"at": f"{move.at:.0f}s", **effect})
    space = world.api.fleet.spaces[move.account][move.space - 1]
    space.events.append(event)
    world.api.fleet.spaces[move.to_account][move.to_space - 1].arrivals.append((space, event))


def _repeated(event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the event, or with the keys `every` and `until` its repetitions."""
    once = {key: value for key, value in event.items() if key not in ("every", "until")}
    if "every" not in event:
        yield once
        return
    start, every, until = (int(parse_duration(event[key])) for key in ("at", "every", "until"))
    for at in range(start, until, every):
        yield {**once, "at": f"{at}s"}


async def _run_incident(incident: Incident, state_file: Path, on_scrape: OnScrape) -> tuple[World, Series]:
    world = _create_world(incident, state_file)
    await world.exporter.stop()  # each start below creates a new process
    competitor = asyncio.create_task(_compete(world, incident.competitor))
    clocks = {process: VirtualClock(offset=-START) for process in incident.processes}
    running: dict[Process, Exporter] = {}
    scrapes: list[Mapping[str, str]] = []
    for minute in incident.minutes:
        now = minute * MINUTE
        await asyncio.sleep(now - world.clock.monotonic())
        for change in incident.clock:
            for process in incident.processes:
                if change.at == now and change.affects(process):
                    clocks[process].offset = change.offset - START
        for process in incident.processes:
            await _start_or_stop(world, incident, process, running, clocks[process], state_file)
        for empty in incident.empty_responses:
            if empty.at == now:
                response = JSONResponse({"Code": "OK", "PhoneNumbers": []})
                world.api.next_responses[world.space_id(empty.space)] = [response]
        for reload in incident.reloads:
            if reload.at == now:
                await _reload(world, incident, running, reload)
        process_scrapes = (_scrape(incident, process, now, running.get(process)) for process in incident.processes)
        scrapes.append({series: value for scrape in process_scrapes for series, value in scrape.items()})
        for exporter in running.values():
            on_scrape(minute, exporter)
    await asyncio.gather(*(exporter.stop() for exporter in running.values()))
    competitor.cancel()
    return world, _to_series(scrapes)


async def _start_or_stop(
    world: World,
    incident: Incident,
    process: Process,
    running: dict[Process, Exporter],
    clock: VirtualClock,
    state_file: Path,
) -> None:
    now = world.clock.monotonic()
    outage = incident.outage(process, now)
    if outage and process in running:
        await running.pop(process).stop()
        if outage.damages_state_file:
            _damage(state_file)
    elif not outage and process not in running:
        outages = incident.ended_outages(process, now)
        running[process] = world.fresh_exporter(
            outages[-1].spaces if outages else incident.spaces_at_start,
            process.shard,
            settings=incident.configured(world.settings, process, now),
            clock=clock,
            connects=lambda space: _connects(world, incident, process, space),
        )
        await running[process].start()
        await asyncio.sleep(0.13 if len(incident.processes) > 1 else 0)  # processes do not start at the same moment


def _connects(world: World, incident: Incident, process: Process, space: str) -> bool:
    """Whether the process can query the API about this space now."""
    now = world.clock.monotonic()
    return not any(
        outage.affects(process)
        and outage.at <= now < outage.at + outage.lasts
        and (not outage.spaces or space in map(world.space_id, outage.spaces))
        for outage in incident.network
    )


def _damage(file: Path) -> None:
    file.write_bytes(b"\xff" * file.stat().st_size)


async def _reload(world: World, incident: Incident, running: Mapping[Process, Exporter], reload: Reload) -> None:
    """Reload the configuration of all processes at the same time."""

    async def reload_process(process: Process, exporter: Exporter) -> None:
        settings = incident.configured(world.settings, process, world.clock.monotonic())
        with suppress(ConfigError):
            await exporter.reloader(_ReloadLoader(settings, reload)).reload()

    await asyncio.gather(*(reload_process(*item) for item in running.items() if reload.affects(item[0])))


class _ReloadLoader(StaticLoader):
    def __init__(self, settings: Settings, reload: Reload) -> None:
        super().__init__(settings)
        self._reload = reload

    def load(self) -> Settings:
        if self._reload.invalid:
            raise ConfigError([Problem(file, (), "invalid file") for file in self._reload.invalid_space_files])
        settings = super().load()
        first, *others = settings.accounts
        spaces = [replace(space, **self._reload.keys) for space in first.spaces or []]
        changed = first.model_copy(update={"spaces": spaces} if spaces else {})
        return settings.model_copy(update={"accounts": [changed, *others]})

    def space_files(self) -> Mapping[str, bool]:
        return dict.fromkeys(self._reload.invalid_space_files, False)


async def _compete(world: World, competitor: Competitor | None) -> None:
    if competitor is None:
        return
    await asyncio.sleep(competitor.at)
    while world.clock.monotonic() < competitor.at + competitor.lasts:
        world.send_competing_request()
        await asyncio.sleep(1 / competitor.qps)


def _scrape(incident: Incident, process: Process, now: float, running: Exporter | None) -> dict[str, str]:
    """Return the samples of a scrape by series, with `up`, which Prometheus adds."""
    target = incident.target(process, now)
    outage = incident.outage(process, now)
    if outage and outage.moves:
        return {}
    samples = {f"up{{{target}}}": str(int(running is not None))}
    if running:
        for line in b"".join(running.exposition(openmetrics=False)).decode().splitlines():
            if line.startswith("chatapp_"):
                series, _, value = line.rpartition(" ")
                name, _, labels = series.partition("{")
                labels = labels.removesuffix("}").removesuffix(",")
                samples[f"{name}{{{labels}{labels and ','}{target}}}"] = value.removeprefix("+")
    return samples


def _to_series(scrapes: list[Mapping[str, str]]) -> Series:
    """Convert scrapes to series. A series that a scrape no longer has is marked stale, as in Prometheus."""
    names = dict.fromkeys(name for scrape in scrapes for name in scrape)
    recorded: Series = {name: [] for name in names}
    for name, values in recorded.items():
        previous = False
        for scrape in scrapes:
            values.append(scrape.get(name) or ("stale" if previous else "_"))
            previous = name in scrape
    return recorded


def promtool_test(
    incident: Incident, world: World, series: Series, rules: Path = RULES, *, evaluation_minutes: int = 1
) -> dict[str, Any]:
    """Return a document for `promtool test rules`, which compares all firing alerts after each evaluation."""
    spans = [
        replace(span, slack=span.slack + 2 * (evaluation_minutes - 1) * MINUTE)
        for span in expected_spans(incident, world)
    ]
    minutes = incident.minutes[::evaluation_minutes]
    return promtool_document(
        input_series(series),
        rules,
        evaluation_minutes=evaluation_minutes,
        promql_expr_test=[_firing_test(minute, spans) for minute in minutes],
        alert_rule_test=[
            _alert_test(alert, world, rules)
            for alert in incident.firing
            if alert.description and evaluation_minutes == 1
        ],
    )


def promtool_document(
    inputs: Sequence[Mapping[str, str]],
    rules: Path | None = RULES,
    *,
    evaluation_minutes: int = 1,
    **tests: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return a document for `promtool test rules` with one sample per minute. `tests` are its `promql_expr_test` and
    `alert_rule_test`."""
    return {
        "rule_files": [str(rules)] if rules else [],
        "evaluation_interval": f"{evaluation_minutes}m",
        "group_eval_order": GROUPS if rules else [],
        "tests": [{"interval": "1m", "input_series": list(inputs), **tests}],
    }


def query_test(query: str, time: str, samples: Iterable[tuple[str, float]]) -> dict[str, Any]:
    """Return a `promql_expr_test`: the query must return exactly these samples. Each has a name with labels, and a
    value."""
    return {
        "expr": query,
        "eval_time": time,
        "exp_samples": [{"labels": labels, "value": value} for labels, value in samples],
    }


def written_series(series: Mapping[str, str]) -> list[dict[str, str]]:
    """Return series with values in promtool's notation in the input format of promtool."""
    return [{"series": name, "values": values} for name, values in series.items()]


def input_series(series: Series) -> list[dict[str, str]]:
    """Return the series in the input format of promtool."""
    return [{"series": name, "values": _compressed(values)} for name, values in series.items()]


def _compressed(values: list[str]) -> str:
    """Write repeated values as `1+0x5`. promtool does not accept this notation for Inf and stale markers."""
    parts: list[str] = []
    start = 0
    for end in range(1, len(values) + 1):
        if end < len(values) and values[end] == values[start]:
            continue
        length, value = end - start, values[start]
        if value == "_" or length == 1 or "Inf" in value or value == "stale":
            parts += [f"_x{length}"] if value == "_" else [value] * length
        else:
            parts.append(f"{value}+0x{length - 1}")
        start = end
    return " ".join(parts)


def expected_spans(incident: Incident, world: World) -> list[Span]:
    """Return one span for each expected alert."""
    default_slack = world.settings.accounts[0].poll_interval + 2 * MINUTE
    return [
        Span(labels, firing.since, firing.until, default_slack if firing.slack is None else firing.slack)
        for firing in incident.firing
        for labels in _alert_labels(firing, world)
    ]


def _alert_labels(firing: Firing, world: World) -> Iterator[dict[str, str]]:
    """Yield the labels of each expected alert: one alert per phone number or space, or a single alert."""
    base = {"alertname": firing.alert, "job": JOB, **firing.labels}
    if not firing.spaces:
        yield base
    for position in firing.spaces:
        account = firing.labels.get("account", _ACCOUNT_NAMES[0])
        space = world.api.fleet.spaces[account][position - 1]
        labels = {**base, "account": account, "space": space.id}
        for number in firing.numbers:
            yield {**labels, "phone_number": str(space.numbers[number - 1]["PhoneNumber"])}
        if not firing.numbers:
            yield labels


def _firing_test(minute: int, spans: list[Span]) -> dict[str, Any]:
    """Return a test of all firing alerts in this minute. Alerts within their slack may fire or not."""
    now = minute * MINUTE
    required = {span.selector for span in spans if span.since + span.slack <= now < span.until}
    may_fire = [span for span in spans if span.since <= now < span.until + span.slack]
    optional = {span.exact_selector for span in may_fire if span.selector not in required}
    expression = FIRING
    if optional:
        expression += f" unless on ({_IDENTITY}) ({' or '.join(f'ALERTS{labels}' for labels in sorted(optional))})"
    return {
        "expr": expression,
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": labels, "value": 1} for labels in sorted(required)],
    }


def _alert_test(firing: Firing, world: World, rules: Path) -> dict[str, Any]:
    """Return a test of all labels and annotations of an alert."""
    groups = yaml.safe_load(rules.read_text())["groups"]
    rule = next(rule for group in groups for rule in group["rules"] if rule.get("alert") == firing.alert)
    labels = next(_alert_labels(firing, world))
    del labels["alertname"]
    labels |= {name: value for name in ("instance", "team") if (value := getattr(firing, name))}
    checked_at = (firing.since + firing.until) / 2 if firing.checked_at is None else firing.checked_at
    annotations = {**rule["annotations"], "description": firing.description}
    annotations["dashboard_url"] = expanded_url(annotations["dashboard_url"], {"job": JOB, **labels})
    return {
        "eval_time": f"{int(checked_at // MINUTE)}m",
        "alertname": firing.alert,
        "exp_alerts": [
            {
                "exp_labels": {**labels, **rule["labels"]},
                "exp_annotations": annotations,
            }
        ],
    }


def expanded_url(template: str, labels: Mapping[str, str]) -> str:
    """Return the URL with the values of these labels or their defaults, as Prometheus expands it."""
    label = re.compile(r'{{ (?:or )?\$labels\.(?P<name>\w+)(?: "(?P<default>[^"]+)")? \| urlquery }}')
    return label.sub(lambda match: quote_plus(labels.get(match["name"], match["default"])), template)


def evaluated_at_intervals(groups: list[Any]) -> list[Any]:
    """Return groups without `interval`, which promtool 2.42 ignores. Their rules have results only at the interval."""
    return [
        {"name": group["name"], "rules": [_at_interval(rule, group.get("interval")) for rule in group["rules"]]}
        for group in groups
    ]


def _at_interval(rule: dict[str, Any], interval: str | None) -> dict[str, Any]:
    if interval is None or parse_duration(interval) <= LOOKBACK:  # the last result is visible until the next one
        return rule
    return {**rule, "expr": f"({rule['expr']}) and on () vector(time()) % {parse_duration(interval):g} == 0"}


def run_promtool(test: Mapping[str, Any], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run `promtool test rules`. The exit status is 0 if all tests pass."""
    rules = directory / "evaluated.rules.yml"
    groups = [group for file in test["rule_files"] for group in yaml.safe_load(Path(file).read_text())["groups"]]
    rules.write_text(yaml.dump({"groups": evaluated_at_intervals(groups)}, Dumper=yaml.CSafeDumper, sort_keys=False))
    test = {**test, "rule_files": [str(rules)]}
    document = directory / "test.yml"
    document.write_text(yaml.dump(test, Dumper=yaml.CSafeDumper, sort_keys=False, width=100_000))
    promtool = require_program("promtool", package="prometheus")
    return subprocess.run([promtool, "test", "rules", document], capture_output=True, text=True, check=False)
