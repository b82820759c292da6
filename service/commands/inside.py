"""What commands share that work on a data root itself, beside a service or without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.commands.common import BadOption, data_root
from service.settings import ServiceSettings
from storage.catalogue import Catalogue
from storage.errors import CatalogueTooNew, CatalogueUnavailable


def inside(chosen: Path | None) -> ServiceSettings:
    """The settings for a data root. Raises BadOption where its catalogue has never been made."""
    settings = ServiceSettings(data_root=data_root(chosen))
    if settings.db_url is None and not (settings.data_root / "catalogue.db").is_file():
        raise BadOption(f"--data-root {settings.data_root}: there is no catalogue.db in it; name a data root")
    return settings


@contextmanager
def opened(chosen: Path | None) -> Iterator[tuple[ServiceSettings, Catalogue]]:
    """The settings for a data root, and its catalogue. Raises BadOption where there is none."""
    settings = inside(chosen)
    try:
        catalogue = Catalogue.open(settings.catalogue_url)
    except (CatalogueUnavailable, CatalogueTooNew) as error:
        raise BadOption(str(error)) from error
    with catalogue:
        try:
            yield settings, catalogue
        except CatalogueUnavailable as error:
            raise BadOption(str(error)) from error
