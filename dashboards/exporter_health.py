"""Exporter dashboard: state, accounts, budget, schedule, failures, age of the values, files and resource usage."""

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.builders import table, timeseries
from grafana_foundation_sdk.models import common, dashboard

from dashboards.panels import (
    BAD,
    EXPORTER,
    EXPORTERS,
    FLEET,
    GOOD,
    INFO,
    NO_DATA,
    WARNING,
    DashboardBuilder,
    Panel,
    Query,
    colored_text,
    column_width,
    count_or_zero,
    count_panel,
    dashed,
    data_links,
    exact_increase,
    failed_polls,
    note,
    override,
    range_query,
    relative_time,
    table_panel,
    table_query,
    time_series,
    to_dashboard,
    to_runbook,
    to_status_page,
    value_mappings,
)

ACCOUNTS = 'job=~"$job",account=~"$account"'
SPACES = f'{ACCOUNTS},space=~"$space"'
JOB = 'job=~"$job"'
_SELECTED_EXPORTERS = f"and on (job, instance) {EXPORTERS}"
_NO_EXPORTER = "No data: exporter missing"
_NO_POLLS = "No data: no polls in the time range"
_MAX_LINES, _MAX_ROWS = 10, 100
_AT_MOST = f" At most {_MAX_LINES} accounts, highest maximum first."
_UP = {"0": ("down", BAD), "1": ("up", GOOD)}
_STATES = {"ok": GOOD, "throttled": WARNING, "denied": BAD, "unreachable": BAD, "not polled": BAD}


def exporter_health() -> DashboardBuilder:
    """Return the Exporter dashboard."""
    builder = DashboardBuilder(
        "ChatApp / Exporter",
        EXPORTER,
        "Health of the exporter: accounts, budget, polls, failures, age of the values, files and resource usage.",
    )
    counts = _exporters_down(), _accounts_down(), _spaces_failing(), _config_errors(), _file_errors(), _clock_skew()
    builder.add_panels(*counts, height=4)
    builder.add_panels(_exporters(), height=6)
    builder.add_panels(_accounts(), height=9)
    builder.add_row("Age of the values, and failures")
    builder.add_panels(_age_in_intervals(), _age(), height=9)
    builder.add_panels(_failed_polls(), _failures(), _codes(), height=9)
    builder.add_row("Budget and latency")
    builder.add_panels(_budget(), _budget_use(), height=9)
    builder.add_panels(_throttled(), _latency(), height=9)
    builder.add_row("Schedule and queue")
    builder.add_panels(_intervals(), _due_spaces(), _delay(), height=9)
    builder.add_row("Discovery, files and unknown values")
    builder.add_panels(_discovery(), _files(), _state_file_failures(), _unknown(), height=8, widths=(5, 8, 6, 5))
    builder.add_row("Resource usage")
    builder.add_panels(_scrapes(), _samples(), _cpu(), _memory(), height=9)
    return builder


def _highest(expression: str, labels: str = "account") -> str:
    """Return a query for the series of `expression` with the highest maxima of the time range."""
    maximum = f"max_over_time(({expression})[$__range:$__interval] @ end())"
    return f"({expression}) and on ({labels}) topk({_MAX_LINES}, {maximum})"


def _graph(title: str, description: str, unit: str, *queries: Query, no_value: str) -> timeseries.Panel:
    """Return a graph whose legend is a table, highest maximum first."""
    description = f"{description} Last: the last value in the time range."
    panel = time_series(title, description, unit, *queries, no_value=no_value)
    legend = common_builders.VizLegendOptions().show_legend(True).display_mode(common.LegendDisplayMode.TABLE)
    legend = legend.placement(common.LegendPlacement.BOTTOM).calcs(["lastNotNull", "max"])
    return panel.legend(legend.sort_by("Max").sort_desc(True)).fill_opacity(0)


def _exporters_down() -> Panel:
    targets = f"up{{{JOB}}} {_SELECTED_EXPORTERS}"
    return count_panel(
        "Exporters down",
        "Targets that Prometheus cannot scrape now, and that were exporters in the last 7 days.",
        count_or_zero(f"({targets}) == 0", targets),
        BAD,
        no_value="No data: no target in Prometheus",
    )


def _accounts_down() -> Panel:
    return count_panel(
        "Accounts down",
        "Accounts that are denied, unreachable, or not polled by any exporter. Denied: the API does not accept the"
        " access key, permission, subscription or system time. Unreachable: no usable response from the API.",
        count_or_zero(
            f"account:chatapp_account_down:group{{{ACCOUNTS}}}", f"account:chatapp_account_up:last{{{ACCOUNTS}}}"
        ),
        BAD,
    )


def _spaces_failing() -> Panel:
    space_up = f"max by (job, account, space) (chatapp_space_up{{{SPACES}}})"
    return count_panel(
        "Spaces failing",
        "Spaces whose last poll failed, that were not polled yet, or whose values are older than max_age. Spaces"
        " of exporters that are down are not counted.",
        count_or_zero(f"{space_up} == 0", space_up),
        BAD,
        no_value=_NO_EXPORTER,
    )


def _config_errors() -> Panel:
    reload = f"chatapp_exporter_config_last_reload_successful{{{JOB}}}"
    return count_panel(
        "Config errors",
        "Exporters whose last configuration reload failed, or whose web configuration has errors."
        " They keep the current configuration.",
        count_or_zero(f"{reload} == 0", reload),
        WARNING,
        no_value=_NO_EXPORTER,
    )


def _file_errors() -> Panel:
    files = f"(chatapp_exporter_space_file_up{{{JOB}}} or chatapp_exporter_state_file_up{{{JOB}}})"
    return count_panel(
        "File errors",
        "Space files with errors, and state files that the exporter cannot write.",
        count_or_zero(f"{files} == 0", files),
        WARNING,
        no_value="No data: no files, or exporter missing",
    )


def _clock_skew() -> Panel:
    return count_panel(
        "Clock skew",
        "Largest difference between the clock of an exporter and the clock of Prometheus.",
        f"max(abs(instance:chatapp_exporter_time_seconds:offset{{{JOB}}}))",
        INFO,
    ).unit("s")


def _exporters() -> Panel:
    by = "job, instance"

    def by_instance(expression: str, ref: str, labels: str = by) -> Query:
        return table_query(f"max by ({labels}) ({expression})", ref=ref)

    version = f"chatapp_exporter_build_info{{{JOB}}}"
    last_version = f"max_over_time(timestamp({version})[7d:5m])"
    process = f"{{{JOB}}} {_SELECTED_EXPORTERS}"
    panel = table_panel(
        "Exporters",
        "Targets that are exporters, or were exporters in the last 7 days and are down.",
        by_instance(f"up{process}", "A"),
        by_instance(f"{version} or on (job, instance) topk by ({by}) (1, {last_version})", "B", f"{by}, version"),
        by_instance(f"time() - process_start_time_seconds{process}", "C"),
        by_instance(f"1000 * chatapp_exporter_config_last_reload_success_timestamp_seconds{{{JOB}}}", "D"),
        by_instance(f"instance:chatapp_exporter_time_seconds:offset{{{JOB}}}", "E"),
        columns={
            "job": "Job",
            "instance": "Instance",
            "Value #A": "State",
            "version": "Version",
            "Value #C": "Uptime",
            "Value #D": "Configuration loaded",
            "Value #E": "Clock behind Prometheus",
        },
        no_value="No exporters in the last 7 days",
    )
    return _exporter_columns(panel)


def _exporter_columns(panel: table.Panel) -> Panel:
    panel = panel.override_by_name("State", colored_text(_UP)).override_by_name(
        "Instance", data_links(("Open status page", to_status_page("Instance")))
    )
    for column in ("Uptime", "Clock behind Prometheus"):
        panel = panel.override_by_name(column, [override("unit", "s"), override("noValue", "–")])
    return panel.override_by_name("Configuration loaded", relative_time()).override_by_name(
        "Version", [override("noValue", "–")]
    )


_AGES_OF_SPACES = f"space:chatapp_space_seconds_since_success:min{{{SPACES}}}"
_INTERVAL = f"account:chatapp_account_effective_poll_interval_seconds:last{{{ACCOUNTS}}}"
_OLDEST = f"max by (job, account) ({_AGES_OF_SPACES})"
_AGES = f"({_OLDEST} / on (job, account) {_INTERVAL})"
_UNPOLLED = f"account:chatapp_account_unpolled:group{{{ACCOUNTS}}}"


def _accounts() -> Panel:
    rows = f"topk({_MAX_ROWS}, {_AGES})"
    state = (
        f'label_replace({_UNPOLLED}, "state", "not polled", "", "")'
        f" or on (job, account) account_state:chatapp_account_state:last{{{ACCOUNTS}}} == 1"
    )
    states = f"max by (job, account, state) (topk by (job, account) (1, {state}))"
    values = dict(zip("CDEFGHIJKLM", _account_values().items(), strict=True))
    panel = table_panel(
        "Accounts",
        f"Accounts, oldest values first (at most {_MAX_ROWS}). Interval: the effective poll interval. A space whose"
        " values are older than 3 intervals is blind. Failed polls, throttled requests and latency: of the last hour,"
        " if an exporter polls the account.",
        table_query(rows),
        table_query(f"({states}) and on (job, account) {rows}", ref="B"),
        *(table_query(f"({value}) and on (job, account) {rows}", ref=ref) for ref, (_, value) in values.items()),
        table_query(note(_AGES, "note", _OLDEST, NO_DATA, max_rows=_MAX_ROWS), ref="N"),
        columns={
            "account": "Account",
            "state": "State",
            "Value #A": "Age / interval",
            **{f"Value #{ref}": column for ref, (column, _) in values.items()},
            "note": "Note",
        },
        no_value=NO_DATA,
        sort_by="Value #A",
    )
    return _account_columns(panel)


def _account_values() -> dict[str, str]:
    """Return the queries of the columns by column heading, with one value for each account."""
    by = "by (job, account)"

    def of_last_hour(query: str) -> str:
        return f"{query} unless on (job, account) {_UNPOLLED}"

    requests = f"sum {by} (increase(chatapp_api_requests_total{{{ACCOUNTS}}}[1h]))"
    throttled = f"sum {by} (increase(chatapp_api_throttled_total{{{ACCOUNTS}}}[1h]))"
    latency = f"sum by (job, account, le) (increase(chatapp_api_request_duration_seconds_bucket{{{ACCOUNTS}}}[1h]))"
    return {
        "Oldest values": _OLDEST,
        "Interval": f"max {by} ({_INTERVAL})",
        "Configured": f"max {by} (chatapp_account_poll_interval_seconds{{{ACCOUNTS}}})",
        "Spaces": f"max {by} (chatapp_account_spaces{{{ACCOUNTS}}}) or count {by} ({_AGES_OF_SPACES})",
        "Due spaces": f"sum {by} (chatapp_account_due_spaces{{{ACCOUNTS}}})",
        "Failed polls": of_last_hour(_failed_share("job, account", "1h")),
        "Throttled": of_last_hour(f"{throttled} / ({requests} > 0)"),
        "Needed": f"sum {by} (chatapp_account_qps_needed{{{ACCOUNTS}}})",
        "Budget now": f"sum {by} (chatapp_account_qps_current{{{ACCOUNTS}}})",
        "Budget": f"sum {by} (chatapp_account_qps_limit{{{ACCOUNTS}}})",
        "Latency 95 %": of_last_hour(f"histogram_quantile(0.95, {latency}) >= 0"),
    }


def _account_columns(panel: table.Panel) -> Panel:
    panel = panel.override_by_name(
        "Account",
        data_links(
            ("Select this account", to_dashboard(EXPORTER, account="Account")),
            ("Open Fleet", to_dashboard(FLEET, account="Account")),
            ("Runbook: account denied", to_runbook("ChatAppAccountDenied")),
            ("Runbook: account unreachable", to_runbook("ChatAppAccountUnreachable")),
        ),
    )
    panel = panel.override_by_name("State", colored_text({state: (state, color) for state, color in _STATES.items()}))
    units = {
        "s": ("Oldest values", "Interval", "Configured", "Latency 95 %"),
        "percentunit": ("Failed polls", "Throttled"),
        "reqps": ("Needed", "Budget now", "Budget"),
        "none": ("Age / interval", "Spaces", "Due spaces"),
    }
    for unit, columns in units.items():
        for column in columns:
            panel = panel.override_by_name(column, [override("unit", unit), override("noValue", "–")])
    panel = panel.override_by_name("Note", [column_width(250)])
    return panel.override_by_name("Age / interval", [override("decimals", 1)])


def _age_in_intervals() -> Panel:
    age = f"max by (account) ({_OLDEST} / on (job, account) {_INTERVAL})"
    panel = _graph(
        "Age of the values in poll intervals",
        "Time since the last successful poll, divided by the effective poll interval: the space with the oldest values"
        f" of each account. Above the line at 3, the space is blind.{_AT_MOST}",
        "none",
        range_query(_highest(age), "{{account}}"),
        no_value=NO_DATA,
    )
    steps = [dashboard.Threshold(None, "transparent"), dashboard.Threshold(3, BAD)]
    panel = panel.thresholds(board.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
    line = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
    return panel.thresholds_style(line).axis_soft_max(3.5).decimals(1)


def _age() -> Panel:
    return _graph(
        "Age of the values",
        "Time since the last successful poll: the space with the oldest values of each account, and the median of all"
        f" spaces.{_AT_MOST}",
        "s",
        range_query(_highest(f"max by (account) ({_AGES_OF_SPACES})"), "{{account}}"),
        range_query(f"quantile(0.5, {_AGES_OF_SPACES})", "median of all spaces", ref="B"),
        no_value=NO_DATA,
    )


def _failed_share(labels: str, window: str) -> str:
    polls = f"sum by ({labels}) ({exact_increase(f'chatapp_space_polls_total{{{SPACES}}}', window)})"
    failures = f"sum by ({labels}) ({failed_polls(SPACES, window)})"
    # without failures, a space has no series of failed polls
    return f"clamp_max(({failures} or 0 * {polls}) / ({polls} > 0), 1)"


def _failed_polls() -> Panel:
    share = _failed_share("account", "$__rate_interval")
    # evaluated once: the highest values at all times would read the polls of all spaces again for each point
    highest = f"topk({_MAX_LINES}, max_over_time({_failed_share('account', '$__range')}[1s:1s] @ end()))"
    panel = _graph(
        "Failed polls",
        "Failed polls as a share of all polls of an account."
        f" At most {_MAX_LINES} accounts: those with the highest share in the time range.",
        "percentunit",
        range_query(f"{share} and on (account) {highest}", "{{account}}"),
        no_value=_NO_POLLS,
    )
    # at most 100 points, because each point reads the polls of all spaces
    return panel.max(1).max_data_points(100)


def _failures() -> Panel:
    failures = f"sum by (reason) ({failed_polls(SPACES, '$__rate_interval')})"
    polls = f"sum({exact_increase(f'chatapp_space_polls_total{{{SPACES}}}', '$__rate_interval')}) > 0"
    panel = _graph(
        "Failed polls by reason",
        "Failed polls as a share of all polls, by reason.",
        "percentunit",
        range_query(f"clamp_max({failures} / on () group_left () ({polls}), 1)", "{{reason}}"),
        no_value="No failed polls, or no data",
    )
    return panel.max(1).max_data_points(100)


def _codes() -> Panel:
    requests = f"chatapp_api_requests_total{{{ACCOUNTS}}}"
    return _graph(
        "Requests by response code",
        "API requests per second, by the response code of the API or by the kind of failure.",
        "reqps",
        range_query(_highest(f"sum by (code) (rate({requests}[$__rate_interval]))", "code"), "{{code}}"),
        no_value="No data: no requests in the time range",
    )


def _budget() -> Panel:
    panel = _graph(
        "Requests and budget",
        "Queries per second of the selected accounts together. Sent: requests to the API. Budget: the configured qps."
        " Current budget: the budget, or less after throttling. Needed: required by poll_interval.",
        "reqps",
        range_query(f"sum(rate(chatapp_api_requests_total{{{ACCOUNTS}}}[$__rate_interval]))", "sent"),
        range_query(f"sum(chatapp_account_qps_limit{{{ACCOUNTS}}})", "budget", ref="B"),
        range_query(f"sum(chatapp_account_qps_current{{{ACCOUNTS}}})", "current budget", ref="C"),
        range_query(f"sum(chatapp_account_qps_needed{{{ACCOUNTS}}})", "needed", ref="D"),
        no_value=_NO_EXPORTER,
    )
    return dashed(panel, "(budget|current budget)")


def _budget_use() -> Panel:
    sent = f"sum by (account) (rate(chatapp_api_requests_total{{{ACCOUNTS}}}[$__rate_interval]))"
    return _graph(
        "Use of the current budget",
        f"Requests to the API as a share of the current budget.{_AT_MOST}",
        "percentunit",
        range_query(_highest(f"{sent} / sum by (account) (chatapp_account_qps_current{{{ACCOUNTS}}})"), "{{account}}"),
        no_value=_NO_EXPORTER,
    )


def _throttled() -> Panel:
    throttled = f"sum by (account) (rate(chatapp_api_throttled_total{{{ACCOUNTS}}}[$__rate_interval]))"
    sent = f"sum by (account) (rate(chatapp_api_requests_total{{{ACCOUNTS}}}[$__rate_interval])) > 0"
    return _graph(
        "Throttled requests",
        f"Requests that the API throttled, as a share of all requests.{_AT_MOST}",
        "percentunit",
        range_query(_highest(f"{throttled} / ({sent})"), "{{account}}"),
        no_value="No data: no requests in the time range",
    ).max(1)


def _percentiles(title: str, description: str, metric: str, of_all: str, no_value: str) -> Panel:
    """Return a graph of the 95th percentile of each account, and of the median of all accounts."""
    buckets = f"rate({metric}_bucket{{{ACCOUNTS}}}[$__rate_interval])"
    return _graph(
        title,
        f"{description}: 95th percentile of each account, and median of all {of_all}.{_AT_MOST}",
        "s",
        range_query(_highest(f"histogram_quantile(0.95, sum by (account, le) ({buckets})) >= 0"), "{{account}} 95 %"),
        range_query(f"histogram_quantile(0.5, sum by (le) ({buckets}))", f"median of all {of_all}", ref="B"),
        no_value=no_value,
    )


def _latency() -> Panel:
    return _percentiles(
        "API latency",
        "Duration of requests to the API, successful or failed",
        "chatapp_api_request_duration_seconds",
        "requests",
        "No data: no requests in the time range",
    )


def _intervals() -> Panel:
    effective = f"max by (account) (chatapp_account_effective_poll_interval_seconds{{{ACCOUNTS}}})"
    configured = f"max by (account) (chatapp_account_poll_interval_seconds{{{ACCOUNTS}}})"
    return _graph(
        "Poll interval",
        "Effective time between two polls of a space, divided by poll_interval. Above 1, budget, latency or throttling"
        f" require a longer interval.{_AT_MOST}",
        "none",
        range_query(_highest(f"{effective} / {configured}"), "{{account}}"),
        no_value=_NO_EXPORTER,
    ).decimals(2)


def _due_spaces() -> Panel:
    return _graph(
        "Due spaces",
        f"Queue of each account: spaces that wait for the budget, or whose poll is in progress.{_AT_MOST}",
        "short",
        range_query(_highest(f"sum by (account) (chatapp_account_due_spaces{{{ACCOUNTS}}})"), "{{account}}"),
        no_value=_NO_EXPORTER,
    ).axis_soft_max(4)


def _delay() -> Panel:
    return _percentiles(
        "Poll delay",
        "Time between the due time of a poll and its first request",
        "chatapp_poll_delay_seconds",
        "polls",
        _NO_POLLS,
    )


def _note_on(rows: str) -> Query:
    """Return the query of a row with a text instead of an empty list."""
    return table_query(note(rows, "note", f"chatapp_exporter_build_info{{{JOB}}}", _NO_EXPORTER), ref="B")


def _discovery() -> Panel:
    by = "by (job, account)"
    up = f"min {by} (chatapp_account_discovery_up{{{ACCOUNTS}}})"
    last = f"1000 * max {by} (chatapp_account_discovery_last_success_timestamp_seconds{{{ACCOUNTS}}})"
    states = (
        f'(label_replace({up} == 1, "state", "complete", "", "")'
        f' or on (job, account) label_replace(1 + {up}, "state", "failing", "", ""))'
    )
    panel = table_panel(
        "Discovery",
        "Accounts that discover their spaces: result of the last attempt, and time of the last complete list.",
        table_query(f"({last} or 0 * {up}) * on (job, account) group_left (state) {states}"),
        _note_on(up),
        columns={"account": "Account", "state": "State", "Value #A": "Last complete list", "note": "Note"},
        no_value="–",
        sort_by="state",
    )
    panel = panel.override_by_name("State", colored_text({"complete": ("complete", GOOD), "failing": ("failing", BAD)}))
    never = override("mappings", [value_mappings({"0": ("never", BAD)})])
    return panel.override_by_name("Last complete list", [*relative_time(), never])


def _files() -> Panel:
    def files(metric: str, kind: str) -> str:
        state = f"1 - min by (job, instance, file) ({metric}{{{JOB}}})"
        return f'label_replace({state}, "kind", "{kind}", "", "")'

    spaces = files("chatapp_exporter_space_file_up", "space file")
    state = files("chatapp_exporter_state_file_up", "state file")
    panel = table_panel(
        "State file and space files",
        f"Files of each exporter, files with errors first (at most {_MAX_ROWS}).",
        table_query(f"topk({_MAX_ROWS}, {spaces} or {state})"),
        _note_on(f"({spaces} or {state})"),
        columns={"Value #A": "State", "kind": "Kind", "file": "File", "instance": "Instance", "note": "Note"},
        no_value="–",
        sort_by="Value #A",
    )
    panel = panel.override_by_name("Kind", [column_width(100)])
    states = colored_text({"0": ("ok", GOOD), "1": ("errors", BAD)})
    return panel.override_by_name("State", [*states, column_width(80)])


def _state_file_failures() -> Panel:
    failures = f"sum by (instance, file, reason) (chatapp_exporter_state_file_failures_total{{{JOB}}})"
    return table_panel(
        "Failures of the state file",
        "Failures to open, read or write the state file since the exporter started, by reason.",
        table_query(failures),
        _note_on(failures),
        columns={"reason": "Reason", "Value #A": "Count", "file": "File", "instance": "Instance", "note": "Note"},
        no_value="–",
        sort_by="Value #A",
    )


def _unknown() -> Panel:
    values = f"(sum by (field, value) (chatapp_api_unknown_values_total{{{JOB}}}) > 0)"
    panel = table_panel(
        "Unknown values in API responses",
        "Values that this exporter version does not know, counted at every poll since the exporter started."
        " The value `missing` counts fields that the API no longer reports.",
        table_query(values),
        _note_on(values),
        columns={"field": "Field", "value": "Value", "Value #A": "Count", "note": "Note"},
        no_value="–",
        sort_by="Value #A",
    )
    return panel.override_by_name("Count", [column_width(70)])


def _by_instance(title: str, description: str, unit: str, expression: str) -> Panel:
    """Return a graph with one line for each exporter."""
    selected = f"{expression} {_SELECTED_EXPORTERS}"
    return _graph(
        title,
        f"{description} At most {_MAX_LINES} exporters, highest maximum first.",
        unit,
        range_query(_highest(selected, "job, instance"), "{{instance}}"),
        no_value=_NO_EXPORTER,
    )


def _scrapes() -> Panel:
    return _by_instance(
        "Scrape duration", "Duration of a scrape of the exporter.", "s", f"scrape_duration_seconds{{{JOB}}}"
    )


def _samples() -> Panel:
    return _by_instance(
        "Samples per scrape", "Number of samples in a scrape.", "short", f"scrape_samples_scraped{{{JOB}}}"
    )


def _cpu() -> Panel:
    cpu = f"rate(process_cpu_seconds_total{{{JOB}}}[$__rate_interval])"
    return _by_instance("CPU usage", "CPU time per second (100 % = one core).", "percentunit", cpu)


def _memory() -> Panel:
    memory = f"process_resident_memory_bytes{{{JOB}}}"
    return _by_instance("Memory", "Resident memory of the exporter process.", "bytes", memory)
