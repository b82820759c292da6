"""Several processes on one database: opening, claiming, cancelling, sweeping at the same time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.queues import Queue as Results
from typing import Any

import pytest
from catalogue_examples import KIND, TRANSIENT

from storage.catalogue import Catalogue
from storage.errors import CatalogueUnavailable, JobCancelled, LeaseLost
from storage.jobs import JobState

SPAWN = multiprocessing.get_context("spawn")
PROCESSES = 2
JOBS = 60


Task = Callable[[str, list[str]], list[str]]


def _open_and_ping(url: str, ids: list[str]) -> list[str]:
    with Catalogue.open(url) as catalogue:
        catalogue.ping()
        catalogue.announce("worker", [KIND], "cpu")
    return ["opened"]


def _claim_all(url: str, ids: list[str]) -> list[str]:
    with Catalogue.open(url) as catalogue:
        return [job_id for job_id in ids if catalogue.claim(job_id, "worker", 30) is not None]


def _sweep_until_quiet(url: str, ids: list[str]) -> list[str]:
    with Catalogue.open(url) as catalogue:
        return [job.id for _ in range(3) for job in catalogue.sweep()]


def _finish_or_fail_all(url: str, ids: list[str]) -> list[str]:
    """End every job in one way or the other, as fast as the others cancel them."""
    ended = []
    with Catalogue.open(url) as catalogue:
        for number, job_id in enumerate(ids):
            try:
                if number % 2:
                    catalogue.finish(job_id, 1, {})
                else:
                    catalogue.fail(job_id, 1, {**TRANSIENT, "retryable": False})
                ended.append(job_id)
            except (JobCancelled, LeaseLost):
                pass
    return ended


def _cancel_all(url: str, ids: list[str]) -> list[str]:
    with Catalogue.open(url) as catalogue:
        return [job_id for job_id in ids if catalogue.request_cancel(job_id).state is JobState.CANCELLING]


def _work(task: Task, url: str, ids: list[str], results: Any) -> None:
    results.put((task.__name__, task(url, ids)))


def _together(
    *tasks: Callable[[str, list[str]], list[str]], url: str, ids: list[str]
) -> list[tuple[str, list[str]]]:
    """Run each task in a process of its own, all at the same time."""
    results: Results[tuple[str, list[str]]] = SPAWN.Queue()
    processes = [SPAWN.Process(target=_work, args=(task, url, ids, results)) for task in tasks]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    results.close()
    results.join_thread()
    return answers


def test_processes_may_open_an_empty_database_at_once(url: str) -> None:
    answers = _together(*[_open_and_ping] * PROCESSES, url=url, ids=[])
    assert [answer for _, answer in answers] == [["opened"]] * PROCESSES


def test_a_claim_is_exclusive(catalogue: Catalogue, url: str) -> None:
    catalogue.announce("worker", [KIND], "cpu")
    ids = [catalogue.submit("measure", {}).id for _ in range(JOBS)]
    answers = _together(*[_claim_all] * PROCESSES, url=url, ids=ids)
    assert sorted(job_id for _, claimed in answers for job_id in claimed) == sorted(ids)
    assert {job.attempt for job in catalogue.jobs(limit=JOBS)} == {1}


def test_sweepers_share_the_lost_jobs(catalogue: Catalogue, url: str) -> None:
    catalogue.announce("worker", [KIND], "cpu")
    ids = [catalogue.submit("measure", {}).id for _ in range(JOBS)]
    for job_id in ids:
        catalogue.claim(job_id, "worker", -1)
    answers = _together(*[_sweep_until_quiet] * PROCESSES, url=url, ids=[])
    assert sorted(job_id for _, swept in answers for job_id in swept) == sorted(ids)


def test_a_job_answered_cancelling_never_ends_otherwise(catalogue: Catalogue, url: str) -> None:
    catalogue.announce("worker", [KIND], "cpu")
    ids = [catalogue.submit("measure", {}).id for _ in range(JOBS)]
    for job_id in ids:
        catalogue.claim(job_id, "worker", 300)
    answers = dict(_together(_finish_or_fail_all, _cancel_all, url=url, ids=ids))
    states = {job.id: job.state for job in catalogue.jobs(limit=JOBS)}
    for job_id in answers["_cancel_all"]:
        assert states[job_id] in (JobState.CANCELLING, JobState.CANCELLED)
    for job_id in set(ids) - set(answers["_cancel_all"]):
        assert states[job_id] in (JobState.SUCCEEDED, JobState.FAILED)


def test_a_database_that_cannot_be_reached_is_said_to_be_so() -> None:
    with pytest.raises(CatalogueUnavailable):
        Catalogue.open("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
