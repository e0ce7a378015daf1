"""The paths of settings, such as `shard.flush.high_ms`, and the variables that go with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from solowire.runtime.settings.renamed_settings import RENAMED
from solowire.runtime.settings.system_settings import DELIMITER, PREFIX, Settings

Path = tuple[str, ...]


def find_section(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a section; None for one setting."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def list_paths(model: type[BaseModel] = Settings, above: Path = ()) -> Iterator[Path]:
    """Of all settings; sections are none."""
    for name, field in model.model_fields.items():
        section = find_section(field)
        if section is None:
            yield (*above, name)
        else:
            yield from list_paths(section, (*above, name))


def to_variable(path: Path) -> str:
    """The name of a setting in the environment and in `.env`."""
    return PREFIX + DELIMITER.join(path).upper()


def index_names() -> dict[str, Path]:
    """What somebody may write who means a setting: its own name alone, where it is the only one, or an old name."""
    counts = Counter(path[-1] for path in list_paths())
    names = {path[-1]: path for path in list_paths() if counts[path[-1]] == 1 or len(path) == 1}
    names |= {"_".join(path): path for path in list_paths()}
    return {old: tuple(new.split(".")) for old, new in RENAMED.items()} | names


def merge(over: Mapping[str, Any], under: Mapping[str, Any]) -> dict[str, Any]:
    """Both, and of one key the first's; sections are merged, tables of values are not."""
    return _merge(Settings, over, under)


def _merge(model: type[BaseModel], over: Mapping[str, Any], under: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**under, **over}
    for name, value in over.items():
        section = find_section(model.model_fields[name]) if name in model.model_fields else None
        below = under.get(name)
        if section is not None and isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[name] = _merge(section, value, below)
    return merged
