"""What the dashboards are made of: queries, panels with words and colours, and a page to lay them on."""

import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.names import checked

# From Okabe and Ito's palette, which people with any kind of colour vision can tell apart.
GOOD, UNSURE, WARNING, BAD, CALM = "#009E73", "#999999", "#E69F00", "#D55E00", "#56B4E9"

FLEET, PHONE_NUMBER, EXPORTER = "chatapp-fleet", "chatapp-phone-number", "chatapp-exporter"
SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24

RATINGS = {"GREEN": GOOD, "YELLOW": WARNING, "RED": BAD, "UNKNOWN": UNSURE}
RANKS = {"0": ("GREEN", GOOD), "1": ("UNKNOWN", UNSURE), "2": ("YELLOW", WARNING), "3": ("RED", BAD)}
STATUSES = {
    "CONNECTED": GOOD,
    **dict.fromkeys(("FLAGGED", "PAUSED", "RATE_LIMITED", "RESTRICTED"), WARNING),
    **dict.fromkeys(("BANNED", "DELETED", "DISCONNECTED", "MIGRATED", "OFFLINE"), BAD),
}

Query = prometheus.Dataquery
Panel = stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel
AnyPanel = TypeVar("AnyPanel", stat.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)


def query(expression: str, legend: str = "", *, ref: str = "A") -> Query:
    """A query over the dashboard's time range."""
    return _query(expression, ref).range().legend_format(legend or "__auto")


def instant(expression: str, legend: str = "", *, ref: str = "A") -> Query:
    """A query for the end of the time range."""
    return _query(expression, ref).instant().legend_format(legend or "__auto")


def rows(expression: str, *, ref: str = "A") -> Query:
    """A query for the end of the time range whose labels are the columns of a table."""
    return _query(expression, ref).instant().format(PromQueryFormat.TABLE)


def _query(expression: str, ref: str) -> Query:
    return prometheus.Dataquery().expr(checked(expression)).ref_id(ref).datasource(SOURCE)


def count(
    title: str, description: str, expression: str, colour: str, *, unit: str = "none", empty: str = "0"
) -> stat.Panel:
    """One number in large digits; calm at zero, in `colour` above."""
    steps = [dashboard.Threshold(None, GOOD if colour != CALM else CALM), dashboard.Threshold(1, colour)]
    panel = stat.Panel().graph_mode(common.BigValueGraphMode.NONE).color_mode(common.BigValueColorMode.VALUE)
    panel = panel.thresholds(board.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
    panel = panel.color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    return _worded(panel, title, description, unit, empty).with_target(instant(expression))


def figures(title: str, description: str, unit: str, *queries: Query, empty: str) -> stat.Panel:
    """Numbers in large digits, each with its name."""
    panel = stat.Panel().graph_mode(common.BigValueGraphMode.NONE).text_mode(common.BigValueTextMode.VALUE_AND_NAME)
    panel = panel.color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.FIXED).fixed_color(CALM))
    panel = _worded(panel, title, description, unit, empty)
    for target in queries:
        panel = panel.with_target(target)
    return panel


def lines(title: str, description: str, unit: str, *queries: Query, empty: str) -> timeseries.Panel:
    """Values over time, with a legend."""
    legend = common_builders.VizLegendOptions().show_legend(True)
    legend = legend.display_mode(common.LegendDisplayMode.LIST).placement(common.LegendPlacement.BOTTOM)
    panel = timeseries.Panel().legend(legend).fill_opacity(8).min(0)
    panel = panel.color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC))
    panel = panel.tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    panel = _worded(panel, title, description, unit, empty)
    for target in queries:
        panel = panel.with_target(target)
    return panel


def dashed(panel: timeseries.Panel, names: str) -> timeseries.Panel:
    """What is allowed or asked for, apart from what is: broken lines for the legends that end with `names`."""
    line = [override("custom.lineStyle", {"fill": "dash", "dash": [10, 10]}), override("custom.fillOpacity", 0)]
    return panel.override_by_regexp(f"/ {names}$/", line)


def timeline(
    title: str, description: str, expression: str, label: str, colours: Mapping[str, str], empty: str
) -> statetimeline.Panel:
    """A row for each word that a label took, filled while it held."""
    # the rows are named already
    legend = common_builders.VizLegendOptions().show_legend(False)
    panel = statetimeline.Panel().show_value(common.VisibilityMode.NEVER).row_height(0.8).legend(legend)
    panel = panel.color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.FIXED).fixed_color(CALM))
    panel = panel.mappings([words({"1": ("yes", CALM)})])
    panel = _worded(panel, title, description, "none", empty).with_target(query(expression, f"{{{{{label}}}}}"))
    for word, colour in colours.items():
        panel = panel.override_by_name(word, [override("mappings", [words({"1": (word, colour)})])])
    return panel


def listing(title: str, description: str, *queries: Query, columns: Mapping[str, str], empty: str) -> table.Panel:
    """A table of the queries' labels and values, merged; `columns` are what it shows, in order, by what people read."""
    order = {source: position for position, source in enumerate(columns)}
    panel = table.Panel().show_header(True).cell_height(common.TableCellHeight.SM)
    panel = panel.color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.FIXED).fixed_color("text"))
    panel = panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    panel = panel.with_transformation(
        dashboard.DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"names": list(columns)}})
    )
    panel = panel.with_transformation(
        dashboard.DataTransformerConfig(
            id_val="organize", options={"indexByName": order, "renameByName": dict(columns), "excludeByName": {}}
        )
    )
    panel = _worded(panel, title, description, "none", empty)
    for target in queries:
        panel = panel.with_target(target)
    return panel


def _worded(panel: AnyPanel, title: str, description: str, unit: str, empty: str) -> AnyPanel:
    return panel.title(title).description(description).unit(unit).no_value(empty).datasource(SOURCE)


def words(texts: Mapping[str, tuple[str, str]]) -> dashboard.ValueMap:
    """Values by what people read instead, and its colour."""
    return dashboard.ValueMap(
        options={
            value: dashboard.ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(texts.items())
        }
    )


UNLIMITED = words({"Infinity": ("unlimited", CALM)})
"""Messaging limits: +Inf is a word."""


def override(name: str, value: object) -> dashboard.DynamicConfigValue:
    """A field option; models inside become plain JSON, as Grafana reads them back."""
    return dashboard.DynamicConfigValue(name, json.loads(json.dumps(value, cls=JSONEncoder)))


def coloured(texts: Mapping[str, tuple[str, str]]) -> list[dashboard.DynamicConfigValue]:
    """A table's column in words and colours."""
    return [override("mappings", [words(texts)]), override("custom.cellOptions", {"type": "color-text"})]


def ago() -> list[dashboard.DynamicConfigValue]:
    """A column of times in milliseconds as "3 hours ago"."""
    return [override("unit", "dateTimeFromNow"), override("noValue", "–")]


def link(title: str, address: str) -> list[dashboard.DynamicConfigValue]:
    """A column whose cells lead elsewhere."""
    return [override("links", [{"title": title, "url": address, "targetBlank": False}])]


class Page:
    """A dashboard on which panels are laid from left to right; the selection of accounts and spaces is shared."""

    def __init__(self, title: str, uid: str, description: str) -> None:
        self._board = board.Dashboard(title).uid(uid).description(description).tags(["chatapp"]).timezone("browser")
        self._board = self._board.time("now-6h", "now").refresh("1m").editable()
        self._id = self._x = self._y = self._height = 0
        self._board.with_variable(board.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        self.choice("job", "Job", "label_values(chatapp_exporter_build_info, job)")
        self.choice("account", "Account", 'label_values(chatapp_account_up{job=~"$job"}, account)')
        for other, name in ((FLEET, "Fleet"), (PHONE_NUMBER, "Phone number"), (EXPORTER, "Exporter")):
            if other != uid:
                self._board.link(
                    board.DashboardLink(name)
                    .type(dashboard.DashboardLinkType.LINK)
                    .url(f"/d/{other}")
                    .keep_time(True)
                    .include_vars(True)
                )

    def choice(self, name: str, label: str, values: str) -> None:
        """A variable with any number of values, all at first."""
        everything = dashboard.VariableOption(selected=True, text=["All"], value=["$__all"])
        self._board.with_variable(
            board.QueryVariable(name)
            .label(label)
            .datasource(SOURCE)
            .query(checked(values))
            .definition(values)
            .multi(True)
            .include_all(True)
            .all_value(".+")
            .current(everything)
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        )

    def search(self, name: str, label: str, description: str) -> None:
        """A box to type in."""
        self._board.with_variable(board.TextBoxVariable(name).label(label).description(description).default_value(""))

    def annotation(self, name: str, expression: str, title: str, colour: str) -> None:
        """Marks on every panel."""
        self._board.annotation(
            board.AnnotationQuery()
            .name(name)
            .datasource(SOURCE)
            .enable(True)
            .icon_color(colour)
            .expr(checked(expression))
            .title_format(title)
            .step("60s")
        )

    def section(self, title: str) -> None:
        """A heading; what follows begins below it."""
        self._newline()
        self._board.with_row(
            board.Row(title).id(self._next()).grid_pos(dashboard.GridPos(h=1, w=WIDTH, x=0, y=self._y))
        )
        self._y += 1

    def lay(self, *panels: Panel, height: int, widths: Sequence[int] = ()) -> None:
        """Panels in one line, of equal width unless told."""
        self._newline()
        for panel, width in zip(panels, widths or [WIDTH // len(panels)] * len(panels), strict=True):
            position = dashboard.GridPos(h=height, w=width, x=self._x, y=self._y)
            self._board.with_panel(panel.id(self._next()).grid_pos(position))
            self._x += width
        self._height = height

    def json(self) -> str:
        """What Grafana imports."""
        return json.dumps(self._board.build(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def _newline(self) -> None:
        self._y += self._height
        self._x = self._height = 0

    def _next(self) -> int:
        self._id += 1
        return self._id
