"""Fleet: how many numbers are in which state, who is worst off and since when, what changed, what nobody sees."""

from dashboards.panels import (
    BAD,
    CALM,
    FLEET,
    PHONE_NUMBER,
    RANKS,
    RATINGS,
    STATUSES,
    UNLIMITED,
    UNSURE,
    WARNING,
    Page,
    Panel,
    Query,
    ago,
    coloured,
    count,
    lines,
    link,
    listing,
    override,
    query,
    rows,
)

SELECTED = 'job=~"$job",account=~"$account",space=~"$space"'
NUMBER = "account, space, phone_number"
RANK = f"phone_number:chatapp_phone_number_quality_rank:last{{{SELECTED}}}"
STATUS_RANK = f"phone_number:chatapp_phone_number_status_rank:last{{{SELECTED}}}"
BLIND = f"space:chatapp_space_blind:group{{{SELECTED}}}"
_BLIND_MEANS = "Spaces without a successful poll for 3 effective intervals, or whose account can't be queried."
SINCE_SUCCESS = f"space:chatapp_space_seconds_since_success:min{{{SELECTED}}}"
TO_NUMBER = (
    f"/d/{PHONE_NUMBER}?var-datasource=${{datasource}}&var-account=${{__data.fields.Account}}"
    "&var-space=${__data.fields.Space}&var-phone_number=${__data.fields.Number}&${__url_time_range}"
)
TO_SPACE = (
    f"/d/{FLEET}?var-datasource=${{datasource}}&var-account=${{__data.fields.Account}}"
    "&var-space=${__value.raw}&${__url_time_range}"
)
_MOST_ROWS = 100
_WORST = f"topk({_MOST_ROWS}, max by ({NUMBER}) (2.5 * {STATUS_RANK} ^ 2) + max by ({NUMBER}) ({RANK}))"
"""The numbers of the table: down before RED, RED before restricted, then YELLOW."""
_NAMES = "phone_number:chatapp_phone_number_info:names"


def fleet() -> Page:
    """The dashboard."""
    page = Page(
        "ChatApp / Fleet", FLEET, "Phone numbers by health: who is in trouble, since when, and what nobody sees."
    )
    page.choice("space", "Space", 'label_values(chatapp_space_up{job=~"$job",account=~"$account"}, space)')
    _counts(page)
    page.lay(_ratings_over_time(), _blind_over_time(), height=7, widths=(16, 8))
    page.section("Worst first")
    page.lay(_worst(), height=11)
    page.section("What changed in the last 24 hours, and what nobody sees")
    page.lay(_changed(), _blind(), height=9, widths=(14, 10))
    page.section("By account and space")
    page.lay(_by_account(), _by_space(), height=9, widths=(14, 10))
    return page


def _numbers(title: str, description: str, condition: str, colour: str) -> Panel:
    return count(title, description, f"count({condition}) or vector(0)", colour)


def _counts(page: Page) -> None:
    held = "As last seen, also while nobody can see the space."
    dropped = f'ALERTS{{alertname="ChatAppMessagingLimitDropped",alertstate="firing",{SELECTED}}}'
    page.lay(
        _numbers("RED", f"Numbers with the quality rating RED. {held}", f"{RANK} == 3", BAD),
        _numbers("YELLOW", f"Numbers with the quality rating YELLOW. {held}", f"{RANK} == 2", WARNING),
        _numbers("Down", f"Numbers that can neither send nor receive. {held}", f"{STATUS_RANK} == 2", BAD),
        _numbers(
            "Restricted",
            f"Numbers that are FLAGGED, PAUSED, RATE_LIMITED or RESTRICTED. {held}",
            f"{STATUS_RANK} == 1",
            WARNING,
        ),
        _numbers(
            "Limit dropped", "Numbers that may write to fewer people than within the last 7 days.", dropped, WARNING
        ),
        _numbers("Blind spaces", _BLIND_MEANS, BLIND, BAD),
        _numbers(
            "Unknown",
            "Numbers without a rating yet, or with a rating that the exporter does not know.",
            f"{RANK} == 1",
            UNSURE,
        ),
        _numbers("All numbers", "Phone numbers that are listed, or were when their space was seen last.", RANK, CALM),
        height=4,
    )


def _ratings_over_time() -> Panel:
    rated = query(
        "sum by (quality_rating)"
        ' (account_quality_rating:chatapp_phone_numbers:sum{job=~"$job",account=~"$account"} > 0)',
        "{{quality_rating}}",
    )
    panel = lines(
        "Numbers by rating",
        "Numbers that are seen now, by quality rating, in the chosen accounts.",
        "short",
        rated,
        empty="No number is seen",
    )
    for rating, colour in RATINGS.items():
        panel = panel.override_by_name(rating, [override("color", {"mode": "fixed", "fixedColor": colour})])
    return panel


def _blind_over_time() -> Panel:
    blind = query(f"count({BLIND}) or vector(0)", "blind spaces")
    return lines("Blind spaces", _BLIND_MEANS, "short", blind, empty="No space")


def _worst() -> Panel:
    panel = listing(
        f"The {_MOST_ROWS} numbers that are worst off",
        "Down, then RED, restricted, YELLOW. A number leads to its own dashboard."
        " Since: when the rating or the status was seen to change.",
        *_worst_queries(),
        columns={
            "phone_number": "Number",
            "verified_name": "Verified name",
            "Value #C": "Rating",
            "status": "Status",
            "Value #E": "People in 24 h",
            "Value #F": "Since",
            "name": "Space name",
            "space": "Space",
            "account": "Account",
            "Value #G": "Last seen",
            "Value #A": "Badness",
        },
        empty="No number is known in this selection",
    )
    panel = panel.override_by_name("Number", link("Open this number", TO_NUMBER)).override_by_name(
        "Rating", coloured(RANKS)
    )
    panel = panel.override_by_name(
        "People in 24 h", [override("mappings", [UNLIMITED]), override("unit", "locale"), override("noValue", "–")]
    )
    panel = panel.override_by_name("Status", coloured({word: (word, colour) for word, colour in STATUSES.items()}))
    panel = panel.override_by_name("Since", ago()).override_by_name("Last seen", ago())
    return panel.override_by_name("Badness", [override("custom.hidden", True)])


def _worst_queries() -> tuple[Query, ...]:
    def with_value(expression: str, ref: str, labels: str = NUMBER) -> Query:
        return rows(f"max by ({labels}) ({expression}) and on ({NUMBER}) {_WORST}", ref=ref)

    last_success = f"chatapp_space_last_success_timestamp_seconds{{{SELECTED}}}"
    fields = 'field=~"quality_rating|status"'
    changed = f"chatapp_phone_number_last_change_timestamp_seconds{{{SELECTED},{fields}}}"
    return (
        rows(_WORST),
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


def _changed() -> Panel:
    changes = f"max by (job, {NUMBER}, field) (chatapp_phone_number_last_change_timestamp_seconds{{{SELECTED}}})"
    panel = listing(
        "Changed",
        f"Ratings, tiers and statuses that were seen to change in the last 24 hours, the newest {_MOST_ROWS}.",
        rows(
            f"1000 * topk({_MOST_ROWS}, {changes} > time() - 86400)"
            f" * on (job, {NUMBER}) group_left (verified_name, name) {_NAMES}"
        ),
        columns={
            "Value": "When",
            "phone_number": "Number",
            "verified_name": "Verified name",
            "field": "What",
            "account": "Account",
            "space": "Space",
        },
        empty="Nothing was seen to change in 24 hours",
    )
    panel = panel.override_by_name("When", ago()).override_by_name("Number", link("Open this number", TO_NUMBER))
    return panel.override_by_name("What", [override("mappings", [])])


def _blind() -> Panel:
    names = "topk by (job, account, space) (1, group by (job, account, space, name) (chatapp_space_info))"
    panel = listing(
        "Blind spaces",
        f"Blind spaces, and how long ago a poll succeeded; the {_MOST_ROWS} longest.",
        rows(
            f"topk({_MOST_ROWS}, {SINCE_SUCCESS} and on (job, account, space) {BLIND})"
            f" * on (job, account, space) group_left (name) {names}"
        ),
        columns={"Value": "Not seen for", "name": "Space name", "space": "Space", "account": "Account"},
        empty="No space is blind",
    )
    panel = panel.override_by_name("Space", link("Only this space", TO_SPACE))
    return panel.override_by_name("Not seen for", [override("unit", "s")])


def _by_account() -> Panel:
    def of(expression: str, ref: str) -> Query:
        return rows(f"count by (account) ({expression})", ref=ref)

    panel = listing(
        "Accounts",
        "Numbers by state and blind spaces of each account.",
        of(RANK, "A"),
        of(f"{RANK} == 3", "B"),
        of(f"{RANK} == 2", "C"),
        of(f"{STATUS_RANK} == 2", "D"),
        of(BLIND, "E"),
        columns={
            "account": "Account",
            "Value #A": "Numbers",
            "Value #B": "RED",
            "Value #C": "YELLOW",
            "Value #D": "Down",
            "Value #E": "Blind spaces",
        },
        empty="No account is known in this selection",
    )
    for column in ("RED", "YELLOW", "Down", "Blind spaces"):
        panel = panel.override_by_name(column, [override("noValue", "0")])
    return panel


def _by_space() -> Panel:
    panel = listing(
        "Spaces with numbers that are not well",
        f"Numbers that are YELLOW, RED, restricted or down, by space; the {_MOST_ROWS} with most.",
        rows(f"topk({_MOST_ROWS}, count by (account, space) (max by ({NUMBER}) ({RANK} >= 2 or {STATUS_RANK} >= 1)))"),
        columns={"Value": "Numbers", "space": "Space", "account": "Account"},
        empty="Every number is well",
    )
    return panel.override_by_name("Space", link("Only this space", TO_SPACE))
