"""Types with ranges, for signatures and settings: what pydantic checks before a command begins."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MOST = 1_000_000_000
Count = Annotated[int, Field(ge=1, le=MOST)]
"""A number of things, at least one."""
Whole = Annotated[int, Field(ge=0, le=MOST)]
"""A number of things, or none."""
Workers = Annotated[int, Field(ge=0, le=512)]
"""A number of processes beside the main one."""
Threads = Annotated[int, Field(ge=1, le=1024)]
Side = Annotated[int, Field(ge=1, le=16384)]
"""A side of an image in pixels."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Amount = Annotated[float, Field(ge=0, le=MOST)]
"""A finite number that is not negative."""
Positive = Annotated[float, Field(gt=0, le=MOST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
"""A text that is not empty, such as a path."""
MethodName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$", max_length=100)]
"""A name that is part of a folder's."""
Rate = Annotated[float, Field(gt=0, le=1e18)]
"""Bytes a second."""
Cosine = Annotated[float, Field(ge=-1, le=1)]
Quality = Annotated[int, Field(ge=1, le=100)]
"""Quality of a JPEG."""
Port = Annotated[int, Field(ge=0, le=65535)]
