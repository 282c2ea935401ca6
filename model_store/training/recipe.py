"""A training recipe: every choice of a run in one frozen value, read from TOML and checked before anything starts.

Promises: an unknown key, a value of the wrong kind or out of range is a RecipeError that names it and what is taken.
Does not: choose data, seed, place or name of a run; those are arguments of the run.
Source: the paper, sections 4 and 5; reference figures of the original code where a field says so.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from model_store.errors import RecipeError
from model_store.training.nets.alexnet import Architecture, Dropout, Initialisation, Norm
from model_store.training.nets.variants import Variant, variant_layers

Schedule = Literal["one-cycle", "cosine", "plateau", "constant"]
UpdateRule = Literal["torch", "paper"]
Precision = Literal["auto", "bfloat16", "float32"]
# "paper": the formula over all maps of a layer; "towers": the same within a tower; "original": within a tower, and
# alpha divided by the number of maps in the sum, as the original code has it.
Normalisation = Literal["paper", "towers", "original"]
_ORIGINAL_ALPHA: Final = 1e-4 / 5  # layers-145.cfg: alpha over the five maps of the sum


def _within(default: float, low: float, high: float) -> Any:
    """Return a field whose value must lie in [low, high]."""
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True, slots=True)
class Recipe:
    """All choices of a training run. Rates are a step's, `epochs` counts passes over the training set."""

    name: str = "custom"
    # The net.
    variant: Variant = "full"  # the paper's own, or one that it compares it with (variants.py)
    width: float = _within(1.0, 1 / 64, 4)  # factor on kernels and neurons; 1 is the paper's net
    input_scale: float = _within(1.0, 1e-4, 1)  # factor on the mean-subtracted pixels; 1 is the paper's
    dropout: Dropout = "paper"
    initialisation: Initialisation = "paper"
    normalisation: Normalisation = "paper"
    # The optimiser (section 5).
    epochs: int = _within(90, 1, 10_000)
    batch_size: int = _within(128, 1, 65_536)
    learning_rate: float = _within(0.01, 0, 10)  # the schedule's highest
    reference_batch: int = _within(0, 0, 65_536)  # the batch that learning_rate is for; others scale it; 0: it is as is
    momentum: float = _within(0.9, 0, 0.9999)
    weight_decay: float = _within(0.0005, 0, 1)
    decay_biases: bool = True  # the original code's biases have none
    bias_rate_factor: float = _within(1.0, 0, 100)  # 2 in the original code
    update: UpdateRule = "paper"  # "paper": the velocity carries the rate; "torch": it does not
    schedule: Schedule = "plateau"
    warm_up: float = _within(0.3, 0, 1)  # one-cycle, cosine: the share of steps that climb to the highest rate
    patience: int = _within(5, 1, 1_000)  # plateau: epochs without a better validation error
    drops: int = _within(3, 0, 20)  # plateau: divisions by 10 before the run stops
    # Augmentation (section 4.1).
    flip: bool = True
    flip_vertical: bool = False
    quarter_turns: bool = False  # for pictures without an upright side
    colour_noise: float = _within(0.1, 0, 10)  # deviation of the alphas; 0 is off
    noise_shrinks: bool = False  # the original code divides a noisy image by 1 + colour_noise
    noise_off_below: float = _within(0, 0, 1)  # no noise once the rate is below this share of the highest
    # What it is asked for (the Bag of Tricks; the paper has neither).
    label_smoothing: float = _within(0.0, 0, 0.99)  # the share of a label that is spread evenly over all classes
    mixup: float = _within(0.0, 0, 10)  # alpha of the Beta that blends two pictures and labels; 0 is off
    # How it runs; none of these changes what is learned, but `precision` rounds differently.
    precision: Precision = "auto"
    validate_every: int = _within(1, 1, 10_000)  # epochs; the last one is always validated
    flat_loss_steps: int = _within(100, 1, 1_000_000)  # steps after which a loss that has not moved draws a warning

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for spec in fields(self):
            value = getattr(self, spec.name)
            object.__setattr__(
                self, spec.name, _checked(spec.name, value, hints[spec.name], spec.metadata.get("range"))
            )

    def architecture(self, classes: int) -> Architecture:
        """Return the net of this recipe for `classes` classes."""
        name = "alexnet" if self.variant == "full" else f"alexnet-{self.variant}"
        whole = Architecture(classes, variant_layers(self.variant), self.dropout, self.input_scale, name)
        if self.normalisation != "paper":
            changes = {"towers": 2} if self.normalisation == "towers" else {"towers": 2, "alpha": _ORIGINAL_ALPHA}
            layers = (replace(layer, **changes) if isinstance(layer, Norm) else layer for layer in whole.layers)
            whole = replace(whole, layers=tuple(layers))
        return whole.scaled(self.width)

    @property
    def highest_rate(self) -> float:
        """The schedule's highest rate: `learning_rate`, in proportion to the batch where `reference_batch` is set."""
        return self.learning_rate * (self.batch_size / self.reference_batch if self.reference_batch else 1)

    def to_dict(self) -> dict[str, Any]:
        """Return all values as plain JSON types; `from_dict` gives an equal Recipe back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "recipe") -> Recipe:
        """Build from plain values; what is left out has its default. Raises RecipeError."""
        known = [spec.name for spec in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise RecipeError(f"{source}: unknown key {unknown[0]!r}; a recipe takes {', '.join(known)}")
        return cls(**values)

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """Return a copy with `key=value` texts applied, as on the command line. Raises RecipeError."""
        changes: dict[str, Any] = {}
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise RecipeError(f"--set takes key=value, for example --set epochs=3; it got {setting!r}")
            changes[key.strip()] = _from_text(text.strip())
        known = {spec.name for spec in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            taken = ", ".join(spec.name for spec in fields(self))
            raise RecipeError(f"--set: unknown key {unknown[0]!r}; a recipe takes {taken}")
        return replace(self, **changes)


def load_recipe(name_or_path: str) -> Recipe:
    """Return a recipe by its name (`recipe_names()`) or from a TOML file. Raises RecipeError."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    elif name_or_path in recipe_names():
        text = (_recipes() / f"{name_or_path}.toml").read_text(encoding="utf-8")
    else:
        names = ", ".join(recipe_names())
        raise RecipeError(f"there is no recipe {name_or_path!r}; there are {names}, or give the path of a .toml file")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"the recipe {name_or_path} is not TOML: {error}") from error
    return Recipe.from_dict({"name": path.stem, **values}, source=f"recipe {name_or_path}")


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with fc7."""
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in _recipes().iterdir() if entry.name[-5:] == ".toml")
    )


def _recipes() -> Any:
    return resources.files("model_store.training") / "recipes"


_WORDS: Final[Mapping[str, bool]] = {"true": True, "false": False}


def _from_text(text: str) -> bool | int | float | str:
    if text in _WORDS:
        return _WORDS[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _checked(key: str, value: Any, hint: Any, limits: tuple[float, float] | None) -> Any:
    """Return `value` in the field's own type, or raise RecipeError naming the key, the value and what is taken."""
    if get_origin(hint) is Literal:
        taken = get_args(hint)
        good, wanted = value in taken, "one of " + ", ".join(taken)
    elif hint is bool:
        good, wanted = isinstance(value, bool), "true or false"
    elif hint is str:
        good, wanted = isinstance(value, str), "a text"
    else:
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        whole = numeric and float(value).is_integer()
        low, high = limits if limits else (float("-inf"), float("inf"))
        good = numeric and (hint is float or whole) and low <= value <= high
        wanted = f"{'a whole number' if hint is int else 'a number'} from {low:g} to {high:g}"
    if not good:
        raise RecipeError(f"{key}={value!r} is no value for this recipe key: it must be {wanted}")
    return hint(value) if hint in (int, float) else value
