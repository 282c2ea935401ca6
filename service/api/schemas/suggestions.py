"""What to label next."""

from __future__ import annotations

from pydantic import BaseModel, Field

from index.suggestions import Reason, Suggestion, Suggestions
from service.api.schemas.answers import ModelName
from service.api.schemas.links import thumbnail_path


class LabelShare(BaseModel):
    """A label and its share among the labeled neighbors of an image, weighted by their distance, from 0 to 1."""

    label: str
    share: float


class SuggestionInfo(BaseModel):
    """An image to label."""

    key: str
    thumbnail: str
    reason: Reason = Field(
        description="uncertain: its labeled neighbors disagree. different: it is unlike all labeled images. "
        "representative: many unlabeled images resemble it."
    )
    text: str = Field(description="The reason as a sentence.")
    score: float = Field(description="How useful its label is, relative to that of the first suggestion.")
    covers: int = Field(
        description="Number of unlabeled images that are nearer to it than to all labeled or better images."
    )
    margin: float | None = Field(
        description="Share of the first label minus that of the second, from 0 to 1; null if no image has a label."
    )
    distance: float | None = Field(
        description="Distance to the nearest labeled image, on the axes of largest variance; null if there is none."
    )
    labels: list[LabelShare] = Field(description="The labels of its neighbors, at most three, largest share first.")

    @classmethod
    def of(cls, found: Suggestion, root_path: str) -> SuggestionInfo:
        """Return a suggestion with the link to its thumbnail."""
        return cls(
            key=found.key,
            thumbnail=thumbnail_path(found.key, root_path),
            reason=found.reason,
            text=found.text,
            score=found.score,
            covers=found.covers,
            margin=found.margin,
            distance=found.distance,
            labels=[LabelShare(label=label, share=share) for label, share in found.labels],
        )


class SuggestionsAnswer(BaseModel):
    """Images to label, the most useful first. note: how the choice was limited; "" if all images were compared."""

    model: ModelName
    field: str
    unlabeled: int = Field(description="Number of matching images without a label.")
    labeled: int = Field(description="Number of matching images with a label.")
    compared: int = Field(description="Number of unlabeled images that were compared.")
    note: str
    suggestions: list[SuggestionInfo]

    @classmethod
    def of(cls, model: str, field: str, found: Suggestions, root_path: str) -> SuggestionsAnswer:
        """Return the answer. model: reference of the searched model."""
        return cls(
            model=ModelName.of_reference(model),
            field=field,
            unlabeled=found.unlabeled,
            labeled=found.labeled,
            compared=found.compared,
            note=found.note,
            suggestions=[SuggestionInfo.of(each, root_path) for each in found.suggestions],
        )
