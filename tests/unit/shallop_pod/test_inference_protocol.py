"""V1 and V2: what is read, what is written, what is refused."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shallop_pod.modelserver.protocol import ProtocolError, Request, parse_v1, parse_v2, render_v1, render_v2


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [2, 2], "datatype": "FP64", "data": [1, 2, 3, 4]} | changes


def v2(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors)} | more).encode()


def test_v1_rows_become_an_array() -> None:
    assert parse_v1(b'{"instances": [[1, 2], [3, 4]]}').rows.tolist() == [[1, 2], [3, 4]]
    assert parse_v1(b'{"inputs": [[1.5]]}').rows.tolist() == [[1.5]]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"nope", "Unrecognized request format"),
        (b"[]", "Expected an object"),
        (b'{"instances": 3}', 'Expected "instances" to be a list'),
        (b'{"instances": []}', "at least one row"),
        (b'{"signature_name": "other", "instances": [[1]]}', 'only "serving_default"'),
        (b'{"instances": [[1, 2], [3]]}', "same length"),
    ],
)
def test_v1_bad_bodies_say_what_to_send(body: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message) as caught:
        parse_v1(body)
    assert caught.value.status == 400


def test_v1_answers_are_plain_json() -> None:
    assert json.loads(render_v1(np.array([1.5, 2.0]))) == {"predictions": [1.5, 2.0]}
    assert json.loads(render_v1(np.array(["a", "b"]))) == {"predictions": ["a", "b"]}
    assert json.loads(render_v1(np.arange(6).reshape(2, 3).T)) == {"predictions": [[0, 3], [1, 4], [2, 5]]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (v2(), "at least one tensor"),
        (v2(tensor(shape=[2, 3])), "means 6 values, data has 4"),
        (v2(tensor(datatype="FP99")), "'FP99' is not known"),
        (v2(tensor(shape="2")), r"inputs\[0\].shape"),
        (v2({"name": "x", "shape": [1], "datatype": "FP32"}), r"inputs\[0\].data: missing"),
        (v2(tensor(datatype=["FP64"])), "is not known"),
        (v2(tensor(shape=[True, 4])), r"inputs\[0\].shape"),
        (v2(tensor(parameters="pd")), r"inputs\[0\]: parameters: expected an object"),
        (v2(tensor(parameters={"binary_data_size": "all"})), "binary_data_size: expected a number of bytes"),
        (b'{"inputs": [{}], "parameters": [1]}', r"inputs\[0\].shape"),
    ],
)
def test_v2_bad_bodies_name_the_field(body: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse_v2(body, None)


NUMBERS = {"FP64": np.float64, "FP32": np.float32, "INT64": np.int64, "UINT8": np.uint8, "BOOL": np.bool_}


@given(st.sampled_from(sorted(NUMBERS)), st.integers(0, 3), st.integers(1, 4), st.booleans())
def test_v2_binary_and_json_tensors_mean_the_same(datatype: str, rows: int, columns: int, nested: bool) -> None:
    array = (np.arange(rows * columns) % 2).astype(NUMBERS[datatype]).reshape(rows, columns)
    plain = tensor(shape=[rows, columns], datatype=datatype, data=(array if nested else array.reshape(-1)).tolist())
    raw = array.tobytes()
    head = v2(
        {
            "name": "x",
            "shape": [rows, columns],
            "datatype": datatype,
            "parameters": {"binary_data_size": len(raw)},
        }
    )
    as_json = parse_v2(v2(plain), None).rows
    as_bytes = parse_v2(head + raw, len(head)).rows
    assert as_json.dtype == as_bytes.dtype
    assert (as_json == as_bytes).all()
    assert as_bytes.shape == (rows, columns)


@given(st.sampled_from(sorted(NUMBERS)), st.integers(1, 5))
def test_v2_binary_answers_hold_the_same_values(datatype: str, rows: int) -> None:
    result = (np.arange(rows) % 2).astype(NUMBERS[datatype])
    body, tensors = render_v2("m", Request(None, "7", binary=True), result)
    assert tensors is not None
    head = json.loads(body)
    assert head["id"] == "7"
    assert head["outputs"][0]["datatype"] == datatype
    assert np.frombuffer(b"".join(tensors), result.dtype).tolist() == result.tolist()
    body, tensors = render_v2("m", Request(None), result)
    assert tensors is None
    assert json.loads(body)["outputs"][0]["data"] == result.tolist()


def test_v2_text_tensors_travel_in_both_forms() -> None:
    words = ["a", "", "häuser"]
    raw = b"".join(len(w.encode()).to_bytes(4, "little") + w.encode() for w in words)
    head = v2({"name": "x", "shape": [3], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}})
    assert parse_v2(head + raw, len(head)).rows.tolist() == words
    _, tensors = render_v2("m", Request(None, binary=True), np.array(words, dtype=object))
    assert tensors == [raw]


def test_columns_for_a_server_without_pandas_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ProtocolError, match="not named columns"):
        parse_v1(b'{"instances": [{"a": 1}]}')
    with pytest.raises(ProtocolError, match="not named columns"):
        parse_v2(v2(tensor(), tensor(name="y")), None)


ANYTHING = st.recursive(
    st.sampled_from(
        [None, True, -1, 2, 1.5, 2**70, "", "a", "FP32", "BYTES", "pd", "base64", [1, 2], [["a"]], {"a": 1}]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "a", "data"]), inner, max_size=3)
    ),
    max_leaves=6,
)
TENSORS = st.fixed_dictionaries(
    {"name": ANYTHING | st.just("x"), "shape": ANYTHING | st.just([2]), "datatype": ANYTHING | st.just("FP64")},
    optional={"data": ANYTHING | st.just([1, 2]), "parameters": ANYTHING | st.just({"binary_data_size": 16})},
)


@settings(derandomize=True)
@given(
    st.lists(TENSORS, max_size=2) | ANYTHING,
    st.fixed_dictionaries({}, optional={name: ANYTHING for name in ("id", "parameters", "outputs")}),
    st.booleans(),
)
def test_v2_requests_of_any_shape_are_read_or_refused(inputs: Any, more: dict[str, Any], binary: bool) -> None:
    body = json.dumps({"inputs": inputs, **more}).encode()
    try:
        parse_v2(body + bytes(16) * binary, len(body) if binary else None, [])
    except ProtocolError as refused:
        assert str(refused)


def test_v2_codecs_of_mlserver_turn_texts_into_what_they_stand_for() -> None:
    def read(content_type: str, *texts: str) -> Any:
        tensor = {"name": "x", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}
        body = {"inputs": [tensor | {"parameters": {"content_type": content_type}}]}
        return parse_v2(json.dumps(body).encode(), None).rows.tolist()

    assert read("base64", "AAE=", "") == [b"\x00\x01", b""]
    assert read("datetime", "2026-01-02T03:04:05") == [datetime(2026, 1, 2, 3, 4, 5)]
    assert read("str", "AAE=") == ["AAE="]
    for kind in ("base64", "datetime"):
        with pytest.raises(ProtocolError, match=rf"inputs\[0\]: content_type {kind}"):
            read(kind, "!")
