"""Ids: ordered by time, valid UUIDs of version 7."""

from __future__ import annotations

import time
import uuid

from storage.ids import new_id


def test_ids_made_one_after_the_other_are_in_order() -> None:
    made = [new_id("job") for _ in range(10_000)]
    assert made == sorted(set(made))


def test_an_id_is_a_uuid_of_version_7_that_holds_the_time() -> None:
    before = time.time_ns() // 1_000_000
    prefix, _, text = new_id("vol").partition("_")
    value = uuid.UUID(text)
    assert prefix == "vol"
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert before <= value.int >> 80 <= before + 60_000
