"""The line that is said of a setting that is wrong: which it is, as the user wrote it, and the way out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from solowire.algorithms.name_suggestion import find_match
from solowire.runtime.settings.renamed_settings import RENAMED
from solowire.runtime.settings.section import CONFLICT
from solowire.runtime.settings.setting_paths import Path, find_section, index_names
from solowire.runtime.settings.system_settings import MASKED, Settings

LISTED = "`solowire config` lists those that are known"


@dataclass(frozen=True)
class SettingsOrigin:
    """Where values come from. values: as sections. write: a setting's name, as it is written there. file: its name."""

    values: Mapping[str, Any]
    write: Callable[[Path], str]
    file: str = ""

    def has_value(self, path: Path) -> bool:
        """Whether it says something of a setting, or of a section."""
        found: Any = self.values
        for name in path:
            if not isinstance(found, Mapping) or name not in found:
                return False
            found = found[name]
        return True


def describe_fault(error: Mapping[str, Any], origins: Sequence[SettingsOrigin]) -> str:
    """The line about one error of pydantic's. origins: the one that wins first."""
    location = tuple(str(part) for part in error["loc"])
    if error["type"] == CONFLICT:
        names = [_write_within((*location, *name.split(".")), origins) for name in error["ctx"]["names"]]
        return str(error["ctx"]["text"].format(*names))
    path, model, rest = _follow(location)
    place = ": ".join(part for part in (write_name(path, origins), ".".join(rest)) if part)
    old = RENAMED.get(".".join(path))
    if error["type"] == "extra_forbidden":
        if old is not None:
            return f"{place} is called {_write_new(old)} now"
        return f"{place} is no setting; {_suggest(location[-1], location[:-1], model)}"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type") and not rest:
        if old is not None and find_section(Settings.model_fields[path[0]]) is not None:
            return f"{place} is called {_write_new(old)} now; [{path[0]}] is a table"
        return f"{place}: it must be a table"
    fault, value = error["msg"].removeprefix("Value error, "), repr(error.get("input"))
    shown = "" if path[0] in MASKED or value in fault else f" (got {value})"
    return f"{place}: {fault}{shown}"


def _follow(location: Path) -> tuple[Path, type[BaseModel], Path]:
    """The setting or section that an error is about, whose names it could have had, and where in its value it is."""
    model: type[BaseModel] = Settings
    for depth, name in enumerate(location):
        field = model.model_fields.get(name)
        if field is None:  # no setting
            return location, model, ()
        section = find_section(field)
        if section is None:
            values = [kind for kind in get_args(field.annotation) if _is_model(kind)]
            return location[: depth + 1], values[0] if values else model, location[depth + 1 :]
        model = section
    return location, model, ()


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _find_origin(path: Path, origins: Sequence[SettingsOrigin]) -> SettingsOrigin | None:
    return next((origin for origin in origins if origin.has_value(path)), None)


def write_name(path: Path, origins: Sequence[SettingsOrigin]) -> str:
    """A setting's name as the user wrote it; its path if it has its default."""
    origin = _find_origin(path, origins)
    if origin is None:
        return ".".join(path)
    return f"{origin.file}: {origin.write(path)}" if origin.file else origin.write(path)


def _write_within(path: Path, origins: Sequence[SettingsOrigin]) -> str:
    """The same, within a sentence."""
    origin = _find_origin(path, origins)
    if origin is None:
        return f"{'.'.join(path)} (by default)"
    return f"{origin.write(path)} (in {origin.file})" if origin.file else origin.write(path)


def _write_new(path: str) -> str:
    section, _, name = path.rpartition(".")
    return f"{path} ({name} in the table [{section}])"


def _suggest(wrong: str, above: Path, model: type[BaseModel]) -> str:
    near = find_match(wrong, model.model_fields)
    if near is not None:
        return f"did you mean {near if _follow((*above, near))[2] else '.'.join((*above, near))}?"
    if not issubclass(model, Settings) and _follow((*above, wrong))[2]:
        return f"there are {', '.join(model.model_fields)}"
    names = index_names()
    far = find_match(wrong, names)
    return LISTED if far is None else f"did you mean {'.'.join(names[far])}?"
