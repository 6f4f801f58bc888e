"""Least squares of factors: each step is a minimum or lowers the loss, whatever the shapes."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxhash.smh.factored_weight import FactoredWeight, conjugate_gradients
from fxhash.smh.fitting import fit, improve_right, orthonormal_, total_loss, whitened_start
from fxhash.smh.statistics import PrincipalRows
from fxhash.smh.weight_target import WeightTarget, damped, pointwise_target

COLS = 12
# Several segments a channel, one, several channels a row, and rows that begin amid a channel.
LENGTHS = st.sampled_from([36, 24, 12, 6, 4, 3, 8, 18, 30])


@st.composite
def weights(draw: st.DrawFn, lengths=LENGTHS) -> list[FactoredWeight]:
    """Some weights in double precision, with Gram matrices whole or in blocks, some of fewer inputs than entries."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    found = []
    for _ in range(draw(st.integers(1, 3))):
        length, out = draw(lengths), draw(st.integers(1, 9))
        blocks = draw(st.sampled_from([1, 1, 2 if length % 2 == 0 else 1]))
        inputs = torch.randn(draw(st.integers(3, 50)), blocks, length // blocks, dtype=torch.float64)
        inputs = inputs * torch.rand(length // blocks, dtype=torch.float64)
        gram = damped(torch.einsum("nbi,nbj->bij", inputs, inputs) / len(inputs), 1e-3)
        target = WeightTarget(torch.randn(out, length, dtype=torch.float64), draw(st.sampled_from([gram, gram, None])))
        rows = -(-out * length // COLS)
        more = draw(st.integers(0, rows - 1))
        found.append(FactoredWeight(target.relative(), COLS, draw(st.integers(1, 4)), more))
    return found


def random_right(rank: int = 5) -> Tensor:
    return torch.randn(rank, COLS, dtype=torch.float64)


@given(weights())
def test_left_is_a_minimum(drawn):
    right = random_right()
    for weight in drawn:
        weight.solve_left_(right)
        least = weight.loss(right)
        used = weight.left.clone()
        for _ in range(5):
            step = torch.randn_like(used) * 1e-2
            step[:, -1] *= (used[:, -1] != 0).double()
            weight.left = used + step
            assert weight.loss(right) >= least * (1 - 1e-6) - 1e-9
        weight.left = used


@given(weights())
def test_only_the_first_rows_use_further_rows_of_right(drawn):
    right = random_right()
    for weight in drawn:
        rank = weight.left.shape[1]
        untouched = weight.left.clone()
        weight.solve_left_(right)
        fewer = FactoredWeight(weight.target, COLS, rank)
        fewer.solve_left_(right)
        assert weight.left.shape == untouched.shape
        assert weight.loss(right) >= fewer.loss(right) - 1e-6


@given(weights())
def test_a_better_right_and_its_left_never_raise_the_loss(drawn):
    right = random_right()
    for weight in drawn:
        weight.solve_left_(right)
    loss = total_loss(drawn, right)
    for _ in range(3):
        right = improve_right(drawn, right)
        better = total_loss(drawn, right)
        assert better <= loss * (1 + 1e-9) + 1e-9
        for weight in drawn:
            weight.solve_left_(right)
        loss = total_loss(drawn, right)
        assert loss <= better * (1 + 1e-6) + 1e-6


@given(weights())
def test_what_is_fitted_is_no_worse_than_any_start(drawn):
    starts = [random_right(), whitened_start(drawn, 5)]
    losses = []
    for start in starts:
        for weight in drawn:
            weight.solve_left_(start)
        losses.append(total_loss(drawn, start))
    right = fit(drawn, starts, rounds=2)
    assert total_loss(drawn, right) <= min(losses) * (1 + 1e-6) + 1e-6
    torch.testing.assert_close(right @ right.T, torch.eye(5, dtype=torch.float64))


@given(weights())
def test_rows_are_made_orthonormal_without_a_change_of_the_product(drawn):
    right = random_right()
    for weight in drawn:
        weight.solve_left_(right)
    before = [weight.of_right(right) for weight in drawn]
    zeros = [weight.left == 0 for weight in drawn]
    right = orthonormal_(drawn, right)
    for weight, product, zero in zip(drawn, before, zeros, strict=True):
        torch.testing.assert_close(weight.of_right(right), product)
        assert bool((weight.left[:, -1][zero[:, -1]] == 0).all())


@given(weights(st.sampled_from([36, 18, 4])))
def test_without_inputs_no_system_is_larger_than_the_rank(drawn):
    """An embedding of positions may be one output channel of 150,000 entries, hundreds of rows of `W`."""
    right = random_right(4)
    for weight in drawn:
        weight.target = replace(weight.target, gram=None)
        systems = weight.systems(right)
        assert all(system.normal.shape == (4, 4) for system in systems)
        assert [row for each in systems for row in range(each.first, each.last)] == list(range(len(weight.left)))


def test_a_long_table_is_fitted_as_its_rows_alone():
    torch.manual_seed(0)
    table = torch.randn(1, 197 * 768, dtype=torch.float64)
    right = torch.linalg.qr(torch.randn(768, 96, dtype=torch.float64)).Q.T
    weight = FactoredWeight(WeightTarget(table).relative(), 768, 96)
    weight.solve_left_(right)
    torch.testing.assert_close(weight.of_right(right), (table.view(197, 768) @ right.T @ right).view(1, -1))


def test_with_identities_for_gram_matrices_the_start_is_the_singular_value_decomposition():
    torch.manual_seed(0)
    values = [torch.randn(out, length, dtype=torch.float64) for out, length in ((8, 12), (5, 24), (9, 6))]
    drawn = [FactoredWeight(WeightTarget(each), COLS, 4) for each in values]
    principal = PrincipalRows(COLS, "cpu")
    for weight, each in zip(drawn, values, strict=True):
        principal.add(weight.in_rows(each))
    right, _ = principal.factor(4)
    found = whitened_start(drawn, 4)
    torch.testing.assert_close(found.T @ torch.linalg.pinv(found.T), right.T @ torch.linalg.pinv(right.T))
    identities = [
        FactoredWeight(WeightTarget(each, torch.eye(each.shape[1], dtype=torch.float64).unsqueeze(0)), COLS, 4)
        for each in values
    ]
    for weight, plain in zip(identities, drawn, strict=True):
        weight.solve_left_(found)
        plain.solve_left_(found)
        torch.testing.assert_close(weight.left, plain.left)


def test_enough_ranks_are_exact():
    torch.manual_seed(0)
    basis = torch.randn(3, COLS, dtype=torch.float64)
    values = [torch.randn(8 * segments, 3, dtype=torch.float64) @ basis for segments in (1, 2)]
    grams = [torch.randn(99, COLS * segments, dtype=torch.float64) for segments in (1, 2)]
    drawn = [
        FactoredWeight(WeightTarget(each.view(8, -1), (x.T @ x).unsqueeze(0)).relative(), COLS, 3)
        for each, x in zip(values, grams, strict=True)
    ]
    right = fit(drawn, [whitened_start(drawn, 3)])
    assert total_loss(drawn, right) < 1e-8


@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_the_loss_of_a_separable_convolution_is_that_of_its_pointwise_half(kernels, out, seed):
    torch.manual_seed(seed)
    channels, positions = 4, 9
    inputs = torch.randn(60, channels * positions, dtype=torch.float64)
    values = torch.randn(out, channels * positions, dtype=torch.float64)
    target = WeightTarget(values, damped((inputs.T @ inputs).unsqueeze(0))).relative()
    spatial = torch.randn(kernels, positions, dtype=torch.float64)
    halved = pointwise_target(target, spatial)
    pointwise = torch.randn(out, channels * kernels, dtype=torch.float64)
    whole = (pointwise.view(out, channels, kernels) @ spatial).flatten(1)
    expected = target.loss(target.values - whole)
    assert abs(halved.loss(halved.values - pointwise) - expected) <= 1e-6 * expected


def test_conjugate_gradients_solve_what_they_can():
    torch.manual_seed(0)
    factor = torch.randn(20, 8, dtype=torch.float64)
    matrix = factor.T @ factor
    wanted = torch.randn(8, dtype=torch.float64)
    torch.testing.assert_close(conjugate_gradients(lambda x: matrix @ x, wanted, 8), torch.linalg.solve(matrix, wanted))
    zeros = torch.zeros(8, dtype=torch.float64)
    assert torch.equal(conjugate_gradients(lambda x: matrix @ x, zeros, 8), zeros)
