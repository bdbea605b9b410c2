"""torchvision and timm classifiers behind a single interface, adapted to small images.

Up to `SMALL_IMAGE` px the usual initial reduction by 4 would leave almost no resolution, so

- convolutional networks: the first convolution gets stride 1, and the max-pool of the stem, if it has one, becomes the
  identity. Stems of non-overlapping patches (ConvNeXt, Swin) and stems with stride 1 (VGG) stay unchanged;
- vision transformers: patches have 4 px instead of 16 if the builder lets the size be chosen (timm's mixers do not),
  so weights of the large model do not fit.

This rule holds for `torchvision/NAME` and `timm/NAME`. If a name in `ARCHITECTURES` needs more, `small` passes it as
`adapt` or `options`. Every network built here has been tested with one image of the requested size.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cudd_core.errors import ModelError
from cudd_core.models.architectures import SMALL_IMAGE
from cudd_core.seeding import seeded_construction

SMALL_PATCH = 4
"""Side in pixels of a vision transformer's patches for images up to `SMALL_IMAGE`."""

_DENSENET_KEY = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")


def has_torchvision_model(name: str) -> bool:
    """Return whether torchvision has a classifier `name`."""
    import torchvision.models

    return name in torchvision.models.list_models(module=torchvision.models)


def has_timm_model(name: str) -> bool:
    """Return whether timm is installed and has a classifier `name` (a pretrained tag, `name.tag`, is allowed)."""
    if not _has_timm():
        return False
    import timm

    return bool(timm.is_model(name))


def library_models(word: str) -> list[str]:
    """Return the full names of all of torchvision's classifiers, and of those of timm's that begin with `word`.

    A `word` of fewer than three letters gives none of timm's.
    """
    import torchvision.models

    found = [f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    if len(word) > 2 and _has_timm():
        import timm

        found += [f"timm/{name}" for name in timm.list_models(f"{word}*")]
    return found


def build_torchvision(
    name: str, num_classes: int, channels: int, image_size: int, adapt: Callable[[nn.Module], None] | None = None
) -> nn.Module:
    """Return torchvision's classifier `name`, freshly initialised from the current generator, in training mode.

    Input [n, channels, image_size, image_size], output [n, num_classes]. `adapt` changes the network in place; it
    replaces the adaptation to `channels` and the rule for small images.

    Raises:
        ModelError: unknown name, or an image size that the architecture cannot take.
    """
    if not has_torchvision_model(name):
        raise ModelError(f"torchvision has no classifier {name!r}. Names: torchvision.models.list_models().")
    arch = f"torchvision/{name}"
    try:
        network = _construct_torchvision(name, num_classes, image_size)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise _does_not_fit(arch, image_size, error) from error
    if adapt is not None:
        adapt(network)
    else:
        if channels != 3:
            _replace_first_convolution(network, channels)
        if image_size <= SMALL_IMAGE:
            _shrink_stem(network)
    probe(network, arch, num_classes, channels, image_size)
    return network


def build_timm(
    name: str, num_classes: int, channels: int, image_size: int, options: dict[str, Any] | None = None
) -> nn.Module:
    """Return timm's classifier `name`, freshly initialised from the current generator, in training mode.

    Input [n, channels, image_size, image_size], output [n, num_classes]. `options` are passed to timm's builder; if
    they are not given, the best fitting ones are found by trial.

    Raises:
        ModelError: timm is not installed, unknown name, or an image size that the architecture cannot take.
    """
    timm = _timm(name)
    arch = f"timm/{name}"
    sized = {"img_size": image_size}
    # Only its builder knows which options a family takes: try the best fitting first, until a network passes the probe.
    choices: list[dict[str, Any]] = [sized, {}]
    if image_size <= SMALL_IMAGE:
        choices = [sized | {"patch_size": SMALL_PATCH}, *choices]
    reason: Exception | None = None
    for option in choices if options is None else [options]:
        try:
            network: nn.Module = timm.create_model(
                name, pretrained=False, num_classes=num_classes, in_chans=channels, **option
            )
            if not option and image_size <= SMALL_IMAGE:
                _shrink_stem(network)
            probe(network, arch, num_classes, channels, image_size)
        except TypeError as error:  # the builder does not know an option
            reason = reason or error
        except (ModelError, ValueError, AssertionError, RuntimeError, ZeroDivisionError, IndexError) as error:
            reason = error if reason is None or isinstance(reason, TypeError) else reason
        else:
            return network
    if isinstance(reason, ModelError):
        raise reason
    raise _does_not_fit(arch, image_size, reason) from reason


def load_torchvision_weights(
    name: str, weights: str
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Download torchvision's pretrained weights of classifier `name`, for example `IMAGENET1K_V1`.

    Returns:
        (state, class_names, mean, std): the state fits `build_torchvision` at the weights' own size; class names as
        torchvision spells them, index = label; mean and std in units of pixel / 255.

    Raises:
        ModelError: unknown name or weights, or the download failed.
    """
    import torchvision.models

    if not has_torchvision_model(name):
        raise ModelError(f"torchvision has no classifier {name!r}. Names: torchvision.models.list_models().")
    known = torchvision.models.get_model_weights(name)
    names = [each.name for each in known]  # without DEFAULT, which stands for other weights in another torchvision
    if weights not in names:
        raise ModelError(f"torchvision has no weights {weights!r} for {name}. Weights: {', '.join(names) or 'none'}.")
    chosen = known[weights]
    state = _download(
        f"torchvision/{name} ({chosen.name})",
        lambda: chosen.get_state_dict(progress=False, check_hash=True, weights_only=True),
    )
    # Old DenseNet files call norm1 norm.1; auxiliary heads are not built.
    state = {
        _DENSENET_KEY.sub(r"\1\2", key): tensor
        for key, tensor in state.items()
        if not key.startswith(("aux1.", "aux2.", "AuxLogits."))
    }
    preset = chosen.transforms()
    mean, std = tuple(map(float, preset.mean)), tuple(map(float, preset.std))
    if name in ("googlenet", "inception_v3"):
        # torchvision renormalises inside these two (transform_input) from its preset to mean = std = 0.5, the values
        # that the weights were trained with. Our networks are built without that step.
        mean = std = (0.5, 0.5, 0.5)
    return state, tuple(chosen.meta["categories"]), mean, std


def load_timm_weights(
    name: str,
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Download timm's pretrained weights of classifier `name` (`name.tag` chooses among several).

    Returns:
        (state, class_names, mean, std): the state fits `build_timm` at the weights' own size; class names are those
        stored with the weights, otherwise for ImageNet weights the WordNet synsets (n01440764 …) that name ImageNet's
        folders, otherwise the labels; mean and std in units of pixel / 255.

    Raises:
        ModelError: timm is not installed, unknown name, no pretrained weights, or the download failed.
    """
    timm = _timm(name)
    with seeded_construction(0, "pretrained weights", name):  # construction draws weights that the file then replaces
        network = _download(f"timm/{name}", lambda: timm.create_model(name, pretrained=True))
    about = network.pretrained_cfg
    classes = int(about["num_classes"])
    names = about.get("label_names")
    if not names:
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset(about)
        information: Any = ImageNetInfo(subset) if subset else None
        names = information.label_names() if subset else [str(label) for label in range(classes)]
    if len(names) != classes:
        raise ModelError(
            f"timm/{name} has {classes} outputs, but {len(names)} class names are known for it. Choose other weights."
        )
    return network.state_dict(), tuple(map(str, names)), tuple(about["mean"]), tuple(about["std"])


def require_timm(arch: str) -> None:
    """Check that timm, which `arch` is built from, is installed. Everything else works without it.

    Raises:
        ModelError: it is not installed.
    """
    if not _has_timm():
        raise ModelError(
            f"{arch} needs timm, which is not installed: pip install timm, or choose another architecture."
        )


def _has_timm() -> bool:
    return importlib.util.find_spec("timm") is not None


def _timm(name: str) -> Any:
    require_timm(f"timm/{name}")
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:5]
        raise ModelError(
            f"timm has no model {name!r}. " + (f"Similar: {', '.join(near)}." if near else "Check its name.")
        )
    return timm


def _download(what: str, fetch: Callable[[], Any]) -> Any:
    try:
        return fetch()
    except Exception as error:  # transports raise all kinds of errors: URLError, httpx's and the hub's own
        raise ModelError(
            f"The pretrained weights of {what} could not be loaded ({error}). Check the network (or HTTPS_PROXY), or "
            "download them elsewhere into the cache folder ($TORCH_HOME or $HF_HOME), or train the teacher instead."
        ) from error


def _construct_torchvision(name: str, num_classes: int, image_size: int) -> nn.Module:
    import torchvision.models
    from torchvision.models import VisionTransformer

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}  # the auxiliary heads would change what forward returns
    elif name == "maxvit_t":
        options = {"input_size": (image_size, image_size)}
    elif name.startswith("vit_"):
        if image_size > SMALL_IMAGE:
            options = {"image_size": image_size}
        else:  # the builders fix the patch size: take the dimensions from one of them, without its weights
            with torch.device("meta"):
                model = torchvision.models.get_model(name, weights=None)
            vit: nn.Module = VisionTransformer(
                image_size=image_size,
                patch_size=SMALL_PATCH,
                num_layers=len(model.encoder.layers),
                num_heads=model.encoder.layers[0].num_heads,
                hidden_dim=model.hidden_dim,
                mlp_dim=model.mlp_dim,
                num_classes=num_classes,
            )
            return vit
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return network


def _first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    return next(((name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)), None)


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    """Give the first convolution `channels` inputs and fresh weights."""
    found = _first_convolution(network)
    if found is None:
        return
    name, old = found
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    network.set_submodule(name, new)


def _shrink_stem(network: nn.Module) -> None:
    """If the first convolution overlaps and strides, set its stride to 1 and take out the first max-pool, if any."""
    found = _first_convolution(network)
    if found is None:
        return
    convolution = found[1]
    if convolution.stride[0] == 1 or convolution.kernel_size[0] <= convolution.stride[0]:
        return
    convolution.stride = (1, 1)
    pools = (name for name, module in network.named_modules() if isinstance(module, nn.MaxPool2d))
    if (pool := next(pools, None)) is not None:
        network.set_submodule(pool, nn.Identity())


def probe(network: nn.Module, arch: str, num_classes: int, channels: int, image_size: int) -> None:
    """Send one zero image through the network in eval mode, if possible on meta tensors, without computing.

    Raises:
        ModelError: the image does not fit, or the output is not [1, num_classes].
    """
    if any(parameter.numel() == 0 for parameter in network.parameters()):
        raise _does_not_fit(arch, image_size, ValueError("not one patch fits into it"))
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            try:
                state = {name: t.to("meta") for name, t in [*network.named_parameters(), *network.named_buffers()]}
                image = torch.zeros(1, channels, image_size, image_size, device="meta")
                output = functional_call(network, state, (image,))
            except Exception:  # an operation that needs values, or an image that does not fit: run it for real
                output = network(torch.zeros(1, channels, image_size, image_size))
    except Exception as error:  # whatever a foreign forward raises when sizes do not fit
        raise _does_not_fit(arch, image_size, error) from error
    finally:
        network.train(was_training)
    if not isinstance(output, Tensor) or output.shape != (1, num_classes):
        raise ModelError(
            f"{arch} does not answer one row of {num_classes} logits per image at {image_size} px. "
            "Choose a classifier, for example resnet18."
        )


def _does_not_fit(arch: str, image_size: int, reason: Exception | None) -> ModelError:
    first_line = str(reason).strip().partition("\n")[0].rstrip(".")
    return ModelError(
        f"{arch} cannot take images of {image_size} px ({first_line}). "
        "Choose another architecture, or a larger data.image_size."
    )
