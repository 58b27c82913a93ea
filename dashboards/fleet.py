"""Fleet dashboard: phone numbers by state, phone numbers with problems, recent changes and blind spaces."""

from dashboards.panels import (
    BAD,
    FLEET,
    INFO,
    NEUTRAL,
    RANKS,
    RATINGS,
    STATUSES,
    TO_NUMBER,
    UNLIMITED,
    WARNING,
    DashboardBuilder,
    Panel,
    Query,
    colored_text,
    count_or_zero,
    count_panel,
    data_links,
    override,
    range_query,
    relative_time,
    table_panel,
    table_query,
    time_series,
)

SELECTED = 'job=~"$job",account=~"$account",space=~"$space"'
NUMBER = "account, space, phone_number"
RANK = f"phone_number:chatapp_phone_number_quality_rank:last{{{SELECTED}}}"
STATUS_RANK = f"phone_number:chatapp_phone_number_status_rank:last{{{SELECTED}}}"
BLIND = f"space:chatapp_space_blind:group{{{SELECTED}}}"
_BLIND_DESCRIPTION = (
    "Spaces without a successful poll for 3 effective intervals, or whose account is denied or unreachable."
)
SINCE_SUCCESS = f"space:chatapp_space_seconds_since_success:min{{{SELECTED}}}"
TO_SPACE = (
    f"/d/{FLEET}?var-datasource=${{datasource}}&var-account=${{__data.fields.Account}}"
    "&var-space=${__value.raw}&${__url_time_range}"
)
_MAX_ROWS = 100
_BY_SEVERITY = f"topk({_MAX_ROWS}, max by ({NUMBER}) (2.5 * {STATUS_RANK} ^ 2) + max by ({NUMBER}) ({RANK}))"
"""Phone numbers sorted by severity: down, RED, restricted, YELLOW."""
_NAMES = "phone_number:chatapp_phone_number_info:names"


def fleet() -> DashboardBuilder:
    """Return the Fleet dashboard."""
    builder = DashboardBuilder(
        "ChatApp / Fleet",
        FLEET,
        "Phone numbers by state, phone numbers with problems, recent changes and blind spaces.",
    )
    _counts(builder)
    builder.add_panels(_ratings_over_time(), _blind_over_time(), height=7, widths=(16, 8))
    builder.add_row("Phone numbers")
    builder.add_panels(_by_severity(), height=11)
    builder.add_row("Changes in the last 24 hours, and blind spaces")
    builder.add_panels(_recent_changes(), _blind(), height=9, widths=(14, 10))
    builder.add_row("By account and space")
    builder.add_panels(_by_account(), _by_space(), height=9, widths=(14, 10))
    return builder


def _numbers(title: str, description: str, condition: str, color: str) -> Panel:
    return count_panel(title, description, count_or_zero(condition, RANK), color)


def _counts(builder: DashboardBuilder) -> None:
    with_last_values = "Includes the last known values of spaces without current values."
    dropped = f'ALERTS{{alertname="ChatAppMessagingLimitDropped",alertstate="firing",{SELECTED}}}'
    builder.add_panels(
        _numbers(
            "Down",
            f"Phone numbers with the status BANNED, DELETED, DISCONNECTED, MIGRATED or OFFLINE. {with_last_values}",
            f"{STATUS_RANK} == 2",
            BAD,
        ),
        _numbers("RED", f"Phone numbers with the quality rating RED. {with_last_values}", f"{RANK} == 3", BAD),
        _numbers(
            "Restricted",
            f"Phone numbers with the status FLAGGED, PAUSED, RATE_LIMITED or RESTRICTED. {with_last_values}",
            f"{STATUS_RANK} == 1",
            WARNING,
        ),
        _numbers(
            "YELLOW", f"Phone numbers with the quality rating YELLOW. {with_last_values}", f"{RANK} == 2", WARNING
        ),
        _numbers(
            "Limit dropped",
            "Phone numbers with a firing alert ChatAppMessagingLimitDropped:"
            " the messaging limit is below its maximum of the last 7 days.",
            dropped,
            WARNING,
        ),
        _numbers("Blind spaces", _BLIND_DESCRIPTION, BLIND, BAD),
        _numbers(
            "Unknown rating",
            "Phone numbers whose quality rating is UNKNOWN, was never reported, or is not known to the exporter.",
            f"{RANK} == 1",
            NEUTRAL,
        ),
        _numbers("All phone numbers", "Phone numbers that the last successful poll of their space listed.", RANK, INFO),
        height=4,
    )


def _ratings_over_time() -> Panel:
    rated = range_query(
        "sum by (quality_rating)"
        ' (account_quality_rating:chatapp_phone_numbers:sum{job=~"$job",account=~"$account"} > 0)',
        "{{quality_rating}}",
    )
    panel = time_series(
        "Phone numbers by quality rating",
        "Phone numbers with current values in the selected accounts, by quality rating.",
        "short",
        rated,
        no_value="No phone numbers",
    )
    for rating, color in RATINGS.items():
        panel = panel.override_by_name(rating, [override("color", {"mode": "fixed", "fixedColor": color})])
    return panel


def _blind_over_time() -> Panel:
    blind = range_query(f"count({BLIND}) or vector(0)", "blind spaces")
    return time_series("Blind spaces over time", _BLIND_DESCRIPTION, "short", blind, no_value="No spaces")


def _by_severity() -> Panel:
    panel = table_panel(
        f"Phone numbers by severity (at most {_MAX_ROWS})",
        "Sorted by severity: down, RED, restricted, YELLOW, others. Click a number to open its dashboard.",
        *_severity_queries(),
        columns={
            "phone_number": "Number",
            "verified_name": "Verified name",
            "Value #C": "Rating",
            "status": "Status",
            "Value #E": "Messaging limit",
            "Value #F": "Last change of rating or status",
            "name": "Space name",
            "space": "Space",
            "account": "Account",
            "Value #G": "Last successful poll",
            "Value #A": "Severity",
        },
        no_value="No phone numbers match the selection",
    )
    panel = panel.override_by_name("Number", data_links(("Open phone number", TO_NUMBER))).override_by_name(
        "Rating", colored_text(RANKS)
    )
    panel = panel.override_by_name(
        "Messaging limit", [override("mappings", [UNLIMITED]), override("unit", "locale"), override("noValue", "–")]
    )
    panel = panel.override_by_name(
        "Status", colored_text({status: (status, color) for status, color in STATUSES.items()})
    )
    for column in ("Last change of rating or status", "Last successful poll"):
        panel = panel.override_by_name(column, relative_time())
    return panel.override_by_name("Severity", [override("custom.hidden", True)])


def _severity_queries() -> tuple[Query, ...]:
    def with_value(expression: str, ref: str, labels: str = NUMBER) -> Query:
        return table_query(f"max by ({labels}) ({expression}) and on ({NUMBER}) {_BY_SEVERITY}", ref=ref)

    last_success = f"chatapp_space_last_success_timestamp_seconds{{{SELECTED}}}"
    fields = 'field=~"quality_rating|status"'
    changed = f"chatapp_phone_number_last_change_timestamp_seconds{{{SELECTED},{fields}}}"
    return (
        table_query(_BY_SEVERITY),
        with_value(f"{_NAMES}{{{SELECTED}}}", "B", f"{NUMBER}, verified_name, name"),
        with_value(RANK, "C"),
        with_value(f"phone_number:chatapp_phone_number_status:last{{{SELECTED}}}", "D", f"{NUMBER}, status"),
        with_value(f"chatapp_phone_number_messaging_limit{{{SELECTED}}}", "E"),
        with_value(f"1000 * {changed}", "F"),
        with_value(
            f"{RANK} * 0 + on (job, account, space) group_left () 1000 * max by (job, account, space) ({last_success})",
            "G",
        ),
    )


def _recent_changes() -> Panel:
    changes = f"max by (job, {NUMBER}, field) (chatapp_phone_number_last_change_timestamp_seconds{{{SELECTED}}})"
    panel = table_panel(
        "Recent changes",
        f"Changes of the rating, messaging limit tier or status in the last 24 hours. Shows the newest {_MAX_ROWS}.",
        table_query(
            f"1000 * topk({_MAX_ROWS}, {changes} > time() - 86400)"
            f" * on (job, {NUMBER}) group_left (verified_name, name) {_NAMES}"
        ),
        columns={
            "Value": "Changed",
            "phone_number": "Number",
            "verified_name": "Verified name",
            "field": "Field",
            "account": "Account",
            "space": "Space",
        },
        no_value="No changes in the last 24 hours",
    )
    panel = panel.override_by_name("Changed", relative_time()).override_by_name(
        "Number", data_links(("Open phone number", TO_NUMBER))
    )
    return panel.override_by_name("Field", [override("mappings", [])])


def _blind() -> Panel:
    names = "topk by (job, account, space) (1, group by (job, account, space, name) (chatapp_space_info))"
    panel = table_panel(
        "Blind spaces",
        f"Blind spaces, and the time since their last successful poll. Shows the {_MAX_ROWS} longest times.",
        table_query(
            f"topk({_MAX_ROWS}, {SINCE_SUCCESS} and on (job, account, space) {BLIND})"
            f" * on (job, account, space) group_left (name) {names}"
        ),
        columns={
            "Value": "Time since last successful poll",
            "name": "Space name",
            "space": "Space",
            "account": "Account",
        },
        no_value="No blind spaces",
    )
    panel = panel.override_by_name("Space", data_links(("Filter by space", TO_SPACE)))
    return panel.override_by_name("Time since last successful poll", [override("unit", "s")])


def _by_account() -> Panel:
    def count_by_account(expression: str, ref: str) -> Query:
        return table_query(f"count by (account) ({expression})", ref=ref)

    panel = table_panel(
        "Accounts",
        "Phone numbers by state, and blind spaces, of each account.",
        count_by_account(RANK, "A"),
        count_by_account(f"{STATUS_RANK} == 2", "B"),
        count_by_account(f"{RANK} == 3", "C"),
        count_by_account(f"{STATUS_RANK} == 1", "D"),
        count_by_account(f"{RANK} == 2", "E"),
        count_by_account(BLIND, "F"),
        columns={
            "account": "Account",
            "Value #A": "Numbers",
            "Value #B": "Down",
            "Value #C": "RED",
            "Value #D": "Restricted",
            "Value #E": "YELLOW",
            "Value #F": "Blind spaces",
        },
        no_value="No accounts match the selection",
    )
    for column in ("Down", "RED", "Restricted", "YELLOW", "Blind spaces"):
        panel = panel.override_by_name(column, [override("noValue", "0")])
    return panel


def _by_space() -> Panel:
    panel = table_panel(
        "Spaces with problems",
        f"Down, RED, restricted and YELLOW phone numbers of each space. Shows the {_MAX_ROWS} highest counts.",
        table_query(
            f"topk({_MAX_ROWS}, count by (account, space) (max by ({NUMBER}) ({RANK} >= 2 or {STATUS_RANK} >= 1)))"
        ),
        columns={"Value": "Numbers with problems", "space": "Space", "account": "Account"},
        no_value="No phone numbers with problems",
    )
    return panel.override_by_name("Space", data_links(("Filter by space", TO_SPACE)))
