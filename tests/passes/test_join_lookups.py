from __future__ import annotations

import copy
import operator
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fxhash
from fxhash.errors import InputError
from fxhash.lowering.lookup import factored_embedding, factored_embeddings
from tests.helpers import assert_same_outputs, smallest_transform


class Tables(nn.Module):
    """Tables of entries of some sizes, of which each is looked up in a column of its own."""

    def __init__(self, sizes=(8, 8, 8), counts=(300, 200, 500)):
        super().__init__()
        self.tables = nn.ModuleList(map(nn.Embedding, counts, sizes))

    def forward(self, indices):
        return torch.cat([table(indices[:, column]) for column, table in enumerate(self.tables)], 1)


class ChangesItsIndices(Tables):
    def forward(self, indices):
        column = indices[:, 0].clone()
        first = self.tables[0](column)
        column.zero_()
        return first + self.tables[1](column)


class LooksUpWhatItComputed(Tables):
    def forward(self, indices):
        first = self.tables[0](indices[:, 0])
        return first + self.tables[1](first.argmax(1))


def lowered(model, compress=0.3):
    gm = fxhash.transform(model, compress, seed=0, aspect=1).eval()
    return gm, fxhash.lower_for_deploy(gm)


def functions(gm):
    return [node.target for node in gm.graph.nodes if node.target in (factored_embedding, factored_embeddings)]


def indices(batch=5, columns=3):
    return torch.randint(0, 200, (batch, columns))


@pytest.mark.parametrize("batch", [0, 1, 5, 300])
def test_tables_of_one_size_are_looked_up_in_one_call(batch):
    gm, deployed = lowered(Tables())
    assert functions(deployed) == [factored_embeddings]
    assert_same_outputs(gm, deployed, indices(batch))


def test_names_stay():
    _, deployed = lowered(Tables())
    uses = deployed.smh_factors.plan.uses
    nodes = {node.name: node for node in deployed.graph.nodes}
    assert [nodes[use.node].target for use in uses] == [operator.getitem] * 3


def test_tables_of_other_sizes_are_not_joined():
    gm, deployed = lowered(Tables(sizes=(8, 8, 16)))
    assert functions(deployed) == [factored_embeddings, factored_embedding]
    assert_same_outputs(gm, deployed, indices())


@pytest.mark.parametrize("model", [ChangesItsIndices, LooksUpWhatItComputed])
def test_lookups_stay_in_order_where_it_matters(model):
    gm, deployed = lowered(model())
    assert functions(deployed) == [factored_embedding] * 2
    assert_same_outputs(gm, deployed, indices())


@given(st.lists(st.integers(20, 400), min_size=2, max_size=4), st.sampled_from([1, 3, 8]), st.data())
def test_any_tables(counts, size, data):
    gm = smallest_transform(Tables([size] * len(counts), counts), 0.5, seed=0).eval()
    batch = data.draw(st.integers(0, 6))
    x = torch.stack([torch.randint(0, count, (batch,)) for count in counts], 1)
    dtype = data.draw(st.sampled_from([torch.int64, torch.int32]))
    assert_same_outputs(gm, fxhash.lower_for_deploy(gm), x.to(dtype))


def test_copies_pickles_and_all_modes():
    gm, deployed = lowered(Tables())
    x = indices()
    expected = gm(x)
    for model in (deployed, copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
            with mode():
                torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_many_are_looked_up_in_pieces(monkeypatch):
    monkeypatch.setattr("fxhash.lowering.lookup._LARGEST_INTERMEDIATE", 64)
    gm, deployed = lowered(Tables())
    assert_same_outputs(gm, deployed, indices(50))


def test_a_compiler_gets_one_lookup_a_table():
    gm, deployed = lowered(Tables())
    with torch.no_grad():
        program = torch.export.export(deployed, (indices(),))
        torch.testing.assert_close(program.module()(indices(5)).shape, gm(indices(5)).shape)
        x = indices()
        torch.testing.assert_close(program.module()(x), gm(x), rtol=1e-4, atol=1e-5)


def test_an_index_that_is_none_is_refused_as_before():
    _, deployed = lowered(Tables())
    with pytest.raises(IndexError), torch.no_grad():
        deployed(torch.full((2, 3), 100_000))
    with pytest.raises(InputError, match=r"layer 'tables\.0' takes whole numbers"):
        deployed(torch.rand(2, 3))


def test_the_function_itself():
    right = torch.randn(4, 12)
    lefts = [torch.randn(7, rank) for rank in (2, 4)]
    each = [torch.randint(0, 21, shape) for shape in ((3, 2), (5,))]
    for index, left, actual in zip(each, lefts, factored_embeddings(right, each, lefts, [(21, 4)] * 2), strict=True):
        table = (left @ right[: left.shape[1]]).view(21, 4)
        torch.testing.assert_close(actual, F.embedding(index, table))
