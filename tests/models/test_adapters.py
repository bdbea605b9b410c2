"""torchvision and timm behind one door. Nothing is downloaded."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from cudd_core.errors import ModelError
from cudd_core.models import adapters
from cudd_core.models.adapters import (
    build_timm,
    build_torchvision,
    has_timm_model,
    has_torchvision_model,
    load_timm_weights,
    load_torchvision_weights,
)
from cudd_core.models.architectures import ARCHITECTURES, library_name
from cudd_core.models.registry import build_network
from cudd_core.seeding import seeded_construction


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "efficientnet_b0", "googlenet"]
)
@pytest.mark.parametrize(("channels", "image_size"), [(3, 32), (1, 16), (3, 96)])
def test_torchvision_networks_answer(name: str, channels: int, image_size: int) -> None:
    network = build_torchvision(name, 7, channels, image_size)
    assert network.training
    output = network.eval()(torch.zeros(2, channels, image_size, image_size))
    assert output.shape == (2, 7)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "resnet10t", "test_efficientnet", "mixer_s16_224", "levit_128s"]
)
@pytest.mark.parametrize(("channels", "image_size"), [(3, 32), (1, 16), (3, 96)])
def test_timm_networks_answer(name: str, channels: int, image_size: int) -> None:
    network = build_timm(name, 7, channels, image_size)
    assert network.training
    assert network.eval()(torch.zeros(2, channels, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize(("image_size", "stride", "pool"), [(64, (1, 1), nn.Identity), (65, (2, 2), nn.MaxPool2d)])
def test_the_stem_follows_the_image_size(image_size: int, stride: tuple[int, int], pool: type) -> None:
    network = build_torchvision("shufflenet_v2_x0_5", 10, 3, image_size)
    assert network.conv1[0].stride == stride
    assert isinstance(network.maxpool, pool)


def test_pools_of_the_body_stay() -> None:
    network = build_torchvision("squeezenet1_1", 10, 3, 32)
    kinds = [type(m) for m in network.features if isinstance(m, (nn.MaxPool2d, nn.Identity))]
    assert kinds == [nn.Identity, nn.MaxPool2d, nn.MaxPool2d]


def test_small_vision_transformers_have_small_patches() -> None:
    network = build_torchvision("vit_b_16", 10, 1, 16)
    assert network.conv_proj.kernel_size == (4, 4)
    assert network.encoder.pos_embedding.shape == (1, 17, 768)


def test_weights_depend_on_the_seed_only() -> None:
    def weights(seed: int) -> torch.Tensor:
        with seeded_construction(seed, "test"):
            network = build_torchvision("shufflenet_v2_x0_5", 10, 1, 32)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_probing_leaves_no_trace() -> None:
    network = build_torchvision("shufflenet_v2_x0_5", 10, 3, 32)
    assert all(not parameter.is_meta and parameter.grad is None for parameter in network.parameters())
    assert int(network.conv1[1].num_batches_tracked) == 0


@pytest.mark.parametrize(("name", "image_size"), [("convnext_tiny", 16), ("maxvit_t", 32), ("vit_b_32", 100)])
def test_images_that_do_not_fit_are_named(name: str, image_size: int) -> None:
    with pytest.raises(ModelError, match=rf"torchvision/{name} cannot take images of {image_size} px"):
        build_torchvision(name, 10, 3, image_size)


def test_timm_images_that_do_not_fit_are_named() -> None:
    with pytest.raises(ModelError, match=r"timm/convnext_atto cannot take images of 16 px"):
        build_timm("convnext_atto", 10, 3, 16)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_network_without_a_single_patch_is_refused() -> None:
    with pytest.raises(ModelError, match=r"timm/mixer_s32_224 cannot take images of 16 px \(not one patch"):
        build_timm("mixer_s32_224", 10, 3, 16)


def test_a_network_that_gives_no_logits_is_refused() -> None:
    with pytest.raises(ModelError, match="one row of 10 logits"):
        adapters.probe(nn.Conv2d(3, 10, 3), "odd", 10, 3, 32)


def test_unknown_names() -> None:
    assert has_torchvision_model("squeezenet1_1")
    assert not has_torchvision_model("fcn_resnet50")  # segmentation
    assert not has_torchvision_model("nope")
    for call in (lambda: build_torchvision("nope", 10, 3, 32), lambda: load_torchvision_weights("nope", "")):
        with pytest.raises(ModelError, match="no classifier 'nope'"):
            call()


def test_unknown_timm_names() -> None:
    assert has_timm_model("resnet18.a1_in1k")
    assert not has_timm_model("nope")
    for call in (lambda: build_timm("resnet18_nope", 10, 3, 32), lambda: load_timm_weights("resnet18_nope")):
        with pytest.raises(ModelError, match="no model 'resnet18_nope'"):
            call()


@pytest.fixture
def no_timm(monkeypatch) -> None:
    """As if timm were not installed: neither found nor imported."""
    monkeypatch.setitem(sys.modules, "timm", None)


@pytest.mark.parametrize("arch", ["resnet18-w16", "convnet3", "densenet121", "squeezenet1_1", "torchvision/resnet18"])
def test_other_networks_do_without_timm(arch: str, no_timm) -> None:
    assert build_network(arch, 7, 3, 32, seed=0).training


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if library_name(name).startswith("timm/")])
def test_without_timm_its_networks_say_that_they_need_it(arch: str, size: int, no_timm) -> None:
    for name in (arch, library_name(arch), "timm/resnet18"):
        with pytest.raises(ModelError, match=r"timm/\w+ needs timm, which is not installed: pip install timm"):
            build_network(name, 7, 3, size, seed=0)


def test_without_timm_its_weights_say_that_they_need_it(no_timm) -> None:
    with pytest.raises(ModelError, match="timm/resnet18 needs timm"):
        load_timm_weights("resnet18")


@pytest.mark.parametrize("wrong", ["rasnet18", "torchvision/rasnet18"])
def test_without_timm_a_misspelt_name_is_still_only_that(wrong: str, no_timm) -> None:
    assert not has_timm_model("resnet18")
    with pytest.raises(ModelError, match=r"Unknown architecture.*Did you mean resnet18") as caught:
        build_network(wrong, 7, 3, 32, seed=0)
    assert "not installed" not in str(caught.value)


def test_torchvision_weights(monkeypatch) -> None:
    from torchvision.models import GoogLeNet_Weights, MobileNet_V2_Weights, densenet121, googlenet

    with torch.device("meta"):
        states = {
            GoogLeNet_Weights.IMAGENET1K_V1: googlenet(weights=None, init_weights=False).state_dict(),
            MobileNet_V2_Weights.IMAGENET1K_V1: densenet121(weights=None).state_dict(),
        }
    asked: list[dict[str, object]] = []

    def fetch(self: object, **options: object) -> dict[str, torch.Tensor]:
        asked.append(options)
        return states[self]

    monkeypatch.setattr(GoogLeNet_Weights, "get_state_dict", fetch)
    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", fetch)
    state, names, mean, std = load_torchvision_weights("googlenet", "IMAGENET1K_V1")
    with torch.device("meta"):
        own = adapters._construct_torchvision("googlenet", 1000, 224).state_dict()
    assert state.keys() == own.keys()
    assert len(names) == 1000
    assert mean == std == (0.5, 0.5, 0.5)
    _, names, mean, std = load_torchvision_weights("mobilenet_v2", "IMAGENET1K_V1")
    assert names[0] == "tench"
    assert mean == (0.485, 0.456, 0.406)
    assert std == (0.229, 0.224, 0.225)
    assert all(options["weights_only"] is True for options in asked)
    known = r"for mobilenet_v2. Weights: IMAGENET1K_V1, IMAGENET1K_V2\.$"
    for unknown in ("V9", "DEFAULT"):
        with pytest.raises(ModelError, match=f"no weights '{unknown}' {known}"):
            load_torchvision_weights("mobilenet_v2", unknown)


def test_old_densenet_keys_are_renamed() -> None:
    rename = adapters._DENSENET_KEY.sub
    key = "features.denseblock1.denselayer2.norm.1.weight"
    assert rename(r"\1\2", key) == "features.denseblock1.denselayer2.norm1.weight"
    assert rename(r"\1\2", "features.norm5.weight") == "features.norm5.weight"


def test_timm_weights(monkeypatch) -> None:
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))
    state, names, mean, std = load_timm_weights("resnet10t.c3_in1k")
    assert "conv1.0.weight" in state
    assert (len(names), names[0]) == (1000, "n01440764")
    assert len(mean) == len(std) == 3


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_failed_download_says_what_to_do(library: str, monkeypatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    if library == "timm":
        monkeypatch.setattr("timm.create_model", unreachable)
        load, names = load_timm_weights, ["resnet18"]
    else:
        from torchvision.models import ResNet18_Weights

        monkeypatch.setattr(ResNet18_Weights, "get_state_dict", unreachable)
        load, names = load_torchvision_weights, ["resnet18", "IMAGENET1K_V1"]
    with pytest.raises(ModelError, match=rf"{library}/resnet18.*no route to host.*Check the network"):
        load(*names)
