"""GPU kernels, on a CPU by Triton's interpreter; tests/cuda has them on a GPU."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "body",
    [
        "for case in cases((5, 7, 6, 8), (1, 1, 2, 2), (3, 70, 4, 2)): kernels_agree('cpu', *case)",
        "for case in cases((1, 1, 1, 1), (3, 5, 7, 9), pool=False): kernels_agree('cpu', *case)",
        "many_rows_agree('cpu', parts=4)",
        "use_kernels_on_cpu()\n"
        "for arch, size in (('convnet3-w16', 16), ('convnet3-w8', 28), ('resnet18-w4', 8), ('resnet50-w2', 8)):\n"
        "    network_agrees('cpu', arch, size, 2)",
        "use_kernels_on_cpu()\n"
        "hooks_see_what_they_saw('cpu')\n"
        "images_do_not_disturb_each_other('cpu', 'convnet3-w8', 8)",
    ],
    ids=["layers", "odd", "many-rows", "networks", "images"],
)
def test_kernels_give_what_torch_gives_in_float64(body: str, strict_python: list[str]) -> None:
    """The functions are those of tests/cuda/test_batchnorm.py.

    Also a batch of one value, channels that fill no block, rows that fill no tile, gradients in another layout, and a
    mean far from zero, where squares would cancel.
    """
    code = f"from test_batchnorm import *\n{body}\nprint('the same')"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'cuda'}"}
    command = [*strict_python, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "the same", done.stderr
