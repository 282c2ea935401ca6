"""The routers of the service, one for each resource."""

from __future__ import annotations

from service.api.routes import classify, embed, health, images, index, jobs, models, oip, page, report, search

ROUTERS = (
    classify.router,
    search.router,
    embed.router,
    images.router,
    index.router,
    jobs.router,
    models.router,
    report.router,
    oip.router,
    health.router,
    page.router,
)

__all__ = ["ROUTERS"]
