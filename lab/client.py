"""A running lab, seen from outside: where its parts are, and the spans, log lines and samples that they have written.

Everything that observes a lab uses this model: ``dicelab check``, ``chaos``, ``traffic``, ``compare``,
``load-db``, ``bench`` and the tests. Create it with :meth:`Lab.in_run_dir`, :meth:`Lab.find`,
:meth:`Lab.in_containers` or :meth:`Lab.elsewhere`. Methods whose names begin with ``fetch_`` send HTTP requests, for
which the lab must be entered::

    async with Lab.in_run_dir(Path(".dicelab")) as lab:
        spans = await lab.fetch_trace(trace_id)
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from lab import InputError, LabError, error_text
from lab.containers import Containers
from lab.kubernetes.pods import Pods
from lab.rotated import open_files, whole_lines
from lab.signals import OPENMETRICS, Line, Sample, Span, parse_export, parse_line, parse_samples, parse_spans
from lab.supervise import engines, stages
from lab.supervise.readiness import readiness
from lab.supervise.rundir import RunDir
from lab.supervise.stages import SERVICES

ROLLER, DIE_SERVICE, FRONTEND = "dice-roller", "die-service", "frontend"
TIMEOUT = 10.0  # seconds for one response
LOKI_RANGE = 600.0  # seconds that a Loki query covers
LOKI_LIMIT = 1000  # lines
LOKI_MAX_LINES = 5000  # Loki's limit for one response
TENANTS = ("operations", "usage")
SAMPLING_METRICS = '{__name__=~"otelcol_processor_tail_sampling_.+"}'
BASE_PORT = 8000  # the port from which the compose file counts


class Missing(Exception):
    """Expected telemetry is missing; the text says what was looked for and where."""


class Absent(Missing):
    """What is missing is no part of this lab, so that it will not appear later either."""


class NotRunning(Exception):
    """A check is not possible in this lab; the text says why.

    Attributes:
        engine: the name of the engine that does not run; empty for any other reason.
    """

    def __init__(self, reason: str, engine: str = "") -> None:
        super().__init__(reason)
        self.engine = engine


@dataclass(frozen=True)
class Response:
    """An HTTP response; ``trace_id`` is that of ``X-Trace-Id``, else empty."""

    status: int
    text: str
    trace_id: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Capabilities:
    """What the service that users call offers, according to its OpenAPI document.

    Attributes:
        title: the title of the document.
        max_times: the most rolls of one batch; 0 where there is no ``/roll-async``.
        sign_in: whether users can sign in.
    """

    title: str
    max_times: int
    sign_in: bool


@dataclass
class Lab:
    """One running lab.

    Attributes:
        directory: the run dir; for a lab elsewhere, the one where this process keeps its own telemetry.
        front: the URL of the service that users call: the frontend, or at stage 1 the dice-roller.
        services: the URL of each service, by name; empty where only ``front`` is known.
        engines: the URL of each engine, by name.
        state: the state file of ``dicelab up``; for any other lab, the entries that are known.
        containers: the containers of a compose project, if the lab runs in them.
        pods: the lab's pods, if it runs in a cluster that kubectl reaches.
        remote: whether the lab runs elsewhere, so that its files cannot be read.
        timeout: seconds for one request.
    """

    directory: RunDir
    front: str
    services: Mapping[str, str] = field(default_factory=dict)
    engines: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    containers: Containers | None = None
    pods: Pods | None = None
    remote: bool = False
    timeout: float = TIMEOUT
    _session: aiohttp.ClientSession | None = field(default=None, init=False, repr=False)

    # --- where it is ---

    @classmethod
    def in_run_dir(cls, run_dir: Path) -> Self:
        """The lab that runs in a run dir.

        Raises:
            LabError: when none does.
        """
        directory = RunDir(run_dir)
        state = directory.state() if directory.owner() is not None else None
        if state is None:
            raise LabError(f"nothing runs in {directory.path}; start it with dicelab up")
        return cls.of_state(directory, state)

    @classmethod
    def of_state(cls, directory: RunDir, state: Mapping[str, Any], **more: Any) -> Self:
        """The lab that a state file describes; ``more`` are the fields of a subclass."""
        services = {entry["name"]: str(entry["url"]) for entry in state["services"]}
        engines = {entry["name"]: str(entry["url"]) for entry in state.get("engines", [])}
        return cls(directory, services.get(FRONTEND, services[ROLLER]), services, engines, state, **more)

    @classmethod
    def find(cls, run_dir: Path, url: str | None = None) -> Self:
        """The lab at a URL, or without a URL the lab in the run dir. Its front is the URL, if one is given.

        Raises:
            LabError: when no URL is given and no lab runs in the run dir.
        """
        if url is None:
            try:
                return cls.in_run_dir(run_dir)
            except LabError as error:
                raise LabError(f"{error}, or give its address by --url") from None
        with suppress(LabError):
            lab = cls.in_run_dir(run_dir)
            if url in lab.services.values():
                lab.front = url
                return lab
        return cls(RunDir(run_dir), url)

    @classmethod
    def in_containers(cls, run_dir: Path, containers: Containers) -> Self:
        """The lab of the compose file, which publishes the ports that ``dicelab up --engines`` uses by default.

        Args:
            run_dir: where this process keeps its own telemetry.
        """
        names = containers.ids
        services = {
            one.name: f"http://127.0.0.1:{BASE_PORT + one.port_offset}" for one in SERVICES if one.name in names
        }
        known = {
            one.name: f"http://127.0.0.1:{_engine_port(one.ports[0])}" for one in engines.ENGINES if one.name in names
        }
        state: dict[str, Any] = {
            # The lowest possible stage: containers do not show theirs.
            "stage": lowest_stage(names),
            "postgres": {},  # a container like the others
            "sampling": containers.sampling,
            "otlp_endpoint": f"http://127.0.0.1:{_engine_port('COLLECTOR_HTTP_PORT')}",
        }
        front = services.get(FRONTEND, services.get(ROLLER, ""))
        return cls(RunDir(run_dir), front, services, known, state, containers)

    @classmethod
    def elsewhere(cls, run_dir: Path, stage: int, addresses: Mapping[str, str], pods: Pods | None = None) -> Self:
        """A lab that is reached by HTTP only, such as one in a cluster.

        If the URL of the front has a port, the URLs of the other parts are derived from it: they have the same port
        offsets as under ``dicelab up --engines``, and so has ``dicelab forward``.

        Args:
            run_dir: where this process keeps its own telemetry.
            addresses: URLs by the name of a service or engine; ``otlp`` stands for the Collector's OTLP over HTTP, and
                the empty name for the front.

        Raises:
            InputError: when a name is unknown, or no address is that of the front.
        """
        loaded = stages.load(stage)
        services = {one.name: "" for one in loaded.services}
        known = {one.name: one for one in engines.ENGINES if loaded.postgres or one.name not in engines.WITH_POSTGRES}
        if unknown := addresses.keys() - services.keys() - known.keys() - {"", "otlp"}:
            raise InputError(f"stage {stage} has no {', '.join(sorted(unknown))}")
        entrance = FRONTEND if FRONTEND in services else ROLLER
        front = addresses.get("") or addresses.get(entrance, "")
        if not front:
            raise InputError(f"give the address of the {entrance}, where users go, by --url")
        found = {entrance: front}
        offset = next(one.port_offset for one in loaded.services if one.name == entrance)
        port = URL(front).explicit_port
        if port is not None and port > offset:
            base = port - offset

            def beside(offset: int) -> str:
                return str(URL(front).with_port(base + offset).origin())

            found |= {one.name: beside(one.port_offset) for one in loaded.services if one.name != entrance}
            found |= {name: beside(_engine_offset(one.ports[0])) for name, one in known.items()}
            found["otlp"] = beside(_engine_offset("COLLECTOR_HTTP_PORT"))
        found |= {name: url for name, url in addresses.items() if name}
        state = {
            "stage": stage,
            "postgres": {},
            "otlp_endpoint": found.get("otlp", ""),
            "sampling": pods.sampling if pods else "none",
        }
        return cls(
            RunDir(run_dir),
            front,
            {name: found[name] for name in services if name in found},
            {name: found[name] for name in known if name in found},
            state,
            pods=pods,
            remote=True,
        )

    async def find_engines(self) -> None:
        """Drop the engines that do not respond: a lab elsewhere need not run all of them."""
        ready = await asyncio.gather(*map(self.fetch_ready, self.engines))
        there = dict(zip(self.engines, ready, strict=True))
        self.engines = {name: url for name, url in self.engines.items() if there[name]}
        if not there.get("otel-collector", True):
            self.state = {**self.state, "otlp_endpoint": ""}

    @property
    def run_dir(self) -> Path:
        return self.directory.path

    @property
    def stage(self) -> int:
        return int(self.state["stage"])

    @property
    def sampling(self) -> str:
        """How the Collector samples traces: ``tail``, or empty where it keeps all."""
        how = str(self.state.get("sampling", ""))
        return "" if how == "none" else how

    def url(self, service: str) -> str:
        """The URL of a service.

        Raises:
            Absent: when this lab has no such service.
            NotRunning: when the lab is elsewhere, and its address is not known.
        """
        if service not in self.services:
            if self.remote:
                raise NotRunning(f"the address of the {service} is not known: --url {service}=URL")
            raise Absent(f"no {service} in the lab at {self.front}")
        return self.services[service]

    def engine(self, name: str) -> str:
        """The URL of an engine.

        Raises:
            NotRunning: when it does not run.
        """
        if name not in self.engines:
            raise NotRunning(f"{name} is not running", name)
        return self.engines[name]

    # --- files ---

    def log_lines(self, service: str) -> list[str]:
        """The complete lines of a service's current log file; empty where the file does not exist."""
        if self.containers is not None:
            return self.containers.log_lines(service)
        if self.pods is not None:
            return self.pods.log_lines(service)
        path = self.log_file(service)
        return _complete_lines(path) if path.exists() else []

    def log_file(self, service: str) -> Path:
        return self.directory.logs / f"{service}.jsonl"

    def lines(self, service: str) -> Iterator[Line]:
        """The log lines of a service, oldest first, without those that are not JSON objects."""
        for text in self.log_lines(service):
            with suppress(ValueError):  # a killed process may have left half a line
                yield parse_line(text)

    def spans(self, trace_id: str | None = None) -> list[Span]:
        """The spans in the trace files: those of one trace, or all."""
        with ExitStack() as stack:
            return [
                span
                for _, file in open_files(self.directory.traces, stack)
                for span in parse_spans((line.decode(errors="replace") for line in whole_lines(file)), trace_id)
            ]

    # --- HTTP ---

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self.timeout), cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None, "enter the lab first: async with lab"
        return self._session

    async def fetch(self, url: str, query: Mapping[str, str] | None = None, **headers: str) -> Response:
        """The response to one GET request, whatever its status."""
        async with self.session.get(url, params=query, headers=headers) as response:
            return Response(response.status, await response.text(), response.headers.get("X-Trace-Id", ""))

    async def fetch_capabilities(self) -> Capabilities:
        """What the service at ``front`` offers.

        Raises:
            LabError: when it does not respond, or is neither a frontend nor a dice-roller.
        """
        try:
            document = (await self.fetch(f"{self.front}/openapi.json")).json
            paths = document["paths"]
            paths["/roll"]["get"]
            batch = paths.get("/roll-async", {}).get("get", {"parameters": []})
            times = next((entry for entry in batch["parameters"] if entry["name"] == "times"), None)
            sign_in = (await self.fetch(f"{self.front}/sign-in")).status == 200
            return Capabilities(document["info"]["title"], times["schema"]["maximum"] if times else 0, sign_in)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise LabError(f"{self.front} does not answer: {error_text(error)}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LabError(
                f"{self.front} is neither a frontend nor a dice-roller: its /openapi.json has no /roll"
            ) from None

    async def fetch_not_ready(self, service: str) -> str | None:
        """``None`` when a service is ready, else the reason in words."""
        return await readiness(self.session, f"{self.url(service)}/readyz")

    async def fetch_ready(self, name: str) -> bool:
        """Whether a service or an engine responds that it is ready."""
        if name in self.services:
            return await self.fetch_not_ready(name) is None
        path = next(one.ready_path for one in engines.ENGINES if one.name == name)
        return await readiness(self.session, self.engine(name) + path) is None

    async def fetch_samples(self, service: str) -> list[Sample]:
        """The samples on a service's ``/metrics``.

        Raises:
            ValueError: when that is not a page of metrics.
        """
        return parse_samples((await self.fetch(f"{self.url(service)}/metrics", Accept=OPENMETRICS)).text)

    async def fetch_trace(self, trace_id: str) -> list[Span]:
        """The spans of a trace that have arrived: in Tempo where it runs, else in the trace files.

        Raises:
            Missing: when there are none.
        """
        if "tempo" in self.engines:
            where = self.engines["tempo"]
            spans = parse_export(await self.fetch_export(trace_id))
        else:
            if self.remote:
                self.engine("tempo")
            where = str(self.directory.traces)
            spans = self.spans(trace_id)
        if not spans:
            raise Missing(f"no trace {trace_id} in {where}")
        return spans

    async def fetch_export(self, trace_id: str) -> dict[str, Any]:
        """The OTLP JSON document of a trace in Tempo; empty if Tempo does not have the trace.

        Raises:
            NotRunning: when there is no Tempo.
        """
        url = f"{self.engine('tempo')}/api/v2/traces/{trace_id}"
        response = await self.fetch(url, Accept="application/json")
        return dict(response.json.get("trace", {})) if response.status == 200 else {}

    async def fetch_prometheus(self, expression: str) -> list[Any]:
        """The result of an instant query.

        Raises:
            NotRunning: when there is no Prometheus.
            Missing: when the result is empty.
        """
        return await self._result(f"{self.engine('prometheus')}/api/v1/query", expression)

    async def fetch_lines(self, service: str, **fields: Any) -> list[Line]:
        """The log lines of a service that have these fields, newest first: from its log file, else from Loki by tenant.

        Raises:
            NotRunning: when the lab is elsewhere and has no Loki.
            Missing: when Loki refuses the query.
        """
        if not self.remote:
            return [line for line in self.lines(service) if line.has(**fields)][::-1]
        return [line for tenant in TENANTS for line in await self.fetch_loki_lines(tenant, service, **fields)]

    async def fetch_texts(self, service: str) -> list[str]:
        """The log lines of a service, unparsed: from its log file, else the newest ones in Loki.

        Raises:
            NotRunning: when the lab is elsewhere and has no Loki.
            Missing: when Loki refuses the query.
        """
        if not self.remote:
            return self.log_lines(service)
        return [text for tenant in TENANTS for text in await self._newest_in_loki(tenant, service, "")]

    async def fetch_loki(self, expression: str, tenant: str) -> list[Any]:
        """The result of a LogQL metric query in a tenant.

        Raises:
            NotRunning: when there is no Loki, or no Alloy to fill it.
            Missing: when the result is empty.
        """
        return await self._result(f"{self._loki()}/loki/api/v1/query", expression, **{"X-Scope-OrgID": tenant})

    async def fetch_loki_lines(self, tenant: str, service: str, **fields: Any) -> list[Line]:
        """The lines of a service in a tenant of Loki that have these fields, newest first.

        Raises:
            NotRunning: when there is no Loki, or no Alloy to fill it.
            Missing: when Loki refuses the query.
        """
        contained = "".join(f' |= "{value}"' for value in fields.values() if isinstance(value, str))
        lines = (parse_line(text) for text in await self._newest_in_loki(tenant, service, contained))
        return [line for line in lines if line.has(**fields)]

    async def _newest_in_loki(self, tenant: str, service: str, contained: str) -> list[str]:
        url = f"{self._loki()}/loki/api/v1/query_range"
        query = {
            "query": f'{{service_name="{service}"}}{contained}',
            "start": str(int(time.time() - LOKI_RANGE)),
            "limit": str(LOKI_LIMIT),
        }
        response = await self.fetch(url, query, **{"X-Scope-OrgID": tenant})
        if response.status != 200:
            raise Missing(f"{url} answers {response.status}: {response.text[:200]}")
        values = [value for stream in response.json["data"]["result"] for value in stream["values"]]
        return [text for _, text, *_ in sorted(values, reverse=True)]

    def _loki(self) -> str:
        """The URL of Loki. In a local lab this needs Alloy too, without which Loki is empty."""
        if not self.remote:
            self.engine("alloy")
        return self.engine("loki")

    async def fetch_loki_texts(self, start: float, end: float) -> Counter[str]:
        """How often each line of a time range is in Loki, summed over all tenants.

        Args:
            start, end: in seconds since 1970.

        Raises:
            NotRunning: when there is no Loki, or no Alloy to fill it.
            Missing: when Loki refuses the query.
        """
        url = f"{self._loki()}/loki/api/v1/query_range"
        found: Counter[str] = Counter()
        pending = [(tenant, start, end) for tenant in TENANTS]
        while pending:
            tenant, since, until = pending.pop()
            query = {
                "query": '{service_name=~".+"}',
                "start": str(int(since * 1e9)),
                "end": str(int(until * 1e9)),
                "limit": str(LOKI_MAX_LINES),
            }
            response = await self.fetch(url, query, **{"X-Scope-OrgID": tenant})
            if response.status != 200:
                raise Missing(f"{url} answers {response.status}: {response.text[:200]}")
            texts = [text for stream in response.json["data"]["result"] for _, text, *_ in stream["values"]]
            if len(texts) < LOKI_MAX_LINES:
                found.update(texts)
            else:  # there may be more
                middle = (since + until) / 2
                pending += [(tenant, since, middle), (tenant, middle, until)]
        return found

    async def fetch_sampling(self) -> str:
        """How the Collector samples traces, as :attr:`sampling`.

        A lab elsewhere does not tell. There it is derived from Prometheus: only a Collector that samples has
        :data:`SAMPLING_METRICS`.
        """
        if not self.sampling and self.remote and "prometheus" in self.engines:
            with suppress(Missing):
                await self.fetch_prometheus(SAMPLING_METRICS)
                return engines.TAIL
        return self.sampling

    async def fetch_alerts(self) -> dict[str, str]:
        """The state of each alert that Prometheus has a rule for: inactive, pending or firing.

        Raises:
            NotRunning: when there is no Prometheus.
        """
        response = await self.fetch(f"{self.engine('prometheus')}/api/v1/rules", {"type": "alert"})
        found: dict[str, str] = {}
        for group in response.json["data"]["groups"]:
            for rule in group["rules"]:
                if found.get(rule["name"], "inactive") == "inactive":
                    found[rule["name"]] = rule["state"]
        return found

    async def _result(self, url: str, expression: str, **headers: str) -> list[Any]:
        response = await self.fetch(url, {"query": expression}, **headers)
        result: list[Any] = response.json["data"]["result"]
        if not result:
            raise Missing(f"no {expression} at {url}")
        return result


def lowest_stage(names: Container[str]) -> int:
    """The lowest stage that has all parts with these names."""
    return 5 if "postgres" in names else 3 if DIE_SERVICE in names else 2 if FRONTEND in names else 1


def _engine_offset(name: str) -> int:
    return engines.FIRST_PORT + engines.PORTS.index(name)


def _complete_lines(path: Path) -> list[str]:
    """The complete lines of a file: without a last one that has no newline yet, and may end within a character."""
    return [line.decode(errors="replace") for line in path.read_bytes().split(b"\n")[:-1]]


def _engine_port(name: str) -> int:
    return BASE_PORT + _engine_offset(name)
