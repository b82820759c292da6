"""The doctor's looks at what is kept: catalogue, audit log, orphans, volumes, and jobs that stand still."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from service.examination import Result, fault, sound, warning
from service.settings import ServiceSettings
from storage.audit import AuditLog
from storage.catalogue import Catalogue
from storage.census import take
from storage.garbage import find
from storage.migrations import HEAD, VERSION_TABLE

STUCK_S = 3600.0


def integrity(settings: ServiceSettings) -> Iterator[Result]:
    """What SQLite finds in its file; a PostgreSQL looks after itself."""
    if settings.db_url is not None:
        return
    path = settings.data_root / "catalogue.db"
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        found = [row[0] for row in connection.execute("PRAGMA quick_check(10)")]
    if found == ["ok"]:
        size = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
        yield sound("catalogue file", f"{size / 1e6:.1f} MB, sound")
    else:
        yield fault(
            "catalogue file", "; ".join(found), "stop the service and `tomotrain restore` the last backup"
        )


def schema(settings: ServiceSettings) -> Iterator[Result]:
    """Whether the catalogue answers, with this release's schema; it is not brought up to date here."""
    engine = create_engine(settings.catalogue_url)
    try:
        with engine.connect() as connection:
            step = str(connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one())
    except DBAPIError as error:
        cure = "start `tomotrain up`, which makes it or brings it up to date; or correct TOMOTRAIN_DB_URL"
        yield fault("catalogue", f"does not answer ({type(error.orig).__name__}), or is of no release", cure)
        return
    finally:
        engine.dispose()
    if step == HEAD:
        yield sound("catalogue", f"{engine.dialect.name}, schema {step}")
    elif step < HEAD:
        yield warning(
            "catalogue", f"schema {step}, this release's is {HEAD}", "the next start brings it up to date"
        )
    else:
        yield fault(
            "catalogue", f"schema {step}, this release's is {HEAD}", "install the newer release again"
        )


def audit_log(catalogue: Catalogue) -> Iterator[Result]:
    """Whether the chain is whole."""
    log = AuditLog(catalogue.database)
    broken, last = log.verify(), log.records(limit=1)
    if broken is not None:
        cure = "keep the database as evidence; compare with a backup or an export"
        yield fault("audit log", f"record {broken.sequence} {broken.reason}", cure)
    else:
        yield sound("audit log", f"{last[0].sequence if last else 0} records, unbroken")


def orphans(catalogue: Catalogue, settings: ServiceSettings) -> Iterator[Result]:
    """What lies about and belongs to nobody."""
    found = find(settings.data_root, catalogue)
    if found:
        told = f"{len(found)} orphans, {sum(orphan.size for orphan in found) / 1e6:.1f} MB"
        yield warning("orphans", told, "`tomotrain gc` removes them; with --dry-run it lists them")
    else:
        yield sound("orphans", "none")


def work(catalogue: Catalogue, settings: ServiceSettings) -> Iterator[Result]:
    """Workers, queues, and volumes that may not be read."""
    census = take(catalogue.database, fresh_s=settings.worker_fresh_s)
    yield _workers(census.workers)
    stuck = {queue: age for queue, age in census.oldest_queued_s.items() if age > STUCK_S}
    if stuck:
        told = ", ".join(f"{queue}: {age / 3600:.1f} h" for queue, age in stuck.items())
        yield warning("queued jobs", f"the oldest waits for {told}", "start workers, or see their logs")
    elif census.expired_leases:
        found = f"{census.expired_leases} have lost their workers and nobody takes them back"
        yield warning("running jobs", found, "start the API: it sweeps")
    else:
        yield sound("jobs", f"{sum(census.open.values())} open, none stands still")
    closed, _ = census.volumes.get("quarantined", (0, 0))
    if closed:
        cure = "send those scans again; look at the disk (SMART), and at the last backup"
        yield warning("volumes", f"{closed} are quarantined: their bytes changed on the disk", cure)
    else:
        yield sound("volumes", f"{census.volumes.get('ready', (0, 0))[0]} ready, none quarantined")


def _workers(alive: Mapping[str, int]) -> Result:
    if not alive or not any(alive.values()):
        return warning("workers", "none is alive", "`tomotrain up` starts some; jobs wait meanwhile")
    idle = [queue for queue, count in alive.items() if not count]
    if idle:
        return warning("workers", f"none for the queue {', '.join(idle)}", "start one for it")
    return sound("workers", ", ".join(f"{queue}: {count}" for queue, count in alive.items()))
