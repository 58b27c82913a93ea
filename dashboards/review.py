"""Review dashboard: phone numbers with problems per day, and customers that got worse, over 30 days."""

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.models import common

from dashboards.panels import (
    BAD,
    FLEET,
    INFO,
    NEUTRAL,
    RANKS,
    REVIEW,
    STATUSES,
    TO_NUMBER,
    UNLIMITED,
    WARNING,
    DashboardBuilder,
    Panel,
    Query,
    colored_text,
    count_panel,
    data_links,
    note,
    override,
    range_query,
    table_panel,
    table_query,
    time_series,
    to_dashboard,
)

SELECTED = 'job=~"$job",account=~"$account",space=~"$space"'
SPACE = "job, account, space"
NUMBER = f"{SPACE}, phone_number"
RANK = f"phone_number:chatapp_phone_number_quality_rank:last{{{SELECTED}}}"
STATUS_RANK = f"phone_number:chatapp_phone_number_status_rank:last{{{SELECTED}}}"
DROPPED = f"phone_number:chatapp_phone_number_messaging_limit_dropped:bool{{{SELECTED}}}"
LIMIT = f"phone_number:chatapp_phone_number_messaging_limit:last{{{SELECTED}}}"
RANK_1H = f"phone_number:chatapp_phone_number_quality_rank:max1h{{{SELECTED}}}"
STATUS_RANK_1H = f"phone_number:chatapp_phone_number_status_rank:max1h{{{SELECTED}}}"
DROPPED_1H = f"phone_number:chatapp_phone_number_messaging_limit_dropped:max1h{{{SELECTED}}}"
LIMIT_1H = f"phone_number:chatapp_phone_number_messaging_limit:max1h{{{SELECTED}}}"
_NO_DATA = "No data: no hourly values recorded"
_MAX_ROWS = 100
_PROBLEMS = ((STATUS_RANK_1H, 2), (RANK_1H, 3), (STATUS_RANK_1H, 1), (RANK_1H, 2), (DROPPED_1H, 1))
"""The hourly series and the value of each problem, worst first."""
_WEIGHTS = (10**12, 10**9, 10**6, 10**3, 1)
"""A customer is sorted by the worst problem of its phone numbers, then by the number of phone numbers with it."""
_RECORDED = f"max_over_time(phone_number:chatapp_phone_number_quality_rank:max1h{{{SELECTED}}}[$__range])"
"""The phone numbers with hourly values in the time range."""
_WORSE = (
    f"(({RANK} > min_over_time({RANK_1H}[$__range])) >= 2"
    f" or {STATUS_RANK} > min_over_time({STATUS_RANK_1H}[$__range])"
    f" or {DROPPED} == 1)"
)
"""Selects the phone numbers that are now worse than at their best in the time range."""
_WORST = f"topk({_MAX_ROWS}, 2.5 * {STATUS_RANK} ^ 2 + {RANK} and on ({NUMBER}) {_WORSE})"
"""These numbers sorted by severity: down, RED, restricted, YELLOW."""


def review() -> DashboardBuilder:
    """Return the Review dashboard."""
    builder = DashboardBuilder(
        "ChatApp / Review",
        REVIEW,
        "Phone numbers with problems per day, changes per day, and customers that got worse, for account managers.",
        time_range="now-30d",
        refresh="",
    )
    _counts(builder)
    builder.add_row("Phone numbers with problems per day")
    builder.add_panels(_ratings_per_day(), _statuses_per_day(), height=8)
    builder.add_panels(_dropped_limits_per_day(), _changes_per_day(), height=8)
    builder.add_row("Customers")
    builder.add_panels(_worse(), height=11)
    builder.add_panels(_customers(), height=11)
    return builder


def _counts(builder: DashboardBuilder) -> None:
    def count(title: str, description: str, series: str, rank: int, color: str) -> Panel:
        expression = f"sum(max_over_time({series}[$__range]) == bool {rank})"
        return count_panel(title, description, expression, color, no_value=_NO_DATA)

    once = "at least once in the time range."
    yellow = "Phone numbers whose worst quality rating in the time range was YELLOW."
    dropped = f"Phone numbers whose messaging limit was below its maximum of 7 days {once}"
    builder.add_panels(
        count("Numbers down", f"Phone numbers that were down {once}", STATUS_RANK_1H, 2, BAD),
        count("Numbers RED", f"Phone numbers with the quality rating RED {once}", RANK_1H, 3, BAD),
        count("Numbers YELLOW", yellow, RANK_1H, 2, WARNING),
        count("Numbers with a dropped limit", dropped, DROPPED_1H, 1, WARNING),
        count_panel(
            "Recorded days",
            "Days with recorded values in the time range. Prometheus keeps 15 days by default.",
            f"max(count_over_time({RANK_1H}[$__range])) / 24",
            INFO,
            no_value=_NO_DATA,
        ).decimals(1),
        height=4,
        widths=(5, 5, 5, 5, 4),
    )


def _per_day(title: str, description: str, colors: dict[str, str], *queries: Query) -> Panel:
    """Return a bar chart with one bar per day. A bar starts at midnight, and the bar of today contains the values until
    now."""
    panel = time_series(title, description, "short", *queries, no_value=_NO_DATA).interval("1d").decimals(0)
    panel = panel.axis_soft_max(4)
    panel = panel.draw_style(common.GraphDrawStyle.BARS).bar_alignment(common.BarAlignment.AFTER)
    panel = panel.bar_width_factor(0.9).line_width(0).fill_opacity(85)
    panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    for name, color in colors.items():
        panel = panel.override_by_name(name, [override("color", {"mode": "fixed", "fixedColor": color})])
    return panel


def _day(series: str, rank: int) -> str:
    """Return a query for the number of phone numbers whose worst value of a day was `rank`. The result at midnight is
    about the following day."""
    return f"sum(max_over_time({series}[1d] offset -1d) == bool {rank})"


def _ratings_per_day() -> Panel:
    return _per_day(
        "Phone numbers RED or YELLOW",
        "Phone numbers by their worst quality rating of each day.",
        {"RED": BAD, "YELLOW": WARNING},
        range_query(_day(RANK_1H, 3), "RED"),
        range_query(_day(RANK_1H, 2), "YELLOW", ref="B"),
    )


def _statuses_per_day() -> Panel:
    return _per_day(
        "Phone numbers down or restricted",
        "Phone numbers by their worst status of each day. Down: BANNED, DELETED, DISCONNECTED, MIGRATED or OFFLINE."
        " Restricted: FLAGGED, PAUSED, RATE_LIMITED or RESTRICTED.",
        {"down": BAD, "restricted": WARNING},
        range_query(_day(STATUS_RANK_1H, 2), "down"),
        range_query(_day(STATUS_RANK_1H, 1), "restricted", ref="B"),
    )


def _dropped_limits_per_day() -> Panel:
    return _per_day(
        "Phone numbers with a dropped limit",
        "For each day: phone numbers whose messaging limit was below its maximum of 7 days.",
        {"dropped limit": WARNING},
        range_query(_day(DROPPED_1H, 1), "dropped limit"),
    )


def _changes_per_day() -> Panel:
    def changes(series: str) -> str:
        # 25 hours, because a change at midnight is between the last sample of a day and the first sample of the next
        return f"sum(changes({series}[25h] offset -1d))"

    return _per_day(
        "Changes",
        "Changes between consecutive hours: the worst quality rating of the hour, the worst status (down, restricted,"
        " others) and the maximum messaging limit.",
        {"rating": INFO, "status": NEUTRAL, "messaging limit": "#CC79A7"},
        range_query(changes(RANK_1H), "rating"),
        range_query(changes(STATUS_RANK_1H), "status", ref="B"),
        range_query(changes(LIMIT_1H), "messaging limit", ref="C"),
    )


def _worse() -> Panel:
    panel = table_panel(
        f"Customers that got worse (at most {_MAX_ROWS} numbers)",
        "Phone numbers whose rating or status is now worse than its best value in the time range, or whose messaging"
        " limit has dropped in the last 7 days. Now: the last known values. Sorted by severity: down, RED, restricted,"
        " YELLOW.",
        *_worse_queries(),
        columns={
            "name": "Customer",
            "verified_name": "Verified name",
            "phone_number": "Number",
            "Value #C": "Best rating",
            "Value #D": "Rating now",
            "status": "Status now",
            "Value #F": "Maximum limit",
            "Value #G": "Limit now",
            "Value #H": "Hours RED",
            "account": "Account",
            "space": "Space",
            "Value #A": "Severity",
        },
        no_value="–",
    )
    return _worse_columns(panel)


def _worse_columns(panel: Panel) -> Panel:
    panel = panel.override_by_name("Number", data_links(("Open phone number", TO_NUMBER)))
    for column in ("Best rating", "Rating now"):
        panel = panel.override_by_name(column, colored_text(RANKS))
    for column in ("Maximum limit", "Limit now"):
        options = [override("mappings", [UNLIMITED]), override("unit", "locale"), override("noValue", "–")]
        panel = panel.override_by_name(column, options)
    panel = panel.override_by_name(
        "Status now", colored_text({status: (status, color) for status, color in STATUSES.items()})
    )
    return panel.override_by_name("Hours RED", [override("noValue", "–")]).override_by_name(
        "Severity", [override("custom.hidden", True)]
    )


def _worse_queries() -> tuple[Query, ...]:
    def with_value(expression: str, ref: str, labels: str = NUMBER) -> Query:
        return table_query(f"max by ({labels}) ({expression}) and on ({NUMBER}) {_WORST}", ref=ref)

    names = f"phone_number:chatapp_phone_number_info:names{{{SELECTED}}}"
    status = f"phone_number:chatapp_phone_number_status:last{{{SELECTED}}}"
    named = f"max by ({NUMBER}, verified_name, name) ({names}) and on ({NUMBER}) {_WORST}"
    text = note(f"({RANK} and on ({NUMBER}) {_WORSE})", "name", _RECORDED, _NO_DATA, max_rows=_MAX_ROWS)
    return (
        table_query(_WORST),
        table_query(f"{named} or {text}", ref="B"),
        with_value(f"min_over_time({RANK_1H}[$__range])", "C"),
        with_value(RANK, "D"),
        with_value(status, "E", f"{NUMBER}, status"),
        with_value(f"max_over_time({LIMIT_1H}[$__range])", "F"),
        with_value(LIMIT, "G"),
        with_value(f"count_over_time((last_over_time({RANK_1H}[1h]) == 3)[$__range:1h]) or 0 * {RANK}", "H"),
    )


def _customers() -> Panel:
    problems = [_in_range(*problem) for problem in _PROBLEMS]
    counts = [_by_customer(problem) for problem in problems]
    severity = " or ".join(f"{weight} * {count}" for weight, count in zip(_WEIGHTS, counts, strict=True))
    panel = table_panel(
        "Customers with problems",
        "Number of phone numbers of each customer by their worst status, their worst rating, and dropped limits in the"
        " time range. Customers with the worst problem first.",
        *(table_query(count, ref=ref) for ref, count in zip("ABCDE", counts, strict=True)),
        table_query(note(f"({' or '.join(problems)})", "name", _RECORDED, _NO_DATA), ref="F"),
        table_query(severity, ref="G"),
        columns={
            "name": "Customer",
            "Value #A": "Down",
            "Value #B": "RED",
            "Value #C": "Restricted",
            "Value #D": "YELLOW",
            "Value #E": "Dropped limit",
            "account": "Account",
            "space": "Space",
            "Value #G": "Severity",
        },
        no_value="–",
        sort_by="Value #G",
    )
    panel = panel.override_by_name("Severity", [override("custom.hidden", True)])
    for column in ("Down", "RED", "Restricted", "YELLOW", "Dropped limit"):
        panel = panel.override_by_name(column, [override("noValue", "–")])
    return panel.override_by_name(
        "Space", data_links(("Open Fleet", to_dashboard(FLEET, account="Account", space="Space")))
    )


def _in_range(series: str, rank: int) -> str:
    """Return a query for the phone numbers whose worst value in the time range was `rank`."""
    return f"max_over_time({series}[$__range]) == {rank}"


def _by_customer(problem: str) -> str:
    """Return a query for the number of phone numbers of each space with the problem. The result has the label `name` of
    the space if the name is known."""
    names = f"space:chatapp_space_info:last{{{SELECTED}}}"
    unnamed = f"group by ({SPACE}) (phone_number:chatapp_phone_number_info:last{{{SELECTED}}})"
    return f"count by ({SPACE}) ({problem}) * on ({SPACE}) group_left (name) ({names} or on ({SPACE}) {unnamed})"
