"""The paths of the service: a router for each resource."""

from __future__ import annotations

from service.api.parameters import ClassifyQuery, ModelSearchQuery
from service.api.routes import classify, health, images, index, jobs, models, oip, page, search
from service.direct import Path

ROUTERS = (
    classify.router,
    search.router,
    images.router,
    index.router,
    jobs.router,
    models.router,
    oip.router,
    health.router,
    page.router,
)

DIRECT = {
    "/v1/classify": Path(ClassifyQuery, classify.classify),
    "/v1/search": Path(ModelSearchQuery, search.search),
}
"""The paths that are answered past the framework; their routes describe them."""

__all__ = ["DIRECT", "ROUTERS"]
