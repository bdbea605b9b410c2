"""Score this export with DD-Ranking (github.com/NUS-HPC-AI-Lab/DD-Ranking): pip install ddranking==0.2.0 safetensors

    python score.py --real FOLDER [--labels fixed|teacher|hard] [--full-accuracy PERCENT] [--device cuda]

`fixed` trains on one soft label an image (DD-Ranking's mode S), `teacher` lets the exported teacher label every mixed
batch (mode M), `hard` uses the classes. FOLDER holds the real data as DD-Ranking wants it; CIFAR is downloaded to it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent


class Teacher(torch.nn.Module):
    """The teacher behind a change of scale, since it was trained with its own means and deviations."""

    def __init__(self, network: torch.nn.Module, settings: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        for name in ("mean", "std"):
            for whose, values in (("data", settings[name]), ("own", settings["teacher"][name])):
                self.register_buffer(f"{whose}_{name}", torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> Any:
        """Return logits of images on DD-Ranking's scale."""
        pixels = images * self.data_std + self.data_mean  # type: ignore[operator]
        return self.network((pixels - self.own_mean) / self.own_std)  # type: ignore[operator]


def build_teacher(settings: dict[str, Any], device: str) -> Teacher:
    """Return the exported teacher as DD-Ranking's own network."""
    from ddranking.utils import build_model

    if settings["teacher"] is None:
        raise SystemExit("DD-Ranking has no network of the teacher's architecture: use --labels hard.")
    network = build_model(
        settings["teacher"]["model_name"],
        num_classes=settings["num_classes"],
        im_size=tuple(settings["im_size"]),
        use_torchvision=settings["teacher"]["use_torchvision"],
        device=device,
    )
    network.load_state_dict(load_file(HERE / "teacher.safetensors"))
    return Teacher(network, settings).to(device).eval().requires_grad_(False)


def label_robust_score(improvement: float, recovery: float) -> float:
    """Return DD-Ranking's score, converting percentages to fractions; 0.2.0 puts percentages into the formula."""
    alpha = (improvement - recovery) / 200
    return float((np.exp(alpha) - np.exp(-1)) / (np.exp(1) - np.exp(-1)))


def make_evaluator(words: argparse.Namespace, settings: dict[str, Any], model: str, torchvision: bool) -> Any:
    """Return DD-Ranking's evaluator, with workarounds for what fails in 0.2.0."""
    import ddranking.metrics.hard_label
    from ddranking.metrics import LabelRobustScoreHard, LabelRobustScoreSoft
    from ddranking.utils import REAL_DATA_ACC_CACHE, get_random_data_tensors

    common = {
        "dataset": settings["dataset"],
        "real_data_path": words.real,
        "ipc": settings["ipc"],
        "model_name": model,
        "optimizer": "sgd",
        "lr_scheduler": "cosine",
        "num_eval": words.evals,
        "im_size": tuple(settings["im_size"]),
        "num_epochs": words.epochs,
        "num_workers": words.workers,
        "syn_batch_size": words.batch_size,
        "random_data_format": "tensor",
        "eval_full_data": words.full_accuracy is None,
        "save_path": str(Path(words.out).absolute()),
        "device": words.device,
    }
    if words.full_accuracy is not None:
        # DD-Ranking's table has two networks only; it refuses all others unless they are trained on all real data.
        REAL_DATA_ACC_CACHE[f"{settings['dataset']}-{model}"] = words.full_accuracy
    if words.labels == "hard":
        # DD-Ranking lists every score twice, and then cannot save columns of different lengths.
        ddranking.metrics.hard_label.save_results = lambda results, path: None
        evaluator = LabelRobustScoreHard(**common, data_aug_func="none", use_torchvision=torchvision)
    else:
        teacher = build_teacher(settings, words.device)

        class Soft(LabelRobustScoreSoft):  # type: ignore[misc]
            """The evaluator for soft labels; its own way to get random real images fails except in mode M on files."""

            def _get_random_data_helper(self, eval_iter: int) -> tuple[None, torch.Tensor, torch.Tensor | None]:
                where = (self.class_to_indices, self.ipc, self.class_map, eval_iter, self.random_data_path)
                images, _ = get_random_data_tensors(self.dataset, self.dst_train, *where)
                if self.soft_label_mode == "M":
                    return None, images, None
                with torch.no_grad():
                    parts = [teacher(part.to(self.device)).cpu() for part in images.split(256)]
                return None, images, torch.cat(parts)

        evaluator = Soft(
            **common,
            soft_label_mode="M" if words.labels == "teacher" else "S",
            soft_label_criterion="kl",
            loss_fn_kwargs={"temperature": settings["temperature"], "scale_loss": False},
            # A fixed label cannot follow the mixing of images; the teacher's label does.
            data_aug_func="cutmix" if words.labels == "teacher" else "none",
            stu_use_torchvision=torchvision,
            teacher_model_names=[],
        )
        evaluator.teacher_models = [teacher]
    # DD-Ranking measures every 10 or 20 epochs, and so never if there are fewer.
    evaluator.test_interval = min(evaluator.test_interval, words.epochs)
    return evaluator


def main() -> None:
    """Score the export and print what DD-Ranking returns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", required=True, help="folder of the real data")
    parser.add_argument("--labels", choices=("fixed", "teacher", "hard"), default="fixed")
    parser.add_argument("--model", default="", help="network to train; default: the teacher's, else ConvNet-3-BN")
    parser.add_argument("--full-accuracy", type=float, help="per cent, of that network trained on all real data")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--evals", type=int, default=5, help="how often all is repeated")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, help="learning rate for the set; default: the best of five")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default="ddranking.csv", help="where DD-Ranking writes its table")
    words = parser.parse_args()

    settings = json.loads((HERE / "ddranking.json").read_text())
    if not settings["dataset"]:
        raise SystemExit("DD-Ranking knows no data set that this export was distilled from (ddranking.json: dataset).")
    data = load_file(HERE / "data.safetensors")
    if words.labels != "hard" and "soft_labels" not in data:
        raise SystemExit("This export has no soft labels, since it was made without a teacher: use --labels hard.")
    teacher = settings["teacher"]
    model = words.model or (teacher["model_name"] if teacher else "ConvNet-3-BN")
    evaluator = make_evaluator(words, settings, model, bool(teacher and teacher["use_torchvision"]))
    inputs = {"image_tensor": data["images"], "syn_lr": words.lr}
    inputs |= {"hard_labels": data["labels"]} if words.labels == "hard" else {}
    inputs |= {"soft_labels": data["soft_labels"]} if words.labels == "fixed" else {}
    scores = evaluator.compute_metrics(**inputs)
    scores["label_robust_score_of_fractions"] = label_robust_score(
        scores["improvement_over_random_mean"], scores["hard_label_recovery_mean"]
    )
    print(json.dumps({name: float(value) for name, value in scores.items()}, indent=1))


if __name__ == "__main__":
    main()
