"""What a comparison runs: recipes, each as it is or with some of its settings changed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from cudd_core.comparison import AS_IT_IS
from cudd_core.errors import ConfigError
from flows.ablations import ABLATIONS, Ablation
from flows.catalogue import check_known
from flows.recipe import Recipe
from flows.recipes import apply_overrides, find_recipe


@dataclass(frozen=True)
class Variant:
    """A recipe with changes: their label, and the resulting recipe, once for each seed of distillation.

    `reference`: (recipe, label) of the variant that it is compared with; its own if it is the reference itself.
    """

    label: str
    recipes: tuple[Recipe, ...]
    reference: tuple[str, str]

    @property
    def name(self) -> tuple[str, str]:
        """Recipe and label, unique in a comparison."""
        return self.recipes[0].name, self.label


def expand(
    recipes: Sequence[str],
    overrides: Sequence[str] = (),
    vary: Sequence[str] = (),
    ablation: str = "",
    repeats: int = 1,
) -> tuple[Variant, ...]:
    """Return all variants: every recipe, in each variant of the ablation, with every combination of `vary`.

    The reference of a recipe's variants is the ablation's, with the first value of each key of `vary`. Without either,
    it is the first recipe that is measured on the same data.

    Args:
        recipes: names, or recipe files.
        overrides: key=value, for all.
        vary: key=value,value,… each; a list among the values needs brackets.
        ablation: a name in `ABLATIONS`, or nothing.
        repeats: how many times each is distilled, with the recipe's seed and those after it.

    Raises:
        ConfigError: an unknown name or key, a value that is not allowed, nothing to vary, variants with the same name.
    """
    if ablation:
        check_known("--ablation", ablation, ABLATIONS)
    axes = [*([ABLATIONS[ablation]] if ablation else []), *(_of_values(text) for text in vary)]
    varied = [[text for variant in axis.variants.values() for text in variant] for axis in axes]
    refuse_settings_that_lose([overrides, *varied])
    if repeats > 1 and any(_key(text) == "seed" for texts in varied for text in texts):
        raise ConfigError("--repeats runs one seed after another, so variants of the seed would share some. Drop one.")
    reference = _label([axis.reference for axis in axes])
    found: list[Variant] = []
    for name in recipes:
        base = apply_overrides(find_recipe(name), overrides)
        for labels in itertools.product(*(axis.variants for axis in axes)):
            settings = [text for axis, label in zip(axes, labels, strict=True) for text in axis.variants[label]]
            changed = apply_overrides(base, settings)
            seeds = range(changed.seed, changed.seed + repeats)
            seeded = tuple(apply_overrides(changed, [f"seed={seed}"]) for seed in seeds)
            own = (changed.name, _label(labels))
            held_against = (changed.name, reference) if axes else _first_on_same_data(found, changed, own)
            found.append(Variant(own[1], seeded, held_against))
    names = [variant.name for variant in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{twice[0]} ({twice[1]}) is named twice. Give each recipe and each value once.")
    return tuple(found)


def _of_values(text: str) -> Ablation:
    """Return the axis of one `--vary key=value,value,…`; anything in brackets is one value, commas and all."""
    key, _, values = text.partition("=")
    parts = [part for part in _outside_brackets(values) if part.strip()]
    settings = {f"{key.strip()}={value.strip()}": (f"{key}={value}",) for value in parts}
    if len(settings) < 2:
        raise ConfigError(
            f"--vary {text!r} needs a key and at least two different values, for example "
            "--vary synthesis.weight_reg=0.3,1,3."
        )
    return Ablation("", "", settings, next(iter(settings)))


def _outside_brackets(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def refuse_settings_that_lose(places: Sequence[Sequence[str]]) -> None:
    """Raise ConfigError if two places set the same key, or a section and a field of it.

    The later one would win, and labels would be wrong.
    """
    keys = [sorted({_key(text) for text in settings}) for settings in places]
    for number, later in enumerate(keys):
        for key, other in itertools.product(later, itertools.chain(*keys[:number])):
            if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                raise ConfigError(
                    f"{max(key, other, key=len)} is set twice: --set, --vary, --ablation and the options for seeds, "
                    "networks and baselines must not name the same key."
                )


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


def _label(labels: Sequence[str]) -> str:
    return ", ".join(labels) or AS_IT_IS


def _first_on_same_data(found: Sequence[Variant], recipe: Recipe, own: tuple[str, str]) -> tuple[str, str]:
    return next((each.name for each in found if each.recipes[0].data == recipe.data), own)
