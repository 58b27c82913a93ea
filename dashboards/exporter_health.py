"""Exporter: is it keeping up, what fails, how old is what it shows, and what does it cost."""

from dashboards.panels import BAD, EXPORTER, WARNING, Page, Panel, count, dashed, lines, listing, query, rows

ACCOUNTS = 'job=~"$job",account=~"$account"'
JOB = 'job=~"$job"'


def exporter_health() -> Page:
    """The dashboard."""
    page = Page("ChatApp / Exporter", EXPORTER, "The exporter itself: budget, polls, failures, freshness and cost.")
    page.choice("space", "Space", 'label_values(chatapp_space_up{job=~"$job",account=~"$account"}, space)')
    _state(page)
    page.section("Budget")
    page.lay(_budget(), _throttled(), height=8)
    page.section("Schedule")
    page.lay(_intervals(), _delay(), height=8)
    page.section("Failures and freshness")
    page.lay(_failures(), _codes(), height=8)
    page.lay(_age(), _unknown(), height=8)
    page.section("Cost")
    page.lay(_scrapes(), _samples(), _processor(), _memory(), height=7)
    return page


def _state(page: Page) -> None:
    states = f'account_state:chatapp_account_state:last{{{ACCOUNTS},state=~"denied|unreachable"}}'
    accounts_down = f"count(max by (job, account) ({states}) == 1) or vector(0)"
    down = f"count(up{{{JOB}}} == 0) or vector(0)"
    failing = f'count(max by (account, space) (chatapp_space_up{{{ACCOUNTS},space=~"$space"}}) == 0) or vector(0)'
    reload = f"count(chatapp_exporter_config_last_reload_successful{{{JOB}}} == 0) or vector(0)"
    page.lay(
        count("Exporters down", "Targets of the job that do not answer.", down, BAD),
        count("Accounts down", "Accounts that are denied or unreachable.", accounts_down, BAD),
        count("Spaces failing", "Spaces whose last poll failed, or that have no fresh value.", failing, BAD),
        count("Reload failed", "Exporters that go on with an old configuration.", reload, WARNING),
        height=4,
    )


def _budget() -> Panel:
    panel = lines(
        "Budget used and allowed",
        "Requests a second, and what all exporters allow themselves: as configured, and now, after throttling.",
        "reqps",
        query(
            f"sum by (account) (rate(chatapp_api_requests_total{{{ACCOUNTS}}}[$__rate_interval]))", "{{account}} used"
        ),
        query(f"sum by (account) (chatapp_account_qps_limit{{{ACCOUNTS}}})", "{{account}} limit", ref="B"),
        query(f"sum by (account) (chatapp_account_qps_current{{{ACCOUNTS}}})", "{{account}} current", ref="C"),
        query(f"sum by (account) (chatapp_account_qps_needed{{{ACCOUNTS}}})", "{{account}} needed", ref="D"),
        empty="No request was made",
    )
    return dashed(panel, "(limit|current)")


def _throttled() -> Panel:
    return lines(
        "Throttled",
        "Answers a second that said: too fast.",
        "reqps",
        query(f"sum by (account) (rate(chatapp_api_throttled_total{{{ACCOUNTS}}}[$__rate_interval]))", "{{account}}"),
        empty="No account is known",
    )


def _intervals() -> Panel:
    panel = lines(
        "Sweep: time between two polls of a space",
        "As configured, and as spaces and budget allow.",
        "s",
        query(f"max by (account) (chatapp_account_poll_interval_seconds{{{ACCOUNTS}}})", "{{account}} configured"),
        query(
            f"max by (account) (chatapp_account_effective_poll_interval_seconds{{{ACCOUNTS}}})",
            "{{account}} effective",
            ref="B",
        ),
        empty="No account is known",
    )
    return dashed(panel, "configured")


def _delay() -> Panel:
    buckets = f"sum by (account, le) (rate(chatapp_poll_delay_seconds_bucket{{{ACCOUNTS}}}[$__rate_interval]))"
    return lines(
        "Delay: how late polls start",
        "Half of the polls start sooner than the median, 1 in 20 later than the 95th percentile.",
        "s",
        query(f"histogram_quantile(0.5, {buckets})", "{{account}} median"),
        query(f"histogram_quantile(0.95, {buckets})", "{{account}} 95 %", ref="B"),
        empty="No poll was made",
    )


def _failures() -> Panel:
    failures = f'chatapp_space_poll_failures_total{{{ACCOUNTS},space=~"$space"}}'
    return lines(
        "Failed polls by reason",
        "Polls a second that failed.",
        "cps",
        query(f"sum by (reason) (rate({failures}[$__rate_interval]))", "{{reason}}"),
        empty="No poll has failed",
    )


def _codes() -> Panel:
    requests = f"chatapp_api_requests_total{{{ACCOUNTS}}}"
    return lines(
        "Answers by code",
        "HTTP attempts a second, by the API's Code, or by what happened instead.",
        "reqps",
        query(f"sum by (code) (rate({requests}[$__rate_interval]))", "{{code}}"),
        empty="No request was made",
    )


def _age() -> Panel:
    since = f'space:chatapp_space_seconds_since_success:min{{{ACCOUNTS},space=~"$space"}}'
    return lines(
        "Freshness",
        "Seconds since the last success: the oldest space of each account, and the median.",
        "s",
        query(f"max by (account) ({since})", "{{account}} oldest"),
        query(f"quantile by (account) (0.5, {since})", "{{account}} median", ref="B"),
        empty="No space is known",
    )


def _unknown() -> Panel:
    return listing(
        "Values that this version does not know",
        "Counted at every poll, since the exporter's start.",
        rows(f"sum by (field, value) (chatapp_api_unknown_values_total{{{JOB}}})"),
        columns={"field": "Field", "value": "Value", "Value": "Times seen"},
        empty="Every value is known",
    )


def _scrapes() -> Panel:
    return lines(
        "Scrape duration",
        "How long Prometheus waits for a scrape.",
        "s",
        query(f"scrape_duration_seconds{{{JOB}}}", "{{instance}}"),
        empty="Nothing is scraped",
    )


def _samples() -> Panel:
    return lines(
        "Samples of a scrape",
        "How many samples a scrape has.",
        "short",
        query(f"scrape_samples_scraped{{{JOB}}}", "{{instance}}"),
        empty="Nothing is scraped",
    )


def _processor() -> Panel:
    return lines(
        "Processor",
        "Share of one core.",
        "percentunit",
        query(f"rate(process_cpu_seconds_total{{{JOB}}}[$__rate_interval])", "{{instance}}"),
        empty="Nothing is scraped",
    )


def _memory() -> Panel:
    return lines(
        "Memory",
        "Resident memory of the process.",
        "bytes",
        query(f"process_resident_memory_bytes{{{JOB}}}", "{{instance}}"),
        empty="Nothing is scraped",
    )
