"""Series exist at zero before the first request, so that increase() sees the first error."""

from __future__ import annotations

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from pytest_aiohttp.plugin import AiohttpClient

import dieservice.app
import dieservice.settings
import roller.app
import roller.settings
from web.settings import Environment


def roller_application() -> web.Application:
    variables = {"DICE_SOURCE": "die-service", "ASYNC_ROLLS": "true"}
    return roller.app.create_app(roller.settings.Settings.read(Environment(variables)))


def die_service_application() -> web.Application:
    return dieservice.app.create_app(dieservice.settings.Settings.read(Environment({})))


@pytest.mark.parametrize(
    ("make_application", "expected"),
    [
        (roller_application, {"/roll": {200, 400, 404, 500, 503, 504}, "/roll-async": {200, 400, 404, 500, 503, 504}}),
        (die_service_application, {"/dice": {200, 400, 404, 500, 503, 504}}),
    ],
    ids=["dice-roller", "die-service"],
)
async def test_each_documented_status_starts_at_zero(
    aiohttp_client: AiohttpClient, make_application: object, expected: dict[str, set[int]]
) -> None:
    assert callable(make_application)
    client = await aiohttp_client(make_application())
    text = await (await client.get("/metrics")).text()
    samples = [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "http_requests_total"
    ]
    assert all(sample.value == 0 for sample in samples)
    for route, statuses in expected.items():
        of_route = [sample.labels for sample in samples if sample.labels["handler"] == route]
        assert {int(labels["status"]) for labels in of_route} == statuses
        assert {labels["method"] for labels in of_route} == {"GET"}
