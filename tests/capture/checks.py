"""Forwards with asserts and checks, in a file whose asserts pytest leaves as they are."""

from __future__ import annotations

from torch import nn


class Checks(nn.Module):
    limit = 8

    def __init__(self, check):
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.check = check

    def forward(self, x):
        self.check(self, x)
        return self.linear(x)


def asserts(self, x):
    assert x.shape[0] <= self.limit, "too long"


def asserts_both(self, x):
    assert x.shape[0] <= self.limit and x.dim() == 2, f"{tuple(x.shape)} is too long"  # noqa: PT018


def asserts_a_chain(self, x):
    assert 0 < x.size(0) <= self.limit


def asserts_not(self, x):
    assert not x.shape[0] > self.limit


def asserts_on_lines(self, x):
    assert (  # noqa: PT018
        x.shape[0] <= self.limit
        and x.shape[1] == 32
    ), "too long"  # fmt: skip


def raises(self, x):
    if x.shape[0] > self.limit:
        raise ValueError("too long")


def raises_for_either(self, x):
    if x.shape[0] > self.limit or x.shape[1] != 32:
        message = "too long"
        raise ValueError(message)


def raises_after_another_branch(self, x):
    if self.limit == 0:
        return
    elif not x.shape[0] <= self.limit:
        raise ValueError


def asserts_of_values(self, x):
    assert (x < 100).all()


def asserts_either(self, x):
    assert x.shape[0] <= 2 or x.shape[0] == 3


def asserts_one_of(self, x):
    assert x.shape[0] in (1, 3)


def asserts_the_smaller(self, x):
    assert min(x.shape[0], x.shape[1]) == 3


def asserts_any(self, x):
    assert any([x.shape[0] == 1, x.shape[0] == 3])


def asserts_if(self, x):
    assert x.dim() == 1 if x.shape[0] == 1 else x.dim() == 2


def asserts_and_more(self, x):
    assert x.shape[0] <= 8; self.limit = 8 if x.shape[0] else 9  # noqa: E702  # fmt: skip


def asserts_the_place(self, x):
    assert [1, 2, 3].index(x.shape[0]) == 2


def raises_its_own(self, x):
    class TooLongError(ValueError):
        pass

    if x.shape[0] > self.limit:
        raise TooLongError


def does_more_than_raise(self, x):
    if x.shape[0] > self.limit:
        self.limit = 20
