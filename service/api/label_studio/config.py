"""Reads a labeling configuration: which Choices belong to which image.

    <View>
      <Image name="image" value="$picture"/>
      <Choices name="label" toName="image"><Choice value="Cat" alias="cat" predicted_values="tabby,siamese"/></Choices>
    </View>

Guarantees: entities and document types are rejected, so a small text cannot become a large one.
Out of scope: Choices for a region of an image, choices that a task brings itself (value="$options"), other tags.
References: https://labelstud.io/tags/choices, https://labelstud.io/tags/image
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from xml.parsers import expat

from index.labels import LABEL_FIELD, label_of
from service.api.label_studio.errors import LabelConfigError


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice. name: what a result contains. accepted: the labels that mean it, in the order of preference."""

    name: str
    accepted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """Choices of an image.

    name, to_name: of the tags. data: the name in a task's data under which its image is. field: the metadata field
    that stores the chosen label.
    """

    name: str
    to_name: str
    data: str
    field: str
    choices: tuple[Choice, ...]

    def names_of(self, labels: Collection[str]) -> dict[str, str]:
        """Return {label: name of the choice that it means}, for those labels that mean one."""
        exact = {accepted: choice.name for choice in reversed(self.choices) for accepted in reversed(choice.accepted)}
        folded = {text.casefold(): name for text, name in exact.items()}
        found = {label: exact.get(label) or folded.get(label.casefold()) for label in labels}
        return {label: name for label, name in found.items() if name is not None}


class _Reader:
    """Collects the Image, Choices and Choice tags of a configuration."""

    def __init__(self) -> None:
        self.images: dict[str, str] = {}
        self.controls: list[tuple[Mapping[str, str], list[Choice]]] = []
        self._open: list[tuple[Mapping[str, str], list[Choice]] | None] = []

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        control = self._open[-1] if self._open else None
        if tag == "Image" and attributes.get("value", "").startswith("$"):
            self.images[attributes.get("name", "")] = attributes["value"][1:]
        elif tag == "Choices":
            control = (attributes, [])
            self.controls.append(control)
        elif tag == "Choice" and control is not None and attributes.get("value"):
            control[1].append(_choice(attributes))
        self._open.append(control)

    def end(self, _tag: str) -> None:
        self._open.pop()


def parse_config(text: object) -> list[Control]:
    """Return the Choices of images, at least one. Raises LabelConfigError."""
    if not isinstance(text, str) or not text.strip():
        raise LabelConfigError("it is missing")
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.StartDoctypeDeclHandler = _reject_doctype
    try:
        parser.Parse(text.encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        raise LabelConfigError(f"it is not valid XML ({error})") from None
    usable = [
        (attributes, choices)
        for attributes, choices in reader.controls
        if choices and attributes.get("toName") in reader.images and attributes.get("perRegion") != "true"
    ]
    if not usable:
        raise LabelConfigError("it has no Choices with at least one Choice that belong to a whole Image")
    names = [attributes.get("name", "") for attributes, _ in usable]
    first = names.index(LABEL_FIELD) if LABEL_FIELD in names else 0
    return [
        Control(
            attributes.get("name", ""),
            attributes["toName"],
            reader.images[attributes["toName"]],
            LABEL_FIELD if number == first else attributes.get("name", ""),
            tuple(choices),
        )
        for number, (attributes, choices) in enumerate(usable)
    ]


def _choice(attributes: Mapping[str, str]) -> Choice:
    # Label Studio stores the alias instead of the value, if there is one.
    name = attributes.get("alias") or attributes["value"]
    predicted = attributes.get("predicted_values", "").split(",")
    accepted = [label_of(text) for text in (*predicted, name, attributes["value"])]
    return Choice(name, tuple(dict.fromkeys(text for text in accepted if text)))


def _reject_doctype(*_: object) -> None:
    raise LabelConfigError("it has a document type, which is not allowed")
