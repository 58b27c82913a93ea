"""Phone number: one number over time, with its changes and its alerts."""

from dashboards.panels import (
    BAD,
    PHONE_NUMBER,
    RATINGS,
    STATUSES,
    UNLIMITED,
    Page,
    Panel,
    ago,
    figures,
    instant,
    lines,
    listing,
    query,
    rows,
    timeline,
)

MATCHING = 'job=~"$job",account=~"$account",space=~"$space",phone_number=~".*$phone_number.*"'
NUMBER = "job, account, space, phone_number"
_RANK = f"phone_number:chatapp_phone_number_quality_rank:last{{{MATCHING}}}"
_CHOSEN = f"and on ({NUMBER}) topk(1, {_RANK} @ end())"
"""One number, whatever matches: the worst of them at the end of the time range."""
_EMPTY = "No number matches: choose one in Fleet, or type its digits above"


def phone_number() -> Page:
    """The dashboard."""
    page = Page(
        "ChatApp / Phone number", PHONE_NUMBER, "One phone number over time. Where several match, the worst of them."
    )
    page.choice("space", "Space", 'label_values(chatapp_space_up{job=~"$job",account=~"$account"}, space)')
    page.search(
        "phone_number", "Number", "Digits without +, or some of them. Where several numbers match, the worst is shown."
    )
    alerts = f'max by (alertname, severity) (ALERTS{{alertstate="firing",alertname=~"ChatApp.*",{MATCHING}}} {_CHOSEN})'
    page.annotation("Alerts", alerts, "{{alertname}} ({{severity}})", BAD)
    page.lay(_identity(), height=4)
    page.lay(_words("quality_rating", "Quality rating", RATINGS), height=6)
    page.lay(_words("messaging_limit_tier", "Messaging limit tier", {}), _words("status", "Status", STATUSES), height=6)
    page.lay(_limit(), _changes(), height=6)
    page.lay(_alerts(), _freshness(), height=7)
    return page


def _words(field: str, title: str, colours: dict[str, str]) -> Panel:
    family = f"chatapp_phone_number_{field}"
    return timeline(
        title,
        "As the API spells it, in each poll that succeeded. Gaps: nobody could see.",
        f"max by ({field}) (({family}{{{MATCHING}}} == 1) {_CHOSEN})",
        field,
        colours,
        _EMPTY,
    )


def _identity() -> Panel:
    names = f"phone_number:chatapp_phone_number_info:names{{{MATCHING}}}"
    return listing(
        "Which number",
        "The number that all panels show.",
        rows(f"max by (account, space, phone_number, verified_name, name) ({names} {_CHOSEN})"),
        columns={
            "phone_number": "Number",
            "verified_name": "Verified name",
            "name": "Space name",
            "space": "Space",
            "account": "Account",
        },
        empty=_EMPTY,
    )


def _limit() -> Panel:
    limit = f"phone_number:chatapp_phone_number_messaging_limit:last{{{MATCHING}}}"
    return figures(
        "Messaging limit",
        "How many people the number may write to in 24 hours, and the highest of the last 7 days.",
        "locale",
        instant(f"max({limit} {_CHOSEN})", "now"),
        instant(f"max(max_over_time({limit}[7d]) {_CHOSEN})", "highest of 7 days", ref="B"),
        empty="Not known",
    ).mappings([UNLIMITED])


def _changes() -> Panel:
    family = f"chatapp_phone_number_last_change_timestamp_seconds{{{MATCHING}}}"
    panel = listing(
        "Last changes",
        "When each field was seen to change last.",
        rows(f"1000 * max by (field) ({family} {_CHOSEN})"),
        columns={"field": "What", "Value": "When"},
        empty="No change was seen yet",
    )
    return panel.override_by_name("When", ago())


def _alerts() -> Panel:
    firing = f'count by (alertname) (ALERTS{{alertstate="firing",alertname=~"ChatApp.*",{MATCHING}}} {_CHOSEN})'
    return timeline("Alerts", "Alerts of this number while they fired.", firing, "alertname", {}, "No alert fired")


def _freshness() -> Panel:
    since = "space:chatapp_space_seconds_since_success:min"
    spaces = f"and on (job, account, space) topk(1, {_RANK} @ end())"
    return lines(
        "Age of what is shown",
        "Seconds since the last poll of its space that succeeded.",
        "s",
        query(f'max({since}{{job=~"$job",account=~"$account",space=~"$space"}} {spaces})', "age"),
        empty=_EMPTY,
    )
