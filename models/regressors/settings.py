"""Settings of recipes: dataclasses whose fields have defaults, from JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from models.errors import InvalidConfig

Recipe = TypeVar("Recipe")
MODE, PAPER = "mode", "paper"


@runtime_checkable
class Published(Protocol):
    """A kind of recipe that has the form of its paper too: the setting `MODE` is `PAPER` then."""

    def paper(self) -> Any:
        """That form."""


def recipe_of(kind: type[Recipe], settings: Mapping[str, Any]) -> Recipe:
    """The dataclass with these settings, some of its fields; a nested one takes a mapping, of some of its.

    Raises InvalidConfig, naming the setting (`readout.fibres.rank`), for one that there is not, or of another
    type than its default. Defaults that are lists have a member.
    """
    if MODE in settings and _is_published(kind):
        return recipe_of(kind, _as_published(kind, settings))
    known = {field.name: _default(field) for field in fields(kind) if field.init}  # type: ignore[arg-type]
    for name, value in settings.items():
        if name not in known:
            names = [*known, *([MODE] if _is_published(kind) else [])]
            raise InvalidConfig(name, value, f"one of the settings {', '.join(names) or '(none)'}")
    return kind(**{name: _typed(name, value, known[name]) for name, value in settings.items()})


def _is_published(kind: object) -> bool:
    return isinstance(kind, Published)


def _as_published(kind: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the paper's form, of which others change parts."""
    if settings[MODE] != PAPER:
        raise InvalidConfig(MODE, settings[MODE], f"{PAPER}, or left out")
    others = {name: value for name, value in settings.items() if name != MODE}
    return merged(settings_of(kind.paper()), others)


def settings_of(recipe: Any) -> dict[str, Any]:
    """What `recipe_of` takes, as plain JSON."""
    return {name: _plain(value) for name, value in asdict(recipe).items()}


def merged(settings: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, of which others are changed, in tables of them too."""
    return {
        **settings,
        **{
            name: merged(settings[name], value)
            if isinstance(value, Mapping) and isinstance(settings.get(name), Mapping)
            else value
            for name, value in others.items()
        },
    }


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _typed(name: str, value: Any, default: Any) -> Any:
    """The value, of the default's type; a list's members are of that of its first, and where the default is
    None, there may be a number.
    """
    if is_dataclass(default) and isinstance(value, Mapping):
        return _nested(name, type(default), merged(settings_of(default), value))
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(_typed(name, each, default[0]) for each in value)
    if default is None:
        return value if value is None else _typed(name, value, 0.0)
    takes: type | tuple[type, ...] = (int, float) if isinstance(default, float) else type(default)
    if isinstance(value, takes) and isinstance(value, bool) == isinstance(default, bool):
        return value
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", tuple: "a list"}
    raise InvalidConfig(name, value, words.get(type(default), "a table of settings"))


def _nested(name: str, kind: type[Recipe], settings: Mapping[str, Any]) -> Recipe:
    """A table of settings; what is wrong in it is named with the table's own name before it."""
    try:
        return recipe_of(kind, settings)
    except InvalidConfig as error:
        raise InvalidConfig(f"{name}.{error.setting}", error.value, error.allowed) from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
