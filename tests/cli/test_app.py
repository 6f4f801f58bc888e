"""The `fxhash` command as a whole: help, version, usage errors, missing packages."""

import subprocess
import sys
from pathlib import Path

import pytest

import fxhash
from fxhash import cli
from fxhash.version import __version__
from tests.cli.helpers import run, run_process

# Prints the help of a command where the packages below can't be imported. `import fxhash` itself imports torch; so that
# the modules of the command are seen alone, the package is nothing but its folder here.
HELP_WITHOUT = """
import sys, types
folder, *command = sys.argv[1:]
sys.modules["fxhash"] = package = types.ModuleType("fxhash")
package.__path__ = [folder]
sys.modules |= dict.fromkeys(("torch", "torchvision", "numpy", "lightning", "matplotlib", "sklearn"))
from fxhash.cli import create_app
create_app()([*command, "--help"], prog_name="fxhash")
"""


COMMANDS = ["", "demo", "zoo", "inspect", "compare", "train", "eval", "export", "bench", "report"]


class TestHelp:
    def test_lists_the_commands(self) -> None:
        result = run("--help")
        assert result.exit_code == 0
        assert "Shrink any PyTorch model to a chosen size" in result.stdout
        assert "demo     Train one network in several forms, and compare them." in result.stdout
        assert "inspect  Show a model's parameters once compressed." in result.stdout

    def test_version(self) -> None:
        result = run("--version")
        assert (result.exit_code, result.stdout) == (0, f"fxhash {__version__}\n")

    def test_module_runs_as_a_command(self) -> None:
        process = run_process("--version")
        assert (process.returncode, process.stdout, process.stderr) == (0, f"fxhash {__version__}\n", "")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_needs_nothing_heavy(self, command: str) -> None:
        process = subprocess.run(
            [sys.executable, "-c", HELP_WITHOUT, str(Path(fxhash.__file__).parent), *command.split()],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout.startswith(f"Usage: fxhash {command}")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_short_option_and_an_example(self, command: str) -> None:
        result = run(*command.split(), "-h")
        assert result.exit_code == 0
        assert result.stdout == run(*command.split(), "--help").stdout
        (example,) = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith("Example: ")]
        assert example.startswith(f"Example: fxhash {command or 'compare'} ")
        # The rest of the line: every option in it is one that the command lists.
        listed = run(*(command or "compare").split(), "-h").stdout
        assert all(word in listed for word in example.split()[3:] if word.startswith("-"))

    @pytest.mark.parametrize("command", COMMANDS)
    def test_short_options_of_what_most_commands_have(self, command: str) -> None:
        listed = run(*command.split(), "-h").stdout
        assert ("--output" in listed) == ("-o, --output" in listed)
        assert ("--compress" in listed) == ("-c, --compress" in listed)


class TestUsageErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["inspect"], "Missing argument 'TARGET'."),
            (["inspect", "zoo:resnet8", "--compress", "much"], "Invalid value for '--compress'"),
            (["demo", "--epochs", "0"], "Invalid value for '--epochs'"),
            (["squeeze"], "No such command 'squeeze'."),
        ],
    )
    def test_ends_in_one_line(self, arguments: list[str], message: str) -> None:
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1].startswith(f"Error: {message}")
        assert "Traceback" not in result.stderr


class TestMissingExtras:
    @pytest.mark.parametrize("package", ["typer", "rich"])
    def test_command_itself(
        self, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 2
        assert capsys.readouterr().err == (
            f'fxhash: error: {package} is not installed; to get it: pip install "fxhash[cli]"\n'
        )
