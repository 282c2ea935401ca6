"""The variants of the paper: differences, numbers of parameters, training and export."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import onnxruntime
import pytest
import torch

from model_store.errors import RecipeError
from model_store.manifest import MODEL_FILE
from model_store.training.export.served_graph import write_served_graph
from model_store.training.nets.alexnet import PAPER_LAYERS, AlexNet, Conv, Norm, Pool, initialise
from model_store.training.nets.variants import PUBLISHED, Variant, variant_layers
from model_store.training.recipe import Recipe

VARIANTS: tuple[Variant, ...] = get_args(Variant)
FULL = {
    "conv1": 96 * (3 * 121 + 1),
    "conv2": 256 * (48 * 25 + 1),
    "conv3": 384 * (256 * 9 + 1),
    "conv4": 384 * (192 * 9 + 1),
    "conv5": 256 * (192 * 9 + 1),
    "fc6": 4096 * (9216 + 1),
    "fc7": 4096 * (4096 + 1),
    "fc8": 1000 * (4096 + 1),
}
EXPECTED: dict[Variant, dict[str, int]] = {
    "full": FULL,
    # Footnote 2: half of the kernels in conv1 to conv4, each of which reads all input maps.
    "one-tower": FULL
    | {
        "conv1": 48 * (3 * 121 + 1),
        "conv2": 128 * (48 * 25 + 1),
        "conv3": 192 * (128 * 9 + 1),
        "conv4": 192 * (192 * 9 + 1),
        "conv5": 256 * (192 * 9 + 1),
    },
    "no-lrn": FULL,
    "pool-2x2": FULL,
    "no-conv3": {**{k: v for k, v in FULL.items() if k != "conv3"}, "conv4": 384 * (128 * 9 + 1)},
    "no-conv4": {k: v for k, v in FULL.items() if k != "conv4"},
    "no-conv5": {**{k: v for k, v in FULL.items() if k != "conv5"}, "fc6": 4096 * (384 * 36 + 1)},
    "sixth-conv": FULL | {"conv6": 256 * (128 * 9 + 1)},
}


def counts(variant: Variant, classes: int = 1000) -> dict[str, int]:
    with torch.device("meta"):
        return AlexNet(Recipe(variant=variant).architecture(classes)).parameter_counts()


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_has_the_expected_number_of_parameters(variant: Variant) -> None:
    assert counts(variant) == EXPECTED[variant]


def test_the_one_tower_net_has_about_as_many_parameters_as_the_full_net() -> None:
    whole, one = sum(counts("full").values()), sum(counts("one-tower").values())
    assert (whole, one) == (60_965_224, 59_798_312)
    assert 0.95 < one / whole < 1


@pytest.mark.parametrize(("classes", "total"), [(1000, 60_965_224), (10_184, 98_592_072), (21_841, 146_350_801)])
def test_parameter_counts_match_for_the_numbers_of_classes_in_the_paper(classes: int, total: int) -> None:
    for variant in ("full", "sixth-conv"):
        found = counts(variant, classes)
        assert found["fc8"] == classes * 4097
        assert sum(found.values()) == total + (EXPECTED["sixth-conv"]["conv6"] if variant == "sixth-conv" else 0)


def test_a_variant_changes_only_what_its_name_says() -> None:
    assert variant_layers("full") == PAPER_LAYERS
    assert [x for x in PAPER_LAYERS if not isinstance(x, Norm)] == list(variant_layers("no-lrn"))
    for layer, paper in zip(variant_layers("pool-2x2"), PAPER_LAYERS, strict=True):
        assert layer == (Pool(paper.name, 2, 2) if isinstance(paper, Pool) else paper)
    sizes = {entry.name: entry.size for entry in Recipe(variant="pool-2x2").architecture(2).maps()}
    assert (sizes["pool1"], sizes["pool2"], sizes["pool5"]) == (27, 13, 6)  # "of equivalent dimensions"
    towers = {layer.towers for layer in variant_layers("one-tower") if isinstance(layer, Conv)}
    assert towers == {1}
    names = [layer.name for layer in variant_layers("sixth-conv")]
    assert names[names.index("pool5") + 1] == "conv6"
    assert set(PUBLISHED) == set(VARIANTS) - {"full", "sixth-conv"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_trains_all_weights_and_exports_with_the_same_outputs(variant: Variant, tmp_path: Path) -> None:
    architecture = Recipe(variant=variant, width=1 / 32, input_scale=1 / 64).architecture(3)
    assert architecture.name == ("alexnet" if variant == "full" else f"alexnet-{variant}")
    net = AlexNet(architecture)
    initialise(net, "he", torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 224, 224, 3), dtype=torch.uint8)
    mean = torch.full((256, 256, 3), 120.0)
    x = (images.float() - 120).permute(0, 3, 1, 2)
    net(x).square().sum().backward()
    assert all(bool(p.grad is not None and p.grad.abs().sum() > 0) for p in net.parameters())
    net.eval()
    write_served_graph(net, mean.numpy(), tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / MODEL_FILE, providers=["CPUExecutionProvider"])
    (served,) = session.run(["probabilities"], {"pixels": images.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(served), net(x).softmax(1), atol=1e-5)


def test_the_error_for_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"variant='no-conv2'.*full, one-tower, no-lrn, pool-2x2"):
        Recipe().with_settings(["variant=no-conv2"])
