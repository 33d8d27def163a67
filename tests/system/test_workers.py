"""Several processes of a service: one port and one set of metrics, whichever worker responds or has ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable

import aiohttp

from tests.support.labs import Lab, get, parse_spans, wait_for
from tests.support.matrix import spans_of

WORKERS = 3
REQUESTS = 240


async def roll(url: str, count: int) -> list[str]:
    """Trace ids of ``count`` successful rolls, each over a connection of its own, which the kernel distributes."""
    trace_ids = []
    places = asyncio.Semaphore(20)
    connector = aiohttp.TCPConnector(force_close=True)

    async def one(session: aiohttp.ClientSession) -> None:
        async with places, session.get(url) as response:
            assert response.status == 200
            trace_ids.append(response.headers["X-Trace-Id"])

    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(one(session) for _ in range(count)))
    return trace_ids


def workers(lab: Lab, service: str) -> list[int]:
    return next(entry["workers"] for entry in lab.state["services"] if entry["name"] == service)


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


async def test_every_worker_serves_the_sum_of_all_workers(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(5, "--workers", str(WORKERS), roll_delay=0)
    url = lab.url("dice-roller") + "/roll?die=fair"
    pids = workers(lab, "dice-roller")
    assert len(set(pids)) == len(set(workers(lab, "die-service"))) == WORKERS
    assert "workers" not in next(entry for entry in lab.state["services"] if entry["name"] == "frontend")
    ids = await roll(url, REQUESTS)

    # Each response to /metrics comes from whichever worker the kernel has chosen.
    for _ in range(3 * WORKERS):
        assert lab.value("dice-roller", "http_requests_total", handler="/roll", status="200") == REQUESTS
        assert lab.value("dice-roller", "dice_roll_value_count", die_type="fair") == REQUESTS
        assert lab.value("dice-roller", "dice_roll_value_bucket", die_type="fair", le="+Inf") == REQUESTS
        assert lab.value("die-service", "database_queries_total", query_type="get", result="success") == REQUESTS
    assert lab.value("die-service", "database_connection_pool_size") == 10 * WORKERS
    assert lab.value("die-service", "die_specifications_loaded") == 3
    exemplars = [s.exemplar.labels["trace_id"] for s in lab.samples("dice-roller") if s.exemplar]
    assert exemplars
    assert set(exemplars) <= set(ids)

    # Every worker had a share, and their files are complete.
    def whole() -> bool:
        spans = [span for span in lab.spans() if span.trace_id in set(ids)]
        return len(spans) == REQUESTS * (spans_of(5) - 3)  # the frontend's three are not among them

    wait_for(whole, say="all spans")
    files = sorted((lab.run_dir / "traces").glob("dice-roller*.jsonl"))
    assert len(files) == WORKERS
    assert all(parse_spans(file.read_text().splitlines()) for file in files)
    wait_for(lambda: Counter(line["message"] for line in lab.logs("dice-roller"))["Roll completed"] == REQUESTS)

    # Counters never decrease, and a clean exit loses nothing.
    for victim, number in ((pids[0], signal.SIGTERM), (pids[1], signal.SIGKILL)):
        os.kill(victim, number)
        wait_for(lambda victim=victim: not alive(victim))  # type: ignore[misc]
        assert lab.value("dice-roller", "http_requests_total", handler="/roll", status="200") == REQUESTS
        assert lab.value("dice-roller", "dice_roll_value_sum") > 0
    more = await roll(url, 30)
    assert len(more) == 30
    assert lab.value("dice-roller", "dice_rolls_total", result="success") == REQUESTS + 30
    assert get(lab.front + "/roll?die=fair").status == 200

    # A hanging worker is not waited for; its last snapshot is used.
    survivor = next(pid for pid in workers(lab, "die-service"))
    os.kill(survivor, signal.SIGSTOP)
    try:
        counted = wait_for(lambda: _asked_another(lab))
    finally:
        os.kill(survivor, signal.SIGCONT)
    assert counted >= REQUESTS
    assert lab.stop() == 0


def _asked_another(lab: Lab) -> float | None:
    """The die-service's count, from a running worker; ``None`` if the hanging one got the request."""
    try:
        body = get(lab.url("die-service") + "/metrics", timeout=3).body.decode()
    except OSError:
        return None
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in body.splitlines()
        if line.startswith("http_requests_total{") and 'handler="/dice"' in line
    )
