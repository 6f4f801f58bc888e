"""A headless Chromium at a page of this machine: `web/visit.mjs` says what can be asked of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

WEB = Path(__file__).parents[2] / "web"


def require_browser() -> None:
    """Skip a test where the packages of Node are not installed; fail it where they are, but there is no browser."""
    if shutil.which("node") is None or not (WEB / "node_modules" / "playwright-core").exists():
        pytest.skip("needs Node and its packages: make test-browser installs them")
    chrome = os.environ.get("CHROME", "/usr/bin/chromium")
    if not os.access(chrome, os.X_OK):
        pytest.fail(f"there is no browser {chrome}: install chromium, or name one in CHROME=...", pytrace=False)


def visit(folder: Path, **asked: Any) -> dict[str, Any]:
    """What happened at a page."""
    result = subprocess.run(
        ["node", str(WEB / "visit.mjs")],
        input=json.dumps({"folder": str(folder), **asked}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
