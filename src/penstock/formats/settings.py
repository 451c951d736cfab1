"""Settings as lines of `key: value`, in a YAML file.

    path, {key: check} ──read_settings──▶ {key: value}, each checked

Law: a file is read as it is meant or refused. A key that is not known or given twice, and a value that its
check refuses, is an error that names the file, the line and what to write.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError, ObjectMissing
from penstock.types import check_choice

Check = Callable[[str, Any], Any]
"""Takes a key and a value; returns the value as it is to be used, or raises ConfigError."""


def read_settings(path: Path, checks: Mapping[str, Check]) -> dict[str, Any]:
    """Read the settings of a file; keys that it does not mention are left out.

    Args:
        path: a YAML file; one that is empty, or of comments alone, has no settings.
        checks: the keys that are known, and what their values must be.

    Raises:
        ObjectMissing: there is no such file.
        ConfigError: it is no YAML mapping, or has a key that is unknown (says the nearest), given twice, or whose value
            is refused; names the line.
    """
    import yaml

    loader = yaml.SafeLoader("")
    given: dict[str, Any] = {}
    for key_node, value_node in _lines(path):
        where = f"{path}, line {key_node.start_mark.line + 1}"
        key = _known(key_node.value, where, checks, nested=isinstance(value_node, yaml.MappingNode))
        if key in given:
            raise ConfigError(f"{where}: {key} is given twice: leave one of the two")
        try:
            given[key] = checks[key](key, loader.construct_object(value_node, deep=True))
        except (ConfigError, yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from error
    return given


def check_fields(settings: Any, checks: Mapping[str, Check]) -> None:
    """Hold the fields of a frozen dataclass to the checks of a file's keys, in its `__post_init__`."""
    for name, check in checks.items():
        # A frozen class is set this way, so that a whole number given for a float becomes one.
        object.__setattr__(settings, name, check(name, getattr(settings, name)))


def check_flag(name: str, value: Any) -> bool:
    """Return a value that is true or false, else raise ConfigError."""
    check_choice(name, value, (True, False))
    return value


def _lines(path: Path) -> list[tuple[Any, Any]]:
    """Parse a file to the nodes of its keys and values, which know their lines."""
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise ObjectMissing(f"{path} does not exist: give the path of a YAML file of settings") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: this is no YAML: {getattr(error, 'problem', error)}") from error
    if root is None or root.tag == "tag:yaml.org,2002:null":
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} must hold lines of `key: value`, it holds a {root.tag.rpartition(':')[2]}")
    return list(root.value)


def _known(key: Any, where: str, checks: Mapping[str, Check], *, nested: bool) -> str:
    """Return a key that is known, or refuse it."""
    if isinstance(key, str) and key in checks:
        return key
    near = difflib.get_close_matches(str(key), checks, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(checks)}"
    if nested:
        hint = f"keys stand at the top level, not below another; the keys are {', '.join(checks)}"
    raise ConfigError(f"{where}: there is no key {key!r}; {hint}")
