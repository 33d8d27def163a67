"""Accepts spans as OTLP over HTTP, counts them and discards them: ``python -m bench.collector PORT``."""

from __future__ import annotations

import sys

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SPANS = web.AppKey("spans", list[int])


async def traces(request: web.Request) -> web.Response:
    message = ExportTraceServiceRequest.FromString(await request.read())
    for resource in message.resource_spans:
        for scope in resource.scope_spans:
            request.app[SPANS][0] += len(scope.spans)
    return web.Response(content_type="application/x-protobuf")


async def count(request: web.Request) -> web.Response:
    return web.json_response(request.app[SPANS][0])


def main() -> None:
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app[SPANS] = [0]
    app.router.add_post("/v1/traces", traces)
    app.router.add_get("/spans", count)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)


if __name__ == "__main__":
    main()
