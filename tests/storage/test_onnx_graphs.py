"""ONNX graphs made small: the same numbers, from fewer nodes, with what is repeated written once."""

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

np = pytest.importorskip("numpy")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from fxhash.storage.onnx_compact import compact  # noqa: E402
from fxhash.storage.onnx_functions import outline  # noqa: E402
from fxhash.storage.onnx_names import short_names, shorten_names  # noqa: E402

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
OPSET = 18
# Whatever is turned round has the same.
SHAPE = (3, 3, 3)


class Graph:
    """A graph of nodes, each of which reads values that are there."""

    def __init__(self):
        self.nodes, self.initializers = [], []

    def node(self, operator, *inputs, **attributes):
        name = f"value_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [name], name=f"node {name}", **attributes))
        return name

    def sizes(self, *values, in_steps=False):
        """A list of integers, as exporters write it: a constant, or one that is put together."""
        if not in_steps:
            return self.node("Constant", value_ints=list(values))
        single = [self.node("Cast", self.node("Constant", value_ints=[each]), to=INT64) for each in values]
        return self.node("Concat", *single, axis=0)

    def model(self, output):
        given = onnx.helper.make_tensor_value_info("given", FLOAT, SHAPE)
        result = onnx.helper.make_tensor_value_info(output, FLOAT, None)
        graph = onnx.helper.make_graph(self.nodes, "graph", [given], [result], self.initializers)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=9)
        # With the shape of each value, as exporters write it.
        return onnx.shape_inference.infer_shapes(model, data_prop=True)


def reshape(graph, value, in_steps, variant):
    # A zero stands for the size that there is.
    shape = [(-1, 1, 1), (1, -1, 1), (1, 1, -1), (0, 0, -1)][variant]
    named = {} if 0 in shape else {"allowzero": 1}
    return graph.node("Reshape", value, graph.sizes(*shape, in_steps=in_steps), **named)


def pad(graph, value, in_steps, variant):
    pads = [(0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 1), (0, 0, 2, 0, 1, 0), (0, 0, 1, 0, 0, -1)][variant]
    return graph.node("Pad", value, graph.sizes(*pads, in_steps=in_steps))


def cut(graph, value, in_steps, variant):
    ends = 2**31 if variant < 3 else 1
    step = -1 if variant == 2 else 1
    start = -1 if variant == 2 else 0
    stop = -(2**31) if variant == 2 else ends
    bounds = [graph.sizes(each, in_steps=in_steps) for each in (start, stop, 0, step)]
    return graph.node("Slice", value, *bounds)


def turn(graph, value, in_steps, variant):
    return graph.node("Transpose", value, perm=[(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 0, 2)][variant])


def expand(graph, value, in_steps, variant):
    return graph.node("Expand", value, graph.sizes(1, 1, 1, in_steps=in_steps))


def add(graph, value, in_steps, variant):
    return graph.node("Add", value, graph.node("Constant", value_float=float(variant)))


def twice(graph, value, in_steps, variant):
    return graph.node("Add", graph.node("Exp", value), graph.node("Exp", value))


def copy(graph, value, in_steps, variant):
    return graph.node("Identity", graph.node("Cast", value, to=FLOAT))


STEPS = (reshape, pad, cut, turn, expand, add, twice, copy)


@st.composite
def models(draw):
    """A chain of steps, done once or more often."""
    chain = draw(st.lists(st.tuples(st.sampled_from(STEPS), st.booleans(), st.integers(0, 3)), min_size=1, max_size=6))
    graph, value = Graph(), "given"
    for _ in range(draw(st.integers(1, 3))):
        for step, in_steps, variant in chain:
            value = graph.node("Tanh", value) if step is twice else value
            value = step(graph, value, in_steps, variant)
    return graph.model(graph.node("Identity", value))


def outputs(model, given):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"given": given})[0]


def assert_small_and_the_same(model):
    given = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0)).numpy()
    expected, before = outputs(model, given), len(model.graph.node)
    compact(model)
    assert len(model.graph.node) <= before
    assert not any(node.op_type == "Constant" for node in model.graph.node)
    assert not model.graph.value_info
    np.testing.assert_array_equal(outputs(model, given), expected)
    outline(model)
    shorten_names(model.graph)
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(outputs(model, given), expected)


@pytest.mark.parametrize("step", STEPS)
def test_each_step_computes_the_same(step):
    for variant, in_steps, before in itertools.product(range(4), (False, True), range(4)):
        graph = Graph()
        value = reshape(graph, graph.node("Tanh", "given"), in_steps, before)
        model = graph.model(graph.node("Neg", step(graph, value, in_steps, variant)))
        assert_small_and_the_same(model)


@pytest.mark.parametrize("step", STEPS)
def test_each_step_alone_computes_the_same(step):
    for variant, in_steps in itertools.product(range(4), (False, True)):
        graph = Graph()
        value = step(graph, graph.node("Tanh", "given"), in_steps, variant)
        assert_small_and_the_same(graph.model(graph.node("Neg", value)))


@given(models())
def test_any_chain_of_steps_computes_the_same(model):
    assert_small_and_the_same(model)


def test_what_is_wired_otherwise_is_another_function():
    """Runs of the same operators, of which some subtract in the other order, or give a value from their middle."""
    graph, value, other, chance = Graph(), "given", "given", random.Random(0)
    for _ in range(40):
        first = graph.node("LeakyRelu", value, alpha=0.3)
        second = graph.node("LeakyRelu", graph.node("Cos", first), alpha=0.7)
        inner = graph.node("Sub", *chance.choice([(first, second), (second, first)]))
        outer = graph.node("Sub", *chance.choice([(value, other), (other, value), (value, value)]))
        value, other = graph.node("Sum", inner, outer), chance.choice([first, inner])
    model = graph.model(value)
    given = torch.randn(*SHAPE).numpy()
    expected = outputs(model, given)
    compact(model)
    outline(model)
    assert model.functions
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(outputs(model, given), expected)


def test_what_is_repeated_is_written_once():
    graph, value = Graph(), "given"
    for _ in range(20):
        for _ in range(2):
            value = graph.node("LeakyRelu", graph.node("Tanh", graph.node("Sin", value)), alpha=0.3)
        value = graph.node("Softplus", value)
    model = graph.model(value)
    given = torch.randn(*SHAPE).numpy()
    expected = outputs(model, given)
    compact(model)
    size = model.ByteSize()
    outline(model)
    assert len(model.graph.node) < 30
    # One of the functions calls another.
    assert {node.domain for function in model.functions for node in function.node} == {"", "f"}
    assert model.ByteSize() < size / 3
    np.testing.assert_array_equal(outputs(model, given), expected)


def test_random_numbers_stay_apart():
    graph = Graph()
    first, second = (graph.node("RandomNormal", shape=SHAPE) for _ in range(2))
    model = graph.model(graph.node("Sub", graph.node("Add", "given", first), second))
    compact(model)
    assert [node.op_type for node in model.graph.node].count("RandomNormal") == 2


def test_the_body_of_a_branch_keeps_the_names_that_it_reads():
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["outer"], ["inner"])],
        "body",
        [],
        [onnx.helper.make_tensor_value_info("inner", FLOAT, None)],
    )
    graph = Graph()
    graph.nodes.append(onnx.helper.make_node("Exp", ["given"], ["outer"]))
    condition = graph.node("Constant", value=onnx.numpy_helper.from_array(np.array(True)))
    model = graph.model(graph.node("If", condition, then_branch=body, else_branch=body))
    given = torch.randn(*SHAPE).numpy()
    compact(model)
    np.testing.assert_allclose(outputs(model, given), -np.exp(given), rtol=1e-6)


def test_short_names_are_not_those_that_are_taken():
    names = short_names({"a", "c"})
    found = [next(names) for _ in range(60)]
    assert found[:2] == ["b", "d"]
    assert len(set(found)) == 60
    assert max(map(len, found)) == 2
