"""The zoo: one contract for every model, and the published sizes of every family."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import fxhash
import fxhash.errors
from fxhash import zoo
from fxhash.zoo.building import replace_convolution
from fxhash.zoo.convnext import ChannelNorm, GatedBlock, convnext
from fxhash.zoo.densenet import densenet, densenet_cifar
from fxhash.zoo.dpn import dpn
from fxhash.zoo.efficientnet import efficientnet
from fxhash.zoo.mobilenet import mobilenet
from fxhash.zoo.mobilenet_v2 import mobilenet_v2
from fxhash.zoo.pnasnet import FactorizedReduction, pnasnet
from fxhash.zoo.preact_resnet import PreactivationBlock, preact_resnet
from fxhash.zoo.regnet import regnet
from fxhash.zoo.resnet import BasicBlock, SubsampleAndPad, resnet
from fxhash.zoo.resnet_imagenet import resnet_imagenet
from fxhash.zoo.senet import senet
from fxhash.zoo.shufflenet import ChannelShuffle, shufflenet
from fxhash.zoo.shufflenet_v2 import shufflenet_v2
from fxhash.zoo.vgg import vgg
from fxhash.zoo.vit import vit_tiny
from tests.helpers import assert_carried_through, assert_same_outputs, train_step

# The models of `make test`, at least one of every family; for the whole contract some are smaller than by default.
QUICK: dict[str, dict[str, int]] = {
    "convnext2": {"width": 24},
    "densenet_cifar": {"depth": 22},
    "dpn26": {},
    "efficientnet_b0": {},
    "googlenet": {},
    "lenet": {},
    "mobilenet": {},
    "mobilenet_v2": {},
    "pnasnet5": {"cells_per_group": 1, "width": 8},
    "preact_resnet18": {},
    "regnet_x_200mf": {},
    "resnet8": {},
    "resnext29_32x4d": {},
    "senet18": {},
    "shufflenet_g3": {},
    "shufflenet_v2_x0_5": {},
    "vgg11": {},
    "vit_tiny": {},
}
every_model = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in zoo.list()]
)
# Each with its options, at its own size too where the quick one is smaller.
every_contract = pytest.mark.parametrize(
    ("name", "options"),
    [
        *QUICK.items(),
        *(
            pytest.param(name, {}, marks=pytest.mark.slow, id=f"{name}-full")
            for name in zoo.list()
            if QUICK.get(name) != {}
        ),
    ],
)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def create_on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return zoo.create(name, **options)


def create(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return zoo.create(name, **options)


@every_model
def test_is_built_and_maps_images_of_28_pixels_to_logits_on_the_meta_device(name: str) -> None:
    options = {"image_size": 28} if name == "vit_tiny" else {}
    model = create_on_meta(name, num_classes=7, in_channels=2, **options).eval()
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert model(torch.empty(3, 2, 28, 28, device="meta")).shape == (3, 7)


@every_contract
class TestContract:
    def test_every_parameter_gets_a_gradient(self, name: str, options: dict[str, int]) -> None:
        model = create(name, **options)
        for module in model.modules():
            # What drops at random may drop all of a block in a batch this small.
            if type(module).__name__ in ("Dropout", "StochasticDepth"):
                module.eval()
        images = torch.randn(2, 3, 32, 32)
        assert model(images).shape == (2, 10)
        train_step(model, images)
        for fqn, parameter in model.named_parameters():
            assert parameter.grad is not None, fqn
            assert parameter.grad.abs().sum() > 0, fqn

    def test_is_trained_deployed_saved_and_loaded(self, name: str, options: dict[str, int], tmp_path: Path) -> None:
        images = torch.randn(2, 3, 32, 32)
        gm = assert_carried_through(create(name, **options), (images,))
        fxhash.save(gm, tmp_path / "model.safetensors")
        loaded = fxhash.load(tmp_path / "model.safetensors", create_on_meta(name, **options)).eval()
        assert_same_outputs(gm, loaded, images, rtol=0)


def test_quick_models_are_of_every_family() -> None:
    for family in zoo._FAMILIES:
        assert set(zoo.list(family)) & QUICK.keys(), family


@pytest.mark.parametrize("name", ["convnext2", "resnet8", "lenet", "preact_resnet18", "dpn26", "shufflenet_g2"])
def test_plain_symbolic_trace_is_enough_for_our_own(name: str) -> None:
    model, images = create(name).eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(fx.symbolic_trace(model)(images), model(images), rtol=0, atol=0)


# Numbers of parameters that are published, in millions, and where; with the options that make the network the
# published one. These networks are published for images as small as ours, or their stem has as many parameters.
MILLIONS: list[tuple[str, dict[str, Any], float, str]] = [
    ("resnet20", {}, 0.27, "He et al. 2015, table 6"),
    ("resnet32", {}, 0.46, "He et al. 2015, table 6"),
    ("resnet44", {}, 0.66, "He et al. 2015, table 6"),
    ("resnet56", {}, 0.85, "He et al. 2015, table 6"),
    ("resnet110", {}, 1.7, "He et al. 2015, table 6"),
    ("preact_resnet164", {}, 1.7, "Zagoruyko and Komodakis 2016 (wide residual networks), table 5"),
    ("preact_resnet110", {}, 1.7, "Zagoruyko and Komodakis 2016 (wide residual networks), table 5"),
    ("densenet_cifar", {}, 0.8, "Huang et al. 2016, table 2"),
    ("densenet_cifar", {"depth": 250, "growth": 24}, 15.3, "Huang et al. 2016, table 2"),
    ("densenet_cifar", {"depth": 190, "growth": 40}, 25.6, "Huang et al. 2016, table 2"),
    ("pnasnet5", {}, 3.2, "Liu et al. 2017, table of CIFAR-10, N = 3, F = 48"),
    ("mobilenet", {"num_classes": 1000}, 4.2, "Howard et al. 2017, table of width multipliers"),
    ("mobilenet", {"num_classes": 1000, "width_multiplier": 0.75}, 2.6, "Howard et al. 2017, same"),
    ("mobilenet", {"num_classes": 1000, "width_multiplier": 0.5}, 1.3, "Howard et al. 2017, same"),
    ("mobilenet", {"num_classes": 1000, "width_multiplier": 0.25}, 0.5, "Howard et al. 2017, same"),
    ("mobilenet_v2", {"width_multiplier": 0.5}, 0.70, "github.com/chenyaofo/pytorch-cifar-models"),
    ("mobilenet_v2", {"width_multiplier": 0.75}, 1.37, "github.com/chenyaofo/pytorch-cifar-models"),
    ("regnet_x_200mf", {"num_classes": 1000}, 2.7, "Radosavovic et al. 2020, table of RegNetX"),
    ("regnet_x_400mf", {"num_classes": 1000}, 5.2, "Radosavovic et al. 2020, table of RegNetX"),
    ("regnet_y_200mf", {"num_classes": 1000}, 3.2, "Radosavovic et al. 2020, table of RegNetY"),
    ("regnet_y_400mf", {"num_classes": 1000}, 4.3, "Radosavovic et al. 2020, table of RegNetY"),
]

# torchvision's `num_params` of its weights for ImageNet, and how many more its stem or classifier has.
SEVEN_BY_SEVEN = 3 * (7 * 7 - 3 * 3)
VGG_CLASSIFIER = (512 * 49 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000 - (512 + 1) * 1000
TORCHVISION: dict[str, tuple[int, int]] = {
    "densenet121": (7_978_856, 64 * SEVEN_BY_SEVEN),
    "densenet161": (28_681_000, 96 * SEVEN_BY_SEVEN),
    "densenet169": (14_149_480, 64 * SEVEN_BY_SEVEN),
    "densenet201": (20_013_928, 64 * SEVEN_BY_SEVEN),
    "efficientnet_b0": (5_288_548, 0),
    "efficientnet_b1": (7_794_184, 0),
    "efficientnet_b2": (9_109_994, 0),
    "efficientnet_b3": (12_233_232, 0),
    "googlenet": (6_624_904, 64 * SEVEN_BY_SEVEN),
    "mobilenet_v2": (3_504_872, 0),
    "regnet_y_400mf": (4_344_144, 0),
    "resnet18": (11_689_512, 64 * SEVEN_BY_SEVEN),
    "resnet34": (21_797_672, 64 * SEVEN_BY_SEVEN),
    "resnet50": (25_557_032, 64 * SEVEN_BY_SEVEN),
    "resnet101": (44_549_160, 64 * SEVEN_BY_SEVEN),
    "resnet152": (60_192_808, 64 * SEVEN_BY_SEVEN),
    "shufflenet_v2_x0_5": (1_366_792, 0),
    "shufflenet_v2_x1_0": (2_278_604, 0),
    "shufflenet_v2_x1_5": (3_503_624, 0),
    "shufflenet_v2_x2_0": (7_393_996, 0),
    "vgg11": (132_868_840, VGG_CLASSIFIER),
    "vgg13": (133_053_736, VGG_CLASSIFIER),
    "vgg16": (138_365_992, VGG_CLASSIFIER),
    "vgg19": (143_678_248, VGG_CLASSIFIER),
}


class TestPublishedSizes:
    @pytest.mark.parametrize(("name", "options", "millions", "source"), MILLIONS)
    def test_millions_of_parameters(self, name: str, options: dict[str, Any], millions: float, source: str) -> None:
        digits = len(str(millions).partition(".")[2])
        assert round(count_parameters(create_on_meta(name, **options)) / 1e6, digits) == millions, source

    @pytest.mark.parametrize("name", TORCHVISION)
    def test_torchvision_up_to_the_stem(self, name: str) -> None:
        published, more = TORCHVISION[name]
        assert count_parameters(create_on_meta(name, num_classes=1000)) == published - more

    @pytest.mark.parametrize(("name", "tenths"), [("resnext29_8x64d", 344), ("resnext29_16x64d", 681)])
    def test_resnext(self, name: str, tenths: int) -> None:
        # Xie et al. 2016, table of CIFAR: 34.4 and 68.1 million; the second is 68.155, and so rounded down.
        assert count_parameters(create_on_meta(name)) // 100_000 == tenths

    @pytest.mark.parametrize(("depth", "stem", "millions"), [(92, 64, 37.8), (98, 96, 61.7)])
    def test_dpn(self, depth: int, stem: int, millions: float) -> None:
        # Chen et al. 2017, table 1. Only with the running means and variances of the batch norms is it their number.
        model = create_on_meta(f"dpn{depth}", num_classes=1000)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        statistics = sum(2 * norm.num_features for norm in norms)
        assert round((count_parameters(model) + statistics + stem * SEVEN_BY_SEVEN) / 1e6, 1) == millions

    @pytest.mark.parametrize(("depth", "blocks"), [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)), (50, (3, 4, 6, 3))])
    def test_senet(self, depth: int, blocks: tuple[int, ...]) -> None:
        # Hu et al. 2017, equation 5: 2 / 16 * sum(N * C ** 2) weights more than the residual network; biases are extra.
        added = count_parameters(create_on_meta(f"senet{depth}")) - count_parameters(create_on_meta(f"resnet{depth}"))
        channels = [(4 if depth >= 50 else 1) * 64 * 2**stage for stage in range(4)]
        weights = sum(2 * n * c**2 // 16 for n, c in zip(blocks, channels, strict=True))
        assert added == weights + sum(n * (c + c // 16) for n, c in zip(blocks, channels, strict=True))

    @pytest.mark.parametrize(("groups", "millions"), [(1, 143), (2, 140), (3, 137), (4, 133), (8, 137)])
    def test_shufflenet(self, groups: int, millions: int) -> None:
        # Zhang et al. 2017, table 1, has no parameters but multiply-adds, at 224 pixels; they are those of the
        # convolutions. Without the stem's stride and pooling, 56 pixels are as large from the first unit on.
        total = (112**2 - 56**2) * 24 * 3 * 9

        def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            nonlocal total
            total += output.numel() * module.weight[0].numel()

        model = create_on_meta(f"shufflenet_g{groups}")
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        model(torch.empty(1, 3, 56, 56, device="meta"))
        assert round(total / 1e6) == millions

    def test_vit(self) -> None:
        # Touvron et al. 2020, table of DeiT: 5.7 million for DeiT-Ti, with patches of 16x16 in images of 224x224.
        larger = 192 * 3 * (16**2 - 4**2) + 192 * ((224 // 16) ** 2 - (32 // 4) ** 2)
        assert round((count_parameters(create_on_meta("vit_tiny", num_classes=1000)) + larger) / 1e6, 1) == 5.7

    def test_convnext(self) -> None:
        # https://github.com/xvel/cifar10-tiniest publishes the first; the second by hand.
        assert count_parameters(create_on_meta("convnext6")) == 97_530
        kernels, biases, pointwise = (9 + 49 + 49) * (6 + 10), 3 * (6 + 10), 3 * (24 * 25 + 40 * 41)
        norms, stem, reduction, classifier = 2 * (24 + 24 + 40 + 40), 24 * 28, 40 * (3 * 16 + 1), 410
        scales = 24 + 40
        by_hand = kernels + biases + pointwise + norms + stem + reduction + classifier + scales
        assert count_parameters(create_on_meta("convnext2", width=24)) == by_hand

    def test_lenet(self) -> None:
        # LeCun et al. 1998, section II.B, has the numbers layer by layer; C3 there sees only some of the channels.
        model = create_on_meta("lenet", in_channels=1)
        assert count_parameters(model.c1) == 156
        assert count_parameters(model.c5) == 48_120
        assert count_parameters(model.f6) == 10_164


def test_list_is_a_tuple_of_distinct_names() -> None:
    names = zoo.list()
    assert isinstance(names, tuple)
    assert len(set(names)) == len(names)
    assert tuple(name for family in zoo._FAMILIES for name in zoo.list(family)) == names
    assert zoo.list("resnet") == tuple(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110, 18, 34, 50, 101, 152))


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


def test_shuffle_deals_out_the_groups_in_turn() -> None:
    images = torch.arange(6.0).view(1, 6, 1, 1)
    shuffle = ChannelShuffle(groups=3)
    assert shuffle(images).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert "groups=3" in repr(shuffle)


@pytest.mark.parametrize("side", [7, 8])
def test_factorized_reduction_sees_every_other_pixel_from_both_corners(side: int) -> None:
    reduction = FactorizedReduction(1, 2).eval()
    nn.init.ones_(reduction.here.weight)
    nn.init.ones_(reduction.there.weight)
    images = torch.rand(1, 1, side, side)
    out = reduction(images) * (1 + reduction.bn.eps) ** 0.5
    expected = nn.functional.pad(images, (0, side % 2, 0, side % 2))
    torch.testing.assert_close(out[:, :1], expected[:, :, ::2, ::2])
    torch.testing.assert_close(out[:, 1:], expected[:, :, 1::2, 1::2])


def test_a_larger_patch_halves_the_images_of_every_block() -> None:
    for patch, side in ((1, 32), (2, 16)):
        model = convnext(2, width=12, patch=patch)
        assert model.stem(torch.randn(1, 3, 32, 32)).shape == (1, 12, side, side)


def test_gated_block_without_residual_is_its_scaled_input() -> None:
    block, images = GatedBlock(8), torch.randn(2, 8, 6, 6)
    nn.init.zeros_(block.project.weight)
    nn.init.zeros_(block.project.bias)
    nn.init.constant_(block.scale, 0.5)
    torch.testing.assert_close(block(images), images / 2, rtol=0, atol=0)


def test_a_quarter_of_the_channels_sees_each_kernel() -> None:
    block = GatedBlock(8)
    block.norm = nn.Identity()
    seen = []
    block.gate.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    images = torch.zeros(1, 8, 41, 41, requires_grad=True)
    block(images)
    for channel, side in enumerate((1, 1, 3, 3, 7, 7, 21, 21)):
        (gradient,) = torch.autograd.grad(seen[0][0, channel, 20, 20], images, retain_graph=True)
        places = gradient[0].nonzero()
        assert set(places[:, 0].tolist()) == {channel}
        assert (places[:, 1].max() - places[:, 1].min() + 1) == side


def test_channel_norm_normalizes_each_pixel() -> None:
    out = ChannelNorm(16)(5 + 3 * torch.randn(2, 16, 3, 4))
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 3, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(2, 3, 4), rtol=0, atol=1e-3)


def test_preactivation_block_without_residual_is_the_identity() -> None:
    block = PreactivationBlock(8, 8, stride=1, bottleneck=False)
    nn.init.zeros_(block.residual[-1].weight)
    images = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block(images), images, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "stages", "sides"),
    [
        ("convnext6", "stage", [32, 16]),
        ("densenet121", "features.denseblock", [32, 16, 8, 4]),
        ("resnet18", "layer", [32, 16, 8, 4]),
        ("regnet_y_400mf", "trunk_output.block", [32, 16, 8, 4]),
        ("shufflenet_v2_x1_0", "stage", [16, 8, 4]),
    ],
)
def test_stages_halve_images_of_32_pixels(name: str, stages: str, sides: list[int]) -> None:
    assert sides_after(name, rf"{re.escape(stages)}\d") == sides


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("dpn26", "blocks"),
        ("efficientnet_b0", "features"),
        ("googlenet", "inception5b"),
        ("mobilenet", "features"),
        ("mobilenet_v2", "features"),
        ("preact_resnet18", "blocks"),
        ("senet18", "layer4"),
        ("shufflenet_g3", "units"),
    ],
)
def test_the_last_features_have_4_pixels_a_side(name: str, last: str) -> None:
    assert sides_after(name, last) == [4]


def sides_after(name: str, pattern: str) -> list[int]:
    """Sides of the outputs of the modules whose name matches, for an image of 32 pixels a side."""
    model, sides = create_on_meta(name), []
    for fqn, module in model.named_modules():
        if re.fullmatch(pattern, fqn):
            module.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    model(torch.empty(2, 3, 32, 32, device="meta"))
    return sides


def test_replaced_convolution_keeps_its_channels_and_bias() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3))
    replace_convolution(model, "0", in_channels=1, kernel_size=3)
    assert str(model[0]) == "Conv2d(1, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"
    assert model[0].bias.count_nonzero() == 0


def test_unknown_name_has_close_matches_and_says_how_to_list_all() -> None:
    with pytest.raises(zoo.UnknownModelError) as caught:
        zoo.create("resnet21")
    assert isinstance(caught.value, fxhash.errors.FxhashError)
    assert re.fullmatch(
        r"the zoo has no model 'resnet21' \(did you mean resnet\d+ or resnet\d+ or resnet\d+\?\); "
        rf"fxhash\.zoo\.list\(\) returns the names of all {len(zoo.list())}",
        str(caught.value),
    )
    with pytest.raises(zoo.UnknownModelError, match=r"^the zoo has no model 'transformer'; fxhash\.zoo\.list\(\) "):
        zoo.create("transformer")


def test_unknown_family_lists_the_families() -> None:
    with pytest.raises(zoo.UnknownModelError) as caught:
        zoo.list("vig")
    assert str(caught.value).startswith(
        "the zoo has no family 'vig' (did you mean vit or vgg?); it has convnext, densenet, dpn, "
    )


def test_torchvision_is_only_needed_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(zoo.MissingTorchvisionError) as caught:
        zoo.create("resnet18")
    assert isinstance(caught.value, fxhash.errors.FxhashError)
    assert str(caught.value) == (
        'this model is adapted from torchvision, which is not installed; to get it: pip install "fxhash[zoo]"'
    )
    zoo.create("lenet")


def test_import_is_light() -> None:
    code = "import sys, fxhash.zoo; print({'torchvision', 'timm'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.stdout, process.stderr) == ("set()\n", "")


@pytest.mark.parametrize("name", [name for family in zoo._FAMILIES for name in zoo.list(family)[:1]] + ["resnet18"])
@pytest.mark.parametrize("option", ["num_classes", "in_channels"])
def test_every_family_refuses_impossible_numbers(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option} must be at least 1, got 0$"):
        zoo.create(name, **{option: 0})
    with pytest.raises(TypeError, match=rf"^{option} must be an int, got '10'$"):
        zoo.create(name, **{option: "10"})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: resnet(21), "depth must be 6 * n + 2 with n >= 1 (8, 14, 20, ...), got 21"),
        (lambda: resnet(2), "depth must be 6 * n + 2 with n >= 1 (8, 14, 20, ...), got 2"),
        (lambda: resnet(20, width=0), "width must be at least 1, got 0"),
        (lambda: convnext(3), "blocks must be even, as many in each of two stages, got 3"),
        (lambda: convnext(width=40), "width must be a multiple of 12, got 40"),
        (lambda: convnext(patch=0), "patch must be at least 1, got 0"),
        (lambda: densenet(120), "depth must be one of 121, 161, 169, 201, got 120"),
        (lambda: densenet_cifar(101), "depth must be 6 * n + 4 with n >= 1 (10, 16, 22, ...), got 101"),
        (lambda: densenet_cifar(growth=0), "growth must be at least 1, got 0"),
        (lambda: dpn(68), "depth must be one of 26, 92, 98, got 68"),
        (lambda: efficientnet("b9"), "size must be one of b0, b1, b2, b3, got 'b9'"),
        (lambda: mobilenet(0.01), "width_multiplier must be at least 1/32, got 0.01"),
        (lambda: mobilenet_v2(0.01), "width_multiplier must be at least 1/32, got 0.01"),
        (lambda: pnasnet(0), "cells_per_group must be at least 1, got 0"),
        (lambda: pnasnet(width=1), "width must be at least 2, got 1"),
        (lambda: preact_resnet(20), "depth must be one of 18, 34, 50, 101, 110, 152, 164, got 20"),
        (lambda: regnet("x_1gf"), "size must be one of x_200mf, x_400mf, y_200mf, y_400mf, got 'x_1gf'"),
        (lambda: resnet_imagenet(20), "depth must be one of 18, 34, 50, 101, 152, got 20"),
        (lambda: senet(20), "depth must be one of 18, 34, 50, 101, 152, got 20"),
        (lambda: shufflenet(5), "groups must be one of 1, 2, 3, 4, 8, got 5"),
        (lambda: shufflenet_v2("x3"), "size must be one of x0_5, x1_0, x1_5, x2_0, got 'x3'"),
        (lambda: vgg(12), "depth must be one of 11, 13, 16, 19, got 12"),
        (lambda: vit_tiny(image_size=30), "image_size must be a multiple of patch_size, got 30 and 4"),
    ],
)
def test_impossible_sizes_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build()
