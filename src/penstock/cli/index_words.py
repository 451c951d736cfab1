"""What goes wrong with an index, in the words of the command line: options in the place of arguments of Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from penstock.errors import ConfigError, FormatError

_WORDS = {
    ". With allow_missing_columns=True its values would be None": "",
    "index_col_name": "--key",
    "sql_query failed": "--sql failed",
    "sql_query must": "--sql must",
    "that sql_query selects": "that --sql selects",
    "allow_local_paths=True": "--allow-local-paths",
}


@contextmanager
def options_named() -> Iterator[None]:
    """Name options as the command line does in errors that pass.

    >>> with options_named():
    ...     raise ConfigError("name another column (index_col_name)")
    Traceback (most recent call last):
    penstock.errors.ConfigError: name another column (--key)
    """
    try:
        yield
    except (ConfigError, FormatError) as error:
        if type(error) not in (ConfigError, FormatError):
            raise
        raise type(error)(in_options(str(error))) from error


def in_options(told: str) -> str:
    """Name options in the place of arguments."""
    for argument, option in _WORDS.items():
        told = told.replace(argument, option)
    return told
