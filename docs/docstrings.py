"""Docstrings as the site shows them: doctests as code, settings with their meaning, `docs/x.md` as a link."""

import ast
import re
from typing import Any

from griffe import Attribute, Docstring, ExprCall, Extension, Object


def with_examples(text: str) -> str:
    """Return a docstring in which each run of paragraphs that starts with `>>>` is a section `Examples:`."""
    lines: list[str] = []
    inside = False
    for block in re.split(r"\n{2,}", text):
        doctest = block.startswith(">>>")
        if doctest and not inside:
            lines.append("Examples:")
        lines.append("\n".join(f"    {line}" if doctest else line for line in block.splitlines()) + "\n")
        inside = doctest
    return "\n".join(lines).rstrip()


class Docstrings(Extension):
    """Rewrite docstrings as they are read."""

    def __init__(self) -> None:
        """Start without knowing any setting."""
        self.meanings: dict[str, str] = {}

    def on_attribute_instance(self, *, attr: Attribute, **kwargs: Any) -> None:
        """Show `x: int = setting(10, "what it is", low=1)` as `x: int = 10`, and keep what it is."""
        call = attr.value
        if isinstance(call, ExprCall) and str(call.function) == "setting":
            default, meaning = call.arguments[:2]
            attr.value = default
            self.meanings[attr.path] = ast.literal_eval(str(meaning))
            attr.docstring = Docstring(self.meanings[attr.path], parent=attr)

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is None:
            return
        text = re.sub(r"<(?=[a-z] )", "&lt;", obj.docstring.value)
        text = re.sub(r"docs/([a-z-]+)\.md", r"[\1](../\1.md)", text)
        text = with_examples(text) if ">>>" in text else text
        if obj.is_class and (known := self._settings(obj)):
            text += "\n\nArgs:\n" + "\n".join(f"    {name}: {meaning}" for name, meaning in known.items())
        obj.docstring.value = text

    def _settings(self, cls: Any) -> dict[str, str]:
        """Return the meaning of each setting of a class, inherited ones first."""
        found: dict[str, str] = {}
        for base in (*reversed(cls.mro()), cls):
            for name, member in base.members.items():
                if member.path in self.meanings:
                    found[name] = self.meanings[member.path]
        return found
