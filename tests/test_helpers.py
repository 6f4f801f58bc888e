"""A test is skipped for want of a kernel only where the dense model lacks it."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import skip_unless_backend_runs


def raising(error):
    def dense():
        raise error

    return dense


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive descriptor for the LSTM forward propagation primitive. Run\nmore"),
        NotImplementedError("\"addmm_impl_cpu_\" not implemented for 'Float8_e4m3fn'"),
    ],
)
def test_a_missing_kernel_skips_and_says_which(error):
    with pytest.raises(pytest.skip.Exception) as skipped:
        skip_unless_backend_runs(raising(error))
    assert str(skipped.value).endswith(str(error).splitlines()[0])


def test_torch_itself_says_so_in_these_words():
    with pytest.raises(pytest.skip.Exception, match="not implemented for"):
        skip_unless_backend_runs(lambda: torch.zeros(2, 2, dtype=torch.uint8).cholesky_inverse())


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")])
def test_any_other_error_of_the_dense_model_is_raised(error):
    with pytest.raises(type(error), match=str(error)):
        skip_unless_backend_runs(raising(error))


def test_a_backend_that_runs_it_skips_nothing():
    skip_unless_backend_runs(lambda: torch.zeros(2) + 1)
