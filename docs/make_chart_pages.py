"""Writes the chart's README and values.schema.json, from the comments in values.yaml and the models of settings.

Run it with `python docs/make_chart_pages.py`; `make chart` does. `tests/helm/test_pages.py` fails while one of the two
is not what this makes. The head of values.yaml says how its comments are written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from solowire.runtime.settings.system_settings import Settings

CHART = Path(__file__).resolve().parents[1] / "helm/solowire"
README, SCHEMA = CHART / "README.md", CHART / "values.schema.json"

POD_VALUES = {
    "podAnnotations": "Annotations of its pods.",
    "podLabels": "Labels of its pods.",
    "nodeSelector": "Nodes that its pods may be on.",
    "tolerations": "Taints that its pods bear.",
    "affinity": "Affinity of its pods.",
    "priorityClassName": "Its pods' priority class; empty: that of all.",
    "extraEnv": "More variables of its container.",
    "extraVolumes": "More volumes of its pods.",
    "extraVolumeMounts": "Where they are in its container.",
}
"""What values mean that stand behind `# @pod`: the same in each role."""

_KEY = re.compile(r"( *)([A-Za-z]\w*):")
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
_OBJECTS = {"type": "array", "items": {"type": "object"}}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_DETAILS: Mapping[str, dict[str, Any]] = {
    "resources": {
        "additionalProperties": False,
        "properties": {"requests": {"type": "object"}, "limits": {"type": "object"}},
    },
    "annotations": _TEXTS,
    "labels": _TEXTS,
    "commonLabels": _TEXTS,
    "podAnnotations": _TEXTS,
    "podLabels": _TEXTS,
    "nodeSelector": _TEXTS,
    "tolerations": _OBJECTS,
    "extraEnv": {"type": "array", "items": {"type": "object", "required": ["name"]}},
    "extraVolumes": {"type": "array", "items": {"type": "object", "required": ["name"]}},
    "extraVolumeMounts": {"type": "array", "items": {"type": "object", "required": ["name", "mountPath"]}},
}
"""More of a value's schema, by its name."""


@dataclass
class Value:
    """One value that can be set. path: with dots. hint: more of its schema."""

    path: str
    default: Any
    text: str
    section: str
    hint: dict[str, Any] = field(default_factory=dict)


def read_values() -> list[Value]:
    """All values of values.yaml, in their order. Raises ValueError for one that nothing is said about."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    defaults = yaml.safe_load(text)
    found: list[Value] = []
    section, comments = "", list[str]()
    above: list[tuple[int, str]] = []  # the keys that the line is under
    leaf_indent: int | None = None
    pod_indent: int | None = None
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comment = line.strip().removeprefix("#").strip()
            if comment.startswith("@section "):
                section, comments = comment.removeprefix("@section "), []
            elif comment == "@pod":
                pod_indent = len(line) - len(line.lstrip())
            else:
                comments.append(comment)
            continue
        key = _KEY.match(line)
        if key is None:
            comments = []
            continue
        indent, name = len(key[1]), key[2]
        if pod_indent is not None and indent < pod_indent:
            pod_indent = None
        if leaf_indent is not None and indent > leaf_indent:
            continue  # inside of a default
        leaf_indent = None
        above = [(i, n) for i, n in above if i < indent] + [(indent, name)]
        path = ".".join(n for _, n in above)
        described = _read_comments(comments)
        if described is None and pod_indent == indent:
            described = POD_VALUES[name], {}
        comments = []
        default = _look_up(defaults, path)
        if described is None and not (isinstance(default, dict) and default):
            raise ValueError(f"values.yaml says nothing about {path}")
        if described is not None:
            found.append(Value(path, default, described[0], section, described[1]))
            leaf_indent = indent
    return found


def _read_comments(comments: list[str]) -> tuple[str, dict[str, Any]] | None:
    """What a value means, and more of its schema; None where it is not said."""
    hint: dict[str, Any] = {}
    words: list[str] | None = None
    for comment in comments:
        if comment.startswith("@schema "):
            hint |= json.loads(comment.removeprefix("@schema "))
        elif comment.startswith("-- "):
            words = [comment.removeprefix("-- ")]
        elif words is not None:
            words.append(comment)
    return None if words is None else (" ".join(words), hint)


def _look_up(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


def render_readme() -> str:
    """The text of README.md.in with a table of values for each section in the place of `{values}`."""
    tables, section = [], ""
    for value in read_values():
        if value.section != section:
            section = value.section
            tables.append(f"\n### {section}\n\n| value | default | meaning |\n| --- | --- | --- |")
        shown = json.dumps(value.default, ensure_ascii=False)
        text = value.text.replace("|", "\\|")
        tables.append(f"| `{value.path}` | `{shown}` | {text} |")
    head = (CHART / "README.md.in").read_text(encoding="utf-8")
    note = "<!-- Made by docs/make_chart_pages.py from README.md.in and values.yaml; `make chart` makes it anew. -->\n"
    return note + head.replace("{values}", "\n".join(tables).strip())


def render_schema() -> str:
    """The JSON schema of the values, closed: what is not a value is refused by its name."""
    top: dict[str, Any] = _make_object("Values of the chart solowire.")
    for value in read_values():
        *parents, name = value.path.split(".")
        node = top
        for parent in parents:
            node = node["properties"].setdefault(parent, _make_object(f"Values of {parent}."))
        node["properties"][name] = _make_schema(value, parents[0] if parents else "")
    top["properties"]["global"] = {"type": "object", "description": "Values of a parent chart; not read."}
    for path in yaml.safe_load((CHART / "files/removed-values.yaml").read_text(encoding="utf-8")):
        _admit(top, path.split("."))
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **top}, indent=2) + "\n"


def _make_object(text: str) -> dict[str, Any]:
    return {"type": "object", "description": text, "additionalProperties": False, "properties": {}}


def _admit(node: dict[str, Any], path: list[str]) -> None:
    """Lets a value through that is gone, so that a template can say what to use instead."""
    *parents, name = path
    nodes = [node]
    if parents[:1] == ["settings"]:
        roles = (node["properties"][role]["properties"]["settings"] for role in ("router", "gateway", "shard"))
        nodes, parents = [node["properties"]["settings"], *roles], parents[1:]
    for start in nodes:
        found: dict[str, Any] | None = start
        for parent in parents:
            found = found["properties"].get(parent) if found is not None else None
        if found is not None:
            found["properties"][name] = {
                "description": "Gone: a release that has it says what to use.",
                "deprecated": True,
            }


def _make_schema(value: Value, role: str) -> dict[str, Any]:
    hint = dict(value.hint)
    if hint.pop("settings", False):
        return {**make_settings_schema(role), "description": value.text}
    if hint.pop("sources", False):
        return {**make_sources_schema(), "description": value.text}
    name = value.path.rpartition(".")[2]
    schema: dict[str, Any] = {"type": _TYPES[type(value.default)], "description": value.text}
    return schema | _DETAILS.get(name, {}) | hint


def make_settings_schema(role: str) -> dict[str, Any]:
    """The schema of a tree of settings, of what one role reads, or all of them where none is named."""
    model = Settings.model_json_schema()
    roles = yaml.safe_load((CHART / "files/role-settings.yaml").read_text(encoding="utf-8"))
    names = roles[role] if role else sorted({name for of_one in roles.values() for name in of_one})
    made = _make_object("Settings.")
    made["properties"] = {name: _simplify(model["properties"][name], model["$defs"]) for name in names}
    return made


def _simplify(schema: Any, definitions: Mapping[str, Any]) -> Any:  # of JSON, whatever it is
    """Without references, titles and defaults; null is left out, since Helm has no such values."""
    if isinstance(schema, list):
        return [_simplify(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _simplify(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    rest = {key: value for key, value in schema.items() if key not in ("title", "default", "format", "anyOf")}
    if "anyOf" in schema:
        [kept] = [option for option in schema["anyOf"] if option != {"type": "null"}]
        rest = {**kept, **rest}
    simple: dict[str, Any] = {}
    for key, value in rest.items():
        if key == "properties":
            simple[key] = {name: _simplify(of_one, definitions) for name, of_one in value.items()}
        elif key == "description":
            simple[key] = " ".join(value.split())
        else:
            simple[key] = _simplify(value, definitions)
    return simple


def make_sources_schema() -> dict[str, Any]:
    """The schema of agents by their names."""
    model = Settings.model_json_schema()
    made = _make_object("An agent.")
    made["required"] = ["command", "tokenSecret"]
    made["properties"] = {
        "command": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string"},
            "description": "What stands after `solowire source`.",
        },
        "tokenSecret": {
            "type": "string",
            "minLength": 1,
            "description": "Secret with a publisher's token under the key `token`.",
        },
        "settings": _simplify(model["properties"]["source"], model["$defs"]),
        "persistence": {
            **_make_object("A volume, so that it goes on where it stopped."),
            "required": ["size"],
            "properties": {
                "size": {"type": "string", "description": "Size of the volume for its places."},
                "storageClassName": {"type": "string", "description": "Its storage class."},
            },
        },
        "notifyPort": {
            "type": "integer",
            "minimum": 1024,
            "maximum": 65535,
            "description": "Port of source.zones.notify, which a Service makes port 53.",
        },
        "resources": {"type": "object", "description": "What its container may use.", **_DETAILS["resources"]},
    }
    for name, text in POD_VALUES.items():
        simple = {"type": "string" if name == "priorityClassName" else "object"}
        made["properties"][name] = {**_DETAILS.get(name, simple), "description": text}
    return {"type": "object", "additionalProperties": made}


def list_pages() -> Iterator[tuple[Path, str]]:
    """Each page that is made, and its text."""
    yield README, render_readme()
    yield SCHEMA, render_schema()


if __name__ == "__main__":
    for page, text in list_pages():
        page.write_text(text, encoding="utf-8")
