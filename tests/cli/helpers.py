"""The command, run in this process or in another, and what a mistake looks like."""

import os
import subprocess
import sys
from pathlib import Path

import typer.testing

import fxhash
from fxhash import cli


def run(*arguments: str) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(cli.create_app(), arguments, catch_exceptions=False)


def run_process(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    source = str(Path(fxhash.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "fxhash", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_one_line(result: typer.testing.Result, line: str, status: int) -> None:
    assert result.stdout == ""
    assert result.stderr == f"fxhash: error: {line}\n"
    assert result.exit_code == status
