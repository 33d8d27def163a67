"""Resources of operators checked by TypeScript against the types of their definitions; see ``tests/crd_types``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import typescript

TYPES = Path(__file__).parents[1] / "crd_types"
# The package of each API group.
PACKAGES = {
    "monitoring.coreos.com": "prometheus-operator",
    "opentelemetry.io": "opentelemetry-operator",
    "postgresql.cnpg.io": "cloudnative-pg",
}


def type_errors(documents: Sequence[dict[str, Any]], directory: Path) -> list[str]:
    """The type errors, including unknown fields, as ``kind name: the compiler's message``.

    Args:
        documents: resources of the groups in :data:`PACKAGES`.
        directory: an empty one, for the code that is checked.
    """
    lines = []
    for number, original in enumerate(documents):
        document = _completed(original)
        group, version = document["apiVersion"].split("/")
        kind = document["kind"]
        module = f"@kubernetes-models/{PACKAGES[group]}/{group}/{version}/{kind}"
        lines.append(f"export const d{number}: import('{module}').I{kind} = {json.dumps(document)};")
    found = typescript.messages(TYPES, directory, {"resources.ts": "\n".join(lines) + "\n"})
    return [_explained(message, documents) for message in found]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with two more fields that these types require, although the definition of the resource does not."""
    storage = document["spec"].get("storage", {})
    if "volumeClaimTemplate" not in storage:
        return document
    kind = {"apiVersion": "monitoring.coreos.com/v1", "kind": "EmbeddedPersistentVolumeClaim"}
    storage = {**storage, "volumeClaimTemplate": {**storage["volumeClaimTemplate"], **kind}}
    return {**document, "spec": {**document["spec"], "storage": storage}}


def _explained(message: str, documents: Sequence[dict[str, Any]]) -> str:
    place = re.fullmatch(r"resources\.ts\((\d+),\d+\): (.*)", message)
    if place is None:
        return message
    document = documents[int(place[1]) - 1]
    return f"{document['kind']} {document['metadata']['name']}: {place[2]}"
