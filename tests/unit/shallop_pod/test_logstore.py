"""Logs as files: what is in each, and that nobody waits for them."""

from __future__ import annotations

import base64
import csv
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from shallop_pod.logstore import Record, StoredLog, StoreOptions, marshal, store_for


def record(id_: str = "1", body: bytes = b"{}") -> Record:
    kind = "org.kubeflow.serving.inference.request"
    place = ("pod", "iris", "team", "predictor", "")
    return Record("s3://b", body, "application/json", kind, id_, *place, {"x-user": ["me"]}, {"tier": "gold"})


def options(url: str = "file:///", size: int = 1, interval_s: float = 60.0) -> StoreOptions:
    return StoreOptions(url, "v1", "json", size, interval_s, "")


def test_one_record_is_an_object_and_several_are_an_array() -> None:
    one = json.loads(marshal([record(body=b"\x00")], "json"))
    assert (one["id"], base64.b64decode(one["bytes"]), one["metadata"]) == ("1", b"\x00", {"x-user": ["me"]})
    assert [item["id"] for item in json.loads(marshal([record("1"), record("2")], "json"))] == ["1", "2"]
    rows = list(csv.DictReader(io.StringIO(marshal([record("1", b'{"a": "b,c"}'), record("2")], "csv").decode())))
    assert [row["id"] for row in rows] == ["1", "2"]
    assert rows[0]["bytes"] == '{"a": "b,c"}' and json.loads(rows[0]["annotations"]) == {"tier": "gold"}


def test_files_are_whole_and_their_names_stay_below_the_folder(tmp_path: Path) -> None:
    log = StoredLog(options(), "team/iris", store_for(f"file://{tmp_path}", {}))
    log.add(record("../../evil"))
    log.drain(30)
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert path.relative_to(tmp_path) == Path("team/iris/v1/..%2F..%2Fevil-request.json")
    assert log.dropped == 0
    with pytest.raises(ValueError, match="gs://x"):
        store_for("gs://x", {})


def test_a_slow_store_fills_a_queue_and_then_records_are_dropped() -> None:
    held, stored = threading.Event(), list[str]()

    def store(key: str, body: bytes, content_type: str) -> None:
        assert held.wait(30)
        stored.append(key)

    log = StoredLog(options(), "", store)
    for number in range(1500):
        log.add(record(str(number)))
    assert 400 <= log.dropped <= 500
    held.set()
    log.drain(30)
    assert len(stored) + log.dropped == 1500


def test_what_cannot_be_stored_is_tried_again_and_then_counted(capsys: pytest.CaptureFixture[str]) -> None:
    tries: list[Any] = []

    def store(key: str, body: bytes, content_type: str) -> None:
        tries.append(key)
        if len(tries) != 2:
            raise OSError("no bucket")

    log = StoredLog(options(size=2), "", store)
    for id_ in "abcd":
        log.add(record(id_))
    log.drain(30)
    assert tries == ["v1/a-batch.json"] * 2 + ["v1/c-batch.json"] * 3
    assert log.dropped == 2
    assert "no bucket" in capsys.readouterr().err
