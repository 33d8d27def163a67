"""Accepts spans as OTLP over HTTP, parses them and discards them: ``python -m bench.collector PORT``."""

from __future__ import annotations

import sys

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


async def traces(request: web.Request) -> web.Response:
    ExportTraceServiceRequest.FromString(await request.read())
    return web.Response(content_type="application/x-protobuf")


def main() -> None:
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/traces", traces)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)


if __name__ == "__main__":
    main()
