"""Builders for queries, panels and dashboards. All panels have a title, a description, a unit and a no-value text."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.names import validate_metrics

# colors of the Okabe-Ito palette, distinguishable with color vision deficiency
GOOD, NEUTRAL, WARNING, BAD, INFO = "#009E73", "#999999", "#E69F00", "#D55E00", "#56B4E9"

FLEET, PHONE_NUMBER, EXPORTER, REVIEW = "chatapp-fleet", "chatapp-phone-number", "chatapp-exporter", "chatapp-review"
DASHBOARDS = {FLEET: "Fleet", PHONE_NUMBER: "Phone number", EXPORTER: "Exporter", REVIEW: "Review"}
RUNBOOKS = "https://github.com/chatapp-exporter/chatapp-exporter/blob/main/docs/runbooks"
NO_DATA = "No data: exporter or rules missing"
NO_SUCCESS = "No data: no successful poll, or rules missing"
EXPORTERS = 'last_over_time(chatapp_exporter_build_info{job=~"$job"}[7d])'
"""The exporters of the last 7 days, to select their series of `up` by job and instance."""
DATA_SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24
AXIS_WIDTH = 230
"""The width of the row headings of a state timeline, in pixels, so that the time axes of several panels align."""

_SCHEMA_VERSION = 39
"""The schema of Grafana 11.0. Newer versions migrate it; older versions do not know a newer schema."""
_THIS = "<this dashboard>"

_NAMED_SPACES = 'group by (space, name) (space:chatapp_space_info:last{job=~"$job",account=~"$account",name!=""})'
_ANY_SPACES = '{__name__=~"chatapp_space_up|space:chatapp_space_info:last",job=~"$job",account=~"$account"}'
_SPACE_NAMES = (
    f"({_NAMED_SPACES} and on (space) count by (space) ({_NAMED_SPACES}) == 1)"
    f' or on (space) label_replace(group by (space) ({_ANY_SPACES}), "name", "$1", "space", "(.+)")'
)
"""One series for each space id. The label `name` is the id if the space has no name, or if the id has several names in
different accounts."""
# Grafana matches texts like {name="Contoso "Asia"",space="1"} 1 1700000000000, without escaped quotes
_SPACE_REGEX = '/^{name="(?<text>.*)",space="(?<value>.*)"}/'

RATINGS = {"GREEN": GOOD, "YELLOW": WARNING, "RED": BAD, "UNKNOWN": NEUTRAL}
RANKS = {"0": ("GREEN", GOOD), "1": ("UNKNOWN", NEUTRAL), "2": ("YELLOW", WARNING), "3": ("RED", BAD)}
STATUSES = {
    "CONNECTED": GOOD,
    **dict.fromkeys(("FLAGGED", "PAUSED", "RATE_LIMITED", "RESTRICTED"), WARNING),
    **dict.fromkeys(("BANNED", "DELETED", "DISCONNECTED", "MIGRATED", "OFFLINE"), BAD),
}

Query = prometheus.Dataquery
Panel = stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel
AnyPanel = TypeVar("AnyPanel", stat.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)


def range_query(expression: str, legend: str = "", *, ref: str = "A") -> Query:
    """Return a query over the dashboard's time range."""
    return _query(expression, ref).range().legend_format(legend or "__auto")


def instant_query(expression: str, legend: str = "", *, ref: str = "A") -> Query:
    """Return a query at the end of the time range."""
    return _query(expression, ref).instant().legend_format(legend or "__auto")


def table_query(expression: str, *, ref: str = "A") -> Query:
    """Return a query at the end of the time range, with one table column for each label."""
    return _query(expression, ref).instant().format(PromQueryFormat.TABLE)


def label_query(expression: str, *, ref: str = "A") -> Query:
    """Return a query over the dashboard's time range, with one column for each label."""
    return _query(expression, ref).range().format(PromQueryFormat.TABLE)


def _query(expression: str, ref: str) -> Query:
    return prometheus.Dataquery().expr(validate_metrics(expression)).ref_id(ref).datasource(DATA_SOURCE)


def count_or_zero(condition: str, population: str) -> str:
    """Return a query for the number of series of `condition`. The result is 0 only if `population` has series: if the
    exporter or the rules are missing, there is no result."""
    return f"count({condition}) or 0 * count({population})"


def note(rows: str, label: str, evidence: str, no_data: str, *, max_rows: int = 0) -> str:
    """Return a query for a row with a text in a label, which is "none", "and N more" if there are more than `max_rows`
    rows, or `no_data` if `evidence` has no series. Without this row, an empty table shows only its headings."""
    none = f'label_replace(group({evidence}) unless count({rows}), "{label}", "none", "", "")'
    missing = f'label_replace(absent({evidence}), "{label}", "{no_data}", "", "")'
    # absent() also returns the labels of the selector
    text = f"{none} or group by ({label}) ({missing})"
    if not max_rows:
        return text
    more = f'count_values("more", count({rows}) - {max_rows} > 0)'
    return f'label_replace({more}, "{label}", "and $1 more", "more", "(.+)") or {text}'


def exact_increase(counter: str, window: str, *new: str) -> str:
    """Return a query for the increase of a counter in the window. increase() extrapolates: 1 becomes, for example, 1.3,
    so that a share of two increases is wrong if a first value is added to one of them.

    `new` are queries for the series that did not exist before the window.
    """
    choices = (f"clamp_min({counter} - {counter} offset {window}, 0)", *new, f"increase({counter}[{window}])")
    return f"({' or '.join(choices)})"


def failed_polls(spaces: str, window: str) -> str:
    """Return a query for the number of failed polls by space and reason in the window.

    The first failure of a space creates a series with the value 1, which increase() does not count. The series of the
    polls exists from the start of the exporter: before the window, or with more samples in the window.
    """
    failures, polls = f"chatapp_space_poll_failures_total{{{spaces}}}", f"chatapp_space_polls_total{{{spaces}}}"
    on = "on (job, instance, account, space)"
    older = f"{failures} and {on} {polls} offset {window}"
    samples = f"count_over_time({failures}[{window}]) < {on} group_left () count_over_time({polls}[{window}])"
    return exact_increase(failures, window, older, f"{failures} and {samples}")


def count_panel(
    title: str, description: str, expression: str, color: str, *, link: str = "", no_value: str = NO_DATA
) -> stat.Panel:
    """Return a panel with one number: green at 0, `color` from 1. With INFO, always `color`. Without data, gray.

    `link` is the address that a click on the number opens, for example `to_panel("Accounts")`.
    """
    steps = [dashboard.Threshold(None, GOOD if color != INFO else INFO), dashboard.Threshold(1, color)]
    panel = stat.Panel().graph_mode(common.BigValueGraphMode.NONE).color_mode(common.BigValueColorMode.VALUE)
    panel = panel.thresholds(board.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
    panel = panel.color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    # without a mapping, the no-value text has the color of 0
    panel = panel.mappings([_null_mapping(no_value)])
    if link:
        panel = panel.data_links([board.DashboardLink("Open the list").url(link)])
    return _with_texts(panel, title, description, "none", no_value).with_target(instant_query(expression))


def _null_mapping(text: str) -> dashboard.SpecialValueMap:
    result = dashboard.ValueMappingResult(text=text, color=NEUTRAL, index=0)
    options = dashboard.DashboardSpecialValueMapOptions(dashboard.SpecialValueMatch.NULL_AND_NAN, result)
    return dashboard.SpecialValueMap(options)


def stat_panel(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    no_value: str,
    fields: str = "",
    mappings: Sequence[dashboard.ValueMap] = (),
) -> stat.Panel:
    """Return a panel with one value for each query, and its legend. Without data, it shows a gray text.

    `fields` is a regular expression for the fields to show, for example with text. Default: all numbers.
    """
    panel = stat.Panel().graph_mode(common.BigValueGraphMode.NONE).text_mode(common.BigValueTextMode.VALUE_AND_NAME)
    panel = panel.color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.FIXED).fixed_color(INFO))
    panel = panel.text(common_builders.VizTextDisplayOptions().title_size(13).value_size(20))
    panel = panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).fields(fields))
    panel = panel.mappings([*mappings, _null_mapping(no_value)])
    panel = _with_texts(panel, title, description, unit, no_value)
    for target in queries:
        panel = panel.with_target(target)
    return panel


def time_series(
    title: str, description: str, unit: str, *queries: Query, no_value: str, legend_values: Sequence[str] = ()
) -> timeseries.Panel:
    """Return a graph of values over time, with a legend.

    With `legend_values`, for example `("lastNotNull", "max")`, the legend is a table with these values of each series.
    """
    mode = common.LegendDisplayMode.TABLE if legend_values else common.LegendDisplayMode.LIST
    legend = common_builders.VizLegendOptions().show_legend(True).calcs(list(legend_values))
    legend = legend.display_mode(mode).placement(common.LegendPlacement.BOTTOM)
    panel = timeseries.Panel().legend(legend).fill_opacity(8).min(0)
    panel = panel.color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC))
    tooltip = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    panel = panel.tooltip(tooltip.sort(common.SortOrder.DESCENDING))
    panel = _with_texts(panel, title, description, unit, no_value)
    for target in queries:
        panel = panel.with_target(target)
    return panel


def dashed(panel: timeseries.Panel, names: str) -> timeseries.Panel:
    """Draw dashed lines for the series whose legend ends with `names` (a regular expression)."""
    style = [override("custom.lineStyle", {"fill": "dash", "dash": [10, 10]}), override("custom.fillOpacity", 0)]
    return panel.override_by_regexp(f"/ {names}$/", style)


def state_timeline(title: str, description: str, *queries: Query, no_value: str) -> statetimeline.Panel:
    """Return a panel with one colored row for each series. The row shows the value as text."""
    legend = common_builders.VizLegendOptions().show_legend(False)
    panel = statetimeline.Panel().show_value(common.VisibilityMode.AUTO).row_height(0.8).legend(legend)
    panel = panel.merge_values(True).axis_width(AXIS_WIDTH)
    panel = panel.color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.FIXED).fixed_color(INFO))
    panel = panel.tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.SINGLE))
    panel = _with_texts(panel, title, description, "none", no_value)
    for target in queries:
        panel = panel.with_target(target)
    return panel


def table_panel(
    title: str, description: str, *queries: Query, columns: Mapping[str, str], no_value: str, sort_by: str = ""
) -> table.Panel:
    """Return a table of the merged query results. `columns` maps fields to column headings, in the order of display.

    With `sort_by`, the rows are sorted by this field, highest value first.
    """
    order = {source: position for position, source in enumerate(columns)}
    panel = table.Panel().show_header(True).cell_height(common.TableCellHeight.SM).min_width(100)
    panel = panel.color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.FIXED).fixed_color("text"))
    panel = panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    if sort_by:
        sort = {"fields": {}, "sort": [{"field": sort_by, "desc": True}]}
        panel = panel.with_transformation(dashboard.DataTransformerConfig(id_val="sortBy", options=sort))
    panel = panel.with_transformation(
        dashboard.DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"names": list(columns)}})
    )
    panel = panel.with_transformation(
        dashboard.DataTransformerConfig(
            id_val="organize", options={"indexByName": order, "renameByName": dict(columns), "excludeByName": {}}
        )
    )
    panel = _with_texts(panel, title, description, "none", no_value)
    for target in queries:
        panel = panel.with_target(target)
    return panel


def exclude_fields(pattern: str) -> dashboard.DataTransformerConfig:
    """Return a transformation that removes the fields whose names match the regular expression."""
    return dashboard.DataTransformerConfig(id_val="filterFieldsByName", options={"exclude": {"pattern": pattern}})


def _with_texts(panel: AnyPanel, title: str, description: str, unit: str, no_value: str) -> AnyPanel:
    return panel.title(title).description(description).unit(unit).no_value(no_value).datasource(DATA_SOURCE)


def colored_strings(colors: Mapping[str, str]) -> dashboard.DynamicConfigValue:
    """Return the option of a field that shows each of these values in its color."""
    return override("mappings", [value_mappings({value: (value, color) for value, color in colors.items()})])


def value_mappings(texts: Mapping[str, tuple[str, str]]) -> dashboard.ValueMap:
    """Map each value to a text and its color."""
    return dashboard.ValueMap(
        options={
            value: dashboard.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, (text, color)) in enumerate(texts.items())
        }
    )


UNLIMITED = value_mappings({"Infinity": ("unlimited", INFO)})
"""Shows a messaging limit of +Inf as text."""


def override(name: str, value: object) -> dashboard.DynamicConfigValue:
    """Return a field option, with SDK models in the value converted to plain JSON."""
    return dashboard.DynamicConfigValue(name, json.loads(json.dumps(value, cls=JSONEncoder)))


def colored_text(texts: Mapping[str, tuple[str, str]]) -> list[dashboard.DynamicConfigValue]:
    """Return the options of a column that shows each value as a colored text."""
    return [
        override("mappings", [value_mappings(texts)]),
        override("custom.cellOptions", {"type": "color-text"}),
        override("custom.align", "left"),
    ]


def relative_time() -> list[dashboard.DynamicConfigValue]:
    """Return the options of a column that shows a timestamp in milliseconds as, for example, "3 hours ago"."""
    return [override("unit", "dateTimeFromNow"), override("noValue", "–")]


def data_links(*links: tuple[str, str]) -> list[dashboard.DynamicConfigValue]:
    """Return the options of a column whose cells are links. Each link is a title and an address."""
    return [
        override(
            "links",
            [{"title": title, "url": address, "targetBlank": not address.startswith("/")} for title, address in links],
        )
    ]


def column_width(pixels: int) -> dashboard.DynamicConfigValue:
    """Return the option of a column with a fixed width."""
    return override("custom.width", pixels)


def to_dashboard(uid: str, **columns: str) -> str:
    """Return the address of a dashboard, with the data source, job and time range of the current dashboard.

    Each keyword is a variable of the dashboard, and its value is the heading of the table column with its value:
    `to_dashboard(PHONE_NUMBER, account="Account", space="Space", phone_number="Number")`.
    """
    variables = "".join(
        f"&var-{name}=${{__data.fields[{json.dumps(column)}]:percentencode}}" for name, column in columns.items()
    )
    return f"/d/{uid}?var-datasource=${{datasource}}&${{job:queryparam}}{variables}&${{__url_time_range}}"


TO_NUMBER = to_dashboard(PHONE_NUMBER, account="Account", space="Space", phone_number="Number")
"""The address of the phone number in a row of a table with the columns Account, Space and Number."""


def to_panel(title: str) -> str:
    """Return the address of a panel of this dashboard, with all variables and the time range."""
    return f"/d/{_THIS}?viewPanel=<{title}>&${{__all_variables}}&${{__url_time_range}}"


def to_runbook(alert: str) -> str:
    """Return the address of the runbook of an alert."""
    return f"{RUNBOOKS}/{alert}.md"


def to_status_page(instance: str) -> str:
    """Return the address of the exporter's status page. `instance` is the heading of the column with the instance.

    The exporter's address is known only as the label `instance`: the address that Prometheus scrapes.
    """
    return f"http://${{__data.fields[{json.dumps(instance)}]}}/"


class _HiddenVariable(board.QueryVariable):
    """A variable that is calculated from others. Grafana would use a value in the URL instead of calculating it."""

    def build(self) -> dashboard.VariableModel:
        variable = super().build()
        variable.hide, variable.skip_url_sync = dashboard.VariableHide.HIDE_VARIABLE, True
        return variable


class DashboardBuilder:
    """Builds one dashboard, with variables for the data source, job, account and space, and links to the others."""

    def __init__(
        self, title: str, uid: str, description: str, *, time_range: str = "now-6h", refresh: str = "1m"
    ) -> None:
        self._uid = uid
        self._board = board.Dashboard(title).uid(uid).description(description).tags(["chatapp"]).timezone("browser")
        self._board = self._board.time(time_range, "now").refresh(refresh).editable()
        self._board = self._board.tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        self._id = self._x = self._y = self._height = 0
        self._board.with_variable(board.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        self._add_selection_variables()
        self._add_links()

    def _add_selection_variables(self) -> None:
        # the recorded series keep the values while an exporter is down; without the rules, there are the others
        self.add_variable(
            "job", "Job", 'label_values({__name__=~"chatapp_exporter_build_info|account:chatapp_account_up:last"}, job)'
        )
        accounts = '{__name__=~"chatapp_account_up|account:chatapp_account_up:last",job=~"$job"}'
        self.add_variable("account", "Account", f"label_values({accounts}, account)")
        self.add_variable("space", "Space", f"query_result({_SPACE_NAMES})", regex=_SPACE_REGEX)

    def _add_links(self) -> None:
        for uid, name in DASHBOARDS.items():
            if uid != self._uid:
                link = board.DashboardLink(name).type(dashboard.DashboardLinkType.LINK).url(f"/d/{uid}")
                self._board.link(link.keep_time(True).include_vars(True))
        runbooks = board.DashboardLink("Runbooks").type(dashboard.DashboardLinkType.LINK).url(f"{RUNBOOKS}/README.md")
        self._board.link(runbooks.icon("doc").target_blank(True))

    def add_variable(self, name: str, label: str, values: str, *, regex: str = "") -> None:
        """Add a multi-value variable with the default All. `values` is the query for its values."""
        all_values = dashboard.VariableOption(selected=True, text=["All"], value=["$__all"])
        self._board.with_variable(
            board.QueryVariable(name)
            .label(label)
            .datasource(DATA_SOURCE)
            .query(validate_metrics(values))
            .definition(values)
            .regex(regex)
            .multi(True)
            .include_all(True)
            .all_value(".+")
            .current(all_values)
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
        )

    def add_derived_variable(
        self, name: str, query: str, regex: str, *, label: str = "", description: str = ""
    ) -> None:
        """Add a variable with one value, which is by default the first one. Without a `label`, it is hidden."""
        self._board.with_variable(
            (board.QueryVariable if label else _HiddenVariable)(name)
            .label(label or name)
            .description(description)
            .datasource(DATA_SOURCE)
            .query(validate_metrics(query))
            .definition(query)
            .regex(regex)
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.DISABLED)
        )

    def add_text_box(self, name: str, label: str, description: str) -> None:
        """Add a variable with a text box."""
        self._board.with_variable(board.TextBoxVariable(name).label(label).description(description).default_value(""))

    def add_row(self, title: str) -> None:
        """Add a row heading. The next panels are placed below it."""
        self._start_new_line()
        self._board.with_row(
            board.Row(title).id(self._next_id()).grid_pos(dashboard.GridPos(h=1, w=WIDTH, x=0, y=self._y))
        )
        self._y += 1

    def add_panels(self, *panels: Panel, height: int, widths: Sequence[int] = ()) -> None:
        """Add panels side by side. Without `widths`, all panels have the same width."""
        self._start_new_line()
        for panel, width in zip(panels, widths or [WIDTH // len(panels)] * len(panels), strict=True):
            position = dashboard.GridPos(h=height, w=width, x=self._x, y=self._y)
            self._board.with_panel(panel.id(self._next_id()).grid_pos(position))
            self._x += width
        self._height = height

    def json(self) -> str:
        """Return the dashboard's JSON for import into Grafana."""
        model = json.loads(json.dumps(self._board.build(), cls=JSONEncoder), object_hook=portable)
        ids = {panel["title"]: panel["id"] for panel in model["panels"]}
        model |= {"schemaVersion": _SCHEMA_VERSION, **_requirements(model["panels"])}
        text = json.dumps(model, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        return re.sub("viewPanel=<([^>]+)>", lambda title: f"viewPanel={ids[title[1]]}", text.replace(_THIS, self._uid))

    def _start_new_line(self) -> None:
        self._y += self._height
        self._x = self._height = 0

    def _next_id(self) -> int:
        self._id += 1
        return self._id


def portable(fields: dict[str, object]) -> dict[str, object]:
    """Return a JSON object without two defaults of the SDK: the placement of links and annotations in a menu, which
    older Grafana versions do not know, and the pages of a state timeline."""
    defaults = {"placement": "inControlsMenu", "perPage": 20}
    return {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}


def _requirements(panels: Iterable[Mapping[str, object]]) -> dict[str, object]:
    """Return the fields that grafana.com requires. There are no inputs, because provisioning does not replace them: the
    data source is a variable."""
    used = sorted({str(panel["type"]) for panel in panels} - {"row"})
    return {
        "__inputs": [],
        "__requires": [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": "11.0.0"},
            {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
            *({"type": "panel", "id": plugin, "name": plugin, "version": ""} for plugin in used),
        ],
    }
