"""The zoo: one contract for every model, and the published sizes of the residual networks."""

import re

import pytest
import torch
from torch import fx, nn

import fxhash.errors
from fxhash import zoo
from fxhash.zoo.resnet import BasicBlock, SubsampleAndPad, resnet

# He et al. 2015, table 6: millions of parameters of the networks for CIFAR-10.
PUBLISHED_MILLIONS = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85}


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", zoo.names())
class TestEveryModel:
    def test_maps_images_to_logits(self, name: str) -> None:
        model = zoo.create(name, num_classes=7, in_channels=2, width=4).eval()
        assert model(torch.randn(3, 2, 9, 9)).shape == (3, 7)

    def test_can_be_traced(self, name: str) -> None:
        model = zoo.create(name, width=4).eval()
        images = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(fx.symbolic_trace(model)(images), model(images), rtol=0, atol=0)

    def test_every_parameter_gets_a_gradient(self, name: str) -> None:
        model = zoo.create(name, width=4)
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        for fqn, parameter in model.named_parameters():
            assert parameter.grad is not None, fqn
            assert parameter.grad.abs().sum() > 0, fqn

    def test_is_built_on_the_meta_device(self, name: str) -> None:
        with torch.device("meta"):
            model = zoo.create(name)
        assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_MILLIONS.items())
def test_published_parameter_counts(name: str, millions: float) -> None:
    assert round(count_parameters(zoo.create(name)) / 1e6, 2) == millions


def test_names_are_a_tuple_of_distinct_strings() -> None:
    names = zoo.names()
    assert isinstance(names, tuple)
    assert len(set(names)) == len(names)
    assert {"resnet8", "resnet14", *PUBLISHED_MILLIONS} == set(names)


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_depth_counts_convolutions_and_the_classifier(depth: int) -> None:
    layers = [module for module in resnet(depth).modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth


def test_shortcut_keeps_every_second_pixel_between_zero_channels() -> None:
    images = torch.randn(2, 3, 5, 4)
    shortcut = SubsampleAndPad(new_channels=3, stride=2)
    out = shortcut(images)
    assert out.shape == (2, 6, 3, 2)
    torch.testing.assert_close(out[:, 1:4], images[:, :, ::2, ::2], rtol=0, atol=0)
    assert out[:, :1].count_nonzero() == 0
    assert out[:, 4:].count_nonzero() == 0
    assert "padding=(1, 2), stride=2" in repr(shortcut)


@pytest.mark.parametrize(("out_channels", "stride"), [(4, 1), (8, 2), (8, 1)])
def test_block_without_residual_is_its_shortcut(out_channels: int, stride: int) -> None:
    block = BasicBlock(4, out_channels, stride)
    nn.init.zeros_(block.bn2.weight)
    images = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(images), block.shortcut(images).relu(), rtol=0, atol=0)
    nn.init.ones_(block.bn2.weight)
    assert not torch.allclose(block(images), block.shortcut(images).relu())


def test_unknown_name_lists_the_names_and_close_matches() -> None:
    with pytest.raises(zoo.UnknownModelError) as caught:
        zoo.create("resnet21")
    assert isinstance(caught.value, fxhash.errors.FxhashError)
    assert str(caught.value) == (
        "the zoo has no model 'resnet21' (did you mean resnet32 or resnet20 or resnet14?); "
        "it has resnet8, resnet14, resnet20, resnet32, resnet44, resnet56"
    )
    with pytest.raises(zoo.UnknownModelError, match=r"^the zoo has no model 'vit'; it has resnet8, "):
        zoo.create("vit")


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        (21, {}, "depth must be 6 * n + 2 with n >= 1 (8, 14, 20, ...), got 21"),
        (2, {}, "depth must be 6 * n + 2 with n >= 1 (8, 14, 20, ...), got 2"),
        (20, {"width": 0}, "width must be at least 1, got 0"),
        (20, {"num_classes": -1}, "num_classes must be at least 1, got -1"),
    ],
)
def test_impossible_sizes_are_refused(depth: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        resnet(depth, **options)
