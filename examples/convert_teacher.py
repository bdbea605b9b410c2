"""Turn a pickled checkpoint of another repository into a safetensors file that `teacher.source=file` reads.

    python examples/convert_teacher.py CHECKPOINT.pt --to teacher.safetensors --class-names-file classes.txt
        --mean 0.4914,0.4822,0.4465 --std 0.2023,0.1994,0.2010

Use it when you have trained, or been given, a network as `.pt`, `.pth` or `.tar`: by DC, MTT, SRe2L, RDED, timm,
torchvision's references or a script of your own. Needs PyTorch and safetensors alone. No program in the checkpoint is
run: what holds more than tensors and plain values is refused.

Names become those of cudd's networks where the structure is the same: the ConvNet of DC and MTT (`classifier` → `head`)
and the ResNets of pytorch-cifar (`shortcut` → `downsample`, `linear` or `classifier` → `fc`). Others keep their names.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plain_tensors import read_plain
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]

CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "ema", "model_ema", "state_dict_ema")
PREFIXES = ("module.", "model.", "net.")  # DataParallel; Lightning
# Blocks in the four groups of a ResNet, and whether they are bottlenecks.
BLOCKS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}
GROUPS = range(1, 5)


INSTEAD = (
    "open it in the repository that wrote it, save its tensors alone with "
    "torch.save(model.state_dict(), 'weights.pt'), and convert that."
)


def find_state(checkpoint: Any, key: str) -> State:
    """Return the tensors by name, taken out of the containers that training scripts put around them."""
    if key:
        if not isinstance(checkpoint, Mapping) or key not in checkpoint:
            raise SystemExit(f"--key {key}: the checkpoint has no such entry. It holds {_contents(checkpoint)}.")
        checkpoint = checkpoint[key]
    while isinstance(checkpoint, Mapping):
        inner = [name for name in CONTAINERS if isinstance(checkpoint.get(name), Mapping) and checkpoint[name]]
        if len(inner) > 1:
            raise SystemExit(f"The checkpoint has weights under {' and '.join(inner)}. Choose with --key {inner[0]}.")
        if not inner:
            break
        checkpoint = checkpoint[inner[0]]
    state = checkpoint if isinstance(checkpoint, Mapping) else {}
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise SystemExit(
            f"No weights by name are found; there is {_contents(checkpoint)}. Name the entry that has them with --key. "
            "(MTT's replay_buffer_*.pt are lists of parameters without names and without BatchNorm's statistics: "
            "they are no teachers.)"
        )
    return tensors


def _contents(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} ({type(entry).__name__})" for name, entry in list(value.items())[:12]) or "nothing"
    return f"a {type(value).__name__}"


def without_prefixes(state: State) -> State:
    """Strip the prefixes that torch.compile, DataParallel, averaging and Lightning put before all names."""
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items() if name != "n_averaged"}
    while state and (found := [each for each in PREFIXES if all(name.startswith(each) for name in state)]):
        state = {name.removeprefix(found[0]): tensor for name, tensor in state.items()}
    return state


def as_convnet(state: State) -> tuple[State, str] | None:
    """Return a ConvNet's weights under cudd's names, and its architecture; None if the structure differs.

    Only for colour images: for one channel the field's ConvNet pads its first convolution by 3, cudd's by 1.
    """
    state = {f"head.{name[11:]}" if name.startswith("classifier.") else name: each for name, each in state.items()}
    depth = sum(name.startswith("features.") and each.ndim == 4 for name, each in state.items())
    batchnorm = any(name.endswith("running_mean") for name in state)
    norm = ("weight", "bias", "running_mean", "running_var") if batchnorm else ("weight", "bias")
    # Convolution, norm, ReLU and pooling count as one layer each.
    convolutions = {f"features.{4 * level}.{part}" for level in range(depth) for part in ("weight", "bias")}
    norms = {f"features.{4 * level + 1}.{part}" for level in range(depth) for part in norm}
    if not depth or names_of(state) != convolutions | norms | {"head.weight", "head.bias"}:
        return None
    first = state["features.0.weight"]
    if first.shape[1:] != (3, 3, 3) or any(state[name].ndim != 1 for name in norms):
        return None
    width = "" if len(first) == 128 else f"-w{len(first)}"
    return state, f"convnet{depth}{width}{'' if batchnorm else '-in'}"


def as_resnet(state: State) -> tuple[State, str] | None:
    """Return a ResNet's weights under torchvision's names (cudd's too) and its architecture; None if it differs."""
    state = {_torchvision_name(name): tensor for name, tensor in state.items()}
    depths = tuple(
        sum(name.startswith(f"layer{g}.") and name.endswith(".conv1.weight") for name in state) for g in GROUPS
    )
    bottleneck = "layer1.0.conv3.weight" in state
    arch = BLOCKS.get((depths, bottleneck))
    if arch is None or "conv1.weight" not in state:
        return None
    expected = {"conv1.weight", "fc.weight", "fc.bias", *_norm("bn1")}
    for group, blocks in zip(GROUPS, depths, strict=True):
        for prefix in (f"layer{group}.{block}" for block in range(blocks)):
            for part in range(1, 4 if bottleneck else 3):
                expected |= {f"{prefix}.conv{part}.weight", *_norm(f"{prefix}.bn{part}")}
        if group > 1 or bottleneck:
            expected |= {f"layer{group}.0.downsample.0.weight", *_norm(f"layer{group}.0.downsample.1")}
    width = len(state["conv1.weight"])
    # Wide ResNets and ResNeXts have the same names.
    if names_of(state) != expected or len(state["layer1.0.conv1.weight"]) != width:
        return None
    return state, arch if width == 64 else f"{arch}-w{width}"


def _torchvision_name(name: str) -> str:
    last = {"linear.weight", "linear.bias", "classifier.weight", "classifier.bias"}
    return f"fc.{name.partition('.')[2]}" if name in last else name.replace(".shortcut.", ".downsample.")


def _norm(name: str) -> set[str]:
    return {f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")}


def names_of(state: State) -> set[str]:
    """Return all names except those of BatchNorm's counters, which old files lack."""
    return {name for name in state if not name.endswith("num_batches_tracked")}


def outputs(state: State) -> dict[str, int]:
    """Return the biases of linear layers and their lengths, in the file's order: the last is most likely the head's."""
    biases = {name: state.get(f"{name.removesuffix('bias')}weight") for name in state if name.endswith("bias")}
    return {name: len(weight) for name, weight in biases.items() if weight is not None and weight.ndim == 2}


def numbers(text: str) -> list[float]:
    """Parse `0.4914,0.4822,0.4465`: fractions of 255, as cudd takes means and deviations."""
    values = [float(each) for each in text.split(",")]
    if not all(0 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text}: pixels run from 0 to 1 here; divide by 255")
    return values


def class_names(text: str | None, file: Path | None) -> list[str]:
    """Return the names of the outputs, in their order; none if neither is given."""
    if file is None:
        return [name.strip() for name in text.split(",")] if text else []
    try:
        words = file.read_text(encoding="utf-8").strip()
        names = json.loads(words) if words.startswith("[") else [line.strip() for line in words.splitlines()]
    except (OSError, ValueError) as error:
        raise SystemExit(f"--class-names-file {file}: {error}") from error
    return [str(name) for name in names if name != ""]


def main(arguments: list[str] | None = None) -> None:
    """Convert one checkpoint and print the settings that use it."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("checkpoint", type=Path)
    words.add_argument("--to", type=Path, required=True, metavar="FILE.safetensors")
    words.add_argument("--mean", type=numbers, default=[], metavar="R,G,B", help="that it was trained with, in [0, 1]")
    words.add_argument("--std", type=numbers, default=[], metavar="R,G,B")
    named = words.add_mutually_exclusive_group()
    named.add_argument("--class-names", metavar="A,B,C", help="in the order of its outputs")
    named.add_argument("--class-names-file", type=Path, help="one name a line, or a JSON list")
    words.add_argument("--key", default="", help="entry of the checkpoint that has the weights, if several could")
    given = words.parse_args(arguments)
    if given.to.suffix != ".safetensors" or given.to.exists():
        raise SystemExit(f"--to {given.to}: give a new file that ends in .safetensors.")
    if not given.to.absolute().parent.is_dir():
        raise SystemExit(f"--to {given.to}: there is no folder {given.to.absolute().parent}.")
    if len(given.mean) != len(given.std) or 0 in given.std:
        raise SystemExit("--mean and --std need as many values each, and no deviation may be 0.")

    state = without_prefixes(find_state(read_plain(given.checkpoint, INSTEAD), given.key))
    state, arch = as_convnet(state) or as_resnet(state) or (state, "")
    names = class_names(given.class_names, given.class_names_file)
    heads = outputs(state)
    head, classes = next(reversed(heads.items()), ("", 0))
    if names and heads and len(names) not in heads.values():
        raise SystemExit(
            f"There are {len(names)} class names, but {head}, the last linear layer's, has {classes} values."
        )

    about = {"class_names": names, "mean": given.mean, "std": given.std}
    # Copied, because safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
    save_file(copies, given.to, {key: json.dumps(value) for key, value in about.items() if value})

    count = f"{classes} classes by {head}" if classes else "number of classes unknown: no linear layer has a bias"
    print(f"{given.to}: {len(state)} tensors, {count}. Use it with")
    print(f"    --set teacher.source=file --set {shlex.quote(f'teacher.weights={given.to}')}", end=" ")
    print(f"--set teacher.arch={arch or 'NAME'}")
    if not arch:
        print(
            "Its structure is not known here. `cudd archs` lists names; torchvision/NAME and timm/NAME are some, too."
        )
    if arch.startswith("convnet"):
        print("This takes ReLU and average pooling for granted, which the names of weights do not tell.")
    if arch.endswith("-in"):
        print(
            "It also takes the norm for InstanceNorm. Without BatchNorm a teacher cannot guide a synthesis with L_bn."
        )
    if not names:
        print("Class names are not in it: add --class-names, or set teacher.class_order=as_data if you know that its")
        print("outputs are in the order of the data's classes.")
    if not given.mean:
        print("Mean and std are not in it: add --mean and --std, or set teacher.mean and teacher.std.")


if __name__ == "__main__":
    main()
