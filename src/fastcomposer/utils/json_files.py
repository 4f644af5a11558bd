"""JSON files of ours, validated as they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fastcomposer.utils.errors import invalid_fields
from fastcomposer.utils.files import existing_file

_Content = TypeVar("_Content")


def read_json_as(kind: type[_Content], file: str | Path, what: str, **more: Any) -> _Content:
    """Read a JSON file as a type that pydantic can validate.

    Args:
        kind: The type.
        file: The file.
        what: Name of the file, for messages.
        **more: Fields of the object that the file does not hold.

    Raises:
        FileNotFoundError: If it does not exist.
        OSError: If it is no regular file or cannot be read.
        ValueError: If it does not fit, with file and field.
    """
    content = existing_file(file, what).read_bytes()
    try:
        if not more:
            return TypeAdapter(kind).validate_json(content)
        fields = TypeAdapter(dict[str, Any]).validate_json(content)
        return TypeAdapter(kind).validate_python({**fields, **more})
    except ValidationError as error:
        raise ValueError(f"{file}: {invalid_fields(error)}") from error
