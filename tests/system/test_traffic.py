"""``dicelab traffic``, ``compare`` and ``load-db`` on real labs: their counts agree with those of the services."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.support.labs import Lab, dicelab, get, tree, wait_for


def run(command: str, lab: Lab, *arguments: str, code: int = 0) -> dict[str, Any]:
    process = dicelab(command, "--run-dir", lab.run_dir, "--json", *arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output.decode()
    summary: dict[str, Any] = json.loads(output)
    return summary


def refused(*arguments: str | Path) -> str:
    process = dicelab(*arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = output.decode().splitlines()
    assert line.startswith("dicelab: ")
    return line


def counted(lab: Lab) -> Counter[tuple[str, str]]:
    """Requests by route and status, as counted by the service that users call."""
    front = "frontend" if "frontend" in lab.services else "dice-roller"
    found: Counter[tuple[str, str]] = Counter()
    for sample in lab.samples(front):
        if sample.name == "http_requests_total":
            found[sample.labels["handler"], sample.labels["status"]] += int(sample.value)
    return found


def said(summary: dict[str, Any]) -> Counter[tuple[str, str]]:
    return Counter(
        {(route, status): count for route, counts in summary["routes"].items() for status, count in counts.items()}
    )


@pytest.mark.parametrize("stage", [1, 4, 6])
def test_traffic_counts_match_the_services(stage_lab: Callable[[int], Lab], stage: int) -> None:
    lab = stage_lab(stage)
    before = counted(lab)
    rolled = lab.value("dice-roller", "dice_rolls_total", result="success")
    summary = run(
        "traffic", lab, "--users", "8", "--max-rolls", "6", "--think-time", "0.01", "--seed", "4", "--die", "fair"
    )
    asked = {key: count for key, count in (counted(lab) - before).items() if key[0] in summary["routes"]}
    if stage == 6:
        asked["/sign-in", "200"] -= 1  # its probe for sign-in
    assert +Counter(asked) == said(summary)
    assert (
        summary["routes"].keys()
        == {
            1: {"/roll"},
            4: {"/roll", "/roll-async"},
            6: {"/roll", "/roll-async", "/sign-in", "/sign-out"},
        }[stage]
    )
    assert lab.value("dice-roller", "dice_rolls_total", result="success") - rolled == summary["rolls"]["came_out"]
    faces = summary["dice"]["fair"]["faces"]
    assert sum(faces.values()) == summary["rolls"]["came_out"] == summary["rolls"]["asked"]
    assert summary["failed"] == 0

    lab.settle()
    lines = [json.loads(line) for line in lab.log_lines("traffic")]
    done = [line for line in lines if line["message"] == "User done"][-8:]
    assert {line["user"] for line in done} == {f"user {number}" for number in range(1, 9)}
    assert sum(line["rolls"] for line in done) == summary["rolls"]["came_out"]
    assert lines[-1]["message"] == "Traffic done"
    assert lines[-1]["requests"] == summary["requests"]
    if stage == 6:
        usage = [line for line in lab.logs("frontend") if line.get("usage") and line["username"] == "user 1"]
        assert {line["event_type"] for line in usage[-20:]} >= {"sign_in", "roll", "sign_out"}

    again = run("traffic", lab, "--users", "8", "--max-rolls", "6", "--think-time", "0", "--seed", "4", "--die", "fair")
    assert said(again) == said(summary)


def test_a_request_is_one_trace_that_starts_at_the_user(stage_lab: Callable[[int], Lab]) -> None:
    lab = stage_lab(5)
    summary = run("traffic", lab, "--users", "2", "--max-rolls", "1", "--async-probability", "0", "--think-time", "0")
    slowest = summary["slowest"][0]
    spans = lab.trace(slowest["trace_id"], 9)
    ((service, name, below),) = tree(spans)
    assert (service, name) == ("traffic", "user GET /roll")
    assert [child[:2] for child in below] == [("traffic", "GET")]
    assert [child[:2] for child in below[0][2]] == [("frontend", "HTTP GET")]
    assert {span.service for span in spans} == {"traffic", "frontend", "dice-roller", "die-service"}


def test_open_model_counts_requests_due_during_a_stall(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(1, roll_delay=0)
    before = lab.value("dice-roller", "http_requests_total", handler="/roll")
    pid = lab.pid("dice-roller")
    results: list[dict[str, Any]] = []
    thread = threading.Thread(
        target=lambda: results.append(run("traffic", lab, "--rate", "60", "--duration", "3", "--seed", "1"))
    )
    thread.start()
    wait_for(lambda: lab.value("dice-roller", "http_requests_total", handler="/roll") > before + 30)
    os.kill(pid, signal.SIGSTOP)
    try:
        threading.Event().wait(1.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    thread.join(60)
    (summary,) = results
    assert summary["routes"]["/roll"].keys() <= {"200", "500"}
    assert sum(summary["routes"]["/roll"].values()) == 180
    # The lab hung for half of the run: without latencies from the due times, one request in 180 would show it.
    assert summary["latency_ms"]["p90"] > 600
    assert summary["latency_ms"]["max"] > 1400


def test_a_profile_and_the_end_of_sessions(stage_lab: Callable[[int], Lab]) -> None:
    lab = stage_lab(4)
    url = lab.front
    summary = run(
        *("traffic", lab, "--url", url, "--users", "4", "--profile", "ramp", "--duration", "2", "--max-rolls", "2"),
        *("--think-time", "0.02", "--die", "fair=3,risky", "--seed", "4"),
    )
    assert summary["profile"] == "ramp"
    assert set(summary["dice"]) == {"fair", "risky"}
    users = [line["user"] for line in map(json.loads, lab.log_lines("traffic")) if line["message"] == "User done"]
    assert "user 1.2" in users  # one user after the other until the time is up
    assert {"fair", "risky"} == set(summary["dice"])


def test_an_interrupted_run_prints_its_summary(stage_lab: Callable[[int], Lab]) -> None:
    lab = stage_lab(2)
    lines = len(lab.log_lines("traffic"))
    process = dicelab("traffic", "--run-dir", lab.run_dir, "--json", "--duration", "60", "--think-time", "0.05")
    wait_for(lambda: len(lab.log_lines("traffic")) > lines + 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    summary = json.loads(output)
    assert summary["interrupted"]
    assert summary["requests"] > 0


def test_impossible_requests_are_reported(stage_lab: Callable[[int], Lab], tmp_path: Path) -> None:
    run_dir = stage_lab(1).run_dir
    die_service = stage_lab(4).url("die-service")
    cases: list[tuple[str, tuple[str | Path, ...]]] = [
        ("no /roll-async", ("traffic", "--run-dir", run_dir, "--async-probability", "0.5")),
        ("stage 4 has", ("compare", "--run-dir", run_dir)),
        ("stage 5 has", ("load-db", "--run-dir", run_dir)),
        ("nothing runs", ("traffic", "--run-dir", tmp_path)),
        ("does not answer", ("traffic", "--run-dir", tmp_path, "--url", "http://127.0.0.1:1")),
        ("neither a frontend", ("traffic", "--run-dir", tmp_path, "--url", die_service)),
        ("no database", ("load-db", "--run-dir", tmp_path, "--url", die_service)),
        ("101", ("compare", "--run-dir", stage_lab(4).run_dir, "--times", "101")),
    ]
    with ThreadPoolExecutor(3) as at_once:
        for words, line in at_once.map(lambda case: (case[0], refused(*case[1])), cases):
            assert words in line


def test_the_summary_is_readable(stage_lab: Callable[[int], Lab]) -> None:
    process = dicelab("traffic", "--run-dir", stage_lab(2).run_dir, "--users", "2", "--max-rolls", "2")
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0
    for word in ("requests in", "/roll", "p99.9", "corrected", "slowest"):
        assert word in output


def test_compare_measures_the_speedup(stage_lab: Callable[[int], Lab]) -> None:
    summary = run("compare", stage_lab(4), "--rounds", "12", "--seed", "1")
    assert summary["rounds"] == summary["compared"] == 12
    assert summary["delay"] == 0.05  # of this lab
    assert summary["speedup"]["expected"] == 5.5
    low, high = summary["speedup"]["confidence_interval_95"]
    assert 1 < low < summary["speedup"]["measured"] < high
    assert summary["sides"]["sequential"]["seconds"]["expected"] == 0.25


def test_compare_counts_failures_of_both_methods(stage_lab: Callable[[int], Lab]) -> None:
    lab = stage_lab(4)
    before = lab.value("dice-roller", "http_requests_total", handler="/roll")
    summary = run("compare", lab, "--rounds", "6", "--times", "4", "--die", "extreme", code=1)
    # All dice of a batch are rolled, even after a failure.
    assert lab.value("dice-roller", "http_requests_total", handler="/roll") - before == 6 * 4 + 1
    sides = summary["sides"]
    for side in sides.values():
        assert side["runs"] == 6
        assert side["failed"] > 0
        assert all(len(failure["trace_id"]) == 32 for failure in side["failures"])
    assert summary["compared"] <= 6 - max(side["failed"] for side in sides.values())


def test_load_db_reaches_its_target(stage_lab: Callable[[int], Lab]) -> None:
    lab = stage_lab(5)
    before = {kind: lab.value("die-service", "database_queries_total", query_type=kind) for kind in ("list", "get")}
    summary = run("load-db", lab, "--rate", "20", "--duration", "8", "--ratio", "1:3", "--seed", "2")
    assert summary["reached"]
    assert summary["statuses"] == {"200": 160}
    after = {kind: lab.value("die-service", "database_queries_total", query_type=kind) for kind in ("list", "get")}
    lists = after["list"] - before["list"] - 1  # its own request for the list of dice
    assert lists + after["get"] - before["get"] == summary["database_queries"]["success"] == 160
    assert 20 <= lists <= 60
    assert summary["pool"]["size"] == 10


def test_load_db_reports_why_it_misses_its_target(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(5, roll_delay=0, DB_POOL_SIZE="2", DB_QUERY_TIMEOUT="0.5", DB_POOL_TIMEOUT="0.2")
    database = psycopg2.connect(lab.state["postgres"]["url"])

    def lock() -> None:
        wait_for(lambda: lab.value("die-service", "database_queries_total") > 10)
        database.cursor().execute("LOCK TABLE dice IN ACCESS EXCLUSIVE MODE")

    locking = threading.Thread(target=lock)
    locking.start()
    try:
        summary = run("load-db", lab, "--rate", "50", "--duration", "3", code=1)
    finally:
        locking.join()
        database.close()
    assert not summary["reached"]
    assert {"503", "504"} <= summary["statuses"].keys()
    reasons = " ".join(summary["why_not"])
    assert "failed" in reasons
    assert "DB_POOL_SIZE" in reasons
    assert get(lab.url("die-service") + "/dice").status in (200, 504)
