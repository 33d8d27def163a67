"""The differences between the portraits of two stages, as text and as JSON."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from lab.diff.portrait import Item, Portrait, Section


@dataclass(frozen=True)
class Changes:
    """The differences in one section.

    Attributes:
        changed: the value before and after, by name.
        common: metrics of a new service that every service has, by service; they are left out of ``added``.
    """

    added: Section
    removed: Section
    changed: dict[str, tuple[str, str]]
    common: dict[str, list[str]]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.common)


def _changes(before: Section, after: Section, common: frozenset[str]) -> Changes:
    added = {name: item for name, item in after.items() if name not in before}
    grouped: dict[str, list[str]] = defaultdict(list)
    for name in list(added):
        service, _, metric = name.partition(" ")
        if metric in common:
            del added[name]
            grouped[service].append(metric)
    return Changes(
        added,
        {name: item for name, item in before.items() if name not in after},
        {
            name: (before[name].value, item.value)
            for name, item in after.items()
            if name in before and before[name].value != item.value
        },
        grouped,
    )


def _all_changes(before: Portrait, after: Portrait) -> dict[str, Changes]:
    common = before.common & after.common
    return {name: _changes(before.sections[name], after.sections[name], common) for name in after.sections}


def text(before: Portrait, after: Portrait) -> list[str]:
    """The comparison as lines for people."""
    lines = [f"Stage {before.number} → stage {after.number}"]
    for section, change in _all_changes(before, after).items():
        if not change:
            continue
        lines += ["", section]
        for name, (old, new) in change.changed.items():
            lines.append(f"  ~ {name}: {old or 'nothing'} → {new or 'nothing'}")
        lines += [f"  - {_words(section, name, item)}" for name, item in change.removed.items()]
        lines += [f"  + {_words(section, name, item)}" for name, item in change.added.items()]
        lines += [
            f"  + {service}, as every service: {', '.join(sorted(names))}" for service, names in change.common.items()
        ]
    for request in dict.fromkeys([*before.traces, *after.traces]):
        lines += ["", *_side_by_side(request, before, after)]
    return lines


def _words(section: str, name: str, item: Item) -> str:
    joined = f"{name}={item.value}" if section == "Settings" else name
    if section == "Metrics":
        joined = f"{name}{item.value}"
    elif section == "Routes":
        joined = f"{name}?{item.value.replace(', ', '&')}" if item.value else name
    elif section in ("Spans", "Log fields"):
        joined = f"{name} ({item.value})"
    return f"{joined}, {item.note}" if item.note else joined


def _side_by_side(request: str, before: Portrait, after: Portrait) -> list[str]:
    columns = []
    for portrait in (before, after):
        trace = portrait.traces.get(request)
        head = f"stage {portrait.number}: {trace.body}" if trace else f"stage {portrait.number}: no such route"
        columns.append([head, *(trace.tree if trace else ())])
    width = max(map(len, columns[0])) + 3
    rows = [f"{left:{width}}{right}".rstrip() for left, right in zip_longest(*columns, fillvalue="")]
    return [f"GET {request}", *(f"  {row}" for row in rows)]


def document(before: Portrait, after: Portrait) -> dict[str, Any]:
    """The comparison as JSON: ``added``, ``removed`` and ``changed`` for each section, and ``traces``."""
    return {
        "before": before.number,
        "after": after.number,
        **{
            section.lower().replace(" ", "_"): {
                "added": [{"name": name, "value": item.value, "note": item.note} for name, item in change.added.items()]
                + [
                    {
                        "name": f"{service} {name}",
                        "value": after.sections[section][f"{service} {name}"].value,
                        "note": "",
                    }
                    for service, names in change.common.items()
                    for name in names
                ],
                "removed": [
                    {"name": name, "value": item.value, "note": item.note} for name, item in change.removed.items()
                ],
                "changed": [{"name": name, "before": old, "after": new} for name, (old, new) in change.changed.items()],
            }
            for section, change in _all_changes(before, after).items()
        },
        "traces": [
            {
                "request": request,
                **{
                    side: {"answer": trace.body, "tree": trace.tree} if trace else None
                    for side, portrait in (("before", before), ("after", after))
                    for trace in [portrait.traces.get(request)]
                },
            }
            for request in dict.fromkeys([*before.traces, *after.traces])
        ],
    }
