"""Exceptions of handlers as problem responses."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from web import problems
from web.problems import unavailable


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Only reference counts free memory. Nothing is logged: pytest keeps log records, and with them exceptions."""
    gc.disable()
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


class Failure(Exception):
    pass


@pytest.mark.parametrize("kind", ["problem", "http exception", "other exception"])
@pytest.mark.usefixtures("no_collections")
async def test_a_failed_request_leaves_no_garbage(kind: str) -> None:
    raised: list[weakref.ref[BaseException]] = []

    def kept(error: BaseException) -> BaseException:
        raised.append(weakref.ref(error))
        return error

    async def handler(request: web.Request) -> web.Response:
        if kind == "http exception":
            raise kept(web.HTTPConflict())
        try:
            raise kept(Failure("the cause"))
        except Failure as error:
            if kind == "other exception":
                raise
            raise kept(unavailable("Try again.", error)) from None

    app = web.Application(middlewares=[problems.middleware()])
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client:
        async with client.get("/") as response:
            assert response.status == {"problem": 503, "http exception": 409, "other exception": 500}[kind]
        assert raised
        async with client.get("/nowhere") as response:  # the server has finished the first request by then
            assert response.status == 404
        assert [reference() for reference in raised] == [None] * len(raised)
