"""``python -m lab.schema``: writes the files that are generated from the registry.

Without an argument it writes ``docs/telemetry.md``. Given the folder ``model`` of a copy of OpenTelemetry's semantic
conventions, it also writes ``otel/registry/conventions.json``, the excerpt that the registry refers to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lab.schema import docs
from lab.schema.registry import CONVENTIONS, FOLDER, Registry, references

SOURCE = "https://github.com/open-telemetry/semantic-conventions"


def excerpt(model: Path, keys: set[str]) -> dict[str, Any]:
    """The definitions of these attributes in a copy of the conventions.

    Raises:
        OSError, KeyError: when ``model`` is not such a folder, or an attribute is missing there.
    """
    version = yaml.safe_load((model / "manifest.yaml").read_text())["schema_url"].rpartition("/")[2]
    known = dict(_attributes(model))
    return {
        "source": f"{SOURCE}/tree/v{version}/model",
        "license": "Copyright The OpenTelemetry Authors, Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)",
        "version": version,
        "attributes": {key: known[key] for key in sorted(keys)},
    }


def _attributes(model: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(model.rglob("*.yaml")):
        document = yaml.safe_load(file.read_text())
        entries = [entry for group in document.get("groups", []) for entry in group.get("attributes", [])]
        for entry in (*entries, *document.get("attributes", [])):
            key = entry.get("id", entry.get("key"))
            if key and "type" in entry and "deprecated" not in entry:
                kind = entry["type"]
                if isinstance(kind, dict):
                    kind = {str: "string", int: "int"}[type(kind["members"][0]["value"])]
                brief = " ".join(entry["brief"].split()).partition(". ")[0].removesuffix(".") + "."
                yield key, {"type": kind, "stability": entry["stability"], "brief": brief}


def main(arguments: list[str]) -> int:
    if arguments:
        (model,) = arguments
        found = excerpt(Path(model), references(FOLDER))
        (FOLDER / CONVENTIONS).write_text(json.dumps(found, indent=1) + "\n")
    docs.FILE.write_text(docs.telemetry(Registry.read()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
