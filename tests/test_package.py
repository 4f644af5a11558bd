"""What the package gives, and what importing it costs."""

from __future__ import annotations

import json

import pytest


def test_importing_the_package_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, fastcomposer; print(json.dumps([m for m in ('torch', 'diffusers') if m in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == []


def test_public_names() -> None:
    import fastcomposer

    for name in fastcomposer.__all__:
        assert getattr(fastcomposer, name).__name__ == name
    assert set(fastcomposer.__all__) <= set(dir(fastcomposer))
    for name in ("FastComposerPipeline", "FastComposerXLPipeline", "open_pipeline"):
        assert getattr(fastcomposer.pipeline, name) is getattr(fastcomposer, name)
    for package in (fastcomposer, fastcomposer.pipeline):
        with pytest.raises(AttributeError, match="no attribute 'FastComposr'"):
            _ = package.FastComposr
