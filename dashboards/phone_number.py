"""Phone number dashboard: one phone number over time, with its changes and alerts."""

from grafana_foundation_sdk.models.common import VizOrientation

from dashboards.panels import (
    AXIS_WIDTH,
    BAD,
    GOOD,
    INFO,
    NEUTRAL,
    PHONE_NUMBER,
    RANKS,
    RATINGS,
    STATUSES,
    UNLIMITED,
    WARNING,
    DashboardBuilder,
    Panel,
    colored_strings,
    colored_text,
    column_width,
    dashed,
    data_links,
    exclude_fields,
    instant_query,
    label_query,
    override,
    range_query,
    relative_time,
    stat_panel,
    state_timeline,
    table_panel,
    table_query,
    time_series,
    to_runbook,
    value_mappings,
)
from exporter.model import MESSAGING_LIMITS

SELECTION = 'job=~"$job",account=~"$account",space=~"$space"'
MATCHING = f'{SELECTION},phone_number=~".*$digits.*"'
NUMBER = f'{SELECTION},phone_number="$number"'
"""Selects one phone number. It can have several series, for example if the number moved to another space."""
BY_NUMBER = "job, account, space, phone_number"
BY_SPACE = "job, account, space"

_RANK = "phone_number:chatapp_phone_number_quality_rank:last"
_STATUS_RANK = "phone_number:chatapp_phone_number_status_rank:last"
_NAMES = "phone_number:chatapp_phone_number_info:names"
_VANISHED = "phone_number:chatapp_phone_number_vanished_timestamp_seconds:max"
_CHANGED = "phone_number:chatapp_phone_number_last_change_timestamp_seconds:last"
_LISTED = f"phone_number:chatapp_phone_number_info:last{{{NUMBER}}}"
_SUCCESS = f"space:chatapp_space_last_success_timestamp_seconds:max{{{SELECTION}}}"
_BLIND = f"space:chatapp_space_blind:group{{{SELECTION}}}"
_SPACES = f"group by ({BY_SPACE}) (last_over_time({_NAMES}{{{NUMBER}}}[$__range] @ end()))"
"""The spaces that listed the phone number in the time range."""
_LAST_LISTED = f"max by ({BY_NUMBER}) (max_over_time(timestamp({_LISTED})[$__range:1m]))"
_KNOWN = f"0 * group({_NAMES}{{{NUMBER}}})"
"""0 if the recording rules know the phone number. Otherwise, there is no result."""

NO_VALUE, NOT_REPORTED = "no value", "not reported"
_FAINT = "rgba(128, 128, 128, 0.25)"
_GAPS = {NO_VALUE: _FAINT, NOT_REPORTED: _FAINT}
_BLUES = ("#DEEBF7", "#C6DBEF", "#9ECAE1", "#6BAED6", "#4292C6", "#2171B5", "#084594", "#084594")
_NAME_STATUSES = {
    **dict.fromkeys(("APPROVAL", "APPROVED", "AVAILABLE_WITHOUT_REVIEW"), GOOD),
    "EXPIRED": WARNING,
    "PENDING_REVIEW": INFO,
    **dict.fromkeys(("DECLINED", "REJECTED"), BAD),
    **dict.fromkeys(("NONE", "NON_EXISTS"), NEUTRAL),
}
_VERIFICATION_STATUSES = {
    "VERIFIED": GOOD,
    **dict.fromkeys(("EXPIRED", "NOT_VERIFIED", "UNVERIFIED"), NEUTRAL),
}
FIELDS = {
    "quality_rating": ("Quality rating", RATINGS),
    "status": ("Status", STATUSES),
    "messaging_limit_tier": ("Messaging limit tier", dict(zip(MESSAGING_LIMITS, _BLUES, strict=True))),
    "name_status": ("Name status", _NAME_STATUSES),
    "new_name_status": ("New name status", _NAME_STATUSES),
    "code_verification_status": ("Code verification", _VERIFICATION_STATUSES),
}
"""The heading of each field of a phone number, and the colors of its values."""
_SEVERITIES = {"3": ("critical", BAD), "2": ("warning", WARNING), "1": ("info", INFO)}
_NO_NUMBER = "No phone number matches. Change the text in Search, or the time range"
_NOT_KNOWN = "No data: no phone number matches, or rules missing"
_NOT_LISTED = "No data: not listed now, or rules missing"
_LAST_KNOWN = "With the name `last known`, the value is not current, because the space is blind."
_NEVER = [*relative_time(), override("mappings", [value_mappings({"0": ("–", NEUTRAL)})])]


def phone_number() -> DashboardBuilder:
    """Return the Phone number dashboard."""
    builder = DashboardBuilder(
        "ChatApp / Phone number",
        PHONE_NUMBER,
        "One phone number over time. If several numbers match, the number with the most severe state is selected.",
    )
    _add_number(builder)
    builder.add_panels(_identity(), height=3)
    builder.add_panels(_rating(), _status(), _limit(), _last_seen(), _name_statuses(), height=4, widths=(5, 5, 5, 3, 6))
    builder.add_panels(_history(), height=7)
    builder.add_panels(_alerts_over_time(), height=5)
    builder.add_panels(_alerts(), _changes(), height=6, widths=(14, 10))
    builder.add_panels(_age(), height=7)
    return builder


def _add_number(builder: DashboardBuilder) -> None:
    builder.add_text_box(
        "phone_number", "Search", "Enter all or some digits of a phone number. Other characters are ignored."
    )
    builder.add_derived_variable("digits", f"query_result({digits_of_the_search_text()})", r'/digits="(\d+)"/')
    builder.add_derived_variable(
        "number",
        f"query_result({matching_numbers()})",
        r'/display="(?<text>(?<value>\d+)[^"]*)/',
        label="Phone number",
        description=f"The phone numbers that match, most severe first (at most {_MAX_NUMBERS}).",
    )


_MAX_NUMBERS = 100
_MAX_DIGITS = 20


def digits_of_the_search_text() -> str:
    """Return a query whose result has the label `digits`: the digits of the search text.

    Grafana inserts the text percent-encoded, so that no character can end the string or is special in a regular
    expression. The digits of an encoded character, for example %2B for +, are removed.
    """
    others = "(?:%[0-9A-F][0-9A-F]|[^0-9%])*"
    digits = "".join(f"${{{group}}}" for group in range(1, _MAX_DIGITS + 1))
    text = 'label_replace(vector(1), "text", "${phone_number:percentencode}", "", "")'
    return f'label_replace({text}, "digits", "{digits}", "text", "{f"{others}([0-9]?)" * _MAX_DIGITS}.*")'


def matching_numbers() -> str:
    """Return a query for the phone numbers that match, with the label `display`. The first one is selected by default.

    Order: the number that equals the search text, then by severity: down, RED, restricted, YELLOW or vanished, others.
    """
    severity = f"2.5 * {_STATUS_RANK}{{{MATCHING}}} ^ 2 + {_RANK}{{{MATCHING}}} or 2 + 0 * {_VANISHED}{{{MATCHING}}}"
    exact_number = f'{SELECTION},phone_number="$digits"'
    exact = f"100 + {_NAMES}{{{exact_number}}}"
    named = f"({severity}) * on ({BY_NUMBER}) group_left (verified_name) {_NAMES}{{{MATCHING}}}"
    # without a name; without rules; vanished more than a day ago (only the exact match, for all it takes too long)
    others = (
        f"{severity} or -1 * chatapp_phone_number_info{{{MATCHING}}}"
        f" or -2 + 0 * last_over_time(phone_number:chatapp_phone_number_quality_rank:max1h{{{exact_number}}}[$__range])"
    )
    by_name = "max by (phone_number, verified_name)"
    numbers = f"{by_name} ({exact}) or on (phone_number) {by_name} ({named})"
    numbers = f"{numbers} or on (phone_number) max by (phone_number) ({others})"
    return f'sort_desc(label_join(topk({_MAX_NUMBERS}, {numbers}), "display", " ", "phone_number", "verified_name"))'


def _identity() -> Panel:
    names = f"{_NAMES}{{{NUMBER}}}"
    last_names = f"topk by ({BY_NUMBER}) (1, last_over_time({names}[$__range]))"
    unnamed = f"group by ({BY_NUMBER}, verified_name) (chatapp_phone_number_info{{{NUMBER}}})"
    rows = f"0 * ({names} or on ({BY_NUMBER}) {last_names} or on ({BY_NUMBER}) {unnamed})"
    polled = f"{_LISTED} * on ({BY_SPACE}) group_left () {_SUCCESS}"
    listed = f"max by ({BY_NUMBER}) ({polled} or {_VANISHED}{{{NUMBER}}} or {_LAST_LISTED})"
    panel = table_panel(
        "Phone number",
        "The phone number that all panels of this dashboard show, and each space that listed it in the time range.",
        table_query(f"1000 * ({rows} + on ({BY_NUMBER}) group_left () {listed} or {rows})"),
        columns={
            "phone_number": "Number",
            "verified_name": "Verified name",
            "name": "Customer",
            "space": "Space",
            "account": "Account",
            "Value": "Last listed",
        },
        no_value=_NO_NUMBER,
    )
    return panel.override_by_name("Last listed", _NEVER)


def _since(field: str, alerts: str, problem: str) -> str:
    """Return a query for the time of the last change of a field, in milliseconds.

    If the exporter saw no change, this is the start of an alert about the present `problem`. Otherwise 0.
    """
    changed = f'{_CHANGED}{{{NUMBER},field="{field}"}}'
    start = f'ALERTS_FOR_STATE{{alertname=~"{alerts}",{NUMBER}}} and on ({BY_NUMBER}) {problem}'
    return f"1000 * (max({changed}) or max({start}) or 0 * max({_LISTED}))"


_SINCE = [*relative_time(), override("mappings", [value_mappings({"0": ("no change recorded", NEUTRAL)})])]


def _rating() -> Panel:
    rank = f"{_RANK}{{{NUMBER}}}"
    panel = stat_panel(
        "Quality rating",
        f"The quality rating, and the time of its last change or of the start of its alert. {_LAST_KNOWN}",
        "none",
        instant_query(f"max({rank} unless on ({BY_SPACE}) {_BLIND})", "rating"),
        instant_query(f"max({rank} and on ({BY_SPACE}) {_BLIND})", "last known", ref="B"),
        instant_query(_since("quality_rating", "ChatAppPhoneNumberQuality.+", f"{rank} >= 2"), "since", ref="C"),
        no_value=_NOT_LISTED,
        mappings=[value_mappings(RANKS)],
    )
    return panel.override_by_name("since", _SINCE)


def _status() -> Panel:
    status = f"phone_number:chatapp_phone_number_status:last{{{NUMBER}}}"
    current = f"group by (status) ({status} unless on ({BY_SPACE}) {_BLIND})"
    last_known = f'label_replace({status} and on ({BY_SPACE}) {_BLIND}, "last_known", "$1", "status", "(.+)")'
    since = _since("status", "ChatAppPhoneNumber(Down|Restricted)", f"{_STATUS_RANK}{{{NUMBER}}} >= 1")
    panel = stat_panel(
        "Status",
        f"The status, and the time of its last change or of the start of its alert. {_LAST_KNOWN}",
        "none",
        table_query(f"({current} or group by (last_known) ({last_known})) * on () group_left () ({since})"),
        fields="/^(status|last known|since)$/",
        no_value=_NOT_LISTED,
    )
    panel = panel.override_by_name("Value", [override("displayName", "since"), *_SINCE])
    panel = panel.override_by_name("last_known", [override("displayName", "last known"), colored_strings(STATUSES)])
    return panel.override_by_name("status", [colored_strings(STATUSES)])


def _limit() -> Panel:
    limit = f"max(phone_number:chatapp_phone_number_messaging_limit:last{{{NUMBER}}})"
    maximum = f"max(phone_number:chatapp_phone_number_messaging_limit:max{{{NUMBER}}})"
    panel = stat_panel(
        "Messaging limit",
        "Unique users that the phone number may message in a rolling 24 hours: last known, and maximum of 7 days.",
        "locale",
        instant_query(f"{limit} >= {maximum} or {limit} unless {maximum}", "now"),
        instant_query(f"{limit} < {maximum}", "now (dropped)", ref="B"),
        instant_query(f"{maximum} and on () {limit}", "maximum of 7 days", ref="C"),
        no_value=_NOT_LISTED,
        mappings=[UNLIMITED],
    )
    dropped = {"mode": "fixed", "fixedColor": WARNING}
    return panel.override_by_name("now (dropped)", [override("color", dropped)])


def _last_seen() -> Panel:
    success = f"{_SUCCESS} and on ({BY_SPACE}) {_LISTED}"
    panel = stat_panel(
        "Last seen",
        "The last successful poll that listed the phone number. If its space is blind, the values can be outdated.",
        "dateTimeFromNow",
        instant_query(f"1000 * max({success} unless on ({BY_SPACE}) {_BLIND})", "last poll"),
        instant_query(f"1000 * max({success} and on ({BY_SPACE}) {_BLIND})", "space is blind", ref="B"),
        instant_query(
            f"1000 * (max({_VANISHED}{{{NUMBER}}}) or max({_LAST_LISTED})) unless max({_LISTED})",
            "vanished",
            ref="C",
        ),
        no_value=_NOT_LISTED,
    )
    problem = [override("color", {"mode": "fixed", "fixedColor": BAD})]
    return panel.override_by_name("space is blind", problem).override_by_name("vanished", problem)


def _name_statuses() -> Panel:
    fields = ("name_status", "new_name_status", "code_verification_status")
    panel = stat_panel(
        "Name status",
        "Status of the verified name, of a requested new name, and of the code verification: the last values within 24"
        " hours.",
        "none",
        *(table_query(_last_value(field), ref=ref) for field, ref in zip(fields, "ABC", strict=True)),
        fields=f"/^({'|'.join(FIELDS[field][0] for field in fields)})$/",
        no_value=_NOT_LISTED,
    ).orientation(VizOrientation.HORIZONTAL)
    for field in fields:
        heading, colors = FIELDS[field]
        panel = panel.override_by_name(field, [override("displayName", heading), colored_strings(colors)])
    return panel


def _last_value(field: str) -> str:
    current = f"chatapp_phone_number_{field}{{{NUMBER}}}"
    newest = f"topk(1, max by ({field}) (max_over_time(timestamp({current} == 1)[1d:1m])))"
    return f"{newest} and on () group({_LISTED})"


def _history() -> Panel:
    panel = state_timeline(
        "Values over time",
        f"Values that the API reported. {NO_VALUE.capitalize()}: the number was not listed, or its space not polled.",
        *(label_query(_value_over_time(field), ref=ref) for field, ref in zip(FIELDS, "ABCDEF", strict=True)),
        no_value=_NO_NUMBER,
    )
    panel = panel.with_transformation(exclude_fields("/^Value/"))
    for field, (heading, colors) in FIELDS.items():
        options = [override("displayName", heading), colored_strings({**colors, **_GAPS})]
        panel = panel.override_by_name(field, options)
    return panel


def _value_over_time(field: str) -> str:
    """Return a query with one series at each time, whose label `field` is the value or a text for a missing value."""
    value = f"topk(1, group by ({field}) (chatapp_phone_number_{field}{{{NUMBER}}} == 1))"
    not_reported = f'label_replace(group(chatapp_phone_number_info{{{NUMBER}}}), "{field}", "{NOT_REPORTED}", "", "")'
    no_value = f'label_replace(vector(1), "{field}", "{NO_VALUE}", "", "")'
    return f"{value} or on () {not_reported} or on () {no_value}"


def _alerts_of(state: str) -> str:
    """Return a query for the alerts of the phone number, its spaces and their accounts."""
    alerts = f'alertname=~"ChatApp.+",alertstate=~"{state}",job=~"$job",account=~"$account"'
    number = f'ALERTS{{{alerts},space=~"$space",phone_number="$number",phone_number!=""}}'
    space = f'ALERTS{{{alerts},space=~"$space",space!="",phone_number=""}} and on ({BY_SPACE}) {_SPACES}'
    account = f'ALERTS{{{alerts},account!="",space=""}} and on (job, account) {_SPACES}'
    return f"({number} or {space} or {account})"


def _alerts_over_time() -> Panel:
    severities = " or ".join(
        f'label_replace(vector({value}), "severity", "{severity}", "", "")'
        for value, (severity, _) in _SEVERITIES.items()
    )
    firing = f"max by (alertname) ({_alerts_of('firing')} * on (severity) group_left () ({severities}))"
    none = f'label_replace({_KNOWN}, "state", "No alerts", "", "")'
    no_data = 'label_replace(vector(-1), "state", "No data", "", "")'
    panel = state_timeline(
        "Alerts over time",
        "Firing alerts of the phone number, its space and its account. Click an alert to open its runbook.",
        range_query(f"{firing} or on () {none} or on () {no_data}", "{{alertname}}{{state}}"),
        no_value=_NO_NUMBER,
    )
    texts = {**_SEVERITIES, "0": ("no alert firing", GOOD), "-1": ("no data", _FAINT)}
    links = data_links(("Runbook", to_runbook("${__field.labels.alertname}")))
    return panel.mappings([value_mappings(texts)]).override_by_regexp("/^ChatApp/", links)


def _alerts() -> Panel:
    since = 'ALERTS_FOR_STATE{alertname=~"ChatApp.+",job=~"$job",account=~"$account"}'
    active = f"{_alerts_of('pending|firing')} * ignoring (alertstate) group_left () {since}"
    active = f"max by (alertstate, alertname, severity) ({active})"
    panel = table_panel(
        "Alerts",
        "Firing and pending alerts of the phone number, its space and its account.",
        table_query(f'1000 * {active} or on () label_replace({_KNOWN}, "alertstate", "no alerts", "", "")'),
        columns={"alertstate": "State", "alertname": "Alert", "severity": "Severity", "Value": "Since"},
        no_value=_NOT_KNOWN,
    )
    panel = panel.override_by_name("Alert", data_links(("Runbook", to_runbook("${__value.raw}"))))
    panel = panel.override_by_name(
        "Severity", colored_text({name: (name, color) for name, color in _SEVERITIES.values()})
    )
    for column, width in (("State", 90), ("Severity", 90), ("Since", 140)):
        panel = panel.override_by_name(column, [column_width(width)])
    return panel.override_by_name("Since", _NEVER)


def _changes() -> Panel:
    panel = table_panel(
        "Last changes",
        "The last recorded change of each field.",
        table_query(
            f"1000 * max by (field) ({_CHANGED}{{{NUMBER}}})"
            f' or on () label_replace({_KNOWN}, "field", "no change recorded", "", "")'
        ),
        columns={"field": "Field", "Value": "Changed"},
        no_value=_NOT_KNOWN,
    )
    fields = {field: (heading, "text") for field, (heading, _) in FIELDS.items()}
    panel = panel.override_by_name("Field", [override("mappings", [value_mappings(fields)])])
    return panel.override_by_name("Changed", _NEVER)


def _age() -> Panel:
    age = f"space:chatapp_space_seconds_since_success:min{{{SELECTION}}}"
    interval = 'account:chatapp_account_effective_poll_interval_seconds:last{job=~"$job",account=~"$account"}'
    panel = time_series(
        "Age of the values",
        "Time since the last successful poll of the space. Above the dashed line, the space is blind.",
        "s",
        range_query(
            f"max({age} and on ({BY_SPACE}) {_LISTED}) or max({age} and on ({BY_SPACE}) {_SPACES})", "age of the values"
        ),
        range_query(f"3 * max({interval} and on (job, account) {_SPACES})", "3 effective intervals", ref="B"),
        no_value=_NOT_KNOWN,
    )
    return dashed(panel, "intervals").axis_width(AXIS_WIDTH)
