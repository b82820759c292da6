"""The log of a job: numbered by place, whole lines only, and never larger than it may be."""

from __future__ import annotations

from pathlib import Path

from storage.job_logs import FULL, PAGE_BYTES, JobLog, log_path, read_log

JOB = "job_1"


def write(root: Path, *texts: str, attempt: int = 1, **options: int) -> None:
    with JobLog(root, JOB, **options) as log:
        for text in texts:
            log.append({"attempt": attempt, "text": text})


def texts(root: Path, **where: int) -> list[str]:
    return [line["text"] for line in read_log(root, JOB, **where).lines]


def test_lines_are_numbered_in_order_and_are_read_from_where_one_was(tmp_path: Path) -> None:
    assert read_log(tmp_path, JOB, after=7) == read_log(tmp_path, JOB, after=7, limit=1)
    assert (read_log(tmp_path, JOB, after=7).lines, read_log(tmp_path, JOB, after=7).next_after) == ((), 7)
    write(tmp_path, "a", "ä\nö")
    write(tmp_path, "c", attempt=2)
    page = read_log(tmp_path, JOB)
    assert [(line["seq"], line["attempt"], line["text"]) for line in page.lines] == [
        (1, 1, "a"),
        (2, 1, "ä\nö"),
        (3, 2, "c"),
    ]
    assert (page.next_after, page.more) == (3, False)
    first = read_log(tmp_path, JOB, limit=2)
    assert (len(first.lines), first.next_after, first.more) == (2, 2, True)
    assert texts(tmp_path, after=first.next_after) == ["c"]
    last = read_log(tmp_path, JOB, after=3)
    assert (last.lines, last.next_after, last.more) == ((), 3, False)


def test_two_writers_at_once_give_no_number_twice(tmp_path: Path) -> None:
    with JobLog(tmp_path, JOB) as late, JobLog(tmp_path, JOB) as now:
        for number in range(50):
            (late, now)[number % 2].append({"text": str(number)})
    lines = read_log(tmp_path, JOB).lines
    assert [(line["seq"], line["text"]) for line in lines] == [(n + 1, str(n)) for n in range(50)]


def test_a_line_that_comes_after_the_end_goes_nowhere(tmp_path: Path) -> None:
    """Another thread may still be writing; the file's number belongs to another file soon."""
    with JobLog(tmp_path, JOB) as late:
        pass
    other = (tmp_path / "other").open("wb+")
    late.append({"text": "a"})
    late.close()
    other.seek(0)
    assert other.read() == b""
    other.close()
    assert texts(tmp_path) == []


def test_a_line_that_a_killed_writer_left_half_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "whole")
    with log_path(tmp_path, JOB).open("ab") as file:
        file.write(b'{"text":"ha')
    assert texts(tmp_path) == ["whole"]
    assert read_log(tmp_path, JOB).next_after == 1
    write(tmp_path, "next")
    page = read_log(tmp_path, JOB)
    assert [(line["seq"], line["text"]) for line in page.lines] == [(1, "whole"), (3, "next")]


def test_a_full_log_says_so_once_and_takes_no_more(tmp_path: Path) -> None:
    most = 20_000
    for attempt in (1, 2, 3):
        write(tmp_path, *["x" * 300] * 100, "short", attempt=attempt, most_bytes=most)
    page = read_log(tmp_path, JOB)
    assert most - 2000 < log_path(tmp_path, JOB).stat().st_size <= most
    assert [line["seq"] for line in page.lines if line.get("event") == FULL] == [page.next_after]
    assert "20,000" in page.lines[-1]["text"]
    assert page.lines[-1]["attempt"] == 1


def test_pages_are_bounded_in_bytes(tmp_path: Path) -> None:
    write(tmp_path, *["x" * 100_000] * 30)
    page, seen = read_log(tmp_path, JOB), 0
    assert sum(len(line["text"]) for line in page.lines) < PAGE_BYTES + 200_000
    while True:
        seen += len(page.lines)
        if not page.more:
            break
        page = read_log(tmp_path, JOB, after=page.next_after)
    assert seen == 30


def test_a_log_that_was_removed_stays_so(tmp_path: Path) -> None:
    with JobLog(tmp_path, JOB) as late:
        late.append({"text": "a"})
        log_path(tmp_path, JOB).unlink()
        late.append({"text": "b"})
    assert texts(tmp_path) == []
    assert not log_path(tmp_path, JOB).exists()
