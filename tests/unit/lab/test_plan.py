from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab import InputError, LabError
from lab.cli import dicelab, main
from lab.supervise import stages
from lab.supervise.engines_plan import plan_engines
from lab.supervise.plan import LabPlan, Options, loopback
from lab.supervise.rundir import RunDir
from lab.supervise.supervisor import check_ports
from lab.supervise.up import arguments

DATABASE = "postgresql://somewhere/dice"


def plan(tmp_path: Path, environ: dict[str, str] | None = None, **options: object) -> LabPlan:
    made = replace(Options(tmp_path), **options)  # type: ignore[arg-type]
    return LabPlan(made, RunDir(tmp_path), {"PATH": os.defpath} if environ is None else environ)


def environs(made: LabPlan, workers_dir: Path | None = None) -> dict[str, dict[str, str]]:
    return {process.name: dict(process.environ) for process in made.service_processes(DATABASE, workers_dir)}


def test_services_start_before_their_callers_and_get_their_urls(tmp_path: Path) -> None:
    made = environs(plan(tmp_path, stage=5, base_port=9000))
    assert list(made) == ["die-service", "dice-roller", "frontend"]
    assert made["frontend"]["DICE_ROLLER_URL"] == "http://127.0.0.1:9000"
    assert made["dice-roller"]["DIE_SERVICE_URL"] == "http://127.0.0.1:9001"
    assert {environ["PORT"] for environ in made.values()} == {"9000", "9001", "9002"}
    assert {environ["DATABASE_URL"] for environ in made.values()} == {DATABASE}


def test_a_lab_has_one_session_secret_and_the_users_own_takes_precedence(tmp_path: Path) -> None:
    made = plan(tmp_path, stage=6)
    secret = environs(made)["frontend"]["SESSION_SECRET"]
    assert len(secret) >= 32
    assert environs(made)["frontend"]["SESSION_SECRET"] == secret  # as after a restart
    assert environs(plan(tmp_path, stage=6))["frontend"]["SESSION_SECRET"] != secret
    assert "SESSION_SECRET" not in environs(made)["dice-roller"]
    own = plan(tmp_path, {"PATH": os.defpath, "SESSION_SECRET": "x" * 32}, stage=6)
    assert environs(own)["frontend"]["SESSION_SECRET"] == "x" * 32


def test_only_stages_from_5_have_a_database(tmp_path: Path) -> None:
    assert list(environs(plan(tmp_path, stage=1))) == ["dice-roller"]
    assert [plan(tmp_path, stage=stage).embeds_database for stage in range(1, 7)] == [False] * 4 + [True] * 2
    assert not plan(tmp_path, {"DATABASE_URL": DATABASE}, stage=6).embeds_database
    with pytest.raises(LabError, match="no stage 7; stages are 1 to 6"):
        plan(tmp_path, stage=7)


@pytest.mark.parametrize(("stage", "started"), [(4, []), (5, ["exporter"]), (6, ["exporter"])])
def test_stages_with_a_database_have_an_exporter_even_without_engines(
    tmp_path: Path, stage: int, started: list[str]
) -> None:
    made = plan(tmp_path, stage=stage, base_port=9000)
    processes = made.engine_processes(DATABASE)
    assert [process.name for process in processes] == started
    for process in processes:
        assert process.environ["DATABASE_URL"] == DATABASE
        assert process.environ["TELEMETRY_DIR"] == str(tmp_path)
        assert process.environ["EXPORTER_PORT"] == "9026"
        targets = "dice-roller=http://127.0.0.1:9000,frontend=http://127.0.0.1:9002"
        assert process.environ["PROBE_TARGETS"] == targets
        assert f"{made.engine_ready_urls()}" == "{'exporter': 'http://127.0.0.1:9026/readyz'}"


@pytest.mark.parametrize(("value", "probed"), [(None, True), ("true", True), ("false", False)])
def test_prometheus_starts_probes_unless_they_are_switched_off(tmp_path: Path, value: str | None, probed: bool) -> None:
    directory = tmp_path / "run" / "engines"
    prometheus = tmp_path / "prometheus"
    prometheus.touch(0o755)
    environ = {"PATH": str(tmp_path)} | ({"PROBES": value} if value else {})
    planned = plan_engines(stages.load(6), 9000, directory, tmp_path / "logs", environ)
    planned.prepare({"dice-roller": "127.0.0.1:9000"})
    targets = json.loads((directory / "prometheus" / "config" / "targets" / "probes" / "lab.yml").read_text())
    assert targets == ([{"targets": ["dice-roller"], "labels": {"__exporter__": "127.0.0.1:9026"}}] if probed else [])


def test_an_invalid_setting_of_the_probes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="PROBES: 'no' must be true or false"):
        plan_engines(stages.load(6), 9000, tmp_path, tmp_path / "logs", {"PATH": "", "PROBES": "no"})


def test_workers_share_a_log_file_and_have_their_own_trace_files(tmp_path: Path) -> None:
    made = plan(tmp_path, stage=2, workers=2)
    processes = {process.name: process for process in made.service_processes("", tmp_path / "workers")}
    assert list(processes) == ["dice-roller", "dice-roller-2", "frontend"]  # the page's sessions are in one process
    assert processes["dice-roller-2"].stdout == processes["dice-roller"].stdout
    assert processes["dice-roller-2"].part == "dice-roller"
    traces = [process.environ["TRACES_FILE"] for process in processes.values()]
    assert traces == [str(tmp_path / "traces" / f"{name}.jsonl") for name in processes]
    assert processes["dice-roller"].environ["WORKERS_DIR"] == str(tmp_path / "workers")
    assert "WORKERS_DIR" not in processes["frontend"].environ


def test_a_configured_endpoint_receives_the_spans(tmp_path: Path) -> None:
    (environ,) = environs(plan(tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://there"}, stage=1)).values()
    assert "TRACES_FILE" not in environ
    assert environ["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://there"


def test_wildcard_addresses_are_reached_by_loopback(tmp_path: Path) -> None:
    for host, address in (("0.0.0.0", "127.0.0.1:8000"), ("::", "[::1]:8000"), ("192.0.2.1", "192.0.2.1:8000")):
        made = plan(tmp_path, stage=1, host=host)
        assert made.address(made.stage.services[0]) == address


@pytest.mark.parametrize(
    ("option", "variable", "expected"),
    [
        (None, None, "standard"),
        (None, "fast", "fast"),
        ("standard", None, "standard"),
        ("fast", "standard", "fast"),
    ],
)
def test_telemetry_option_overrides_the_variable(
    tmp_path: Path, option: str | None, variable: str | None, expected: str
) -> None:
    made = plan(tmp_path, {"TELEMETRY": variable} if variable else {}, stage=1, telemetry=option)
    assert made.telemetry == expected
    assert environs(made)["dice-roller"].get("TELEMETRY") == (option or variable)


@pytest.mark.parametrize(
    ("workers", "telemetry", "advised"),
    [(1, None, False), (2, None, True), (2, "standard", True), (2, "fast", False)],
)
def test_the_fast_telemetry_is_recommended_if_workers_take_all_cpus(
    tmp_path: Path, workers: int, telemetry: str | None, advised: bool
) -> None:
    made = plan(tmp_path, workers=workers, telemetry=telemetry)
    assert ("--telemetry fast" in made.workers_advice(4)) == advised
    assert made.workers_advice(8) == ""


def programs(directory: Path, *names: str) -> str:
    """A PATH with programs of these names that do nothing."""
    directory.mkdir()
    for name in names:
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)
    return str(directory)


def test_sampling_is_read_from_option_then_variable(tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", "tempo", "otelcol")
    assert plan(tmp_path).sampling == "none"
    for option, variable, generator in (
        (None, "", "[service-graphs,span-metrics]"),
        (None, "tail", "[]"),
        ("tail", "", "[]"),
        ("none", "tail", "[service-graphs,span-metrics]"),
    ):
        made = plan(tmp_path, {"PATH": path, "SAMPLING": variable}, engines=True, sampling=option)
        assert made.sampling == (option or variable or "none")
        assert made.engines is not None
        variables = made.engines.variables("")
        assert (variables["SAMPLING"], variables["TEMPO_GENERATOR"]) == (made.sampling, generator)


def test_tail_sampling_needs_a_collector_that_supports_it(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="SAMPLING is 'half', not none or tail"):
        plan(tmp_path, {"SAMPLING": "half"})
    with pytest.raises(LabError, match="SAMPLING=tail needs --engines"):
        plan(tmp_path, sampling="tail")
    with pytest.raises(LabError, match="needs the OpenTelemetry Collector and Tempo on PATH"):
        plan(tmp_path, {"PATH": programs(tmp_path / "lone", "otelcol")}, engines=True, sampling="tail")
    made = plan(tmp_path, {"PATH": programs(tmp_path / "both", "tempo", "otelcol")}, engines=True, sampling="tail")
    with pytest.raises(LabError, match=r"no batch, filter, .*tailsampling.*: SAMPLING=tail needs otelcol-contrib"):
        made.engine_processes("")


def test_roll_delay_is_read_from_option_then_variable(tmp_path: Path) -> None:
    assert plan(tmp_path).roll_delay == 1.0
    assert plan(tmp_path, {"ROLL_DELAY": "0.5"}).roll_delay == 0.5
    assert plan(tmp_path, {"ROLL_DELAY": "0.5"}, roll_delay=0.0).roll_delay == 0.0


def test_a_detached_lab_gets_the_same_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(
        *(tmp_path / "a b", 3, 9000, "localhost", 0.25),
        engines=True,
        workers=2,
        telemetry="standard",
        sampling="tail",
        tail=False,
    )
    given: list[dict[str, object]] = []

    def run(module: str, options: dict[str, object]) -> int:
        given.append(options)
        return 0

    monkeypatch.setattr("lab.cli._run", run)
    result = CliRunner().invoke(dicelab, ["up", *arguments(options)], standalone_mode=False)
    assert result.return_value == 0, result
    assert [Options(**one) for one in given] == [options]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "base_port", "text"),
    [
        ("192.0.2.1", 8000, "192.0.2.1 is no address of this machine; choose another with --host"),
        ("no.such.host.invalid", 8000, "no.such.host.invalid is no address of this machine"),
    ],
)
def test_an_address_that_cannot_be_bound_is_reported(tmp_path: Path, host: str, base_port: int, text: str) -> None:
    with pytest.raises(LabError, match=text):
        check_ports(plan(tmp_path, stage=1, host=host, base_port=base_port).ports())


@pytest.mark.parametrize(
    ("stage", "programs_on_path", "last", "part"),
    [
        (1, (), 65535, "dice-roller"),
        (4, (), 65533, "frontend"),
        (5, (), 65509, "exporter"),
        (1, ("loki",), 65514, "loki"),
    ],
)
def test_the_base_port_leaves_room_for_every_port_of_the_lab(
    tmp_path: Path, stage: int, programs_on_path: tuple[str, ...], last: int, part: str
) -> None:
    given = {"stage": stage, "engines": bool(programs_on_path)}
    environ = {"PATH": programs(tmp_path / "bin", *programs_on_path)}
    assert max(port.number for port in plan(tmp_path, environ, base_port=last, **given).ports()) == 65535
    text = f"--base-port {last + 1}: the {part} would have port 65536; the highest base port of this lab is {last}"
    with pytest.raises(InputError, match=text):
        plan(tmp_path, environ, base_port=last + 1, **given)


def test_a_base_port_that_is_too_high_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    assert main(["up", "--stage", "5", "--base-port", "65532", "--run-dir", str(run_dir)]) == 2
    assert "dicelab: --base-port 65532: " in capsys.readouterr().err
    assert not run_dir.exists()


def test_addresses_of_this_machine_are_loopback() -> None:
    assert all(map(loopback, ("127.0.0.1", "localhost", "::1", "127.0.0.53")))
    assert not any(map(loopback, ("0.0.0.0", "::", "192.0.2.1")))
