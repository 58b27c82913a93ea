"""Fleet dashboard: what is wrong now, with lists of phone numbers, changes, spaces and accounts.

The queries use recorded series: they keep the last known values while an exporter or an account is down.
"""

from collections.abc import Sequence

from grafana_foundation_sdk.models import dashboard

from dashboards.panels import (
    BAD,
    EXPORTER,
    EXPORTERS,
    FLEET,
    GOOD,
    INFO,
    NEUTRAL,
    NO_DATA,
    NO_SUCCESS,
    RANKS,
    STATUSES,
    TO_NUMBER,
    UNLIMITED,
    WARNING,
    DashboardBuilder,
    Panel,
    Query,
    colored_text,
    column_width,
    count_or_zero,
    count_panel,
    data_links,
    failed_polls,
    note,
    override,
    range_query,
    relative_time,
    table_panel,
    table_query,
    time_series,
    to_dashboard,
    to_panel,
    to_runbook,
    to_status_page,
    value_mappings,
)

JOB = 'job=~"$job"'
ACCOUNTS = f'{JOB},account=~"$account"'
SELECTED = f'{ACCOUNTS},space=~"$space"'
ACCOUNT = "job, account"
SPACE = "job, account, space"
NUMBER = "job, account, space, phone_number"

RANK = f"phone_number:chatapp_phone_number_quality_rank:last{{{SELECTED}}}"
STATUS_RANK = f"phone_number:chatapp_phone_number_status_rank:last{{{SELECTED}}}"
STATUS = f"phone_number:chatapp_phone_number_status:last{{{SELECTED}}}"
LIMIT = f"phone_number:chatapp_phone_number_messaging_limit:last{{{SELECTED}}}"
MAXIMUM = f"phone_number:chatapp_phone_number_messaging_limit:max{{{SELECTED}}}"
DROPPED = f"phone_number:chatapp_phone_number_messaging_limit_dropped:bool{{{SELECTED}}}"
VANISHED = f"phone_number:chatapp_phone_number_vanished:group{{{SELECTED}}}"
NAMES = f"phone_number:chatapp_phone_number_info:names{{{SELECTED}}}"
BLIND = f"space:chatapp_space_blind:group{{{SELECTED}}}"
LAST_SUCCESS = f"space:chatapp_space_last_success_timestamp_seconds:max{{{SELECTED}}}"
SINCE_SUCCESS = f"space:chatapp_space_seconds_since_success:min{{{SELECTED}}}"
UNPOLLED = f"account:chatapp_account_unpolled:group{{{ACCOUNTS}}}"
STATES = f"account_state:chatapp_account_state:last{{{ACCOUNTS}}}"

_OTHER_SPACES_ONLY = (
    f"(space:chatapp_space_seconds_since_success:min{{{ACCOUNTS}}} unless on ({ACCOUNT}) {SINCE_SUCCESS})"
)
SELECTED_ACCOUNTS = f"account:chatapp_account_up:last{{{ACCOUNTS}}} unless on ({ACCOUNT}) {_OTHER_SPACES_ONLY}"
"""The accounts of the selected spaces. If all spaces are selected, also the accounts without spaces."""

_MAX_ROWS = 100
SEVERITY = f"(2 * ({STATUS_RANK} == 2) or {RANK} == 3 or 2 * ({STATUS_RANK} == 1) or 0.5 * ({RANK} == 2))"
"""4 for a phone number that is down, 3 RED, 2 restricted, 1 YELLOW. Other phone numbers have no value."""
_WORST = f"topk({_MAX_ROWS}, 1e10 * {SEVERITY} + (clamp_max({LIMIT}, 1e9) or 0 * {RANK}))"
"""Phone numbers sorted by severity, and by messaging limit if the severity is the same."""

_PROBLEMS = {
    "Down": f"{STATUS_RANK} == 2",
    "RED": f"{RANK} == 3",
    "Limit dropped": f"{DROPPED} == 1",
    "Restricted": f"{STATUS_RANK} == 1",
    "YELLOW": f"{RANK} == 2",
}
"""The phone numbers with each problem, worst first."""
_LAST_KNOWN = "Includes the last known values of spaces without current values."
_DESCRIPTIONS = {
    "Down": "Phone numbers with the status BANNED, DELETED, DISCONNECTED, MIGRATED or OFFLINE.",
    "RED": "Phone numbers with the quality rating RED.",
    "Limit dropped": "Phone numbers whose messaging limit is below its maximum of the last 7 days.",
    "Restricted": "Phone numbers with the status FLAGGED, PAUSED, RATE_LIMITED or RESTRICTED.",
    "YELLOW": "Phone numbers with the quality rating YELLOW.",
}
_BLIND_DESCRIPTION = (
    "Spaces without a successful poll for 3 effective intervals, or whose account is denied or unreachable."
)
_TO_SPACE = to_dashboard(FLEET, account="Account", space="Space")
_STATUS_COLORS = {status: (status, color) for status, color in STATUSES.items()}
_WHO = {"phone_number": "Number", "name": "Customer", "verified_name": "Verified name"}
_WHERE = {"space": "Space", "account": "Account"}
_FIELDS = {"quality_rating": "Rating", "messaging_limit_tier": "Messaging limit", "status": "Status"}


def fleet() -> DashboardBuilder:
    """Return the Fleet dashboard."""
    builder = DashboardBuilder(
        "ChatApp / Fleet",
        FLEET,
        "Current problems. Click a count in the top row to open its list.",
    )
    _counts(builder)
    builder.add_row("Phone numbers")
    builder.add_panels(_worst(), height=10)
    builder.add_panels(_dropped(), height=7)
    builder.add_panels(_changes(), height=9)
    builder.add_panels(_vanished(), height=6)
    builder.add_row("Spaces and accounts")
    builder.add_panels(_accounts(), height=7)
    builder.add_panels(_blind(), height=8)
    builder.add_row("Over time")
    builder.add_panels(_problems_over_time(), _ratings_over_time(), _blind_over_time(), height=9, widths=(12, 6, 6))
    return builder


# ---- top row


def _counts(builder: DashboardBuilder) -> None:
    down, red, dropped, restricted, yellow = (_numbers(title) for title in _PROBLEMS)
    builder.add_panels(_exporters_down(), _accounts_down(), down, red, dropped, height=3, widths=(4, 5, 5, 5, 5))
    builder.add_panels(restricted, yellow, _blind_spaces(), _vanished_count(), height=3)


def _numbers(title: str) -> Panel:
    # a space that was polled successfully is the evidence for 0
    expression = count_or_zero(_PROBLEMS[title], LAST_SUCCESS)
    color = WARNING if title in ("Restricted", "YELLOW") else BAD
    panel = "Dropped messaging limits" if title == "Limit dropped" else "Numbers with problems"
    description = f"{_DESCRIPTIONS[title]} {_LAST_KNOWN}"
    return count_panel(title, description, expression, color, link=to_panel(panel), no_value=NO_SUCCESS)


def _blind_spaces() -> Panel:
    expression = count_or_zero(BLIND, SINCE_SUCCESS)
    return count_panel("Blind spaces", _BLIND_DESCRIPTION, expression, BAD, link=to_panel("List of blind spaces"))


def _vanished_count() -> Panel:
    return count_panel(
        "Vanished",
        "Phone numbers that the API stopped listing within the last 24 hours.",
        count_or_zero(VANISHED, LAST_SUCCESS),
        WARNING,
        link=to_panel("Vanished numbers"),
        no_value=NO_SUCCESS,
    )


def _exporters_down() -> Panel:
    targets = f"up{{{JOB}}} and on (job, instance) {EXPORTERS}"
    return count_panel(
        "Exporters down",
        "Exporters that Prometheus cannot scrape now.",
        count_or_zero(f"({targets}) == 0", targets),
        BAD,
        link=to_dashboard(EXPORTER),
    )


def _accounts_down() -> Panel:
    down = f"account:chatapp_account_down:group{{{ACCOUNTS}}} and on ({ACCOUNT}) ({SELECTED_ACCOUNTS})"
    return count_panel(
        "Accounts down",
        "Accounts that are denied, unreachable, or not polled by any exporter.",
        count_or_zero(down, SELECTED_ACCOUNTS),
        BAD,
        link=to_panel("Accounts"),
    )


# ---- graphs: `sum(x == bool y)` is 0 only if there are series


def _problems_over_time() -> Panel:
    lines = {
        "down": (f"{STATUS_RANK} == bool 2", "#CC79A7"),
        "RED": (f"{RANK} == bool 3", BAD),
        "limit dropped": (DROPPED, "#0072B2"),
        "restricted": (f"{STATUS_RANK} == bool 1", INFO),
        "YELLOW": (f"{RANK} == bool 2", WARNING),
    }
    return _count_graph("Numbers with problems over time", f"Phone numbers by problem. {_LAST_KNOWN}", lines)


def _ratings_over_time() -> Panel:
    lines = {
        "GREEN": (f"{RANK} == bool 0", GOOD),
        "UNKNOWN": (f"{RANK} == bool 1", NEUTRAL),
    }
    return _count_graph(
        "GREEN and UNKNOWN",
        "Phone numbers with the quality rating GREEN, and those whose rating is UNKNOWN, was never reported, or is not"
        f" known to the exporter. {_LAST_KNOWN}",
        lines,
        legend_values=["lastNotNull"],
    )


def _blind_over_time() -> Panel:
    blind = f"{BLIND} or 0 * {SINCE_SUCCESS}"
    lines = {"blind spaces": (blind, BAD)}
    return _count_graph("Blind spaces over time", _BLIND_DESCRIPTION, lines, no_value=NO_DATA)


def _count_graph(
    title: str,
    description: str,
    lines: dict[str, tuple[str, str]],
    *,
    no_value: str = NO_SUCCESS,
    legend_values: Sequence[str] = (),
) -> Panel:
    queries = [
        range_query(f"sum({expression})", name, ref=ref)
        for ref, (name, (expression, _)) in zip("ABCDE", lines.items(), strict=False)
    ]
    panel = time_series(title, description, "short", *queries, no_value=no_value, legend_values=legend_values)
    # at most 100 points, because each point reads all phone numbers
    panel = panel.decimals(0).axis_soft_max(4).max_data_points(100)
    for name, (_, color) in lines.items():
        panel = panel.override_by_name(name, [override("color", {"mode": "fixed", "fixedColor": color})])
    return panel


# ---- lists


def _note(rows: str) -> str:
    return note(rows, "name", LAST_SUCCESS, NO_SUCCESS, max_rows=_MAX_ROWS)


def _of(rows: str, expression: str, ref: str, labels: str = NUMBER) -> Query:
    """Return the query of a column: the values of the expression for the phone numbers in `rows`."""
    return table_query(f"max by ({labels}) ({expression}) and on ({NUMBER}) {rows}", ref=ref)


def _names(rows: str, all_rows: str, ref: str) -> Query:
    names = f"max by ({NUMBER}, verified_name, name) ({NAMES}) and on ({NUMBER}) {rows}"
    return table_query(f"{names} or {_note(all_rows)}", ref=ref)


def _changed(field: str) -> str:
    return f'phone_number:chatapp_phone_number_last_change_timestamp_seconds:last{{{SELECTED},field=~"{field}"}}'


def _since(field: str, alerts: str) -> str:
    """Return a query for the time of the last change, or of the alert's start if the exporter recorded no change."""
    started = f'ALERTS_FOR_STATE{{{SELECTED},alertname=~"{alerts}"}}'
    return f"(max by ({NUMBER}) ({_changed(field)}) or max by ({NUMBER}) ({started}))"


def _number_columns(panel: Panel) -> Panel:
    panel = panel.override_by_name("Number", [*data_links(("Open phone number", TO_NUMBER)), column_width(125)])
    panel = panel.override_by_name(
        "Account", data_links(("Select this account", to_dashboard(FLEET, account="Account")))
    )
    return panel.override_by_name("Space", data_links(("Select this space", _TO_SPACE)))


def _limit_columns(panel: Panel, *columns: str) -> Panel:
    for column in columns:
        panel = panel.override_by_name(
            column,
            [
                override("mappings", [UNLIMITED]),
                override("unit", "locale"),
                override("noValue", "–"),
                column_width(95),
            ],
        )
    return panel


def _time_columns(panel: Panel, *columns: str) -> Panel:
    for column in columns:
        panel = panel.override_by_name(column, [*relative_time(), column_width(140)])
    return panel


def _worst() -> Panel:
    status_is_worse = f"({STATUS_RANK} == 2 or {STATUS_RANK} == 1 unless {RANK} == 3)"
    status = _since("status", "ChatAppPhoneNumber(Down|Restricted)")
    rating = _since("quality_rating", "ChatAppPhoneNumberQuality.*")
    last_seen = f"{RANK} * 0 + on ({SPACE}) group_left () 1000 * {LAST_SUCCESS}"
    panel = table_panel(
        "Numbers with problems",
        f"Down, RED, restricted and YELLOW phone numbers, at most {_MAX_ROWS}, sorted by severity and messaging limit."
        " Since: the last change of status or rating, or the alert's start if the exporter recorded no change.",
        table_query(_WORST),
        _names(_WORST, SEVERITY, "B"),
        _of(_WORST, RANK, "C"),
        _of(_WORST, f"topk by ({NUMBER}) (1, {STATUS})", "D", f"{NUMBER}, status"),
        _of(_WORST, LIMIT, "E"),
        _of(_WORST, MAXIMUM, "F"),
        _of(_WORST, f"1000 * ({status} and {status_is_worse} or {rating})", "G"),
        _of(_WORST, last_seen, "H"),
        columns={
            **_WHO,
            "status": "Status",
            "Value #C": "Rating",
            "Value #E": "Limit",
            "Value #F": "7-day max",
            "Value #G": "Since",
            "Value #H": "Last seen",
            **_WHERE,
        },
        no_value="–",
        sort_by="Value #A",
    )
    panel = panel.override_by_name("Rating", [*colored_text(RANKS), column_width(85)])
    panel = panel.override_by_name("Status", [*colored_text(_STATUS_COLORS), column_width(120)])
    return _time_columns(_limit_columns(_number_columns(panel), "Limit", "7-day max"), "Since", "Last seen")


def _dropped() -> Panel:
    dropped = f"({DROPPED} == 1)"
    rows = f"topk({_MAX_ROWS}, {MAXIMUM} and {dropped})"
    since = _since("messaging_limit_tier", "ChatAppMessagingLimitDropped")
    panel = table_panel(
        "Dropped messaging limits",
        f"Phone numbers whose messaging limit is below its maximum of the last 7 days, at most {_MAX_ROWS}, largest"
        " maximum first. Since: the last change of the limit, or the alert's start if the exporter recorded no change.",
        table_query(rows),
        _names(rows, dropped, "B"),
        _of(rows, LIMIT, "C"),
        _of(rows, f"1000 * {since}", "D"),
        columns={
            **_WHO,
            "Value #A": "From",
            "Value #C": "To",
            "Value #D": "Since",
            **_WHERE,
        },
        no_value="–",
        sort_by="Value #A",
    )
    return _time_columns(_limit_columns(_number_columns(panel), "From", "To"), "Since")


def _vanished() -> Panel:
    stopped = f"phone_number:chatapp_phone_number_vanished_timestamp_seconds:max{{{SELECTED}}}"
    rows = f"topk({_MAX_ROWS}, {stopped} and {VANISHED})"
    panel = table_panel(
        "Vanished numbers",
        f"Phone numbers that the API stopped listing within the last 24 hours, at most {_MAX_ROWS}: newest first.",
        table_query(f"1000 * {rows}"),
        _names(rows, VANISHED, "B"),
        columns={
            **_WHO,
            "Value #A": "Not listed since",
            **_WHERE,
        },
        no_value="–",
        sort_by="Value #A",
    )
    return _time_columns(_number_columns(panel), "Not listed since")


def _now_of_changed(value: str, field: str) -> str:
    """Return a query for the current values of the phone numbers that changed. In a subquery, it is evaluated once."""
    changed = f"{_changed(field)} @ end()"
    return f"({value} @ end() and on ({NUMBER}) ({changed} > timestamp({changed}) - 86400))"


def _before(value: str, field: str) -> str:
    """Return a query for the last value in the last 24 hours that is different from the current value."""
    return f"last_over_time(({value} != on ({NUMBER}) {_now_of_changed(value, field)})[1d:1h])"


def _by_field(label: str, rank: str, limit: str, status: str) -> str:
    """Return a query for the values of all fields, as texts in a label."""
    values = {
        "quality_rating": f'count_values by ({NUMBER}) ("{label}", {rank})',
        "messaging_limit_tier": f'count_values by ({NUMBER}) ("{label}", {limit})',
        "status": f'max by ({NUMBER}, {label}) (label_replace({status}, "{label}", "$1", "status", "(.+)"))',
    }
    return " or ".join(f'label_replace({query}, "field", "{field}", "", "")' for field, query in values.items())


def _changes() -> Panel:
    key = f"{NUMBER}, field"
    recent = f"({_changed('.+')} > time() - 86400)"
    rows = f"topk({_MAX_ROWS}, {recent})"
    names = f"({NAMES} and on ({NUMBER}) {rows})"
    other_status = (
        f"(0 * {STATUS} + time() and on ({NUMBER}) {_now_of_changed(STATUS, 'status')}"
        f" unless on ({NUMBER}, status) {STATUS} @ end())"
    )
    last_status = f"topk by ({NUMBER}) (1, max_over_time({other_status}[1d:1h]))"
    before = _before(RANK, "quality_rating"), _before(LIMIT, "messaging_limit_tier"), last_status
    named = f"{rows} * on ({NUMBER}) group_left (verified_name, name) {names}"
    panel = table_panel(
        "Changes in the last 24 hours",
        f"Changes of rating, messaging limit or status that the exporter recorded, at most {_MAX_ROWS}, newest first."
        " From: the last different value, in steps of 1 hour.",
        table_query(f"1000 * ({named} or on ({key}) {rows}) or {_note(recent)}"),
        table_query(f"({_by_field('from', *before)}) and on ({key}) {rows}", ref="B"),
        table_query(f"({_by_field('to', RANK, LIMIT, STATUS)}) and on ({key}) {rows}", ref="C"),
        columns={
            "Value #A": "Changed",
            **_WHO,
            "field": "Field",
            "from": "From",
            "to": "To",
            **_WHERE,
        },
        no_value="–",
        sort_by="Value #A",
    )
    return _time_columns(_number_columns(_change_columns(panel)), "Changed")


def _change_columns(panel: Panel) -> Panel:
    limits = {str(limit): (f"{limit:,}", "text") for limit in (50, 250, 1000, 2000, 10_000, 100_000)}
    texts = {**RANKS, **limits, "+Inf": ("unlimited", INFO), **_STATUS_COLORS}
    for column in ("From", "To"):
        panel = panel.override_by_name(column, [*colored_text(texts), override("noValue", "–")])
    fields = {field: {"text": text, "index": index} for index, (field, text) in enumerate(_FIELDS.items())}
    panel = panel.override_by_name("Field", [override("mappings", [{"type": "value", "options": fields}])])
    # the value of the row with a text is 1
    return panel.override_by_name("Changed", [override("mappings", [value_mappings({"1": ("–", "text")})])])


def _reasons() -> str:
    """Return a query for the blind spaces with the label `reason`."""
    failures = f"{failed_polls(SELECTED, '1h')} > 0"
    down = f'account_state:chatapp_account_state:last{{{ACCOUNTS},state=~"denied|unreachable"}} == 1'
    states = f"topk by ({ACCOUNT}) (1, {down})"
    choices: Sequence[str] = (
        f'label_replace({BLIND} and on ({ACCOUNT}) {UNPOLLED}, "reason", "account not polled by any exporter", "", "")',
        f"{BLIND} * on ({ACCOUNT}) group_left (reason)"
        f' label_replace({states}, "reason", "account $1", "state", "(.+)")',
        f"topk by ({SPACE}) (1, max by ({SPACE}, reason) ({failures})) and on ({SPACE}) {BLIND}",
        f'label_replace({BLIND}, "reason", "no failed poll in the last hour", "", "")',
    )
    return f" or on ({SPACE}) ".join(f"max by ({SPACE}, reason) ({choice})" for choice in choices)


def _blind() -> Panel:
    rows = f"topk({_MAX_ROWS}, {SINCE_SUCCESS} and on ({SPACE}) {BLIND})"
    names = f"max by ({SPACE}, name) (space:chatapp_space_info:last{{{SELECTED}}}) and on ({SPACE}) {rows}"
    text = note(BLIND, "name", SINCE_SUCCESS, NO_DATA, max_rows=_MAX_ROWS)
    panel = table_panel(
        "List of blind spaces",
        f"{_BLIND_DESCRIPTION} At most {_MAX_ROWS}: longest time first. Reason: the state of the account, or the most"
        " frequent reason of failed polls in the last hour.",
        table_query(rows),
        table_query(f"({names}) or {text}", ref="B"),
        table_query(f"({_reasons()}) and on ({SPACE}) {rows}", ref="C"),
        table_query(f"1000 * {LAST_SUCCESS} and on ({SPACE}) {rows}", ref="D"),
        columns={
            "space": "Space",
            "name": "Customer",
            "reason": "Reason",
            "Value #A": "No successful poll for",
            "Value #D": "Last success",
            "account": "Account",
        },
        no_value="–",
        sort_by="Value #A",
    )
    panel = panel.override_by_name("No successful poll for", [override("unit", "s")])
    panel = panel.override_by_name("Reason", data_links(("Runbook", to_runbook("ChatAppSpaceBlind"))))
    return _time_columns(_number_columns(panel), "Last success")


def _accounts() -> Panel:
    counts = {
        "Spaces": f"count by ({ACCOUNT}) ({SINCE_SUCCESS})",
        "Blind spaces": f"count by ({ACCOUNT}) ({BLIND}) or 0 * count by ({ACCOUNT}) ({SINCE_SUCCESS})",
        "Numbers": _by_account(RANK),
        **{name: _by_account(condition) for name, condition in _PROBLEMS.items()},
    }
    refs = dict(zip("DEFGHIJK", counts, strict=True))
    up = f"chatapp_account_up{{{ACCOUNTS}}}"
    exporters = f"{up} or on ({ACCOUNT}) last_over_time({up}[1d])"
    panel = table_panel(
        "Accounts",
        "Accounts, worst first, with the number of spaces and phone numbers by problem.",
        table_query(_account_severity()),
        table_query(_account_states(), ref="B"),
        table_query(
            f"max by ({ACCOUNT}, instance) (topk by ({ACCOUNT}) (1, {exporters}))"
            f" and on ({ACCOUNT}) ({SELECTED_ACCOUNTS})",
            ref="C",
        ),
        *(table_query(counts[name], ref=ref) for ref, name in refs.items()),
        columns={
            "account": "Account",
            "state": "State",
            **{f"Value #{ref}": name for ref, name in refs.items()},
            "instance": "Exporter",
            "note": "Note",
        },
        no_value="–",
        sort_by="Value #A",
    )
    return _account_columns(panel)


def _by_account(condition: str) -> str:
    # a space that was polled successfully is the evidence for 0
    return f"(count by ({ACCOUNT}) ({condition}) or 0 * count by ({ACCOUNT}) ({LAST_SUCCESS}))"


def _account_severity() -> str:
    weights = dict(zip(_PROBLEMS, (1e9, 1e6, 1e3, 1e3, 1), strict=True))
    numbers = " + ".join(f"{weight:.0f} * {_by_account(_PROBLEMS[name])}" for name, weight in weights.items())
    accounts = f"0 * ({SELECTED_ACCOUNTS})"
    down = f"1e12 * account:chatapp_account_down:group{{{ACCOUNTS}}}"
    return f"({numbers} or {accounts}) + ({down} or {accounts}) and on ({ACCOUNT}) ({SELECTED_ACCOUNTS})"


def _account_states() -> str:
    state = f'label_replace({UNPOLLED}, "state", "not polled", "", "") or on ({ACCOUNT}) {STATES} == 1'
    states = f"max by ({ACCOUNT}, state) (topk by ({ACCOUNT}) (1, {state})) and on ({ACCOUNT}) ({SELECTED_ACCOUNTS})"
    return f"{states} or {note(SELECTED_ACCOUNTS, 'note', f'account:chatapp_account_up:last{{{ACCOUNTS}}}', NO_DATA)}"


def _account_columns(panel: Panel) -> Panel:
    states = {
        "ok": ("ok", GOOD),
        "throttled": ("throttled", WARNING),
        **{state: (state, BAD) for state in ("denied", "unreachable", "not polled")},
    }
    runbooks = {
        "denied": "ChatAppAccountDenied",
        "unreachable": "ChatAppAccountUnreachable",
        "not polled": "ChatAppExporterDown",
        "throttled": "ChatAppThrottled",
    }
    links = data_links(*((f"Runbook: {state}", to_runbook(alert)) for state, alert in runbooks.items()))
    panel = panel.override_by_name("State", [*colored_text(states), *links])
    for column in ("Blind spaces", "Down", "RED", "Limit dropped", "Restricted", "YELLOW"):
        panel = panel.override_by_name(column, _colored_count(WARNING if column in ("Restricted", "YELLOW") else BAD))
    panel = panel.override_by_name(
        "Account",
        data_links(
            ("Select this account", to_dashboard(FLEET, account="Account")),
            ("Open the Exporter dashboard", to_dashboard(EXPORTER, account="Account")),
        ),
    )
    panel = panel.override_by_name("Note", [column_width(250)])
    return panel.override_by_name("Exporter", data_links(("Open the status page", to_status_page("Exporter"))))


def _colored_count(color: str) -> list[dashboard.DynamicConfigValue]:
    steps = [{"color": "text", "value": None}, {"color": color, "value": 1}]
    return [
        override("thresholds", {"mode": "absolute", "steps": steps}),
        override("color", {"mode": "thresholds"}),
        override("custom.cellOptions", {"type": "color-text"}),
        override("noValue", "–"),
    ]
