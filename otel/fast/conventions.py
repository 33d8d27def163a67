"""Attributes of HTTP and SQL spans, by the conventions that ``OTEL_SEMCONV_STABILITY_OPT_IN`` chooses.

The stable names, the older ones, or both, as the instrumentation packages set them. The packages have no public
functions for it that take the convention.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.util.http import redact_query_parameters, redact_url, sanitize_method

from otel.fast.spans import LeanSpan

Attributes = dict[str, Any]

OLDEST_SCHEMA = "https://opentelemetry.io/schemas/1.11.0"  # what the packages use where nothing is chosen
_chosen = {part.strip() for part in os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")}


def _modes(signal: str) -> tuple[bool, bool]:
    """Whether a signal's spans have the stable names, and whether they have the older ones."""
    both = f"{signal}/dup" in _chosen
    return both or signal in _chosen, both or signal not in _chosen


NEW_HTTP, OLD_HTTP = _modes("http")
NEW_SQL, OLD_SQL = _modes("database")
HTTP_SCHEMA = Schemas.V1_21_0.value if NEW_HTTP else OLDEST_SCHEMA
SQL_SCHEMA = Schemas.V1_25_0.value if NEW_SQL else HTTP_SCHEMA


def _method(attributes: Attributes, original: str) -> None:
    original = original.strip()
    method = sanitize_method(original).strip()
    if NEW_HTTP:
        if original != method:
            attributes["http.request.method_original"] = original
        attributes["http.request.method"] = method
    if OLD_HTTP:
        attributes["http.method"] = method


def method_name(original: str) -> str:
    """The first part of a span's name."""
    method = sanitize_method(original.strip())
    return "HTTP" if method == "_OTHER" else method


def route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else ""


def of_server(request: web.Request) -> Attributes:
    """Attributes of a server span."""
    attributes: Attributes = {}
    _method(attributes, request.method)
    url = request.url
    agent = request.headers.get("User-Agent")
    version = f"{request.version.major}.{request.version.minor}"
    target = redact_query_parameters(request.path_qs)
    if NEW_HTTP:
        attributes["url.scheme"] = request.scheme
        if url.host:
            attributes["server.address"] = url.host
        if url.port:
            attributes["server.port"] = url.port
        if request.path:
            attributes["url.path"] = request.path
        if query := _query(target):
            attributes["url.query"] = query
        if agent:
            attributes["user_agent.original"] = agent
        attributes["network.protocol.version"] = version
    if OLD_HTTP:
        attributes["http.scheme"] = request.scheme
        if url.host:
            attributes["net.host.name"] = attributes["http.host"] = url.host
        if url.port:
            attributes["net.host.port"] = url.port
        if target:
            attributes["http.target"] = target
        attributes["http.url"] = redact_url(str(url))
        if agent:
            attributes["http.user_agent"] = agent
        attributes["http.flavor"] = version
        if request.host:
            attributes["http.server_name"] = request.host
    attributes["http.route"] = route(request)
    return attributes


def _query(target: str) -> str:
    try:
        return urlsplit(target).query
    except ValueError:
        return ""


def of_client(method: str, url: str) -> Attributes:
    """Attributes of a client span."""
    attributes: Attributes = {}
    _method(attributes, method)
    url = redact_url(url)
    if OLD_HTTP:
        attributes["http.url"] = url
    if NEW_HTTP:
        attributes["url.full"] = url
        parts = urlsplit(url)
        if parts.hostname:
            attributes["server.address"] = parts.hostname
        if parts.port:
            attributes["server.port"] = parts.port
    # The package sets these if both conventions are chosen, but not for the older names alone.
    if OLD_HTTP and NEW_HTTP:
        attributes |= {
            old: attributes[new]
            for old, new in (("http.host", "server.address"), ("net.peer.port", "server.port"))
            if new in attributes
        }
    return attributes


def of_sql(system: str, database: str, user: str, host: str, port: int) -> Attributes:
    """Attributes of the spans of all queries on a database; see :func:`statement`."""
    attributes: Attributes = {}
    if NEW_SQL:
        attributes |= {"db.system.name": system, "db.namespace": database}
    if OLD_SQL:
        attributes |= {"db.system": system, "db.name": database, "db.user": user}
    if NEW_HTTP:
        attributes |= {"server.address": host, "server.port": port}
    if OLD_HTTP:
        attributes |= {"net.peer.name": host, "net.peer.port": port}
    return {name: value for name, value in attributes.items() if value}


def statement(text: str) -> Attributes:
    return ({"db.query.text": text} if NEW_SQL else {}) | ({"db.statement": text} if OLD_SQL else {})


def set_response_status(span: LeanSpan, status: int) -> None:
    """Set the status code of a response."""
    if NEW_HTTP:
        span.attributes["http.response.status_code"] = status
    if OLD_HTTP:
        span.attributes["http.status_code"] = status
