"""`fxhash zoo`: which names it lists."""

from fxhash import zoo
from tests.cli.helpers import run


def test_lists_all() -> None:
    assert run("zoo").stdout.splitlines() == list(zoo.list())


def test_lists_those_of_a_pattern() -> None:
    assert run("zoo", "resnet*").stdout.splitlines() == list(zoo.list("resnet"))
    assert run("zoo", "resnet8").stdout == "resnet8\n"


def test_a_pattern_that_no_name_matches() -> None:
    result = run("zoo", "resnet21")
    assert result.exit_code == 2
    assert result.stderr.startswith("fxhash: error: no model of the zoo is called 'resnet21' (did you mean resnet")
    assert result.stderr.endswith(f"`fxhash zoo` lists all {len(zoo.list())}\n")
