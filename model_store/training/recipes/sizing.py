"""Choose the values that a recipe leaves open, from the number of images and the time allowed.

| open value | chosen |
|---|---|
| `epochs` | about 24,000 images in total, from 6 to 100 epochs, at least 600 steps; or what the time allows |
| `epoch_images` | all images, or less if the time allows less than an epoch |
| `validate_every` | about 40 validations in a run |
| `early_stop` | half of the validations |
| `smallest_crop`, `colour_jitter`, `label_smoothing`, `mixup` | the stronger, the more often each image is seen |
| `frozen_layers`, `head_share`, `body_rate_factor` | for a net that starts from another one's weights |

Guarantees: the same numbers give the same recipe. No value that the recipe sets is changed.
Out of scope: measuring the speed (trainer.py).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

from model_store.errors import RecipeError
from model_store.training.recipe import AUTO, Recipe

IMAGES: Final = 24_000  # seen in a run without a time limit: five to six minutes on two cores with bfloat16
EPOCHS: Final = (6, 100)
MOST_EPOCHS: Final = 400  # with a time limit
STEPS: Final = 600  # at least
VALIDATIONS: Final = 40
FEW_IMAGES: Final = 5_000  # below, the first advice is to start from other weights
_FROZEN_LAYERS: Final = 2  # edges and colors, which any photographs have in common
_HEAD_SHARE: Final = 0.1
_BODY_RATE_FACTOR: Final = 0.2
_TRAINING_SHARE: Final = 0.9  # of the time allowed; the rest is for validations and checkpoints
# (epochs from which it applies, smallest crop, color jitter, label smoothing, mixup). In few epochs, these only slow
# down the training: with label smoothing and mixup, seven epochs on the demo ended with 1.4 points more errors.
_STRENGTHS: Final = ((30, 0.25, 0.3, 0.1, 0.2), (10, 0.5, 0.1, 0.1, 0.0), (0, 0.0, 0.0, 0.0, 0.0))


def sized(
    recipe: Recipe, images: int, *, fine_tuning: bool = False, minutes: float | None = None, speed: float = 0.0
) -> Recipe:
    """Return the recipe for `images` training images, without open values.

    fine_tuning: whether the net starts from another one's weights.
    minutes: the time for training, with `speed` in images per second. None: the default number of images.
    Raises RecipeError if the recipe sets the number of epochs and `minutes` is given.
    """
    if minutes is None:
        epochs, epoch_images = _default_epochs(recipe, images), 0
    elif recipe.epochs != AUTO:
        raise RecipeError(
            f"--minutes chooses the number of epochs, but the recipe sets epochs={recipe.epochs}. Leave one of them "
            "out, or use --set epochs=auto."
        )
    else:
        epochs, epoch_images = _epochs_in(minutes * 60 * _TRAINING_SHARE * speed, images)
    epochs = recipe.epochs if recipe.epochs != AUTO else epochs
    validate_every = math.ceil(epochs / VALIDATIONS) if recipe.validate_every == AUTO else recipe.validate_every
    passes = epochs * (epoch_images or images) / images
    _, crop, jitter, smoothing, mixup = next(level for level in _STRENGTHS if passes >= level[0])
    values: dict[str, Any] = {
        "epochs": epochs,
        "epoch_images": epoch_images,
        "validate_every": validate_every,
        "early_stop": max(3, math.ceil(epochs / validate_every / 2)),
        "smallest_crop": crop,
        "colour_jitter": jitter,
        "label_smoothing": smoothing,
        "mixup": mixup,
        "frozen_layers": _FROZEN_LAYERS if fine_tuning else 0,
        "head_share": _HEAD_SHARE if fine_tuning else 0.0,
        "body_rate_factor": _BODY_RATE_FACTOR if fine_tuning else 1.0,
    }
    return replace(recipe, **{key: values[key] for key in recipe.open_values()})


def describe(recipe: Recipe, images: int) -> str:
    """Return the values of a recipe that depend on the data set, as a sentence for the user."""
    seen = recipe.epoch_images or images
    steps = math.ceil(seen / recipe.batch_size)
    parts = [
        f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''} of {steps} step{'s' if steps > 1 else ''} with "
        f"{recipe.batch_size} images"
    ]
    if recipe.epoch_images:
        parts.append(f"{seen:,} of the {images:,} images in each epoch")
    if recipe.smallest_crop:
        parts.append(f"crops from {recipe.smallest_crop:.0%} of the image")
    flips = [name for name, used in (("mirrored", recipe.flip), ("upside down", recipe.flip_vertical)) if used]
    if flips:
        parts.append(" and ".join(flips))
    parts += [
        f"{name} {value:g}" for name, value in (("jitter", recipe.colour_jitter), ("mixup", recipe.mixup)) if value
    ]
    if recipe.frozen_layers:
        parts.append(f"the first {recipe.frozen_layers} layers frozen")
    if recipe.head_share:
        parts.append(f"{recipe.head_share:.0%} of the steps for a new last layer alone")
    if recipe.balance:
        parts.append("classes balanced")
    if recipe.keep_best:
        parts.append("best validation kept")
    return f"Recipe {recipe.name} for {images:,} images: {', '.join(parts)}."


def advice(recipe: Recipe, images: int) -> str | None:
    """Return what to try for a net that does not start from another one, on few images, as a sentence for the user."""
    if images >= FEW_IMAGES or (recipe.variant, recipe.width) != ("full", 1):
        return None
    start = "trained weights in its convolutions, and random ones elsewhere" if recipe.starter else "random weights"
    return (
        f"The net starts from {start}. With fewer than {FEW_IMAGES:,} images, also try weights trained on ImageNet: "
        "--from imagenet"
    )


def _default_epochs(recipe: Recipe, images: int) -> int:
    low, high = EPOCHS
    steps = math.ceil(images / recipe.batch_size)
    return max(min(max(round(IMAGES / images), low), high), math.ceil(STEPS / steps))


def _epochs_in(seen: float, images: int) -> tuple[int, int]:
    """Return the epochs in which `seen` images are seen in total, and the images of an epoch (0: all)."""
    epochs = min(max(1, math.ceil(seen / images)), MOST_EPOCHS)
    part = int(seen / epochs)
    return epochs, max(1, part) if part < images else 0
