"""The routers of the service, one for each resource."""

from __future__ import annotations

from service.api.documentation import page as documentation
from service.api.routes import (
    classify,
    embed,
    explain,
    health,
    images,
    index,
    jobs,
    models,
    oip,
    page,
    report,
    search,
)
from service.api.routes.copies import backups, snapshots
from service.api.routes.labelling import index_map, label_studio, suggestions

ROUTERS = (
    classify.router,
    explain.router,
    search.router,
    embed.router,
    suggestions.router,  # before the images: a path of theirs would match its path too
    images.router,
    index.router,
    snapshots.router,
    index_map.router,
    label_studio.router,
    jobs.router,
    backups.router,
    models.router,
    report.router,
    oip.router,
    health.router,
    page.router,
    documentation.router,
)

__all__ = ["ROUTERS"]
