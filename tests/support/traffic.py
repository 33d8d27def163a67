"""Traffic that uses every feature of a stage, so that all of its telemetry has data."""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.cookiejar import CookieJar

import psycopg2

from tests.support.labs import Lab, get
from tests.support.matrix import has

EVERY_SIZE = (1, 2, 4, 8, 15, 30, 60)  # one in each bucket of the batch sizes' histogram


def use_every_feature(lab: Lab, sizes: Sequence[int] = (2,)) -> None:
    """Roll every die and an unknown one, singly and in batches of these sizes; sign in and out; cause each kind of
    failure for which no service has to be stopped."""
    dice = ["fair", "risky", *(["extreme"] if has("die service", lab.stage) else []), "nosuch"]
    paths = [f"/roll?die={die}" for die in dice for _ in range(5)]
    if has("GET /roll-async", lab.stage):
        paths += [f"/roll-async?die={die}&times={size}" for die in dice for size in sizes]
    if has("die service", lab.stage):
        get(lab.front + "/")  # the page requests the list of dice
        get(lab.url("die-service") + "/dice")
    statuses = roll_at_once(lab, paths)
    if 500 not in statuses:
        fail_a_risky_roll(lab)
        statuses.add(500)
    assert statuses == {200, 404, 500}
    if has("postgres", lab.stage):
        _let_the_database_refuse(lab)
    if has("usage tracking logs", lab.stage):
        _sign_in_roll_and_out(lab, "alice")


def fail_a_risky_roll(lab: Lab) -> None:
    """Roll the risky die until it fails, after ten rolls on average."""

    def failed() -> float:
        return lab.value("dice-roller", "dice_rolls_total", die_type="risky", result="error")

    before = failed()
    while failed() == before:
        roll_at_once(lab, ["/roll?die=risky"] * 10)


def roll_at_once(lab: Lab, paths: list[str]) -> set[int]:
    """Request all paths, twelve at a time; returns the set of statuses."""
    with ThreadPoolExecutor(12) as pool:
        return set(pool.map(lambda path: get(lab.front + path).status, paths))


def _let_the_database_refuse(lab: Lab) -> None:
    with closing(psycopg2.connect(lab.state["postgres"]["url"])) as database:
        database.autocommit = True
        with database.cursor() as cursor:
            cursor.execute("ALTER TABLE dice RENAME TO hidden")
            try:
                assert get(f"{lab.front}/roll?die=fair").status == 503
            finally:
                cursor.execute("ALTER TABLE hidden RENAME TO dice")


def _sign_in_roll_and_out(lab: Lab, name: str) -> None:
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(CookieJar())
    )
    opener.open(f"{lab.front}/sign-in", data=urllib.parse.urlencode({"name": name}).encode()).read()
    opener.open(f"{lab.front}/roll?die=fair").read()
    opener.open(f"{lab.front}/sign-out", data=b"").read()
