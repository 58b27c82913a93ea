"""Phone number dashboard: one phone number over time, with its changes and alerts."""

from dashboards.panels import (
    BAD,
    PHONE_NUMBER,
    RATINGS,
    STATUSES,
    UNLIMITED,
    DashboardBuilder,
    Panel,
    instant_query,
    range_query,
    relative_time,
    stat_panel,
    state_timeline,
    table_panel,
    table_query,
    time_series,
)

MATCHING = 'job=~"$job",account=~"$account",space=~"$space",phone_number=~".*$phone_number.*"'
NUMBER = "job, account, space, phone_number"
_RANK = f"phone_number:chatapp_phone_number_quality_rank:last{{{MATCHING}}}"
_SELECTED = f"and on ({NUMBER}) topk(1, {_RANK} @ end())"
"""Selects one matching phone number: the number with the worst quality rating at the end of the time range."""
_NO_MATCH = "No matching phone number. Select a number in the Fleet dashboard, or enter its digits above"


def phone_number() -> DashboardBuilder:
    """Return the Phone number dashboard."""
    builder = DashboardBuilder(
        "ChatApp / Phone number",
        PHONE_NUMBER,
        "One phone number over time. If several numbers match, the number with the worst quality rating is shown.",
    )
    builder.add_text_box(
        "phone_number",
        "Phone number",
        "All or some digits, without +. If several numbers match, the number with the worst quality rating is shown.",
    )
    alerts = (
        f'max by (alertname, severity) (ALERTS{{alertstate="firing",alertname=~"ChatApp.*",{MATCHING}}} {_SELECTED})'
    )
    builder.add_annotation("Alerts", alerts, "{{alertname}} ({{severity}})", BAD)
    builder.add_panels(_identity(), height=4)
    builder.add_panels(_timeline("quality_rating", "Quality rating", RATINGS), height=6)
    builder.add_panels(
        _timeline("messaging_limit_tier", "Messaging limit tier", {}), _timeline("status", "Status", STATUSES), height=6
    )
    builder.add_panels(_limit(), _changes(), height=6)
    builder.add_panels(_alerts(), _age(), height=7)
    return builder


def _timeline(field: str, title: str, colors: dict[str, str]) -> Panel:
    family = f"chatapp_phone_number_{field}"
    return state_timeline(
        title,
        "Values that the API reported. In a gap, there is no current value.",
        f"max by ({field}) (({family}{{{MATCHING}}} == 1) {_SELECTED})",
        field,
        colors,
        _NO_MATCH,
    )


def _identity() -> Panel:
    names = f"phone_number:chatapp_phone_number_info:names{{{MATCHING}}}"
    return table_panel(
        "Phone number",
        "The phone number that all panels of this dashboard show.",
        table_query(f"max by (account, space, phone_number, verified_name, name) ({names} {_SELECTED})"),
        columns={
            "phone_number": "Number",
            "verified_name": "Verified name",
            "name": "Space name",
            "space": "Space",
            "account": "Account",
        },
        no_value=_NO_MATCH,
    )


def _limit() -> Panel:
    limit = f"phone_number:chatapp_phone_number_messaging_limit:last{{{MATCHING}}}"
    return stat_panel(
        "Messaging limit",
        "Unique users that the phone number may message in a rolling 24 hours: last known, and maximum of 7 days.",
        "locale",
        instant_query(f"max({limit} {_SELECTED})", "current"),
        instant_query(f"max(max_over_time({limit}[7d]) {_SELECTED})", "maximum of 7 days", ref="B"),
        no_value="Unknown",
    ).mappings([UNLIMITED])


def _changes() -> Panel:
    family = f"chatapp_phone_number_last_change_timestamp_seconds{{{MATCHING}}}"
    panel = table_panel(
        "Last changes",
        "Time of the last change of each field that the exporter observed.",
        table_query(f"1000 * max by (field) ({family} {_SELECTED})"),
        columns={"field": "Field", "Value": "Changed"},
        no_value="No observed changes",
    )
    return panel.override_by_name("Changed", relative_time())


def _alerts() -> Panel:
    firing = f'count by (alertname) (ALERTS{{alertstate="firing",alertname=~"ChatApp.*",{MATCHING}}} {_SELECTED})'
    return state_timeline("Alerts", "Firing alerts of this phone number.", firing, "alertname", {}, "No alerts")


def _age() -> Panel:
    since = "space:chatapp_space_seconds_since_success:min"
    spaces = f"and on (job, account, space) topk(1, {_RANK} @ end())"
    return time_series(
        "Age of the values",
        "Time since the last successful poll of the space.",
        "s",
        range_query(f'max({since}{{job=~"$job",account=~"$account",space=~"$space"}} {spaces})', "age"),
        no_value=_NO_MATCH,
    )
