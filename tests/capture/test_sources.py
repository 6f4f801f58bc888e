"""Source files of a model's code are read, whatever other threads do."""

from __future__ import annotations

import ast

import pytest

from fxhash.capture import sources


def forward(x):
    return x + 1


@pytest.mark.parametrize(("failures", "is_read"), [(0, True), (2, True), (100, False)])
def test_a_parse_that_another_thread_disturbs_is_done_again(monkeypatch, failures, is_read):
    parse, calls = ast.parse, []

    def disturbed(text):
        calls.append(text)
        if len(calls) <= failures:
            raise SystemError("AST constructor recursion depth mismatch")
        return parse(text)

    sources._parsed.cache_clear()
    monkeypatch.setattr(sources.ast, "parse", disturbed)
    try:
        assert isinstance(sources.file_of(forward.__code__), ast.Module) is is_read
    finally:
        sources._parsed.cache_clear()
