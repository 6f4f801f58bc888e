"""For the API reference: a docstring's section `Example:` is read as `Examples:`, the name that the parser knows."""

from typing import Any

from griffe import Extension, Object


class OneExample(Extension):
    """Renames the section of every docstring that is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename the section of one object."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
