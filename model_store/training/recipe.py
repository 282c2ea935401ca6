"""Training recipes: all hyperparameters of a run in one frozen value, read from TOML and validated.

Guarantees: an unknown key or an invalid value raises a RecipeError that names it and says what is valid.
Out of scope: data, seed, folder and name, which are arguments of a run.
References: the paper, sections 4 and 5; the original code for some fields, as their comments say.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from model_store.errors import RecipeError
from model_store.training.nets.alexnet import Architecture, Dropout, Initialisation, Norm
from model_store.training.nets.variants import Variant, variant_layers

Schedule = Literal["one-cycle", "cosine", "plateau", "constant"]
UpdateRule = Literal["torch", "paper"]
Precision = Literal["auto", "bfloat16", "float32"]
# "paper": the formula over all maps of a layer. "towers": the formula within each tower. "original": within each tower,
# with alpha divided by the number of maps in the sum, as in the original code.
Normalisation = Literal["paper", "towers", "original"]
_ORIGINAL_ALPHA: Final = 1e-4 / 5  # layers-145.cfg divides alpha by the five maps of the sum
_BUILT_IN: Final = Path(__file__).with_name("recipes")


AUTO: Final = -1  # the number that "auto" stands for: sizing.py chooses the value for the data set


def _within(default: float, low: float, high: float, *, auto: bool = False) -> Any:
    """Return a field whose value must be in [low, high]. auto: or "auto"."""
    return field(default=default, metadata={"range": (low, high), "auto": auto})


@dataclass(frozen=True, slots=True)
class Recipe:
    """All hyperparameters of a training run. Learning rates are per step.

    A value can be AUTO if its field allows it. `sizing.sized` replaces all of these for a data set.
    """

    name: str = "custom"
    # The net.
    variant: Variant = "full"  # the paper's net, or a variant that the paper compares with it (variants.py)
    width: float = _within(1.0, 1 / 64, 4)  # factor on the numbers of kernels and neurons; the paper's is 1
    input_scale: float = _within(1.0, 1e-4, 1)  # factor on the mean-subtracted pixels; the paper's is 1
    dropout: Dropout = "paper"
    initialisation: Initialisation = "paper"
    starter: bool = False  # conv1 to conv5 start from shipped weights (runs/starter.py) instead of random ones
    normalisation: Normalisation = "paper"
    # The optimizer (section 5).
    epochs: int = _within(90, 1, 10_000, auto=True)
    epoch_images: int = _within(0, 0, 1_000_000_000, auto=True)  # training images of an epoch, drawn for each; 0: all
    batch_size: int = _within(128, 1, 65_536)
    learning_rate: float = _within(0.01, 0, 10)  # the highest rate of the schedule
    reference_batch: int = _within(0, 0, 65_536)  # batch size for which learning_rate is meant; 0: do not scale it
    momentum: float = _within(0.9, 0, 0.9999)
    weight_decay: float = _within(0.0005, 0, 1)
    decay_biases: bool = True  # False in the original code
    bias_rate_factor: float = _within(1.0, 0, 100)  # 2 in the original code
    update: UpdateRule = "paper"  # whether the velocity includes the learning rate ("paper")
    schedule: Schedule = "plateau"
    warm_up: float = _within(0.3, 0, 1)  # one-cycle, cosine: share of the steps until the highest rate
    patience: int = _within(5, 1, 1_000)  # plateau: epochs without a lower validation error
    drops: int = _within(3, 0, 20)  # plateau: number of divisions by 10 before the run ends
    balance: float = _within(0.0, 0, 2)  # adjustment of the logits for the class frequencies; 1: classes count equally
    keep_best: bool = False  # the final weights are those of the best validation, instead of the last step
    early_stop: int = _within(0, 0, 10_000, auto=True)  # validations without an improvement that end the run; 0: never
    # Fine-tuning.
    frozen_layers: int = _within(0, 0, 7, auto=True)  # layers with weights, from the input on, that are not trained
    head_share: float = _within(0.0, 0, 1, auto=True)  # share of the steps, at the start, that train only a new fc8
    body_rate_factor: float = _within(1.0, 0, 1, auto=True)  # factor on the rates of all layers but fc8
    # Augmentation (section 4.1).
    smallest_crop: float = _within(0.0, 0, 1, auto=True)  # least share of the image's area in a crop; 0: 224x224 pixels
    colour_jitter: float = _within(
        0.0, 0, 0.9, auto=True
    )  # largest relative change of brightness, contrast, saturation
    flip: bool = True
    flip_vertical: bool = False
    quarter_turns: bool = False  # rotations by 90 degrees, for images without an upright orientation
    colour_noise: float = _within(0.1, 0, 10)  # standard deviation of the alphas; 0: off
    noise_shrinks: bool = False  # the original code divides a noisy image by 1 + colour_noise
    noise_off_below: float = _within(0, 0, 1)  # no noise while the rate is below this share of the highest
    # Regularization that the paper does not have (Bag of Tricks).
    label_smoothing: float = _within(0.0, 0, 0.99, auto=True)  # share of a label that is spread evenly over all classes
    mixup: float = _within(0.0, 0, 10, auto=True)  # alpha of the Beta distribution that blends two images; 0: off
    # The exported version.
    calibrate: bool = False  # divide the logits by a temperature that is fitted to the validation images
    # How the run is executed. Apart from the rounding by `precision`, these do not change the result.
    precision: Precision = "auto"
    validate_every: int = _within(1, 1, 10_000, auto=True)  # in epochs; the last epoch is always validated
    flat_loss_steps: int = _within(100, 1, 1_000_000)  # steps after which an unchanged loss causes a warning

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.metadata.get("auto") and value in ("auto", AUTO):
                value = AUTO
            else:
                value = _checked(spec.name, value, hints[spec.name], spec.metadata.get("range"))
            object.__setattr__(self, spec.name, value)

    def architecture(self, classes: int) -> Architecture:
        """Return the net of this recipe for `classes` classes."""
        name = "alexnet" if self.variant == "full" else f"alexnet-{self.variant}"
        net = Architecture(classes, variant_layers(self.variant), self.dropout, self.input_scale, name)
        if self.normalisation != "paper":
            changes = {"towers": 2} if self.normalisation == "towers" else {"towers": 2, "alpha": _ORIGINAL_ALPHA}
            layers = (replace(layer, **changes) if isinstance(layer, Norm) else layer for layer in net.layers)
            net = replace(net, layers=tuple(layers))
        return net.scaled(self.width)

    @property
    def highest_rate(self) -> float:
        """The highest rate of the schedule: `learning_rate`, in proportion to the batch if `reference_batch` is set."""
        return self.learning_rate * (self.batch_size / self.reference_batch if self.reference_batch else 1)

    def open_values(self) -> tuple[str, ...]:
        """Return the keys whose value is AUTO."""
        return tuple(
            spec.name for spec in fields(self) if spec.metadata.get("auto") and getattr(self, spec.name) == AUTO
        )

    def completed_by(self, chosen: Recipe) -> Recipe:
        """Return this recipe with the values of `chosen` where it leaves them open."""
        return replace(self, **{key: getattr(chosen, key) for key in self.open_values()})

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON types, for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "recipe") -> Recipe:
        """Build from JSON types. Missing keys have their default values. Raises RecipeError, which names `source`."""
        known = [spec.name for spec in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise RecipeError(f"Unknown key {unknown[0]!r} in {source}. The keys of a recipe are: {', '.join(known)}.")
        return cls(**values)

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """Return a copy with `key=value` settings of the command line applied. Raises RecipeError."""
        changes: dict[str, Any] = {}
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise RecipeError(f"--set expects key=value (for example --set epochs=3), but got {setting!r}.")
            changes[key.strip()] = _from_text(text.strip())
        return Recipe.from_dict(self.to_dict() | changes, source="--set")


def load_recipe(name_or_path: str) -> Recipe:
    """Load a recipe by name (see `recipe_names`) or from a TOML file. Raises RecipeError."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        names = recipe_names()
        if name_or_path not in names:
            raise RecipeError(
                f"There is no recipe {name_or_path!r}. Use one of {', '.join(names)}, or the path of a .toml file."
            )
        path = _BUILT_IN / f"{name_or_path}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"Recipe {name_or_path} is not valid TOML: {error}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"Recipe {path} cannot be read: {error}.") from error
    return Recipe.from_dict({"name": path.stem, **values}, source=f"recipe {name_or_path}")


def recipe_names() -> tuple[str, ...]:
    """Return the names of the built-in recipes."""
    return tuple(sorted(path.stem for path in _BUILT_IN.glob("*.toml")))


def _from_text(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _checked(key: str, value: Any, hint: Any, limits: tuple[float, float] | None) -> Any:
    """Return `value` converted to the type of its field. Raises RecipeError if it is not valid."""
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        valid, expected = value in choices, "one of " + ", ".join(choices)
    elif hint is bool:
        valid, expected = isinstance(value, bool), "true or false"
    elif hint is str:
        valid, expected = isinstance(value, str), "a string"
    else:
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        whole = numeric and float(value).is_integer()
        low, high = limits if limits else (float("-inf"), float("inf"))
        valid = numeric and (hint is float or whole) and low <= value <= high
        expected = f"{'a whole number' if hint is int else 'a number'} from {low:g} to {high:g}"
    if not valid:
        raise RecipeError(f"Recipe value {key}={value!r} is not valid: expected {expected}.")
    return hint(value) if hint in (int, float) else value
