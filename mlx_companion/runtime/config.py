"""Configuration: defaults live in a dataclass; YAML files and dotted overrides only replace them.

A configuration class is a plain dataclass whose fields are numbers, strings, booleans, paths,
`Literal` choices, lists, tuples, dicts, optional values or other such dataclasses. Every key and
type is checked, and an unknown key is an error that names the nearest known one::

    config = load_config(TrainConfig, "train.yaml", {"optimizer.learning_rate": 1e-4})
    record(config_hash(config), to_dict(config))
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from mlx_companion.errors import ConfigError

T = TypeVar("T")
_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "nothing",
    Path: "a path",
}


def load_config(
    cls: type[T], path: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> T:
    """Build a configuration from its defaults, a YAML file and overrides, in that order.

    Args:
        cls: the dataclass to build; nested dataclass fields are nested mappings in the file.
        path: a YAML file whose top level is a mapping; None for no file.
        overrides: values by dotted key, `{"optimizer.learning_rate": 1e-4}`. A string given for
            a field of another type is read as YAML, so that command lines can pass text.

    Returns:
        An instance of `cls`.

    Raises:
        ConfigError: an unreadable file, an unknown key, or a value of the wrong type or range.
    """
    source = cls.__name__ if path is None else str(path)
    tree = {} if path is None else _read_yaml(Path(path))
    for key, value in (overrides or {}).items():
        _set_dotted(tree, key, value)
    return _build(cls, tree, source, "")


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Turn command-line texts `key.path=value` into overrides; each field's type reads its text.

    Raises:
        ConfigError: a text has no `=` or no key.
    """
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"got the override '{pair}'; expected key=value, e.g. seed=7")
        overrides[key.strip()] = value.strip()
    return overrides


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain dicts, lists and scalars, ready for JSON or YAML."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected a dataclass instance, got {type(config).__name__}")
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.init
    }


def config_hash(config: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of a configuration's content; equal values, equal hash."""
    text = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: ` (did you mean 'x'?)`, or the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected key: value lines, got a {type(tree).__name__}")
    return tree


class _Loader(yaml.SafeLoader):
    """YAML's own, which takes the last of two equal keys and says nothing, but for that."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{name}' is there twice; leave one out", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"cannot set '{key}': '{parent}' is a value, not a section")
        tree = child
    tree[last] = value


def _parse_scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _build(cls: type[T], tree: Mapping[str, Any], source: str, prefix: str) -> T:
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    for key in tree:
        if key not in known:
            raise ConfigError(f"{source}: unknown key '{prefix}{key}'{nearest(str(key), known)}")
    values = {
        name: _convert(hints[name], tree[name], source, prefix + name)
        for name in known
        if name in tree
    }
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        where = f" ({prefix.rstrip('.')})" if prefix else ""
        raise ConfigError(f"{source}{where}: {error}") from error


def _convert(kind: Any, value: Any, source: str, key: str) -> Any:
    """Check `value` against a field's type; return it as that type."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(typing.get_args(kind), value, source, key)
    if origin is Literal:
        return _convert_choice(typing.get_args(kind), value, source, key)
    if dataclasses.is_dataclass(kind):
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        if not isinstance(value, Mapping):
            raise _wrong(source, key, value, "a section of key: value lines")
        return _build(typing.cast(type, kind), value, source, key + ".")
    if origin in (list, tuple, dict, set, frozenset):
        return _convert_collection(origin, typing.get_args(kind), value, source, key)
    return _convert_scalar(kind, value, source, key)


def _convert_union(kinds: tuple[Any, ...], value: Any, source: str, key: str) -> Any:
    # A string is tried last: every text would match it, "3" for `int | str` included.
    errors: dict[Any, ConfigError] = {}
    for kind in sorted(kinds, key=lambda k: k is str):
        try:
            return _convert(kind, value, source, key)
        except ConfigError as error:
            errors[kind] = error
    errors.pop(type(None), None)
    if len(errors) == 1:
        raise next(iter(errors.values()))
    names = " or ".join(_name(kind) for kind in kinds)
    raise _wrong(source, key, value, names)


def _convert_choice(choices: tuple[Any, ...], value: Any, source: str, key: str) -> Any:
    candidates = [value]
    if isinstance(value, str):
        candidates.append(_parse_scalar(value))
    elif isinstance(value, bool):
        # YAML reads a bare `off` or `no` as False and `on` or `yes` as True.
        candidates += ("on", "yes", "true") if value else ("off", "no", "false")
    for candidate in candidates:
        for choice in choices:
            if candidate == choice and type(candidate) is type(choice):
                return choice
    listed = ", ".join(repr(choice) for choice in choices)
    close = difflib.get_close_matches(str(value), [c for c in choices if isinstance(c, str)], 1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise ConfigError(f"{source}: '{key}' is {value!r}; expected one of {listed}{hint}")


def _convert_collection(
    origin: Any, kinds: tuple[Any, ...], value: Any, source: str, key: str
) -> Any:
    if isinstance(value, str):
        value = _parse_scalar(value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(source, key, value, "key: value lines")
        return {
            _convert(kinds[0], name, source, key): _convert(kinds[1], item, source, f"{key}.{name}")
            for name, item in value.items()
        }
    if not isinstance(value, list | tuple | set | frozenset):
        raise _wrong(source, key, value, "a list")
    if origin is tuple and Ellipsis not in kinds:
        if len(value) != len(kinds):
            raise _wrong(source, key, value, f"a list of {len(kinds)} values")
        each: Iterable[Any] = kinds
    else:
        each = [kinds[0]] * len(value)
    items = (
        _convert(kind, item, source, f"{key}[{index}]")
        for index, (kind, item) in enumerate(zip(each, value, strict=True))
    )
    return origin(items)


def _convert_scalar(kind: Any, value: Any, source: str, key: str) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    if kind is str:
        if isinstance(value, str):
            return value
        raise _wrong(source, key, value, "a text (put it in quotes)")
    if isinstance(value, str) and kind is not str:
        value = _number(value, kind)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(value):
            raise _wrong(source, key, value, "a number")
        return float(value)
    if kind is type(None):
        if value is None:
            return None
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise _wrong(source, key, value, _name(kind))


def _number(text: str, kind: Any) -> Any:
    """YAML 1.1 reads `1e-4` as a text; Python's own rules read it as the number that it is."""
    if kind is float:
        try:
            return float(text)
        except ValueError:
            return text
    return _parse_scalar(text)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _name(kind: Any) -> str:
    return _NAMES.get(kind) or str(getattr(kind, "__name__", kind))


def _wrong(source: str, key: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{source}: '{key}' is {value!r}; expected {expected}")
