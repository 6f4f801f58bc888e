"""Targets as values: what is one, what a factory is given, and whose factories a file may name."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxhash.errors import TargetError
from fxhash.targets import Target, build_model, require_trust, trusting

IDENTIFIERS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
PATHS = st.lists(IDENTIFIERS, min_size=1, max_size=3).map(".".join)
OPTIONS = {"num_classes": 7, "in_channels": 2, "image_size": 16}


class TestParsing:
    @given(PATHS, PATHS)
    def test_reads_what_it_prints(self, source: str, name: str) -> None:
        target = Target.parse(f"{source}:{name}")
        assert (target.source, target.name) == (source, name)
        assert Target.parse(str(target)) == target
        assert target.is_factory == (source not in ("torchvision", "timm", "zoo"))

    @given(st.one_of(st.text(), st.text(alphabet="ab.:/\\ -", max_size=12)))
    def test_anything_else_is_refused_in_one_line(self, text: str) -> None:
        message = ""
        try:
            assert str(Target.parse(text)) == text
        except TargetError as error:
            message = str(error)
        assert not message or (message.isprintable() and "package.module:factory" in message)

    @pytest.mark.parametrize(
        "text", ["", ":", "resnet18", "zoo:", ":build", "a b:c", "a..b:c", "a:b:c", "C:\\model.pt", "zoo:a/b", "a:b()"]
    )
    def test_is_no_target(self, text: str) -> None:
        with pytest.raises(TargetError, match="names no model"):
            Target.parse(text)

    def test_a_model_of_timm_may_have_a_tag(self) -> None:
        assert Target.parse("timm:vit_base_patch16_224.augreg_in21k").name == "vit_base_patch16_224.augreg_in21k"


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A module of factories, which note what they are given."""
    given: dict[str, Any] = {}
    module = ModuleType("networks_of_a_test")

    def some(num_classes: int, *, image_size: int = 8) -> nn.Module:
        given.update(num_classes=num_classes, image_size=image_size)
        return nn.Linear(1, 1)

    def anything(**options: int) -> nn.Module:
        given.update(options)
        return nn.Linear(1, 1)

    def nothing() -> nn.Module:
        return nn.Linear(1, 1)

    for factory in (some, anything, nothing):
        setattr(module, factory.__name__, factory)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return given


class TestBuilding:
    @pytest.mark.parametrize(
        ("factory", "expected"),
        [("some", {"num_classes": 7, "image_size": 16}), ("anything", {}), ("nothing", {})],
    )
    def test_a_factory_is_given_what_it_has_parameters_for(
        self, networks: dict[str, Any], factory: str, expected: dict[str, int]
    ) -> None:
        build_model(Target("networks_of_a_test", factory), options=OPTIONS)
        assert networks == expected

    @pytest.mark.parametrize("name", ["resnet8", "vit_tiny"])
    def test_a_model_of_the_zoo_is_given_what_it_takes(self, name: str) -> None:
        model = build_model(Target("zoo", name), options=OPTIONS)
        assert model(torch.rand(2, 2, 16, 16)).shape == (2, 7)

    def test_a_model_of_torchvision_is_given_its_classes(self) -> None:
        pytest.importorskip("torchvision")
        model = build_model(Target("torchvision", "squeezenet1_1"), options=OPTIONS)
        assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)

    def test_a_model_of_timm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[str, dict[str, Any]]] = []

        def create_model(name: str, **arguments: Any) -> nn.Module:
            calls.append((name, arguments))
            model = nn.Linear(1, 1)
            model.default_cfg = {"input_size": (3, 56, 56)}
            return model

        timm = SimpleNamespace(list_models=lambda: ["known"], create_model=create_model)
        monkeypatch.setitem(sys.modules, "timm", timm)
        target = Target("timm", "known.a_tag")
        assert target.input_sizes(build_model(target, options=OPTIONS)) == (3, 56, 56)
        assert calls == [("known.a_tag", {"pretrained": False, "num_classes": 7, "in_chans": 2})]
        with pytest.raises(TargetError, match=r"timm has no model 'knwon' \(did you mean known\?\)"):
            build_model(Target("timm", "knwon"))

    def test_timm_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(TargetError, match="timm is not installed; to get it: pip install timm"):
            build_model(Target("timm", "resnet18"))


class TestTrust:
    @given(PATHS, PATHS)
    def test_of_a_package_is_that_of_what_lies_in_it(self, package: str, below: str) -> None:
        inside = Target(f"own_{package}.{below}", "Network")
        module = ModuleType(inside.source)
        module.Network = type("Network", (), {"__module__": inside.source})  # type: ignore[attr-defined]
        with trusting([f"own_{package}"]), patch.dict(sys.modules, {inside.source: module}):
            require_trust(inside, Path("run.json"))
            with pytest.raises(TargetError):
                require_trust(Target(f"own_{package}x", "build"), Path("run.json"))
        with pytest.raises(TargetError, match=f"add --trust {inside.source}$"):
            require_trust(inside, Path("run.json"))

    @pytest.mark.parametrize("source", ["zoo", "torchvision", "timm"])
    def test_of_a_library_is_not_needed(self, source: str) -> None:
        require_trust(Target(source, "resnet18"), Path("run.json"))
