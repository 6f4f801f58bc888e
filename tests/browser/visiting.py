"""A headless Chromium at a page of this machine: `web/visit.mjs` says what can be asked of it."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, which is served for a while."""
    with http.server.ThreadingHTTPServer(("localhost", 0), functools.partial(_Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def visit(folder: Path, **asked: Any) -> dict[str, Any]:
    """What happened at a page."""
    with served(folder) as url:
        result = subprocess.run(
            ["node", str(WEB / "visit.mjs")],
            input=json.dumps({"url": url, **asked}),
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
