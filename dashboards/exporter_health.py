"""Exporter dashboard: budget, schedule, failures, age of the values and resource usage."""

from dashboards.panels import (
    BAD,
    EXPORTER,
    WARNING,
    DashboardBuilder,
    Panel,
    count_panel,
    dashed,
    range_query,
    table_panel,
    table_query,
    time_series,
)

ACCOUNTS = 'job=~"$job",account=~"$account"'
JOB = 'job=~"$job"'


def exporter_health() -> DashboardBuilder:
    """Return the Exporter dashboard."""
    builder = DashboardBuilder(
        "ChatApp / Exporter",
        EXPORTER,
        "Health of the exporter: budget, polls, failures, age of the values and resource usage.",
    )
    _state(builder)
    builder.add_row("Budget")
    builder.add_panels(_budget(), _throttled(), height=8)
    builder.add_row("Schedule")
    builder.add_panels(_intervals(), _delay(), height=8)
    builder.add_row("Failures and age of the values")
    builder.add_panels(_failures(), _codes(), height=8)
    builder.add_panels(_age(), _unknown(), height=8)
    builder.add_row("Resource usage")
    builder.add_panels(_scrapes(), _samples(), _cpu(), _memory(), height=7)
    return builder


def _state(builder: DashboardBuilder) -> None:
    states = f'account_state:chatapp_account_state:last{{{ACCOUNTS},state=~"denied|unreachable"}}'
    accounts_down = f"count(max by (job, account) ({states}) == 1) or vector(0)"
    down = f"count(up{{{JOB}}} == 0) or vector(0)"
    failing = f'count(max by (account, space) (chatapp_space_up{{{ACCOUNTS},space=~"$space"}}) == 0) or vector(0)'
    reload = f"count(chatapp_exporter_config_last_reload_successful{{{JOB}}} == 0) or vector(0)"
    builder.add_panels(
        count_panel("Exporters down", "Scrape targets of the job that Prometheus cannot scrape.", down, BAD),
        count_panel(
            "Accounts denied or unreachable",
            "Denied: the API does not accept the access key, permission, subscription or system time."
            " Unreachable: no usable response from the API.",
            accounts_down,
            BAD,
        ),
        count_panel(
            "Spaces failing",
            "Spaces whose last poll failed, that were not polled yet, or whose values are older than max_age.",
            failing,
            BAD,
        ),
        count_panel(
            "Config errors",
            "Exporters whose last configuration reload failed, or whose web configuration has errors."
            " They keep the current configuration.",
            reload,
            WARNING,
        ),
        height=4,
    )


def _budget() -> Panel:
    panel = time_series(
        "Requests and budget",
        "Queries per second of each account. Sent: requests to the API. Budget: the configured qps."
        " Current budget: the budget, or less after throttling. Needed: required by poll_interval.",
        "reqps",
        range_query(
            f"sum by (account) (rate(chatapp_api_requests_total{{{ACCOUNTS}}}[$__rate_interval]))", "{{account}} sent"
        ),
        range_query(f"sum by (account) (chatapp_account_qps_limit{{{ACCOUNTS}}})", "{{account}} budget", ref="B"),
        range_query(
            f"sum by (account) (chatapp_account_qps_current{{{ACCOUNTS}}})", "{{account}} current budget", ref="C"
        ),
        range_query(f"sum by (account) (chatapp_account_qps_needed{{{ACCOUNTS}}})", "{{account}} needed", ref="D"),
        no_value="No requests",
    )
    return dashed(panel, "(budget|current budget)")


def _throttled() -> Panel:
    return time_series(
        "Throttled requests",
        "Requests per second that the API throttled.",
        "reqps",
        range_query(
            f"sum by (account) (rate(chatapp_api_throttled_total{{{ACCOUNTS}}}[$__rate_interval]))", "{{account}}"
        ),
        no_value="No accounts",
    )


def _intervals() -> Panel:
    panel = time_series(
        "Poll interval",
        "Time between two polls of a space: configured and effective."
        " The effective interval is longer if budget, latency or throttling require it.",
        "s",
        range_query(
            f"max by (account) (chatapp_account_poll_interval_seconds{{{ACCOUNTS}}})", "{{account}} configured"
        ),
        range_query(
            f"max by (account) (chatapp_account_effective_poll_interval_seconds{{{ACCOUNTS}}})",
            "{{account}} effective",
            ref="B",
        ),
        no_value="No accounts",
    )
    return dashed(panel, "configured")


def _delay() -> Panel:
    buckets = f"sum by (account, le) (rate(chatapp_poll_delay_seconds_bucket{{{ACCOUNTS}}}[$__rate_interval]))"
    return time_series(
        "Poll delay",
        "Time between the due time of a poll and its first request: median and 95th percentile.",
        "s",
        range_query(f"histogram_quantile(0.5, {buckets})", "{{account}} median"),
        range_query(f"histogram_quantile(0.95, {buckets})", "{{account}} 95th percentile", ref="B"),
        no_value="No polls",
    )


def _failures() -> Panel:
    failures = f'chatapp_space_poll_failures_total{{{ACCOUNTS},space=~"$space"}}'
    return time_series(
        "Failed polls by reason",
        "Failed polls per second, by reason.",
        "cps",
        range_query(f"sum by (reason) (rate({failures}[$__rate_interval]))", "{{reason}}"),
        no_value="No failed polls",
    )


def _codes() -> Panel:
    requests = f"chatapp_api_requests_total{{{ACCOUNTS}}}"
    return time_series(
        "Requests by response code",
        "API requests per second, by the response code of the API or by the kind of failure.",
        "reqps",
        range_query(f"sum by (code) (rate({requests}[$__rate_interval]))", "{{code}}"),
        no_value="No requests",
    )


def _age() -> Panel:
    since = f'space:chatapp_space_seconds_since_success:min{{{ACCOUNTS},space=~"$space"}}'
    return time_series(
        "Age of the values",
        "Time since the last successful poll: maximum and median over the spaces of each account.",
        "s",
        range_query(f"max by (account) ({since})", "{{account}} maximum"),
        range_query(f"quantile by (account) (0.5, {since})", "{{account}} median", ref="B"),
        no_value="No spaces",
    )


def _unknown() -> Panel:
    return table_panel(
        "Unknown values in API responses",
        "Values that this exporter version does not know, counted at every poll since the exporter started."
        " Value missing: the API no longer reports the field of a phone number.",
        table_query(f"sum by (field, value) (chatapp_api_unknown_values_total{{{JOB}}})"),
        columns={"field": "Field", "value": "Value", "Value": "Count"},
        no_value="No unknown values",
    )


def _scrapes() -> Panel:
    return time_series(
        "Scrape duration",
        "Duration of a scrape of the exporter.",
        "s",
        range_query(f"scrape_duration_seconds{{{JOB}}}", "{{instance}}"),
        no_value="No scrapes",
    )


def _samples() -> Panel:
    return time_series(
        "Samples per scrape",
        "Number of samples in a scrape.",
        "short",
        range_query(f"scrape_samples_scraped{{{JOB}}}", "{{instance}}"),
        no_value="No scrapes",
    )


def _cpu() -> Panel:
    return time_series(
        "CPU usage",
        "CPU time per second (100 % = one core).",
        "percentunit",
        range_query(f"rate(process_cpu_seconds_total{{{JOB}}}[$__rate_interval])", "{{instance}}"),
        no_value="No scrapes",
    )


def _memory() -> Panel:
    return time_series(
        "Memory",
        "Resident memory of the exporter process.",
        "bytes",
        range_query(f"process_resident_memory_bytes{{{JOB}}}", "{{instance}}"),
        no_value="No scrapes",
    )
