"""What every architecture of the table promises, at 32 and 64 px; at 224 px it is the library's own."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cudd_core.errors import ModelError
from cudd_core.models.architectures import ARCHITECTURES, SMALL_IMAGE, Architecture, arch_identity, library_name
from cudd_core.models.registry import build_network, load_state
from cudd_core.models.small import SMALL_BUILDERS, patch_side
from cudd_core.models.stochastic import begin_epoch
from cudd_core.records import NetworkSpec

CLASSES, BATCH = 7, 3
SAME_AT_64 = {
    "resnet34",
    "resnet50",
    "resnet101",
    "densenet121",
    "efficientnet_v2_s",
    "mlp_mixer",
    "resmlp",
    "swin_tiny",
}
"""The layers are those of 32 px; at 64 px they see more positions, or the same number of larger patches."""
ALL = os.environ.get("CUDD_TEST_ARCHITECTURES") == "1"
"""Also at 64 px and at unusual sizes: minutes."""
CASES = [(arch, size) for arch in ARCHITECTURES for size in (32, 64) if size == 32 or (ALL and arch not in SAME_AT_64)]
SIZES = [(1, 32), (3, 64), (3, 48), (1, 28), (3, 16)] if ALL else [(1, 28)]


def images(n: int, size: int, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def trained(request: pytest.FixtureRequest) -> tuple[str, int, nn.Module, dict[str, Tensor], list[float]]:
    """(name, px, the network after a step of SGD, its initial state, the loss before and after).

    Its gradients are those after the step: timm's mixers begin with a head of zeros, which lets none through.
    """
    arch, size = request.param
    network = build_network(arch, CLASSES, 3, size, seed=5)
    initial = {name: value.clone() for name, value in network.state_dict().items()}
    x, y = images(BATCH, size), torch.arange(BATCH) % CLASSES
    before = torch.get_rng_state()
    losses = []
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.step()  # of no gradients, the first time
        optimizer.zero_grad()
        begin_epoch(network, 0)  # the same masks again
        loss = cross_entropy(network(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
    assert torch.equal(torch.get_rng_state(), before), "a layer draws from the global generator"
    return arch, size, network, initial, losses


def test_one_step_trains_every_parameter(trained) -> None:
    _, _, network, _, (first, second) = trained
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name
    assert second < first


def test_in_eval_mode_an_image_s_answer_is_its_own(trained) -> None:
    _, size, network, _, _ = trained
    network.eval()
    with torch.no_grad():
        together = network(images(BATCH, size))
        alone = network(images(BATCH, size)[1:2])
    assert together.shape == (BATCH, CLASSES)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-4)


def test_the_seed_gives_the_weights_and_a_state_comes_back(trained) -> None:
    arch, size, network, initial, _ = trained
    spec = NetworkSpec(arch, CLASSES, 3, size, (0.5,) * 3, (0.25,) * 3, tuple("abcdefg"))
    again = build_network(arch, CLASSES, 3, size, seed=5)
    assert all(torch.equal(value, initial[name]) for name, value in again.state_dict().items())
    load_state(again, network.state_dict(), spec)
    with torch.no_grad():
        assert torch.equal(again.eval()(images(2, size)), network.eval()(images(2, size)))


def on_meta(build) -> nn.Module:
    """A network without numbers: shapes alone."""
    try:
        with torch.device("meta"):
            return build().eval()
    except (ModelError, NotImplementedError):  # RegNet's builder computes its widths with tensors
        return build().eval().to("meta")


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def library_network(arch: str, num_classes: int) -> nn.Module:
    library, _, name = library_name(arch).rpartition("/")
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=num_classes)
    from torchvision.models import get_model

    return get_model(name, weights=None, num_classes=num_classes)


@pytest.mark.parametrize("arch", [arch for arch, known in ARCHITECTURES.items() if known.library])
def test_at_224_px_it_is_the_library_s_own(arch: str) -> None:
    """So its pretrained weights fit."""
    ours = on_meta(lambda: build_network(arch, 1000, 3, 224, seed=0))
    assert shapes(ours) == shapes(on_meta(lambda: library_network(arch, 1000)))
    assert ours(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("arch", SMALL_BUILDERS)
@pytest.mark.parametrize(("channels", "size"), SIZES)
def test_small_images_of_other_sizes_and_channels(arch: str, channels: int, size: int) -> None:
    network = on_meta(lambda: build_network(arch, CLASSES, channels, size, seed=0))
    assert network(torch.zeros(2, channels, size, size, device="meta")).shape == (2, CLASSES)


def test_what_is_changed_for_small_images() -> None:
    def built(arch: str, size: int) -> nn.Module:
        return on_meta(lambda: build_network(arch, CLASSES, 3, size, seed=0))

    for arch, least in (("deit_tiny", 64), ("resmlp", 64), ("mlp_mixer", 64)):
        for size in (32, 64):
            network = built(arch, size)
            embed = network.patch_embed if arch == "deit_tiny" else network.stem
            assert embed.num_patches == least
    for size in (32, 64):
        swin = built("swin_tiny", size)
        assert swin.patch_embed.grid_size == (16, 16)
        assert [stage.blocks[0].window_size for stage in swin.layers] == [(4, 4)] * 3 + [(2, 2)]
        assert built("convnext_tiny", size).features[0][0].stride == (2, 2)
        features = built("densenet121", size).features
        assert features.conv0.kernel_size == (3, 3) and isinstance(features.pool0, nn.Identity)
    for arch in ("mobilenet_v2", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_800mf", "shufflenet_v2"):
        first = next(module for module in built(arch, 64).modules() if isinstance(module, nn.Conv2d))
        assert first.stride == (1, 1)


def test_patch_side() -> None:
    assert [patch_side(size, 8) for size in (8, 16, 28, 32, 48, 64, 7)] == [1, 2, 2, 4, 6, 8, 1]
    for size in range(8, SMALL_IMAGE + 1):
        side = patch_side(size, 8)
        assert size % side == 0 and size // side >= 8


def test_every_line_of_the_table_is_met() -> None:
    assert set(SMALL_BUILDERS) <= set(ARCHITECTURES)
    assert all(known.title and known.small for known in ARCHITECTURES.values())


def test_a_network_in_no_library_needs_a_builder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(num_classes: int, channels: int, image_size: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))

    monkeypatch.setitem(ARCHITECTURES, "flat", Architecture("One layer", "", "nothing"))
    monkeypatch.setitem(SMALL_BUILDERS, "flat", flat)
    for size in (16, SMALL_IMAGE, 96):
        assert build_network("flat", CLASSES, 3, size, seed=0)(images(2, size)).shape == (2, CLASSES)


def test_threads_do_not_change_what_is_trained() -> None:
    """Both draw at random in training, MobileNet by dropout, EfficientNet by dropout and stochastic depth."""

    def train(arch: str, out: dict[object, list[Tensor]], key: object) -> None:
        network = build_network(arch, CLASSES, 3, 16, seed=3)
        out[key] = [network(images(4, 16)).detach() for _ in range(2)]

    out: dict[object, list[Tensor]] = {}
    for arch in ("mobilenet_v2", "efficientnet_b0"):
        train(arch, out, arch)
        torch.rand(1)  # somebody else draws
        threads = [threading.Thread(target=train, args=(arch, out, (arch, n))) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not torch.equal(*out[arch]), "nothing was dropped"
        for n in range(2):
            assert all(torch.equal(a, b) for a, b in zip(out[arch], out[arch, n], strict=True))


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("rasnet18", "resnet18"),
        ("deit", "deit_tiny"),
        ("DeiT-Tiny", "deit_tiny"),
        ("swintiny", "swin_tiny"),
        ("efficientnet_v2", "efficientnet_v2_s"),
        ("shufflenetv2", "shufflenet_v2"),
        ("mlpmixer", "mlp_mixer"),
        ("vit_b_17", "torchvision/vit_b_16"),
        ("timm/deit_tiny_patch16", "deit_tiny"),
    ],
)
def test_near_misses_are_suggested(wrong: str, meant: str) -> None:
    with pytest.raises(ModelError, match=r"[Uu]nknown architecture|no model") as caught:
        build_network(wrong, CLASSES, 3, 32, seed=0)
    assert meant in str(caught.value).partition("Known:")[0]


def test_a_name_with_a_new_meaning_has_a_new_identity() -> None:
    """Stage keys hold it, so outputs of the older meaning are not reused."""
    assert arch_identity("resnet18") == "resnet18" and arch_identity("timm/densenet121") == "timm/densenet121"
    assert arch_identity("densenet121") == "densenet121 v2"
