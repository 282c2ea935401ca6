"""Errors of requests of Label Studio.

Fc7Error
└── ServiceError
    └── RequestError
        ├── LabelConfigError        a labeling configuration has nothing that fc7 can predict
        └── TaskImageError          the image of a task cannot be used
            └── LabelStudioRefusedError   the URL of an image may not be fetched
"""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import RequestError


@dataclass(eq=False)
class LabelConfigError(RequestError):
    """A labeling configuration has nothing that fc7 can predict."""

    reason: str
    message = (
        "The labeling configuration cannot be used: {reason}. fc7 predicts Choices of a whole image, such as "
        '<Image name="image" value="$image"/><Choices name="label" toName="image"><Choice value="cat"/></Choices>.'
    )


@dataclass(eq=False)
class TaskImageError(RequestError):
    """The image of a task cannot be used."""

    task: object
    reason: str
    message = "The image of task {task} cannot be used: {reason}."


@dataclass(eq=False)
class LabelStudioRefusedError(TaskImageError):
    """The URL of an image may not be fetched."""
