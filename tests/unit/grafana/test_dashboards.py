"""The dashboards' files: what their code makes, complete and without gaps."""

from __future__ import annotations

import re
from typing import Any

import pytest

from grafana import dashboards
from lab.supervise import engines
from tests.support import matrix
from tests.support.queries import dashboard, links, panels

STAGES = {stage: f"stage-{stage}" for stage in matrix.STAGES}
NAMES = [*STAGES.values(), "slo", "pipeline", "executive"]
COUNTS = {1: 12, 2: 18, 3: 26, 4: 32, 5: 42, 6: 46}


def test_dashboard_files_match_the_code() -> None:
    made = dict(dashboards.files())
    assert set(dashboards.DIRECTORY.iterdir()) == made.keys()
    for path, content in made.items():
        assert path.read_text() == content, f"{path.name} is not what the code makes; run make dashboards"


@pytest.mark.parametrize(("stage", "count"), COUNTS.items())
def test_a_stage_has_the_panels_of_the_stage_before(stage: int, count: int) -> None:
    name = STAGES[stage]
    assert dashboard(name)["title"].startswith(f"Dice Roller - Stage {stage}")
    titles = [panel["title"] for panel in panels(name)]
    assert len(titles) == len(set(titles)) == count
    rows = [panel["title"] for panel in dashboard(name)["panels"] if panel["type"] == "row"]
    assert rows[0] == "Summary"
    if stage > 1:  # the summary, its own row, then all that the stage before it has; unchanged but for the place
        assert rows[1] not in {row["title"] for row in dashboard(STAGES[stage - 1])["panels"]}
        assert content(name)[:2] == content(STAGES[stage - 1])[:2]
        assert all(panel in content(name) for panel in content(STAGES[stage - 1]))


def content(name: str) -> list[dict[str, Any]]:
    """The panels of a dashboard without their places."""
    return [{key: value for key, value in panel.items() if key not in ("gridPos", "id")} for panel in panels(name)]


@pytest.mark.parametrize("name", NAMES)
def test_a_panel_without_data_explains_why(name: str) -> None:
    for panel in panels(name):
        if panel["type"] != "text":
            said = panel["fieldConfig"]["defaults"]["noValue"]
            assert said.endswith("."), panel["title"]
            assert len(said.split()) > 3, panel["title"]


def test_uids_are_unique_and_data_sources_are_variables() -> None:
    provisioned = (engines.ROOT / "grafana" / "provisioning" / "datasources" / "dicelab.yml").read_text()
    for kind, uid, shown in dashboards.DATA_SOURCES.values():
        assert f"- name: {shown}\n    uid: {uid}\n    type: {kind}\n" in provisioned
    assert len({dashboard(name)["uid"] for name in NAMES}) == len(NAMES)
    for name in NAMES:
        variables = {variable["name"]: variable for variable in dashboard(name)["templating"]["list"]}
        wanted = {"prometheus", "loki", "tempo", "die", "min_step"} | (
            {"loki_usage"} if name in ("stage-6", "executive") else set()
        )
        assert variables.keys() == wanted
        for source, (kind, uid, _) in dashboards.DATA_SOURCES.items():
            if source in variables:
                assert variables[source]["query"] == kind
                assert variables[source]["current"]["value"] == uid
        used = {panel["datasource"]["uid"] for panel in panels(name) if "datasource" in panel}
        assert used <= {f"${{{source}}}" for source in variables}


@pytest.mark.parametrize("name", NAMES)
def test_panels_do_not_overlap_and_rows_have_no_gaps(name: str) -> None:
    cells: dict[tuple[int, int], str] = {}
    lines: dict[int, int] = {}
    for panel in dashboard(name)["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        lines[place["y"]] = lines.get(place["y"], 0) + place["w"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells, f"{panel['title']} lies on {cells[x, y]}"
                cells[x, y] = panel["title"]
    assert set(lines.values()) == {24}
    assert len(cells) == 24 * (max(y for _, y in cells) + 1)
    assert len({panel["id"] for panel in dashboard(name)["panels"]}) == len(dashboard(name)["panels"])


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_has_a_description(name: str) -> None:
    for panel in panels(name):
        shows, wrong = panel["description"].split("\n\n**Looks wrong?** ")
        assert len(shows) > 20, panel["title"]
        assert len(wrong) > 20, panel["title"]
        if panel["type"] not in ("timeseries", "stat", "bargauge"):
            continue
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"]
        assert defaults["thresholds"]["steps"][0]["value"] is None
        assert [link["title"].split()[0] for link in defaults["links"]] == ["Logs", "Traces"]
        assert all(target["legendFormat"] for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert sum(panel["type"] == "text" for panel in panels(name)) <= 2


@pytest.mark.parametrize("name", NAMES)
def test_rates_use_the_rate_interval_and_latencies_show_exemplars(name: str) -> None:
    for panel in panels(name):
        for target in panel.get("targets", []):
            expression = target.get("expr", "")
            for window in re.findall(r"rate\([^][]*\[([^]]*)\]", expression):
                assert window == "$__rate_interval", panel["title"]
                assert target["interval"] == "$min_step"
            if "histogram_quantile" in expression:
                assert target["exemplar"] is True, panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_data_links_keep_the_time_range(name: str) -> None:
    found = list(links(name))
    assert found
    for _, pane in found:
        assert pane["range"] == {"from": "1700000000000", "to": "1700000900000"}
        assert pane["datasource"] == pane["queries"][0]["datasource"]["uid"]


def test_the_executives_dashboard_is_one_screen() -> None:
    found = panels("executive")
    assert len(found) <= 8
    assert max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in found) * 38 <= 1080  # pixels
    words = " ".join(panel["title"] for panel in found).lower()
    assert not re.search(r"slo|sli|budget|p\d\d|latency|burn|error|span|trace|quantile", words)


def test_incidents_and_experiments_are_marked_in_every_dashboard() -> None:
    for name in NAMES:
        marks = {entry["name"]: entry["target"]["expr"] for entry in dashboard(name)["annotations"]["list"]}
        assert marks == {"Alerts": 'ALERTS{alertstate="firing"}', "Experiments": "dicelab_experiment_running"}
