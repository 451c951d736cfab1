"""Draw the examples at the end of a docstring as code: without this, `>>>` is a quotation to Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

# A paragraph that begins with a prompt, up to the next empty line.
_EXAMPLE = re.compile(r"^([ ]*)(>>> .*(?:\n(?![ ]*$).*)*)", re.MULTILINE)


class Doctests(griffe.Extension):
    """Fence every paragraph of a docstring that begins with `>>>`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change one docstring, before it is parsed."""
        if obj.docstring is not None and ">>> " in obj.docstring.value:
            obj.docstring.value = _EXAMPLE.sub(r"\1```pycon\n\1\2\n\1```", obj.docstring.value)
