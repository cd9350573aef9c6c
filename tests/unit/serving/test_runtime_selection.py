"""Which runtime serves a model."""

from __future__ import annotations

from typing import Any

import pytest

from shallop.kube.objects import Object
from shallop.serving.selection import ModelFormat, SelectionError, select_runtime
from shallop.serving.servingruntime import load_runtimes, rivals, validate

SKLEARN = {"name": "sklearn", "version": "1", "autoSelect": True, "priority": 1}


def runtime(name: str, *formats: dict[str, Any], created: str = "2026-01-01T00:00:00Z", **spec: Any) -> Object:
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ClusterServingRuntime",
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"supportedModelFormats": list(formats), "containers": [{"name": "kserve-container"}], **spec},
    }


def chosen(
    *clustered: Object,
    format_: ModelFormat = ModelFormat("sklearn"),
    protocol: str = "v1",
    wanted: str = "",
    namespaced: tuple[Object, ...] = (),
) -> str:
    return str(select_runtime(format_, protocol, wanted, namespaced, clustered)["metadata"]["name"])


def test_the_shipped_runtimes_serve_their_formats() -> None:
    shipped = load_runtimes()
    assert chosen(*shipped) == "kserve-sklearnserver"
    assert chosen(*shipped, format_=ModelFormat("xgboost")) == "kserve-xgbserver"
    # As upstream: of two that fit MLServer has the higher priority, but speaks only V2.
    assert chosen(*shipped, format_=ModelFormat("xgboost"), protocol="v2") == "kserve-mlserver"
    assert chosen(*shipped, format_=ModelFormat("sklearn"), protocol="grpc-v2") == "kserve-sklearnserver"
    assert chosen(*shipped, format_=ModelFormat("tensorflow")) == "kserve-tensorflow-serving"
    assert chosen(*shipped, format_=ModelFormat("onnx"), protocol="v2") == "kserve-tritonserver"
    assert chosen(*shipped, format_=ModelFormat("pytorch")) == "kserve-torchserve"
    assert chosen(*shipped, format_=ModelFormat("mlflow"), protocol="v2") == "kserve-mlserver"
    assert chosen(*shipped, format_=ModelFormat("huggingface"), protocol="v2") == "kserve-huggingfaceserver"
    assert all(validate(item, None) == [] for item in shipped)


def test_a_runtime_of_the_namespace_wins_over_a_better_one_of_the_cluster() -> None:
    own = runtime("own", SKLEARN)
    assert chosen(runtime("cluster", SKLEARN | {"priority": 9}), namespaced=(own,)) == "own"


def test_higher_priority_wins_and_none_comes_last() -> None:
    unset = {"name": "sklearn", "version": "1", "autoSelect": True}
    assert chosen(runtime("a", unset), runtime("b", SKLEARN), runtime("c", SKLEARN | {"priority": 2})) == "c"
    assert chosen(runtime("a", unset), runtime("b", SKLEARN)) == "b"


def test_equal_priorities_go_to_the_lower_protocol_then_the_newest_then_the_name() -> None:
    assert (
        chosen(runtime("a", SKLEARN, protocolVersions=["v2"]), runtime("b", SKLEARN, protocolVersions=["v2", "v1"]))
        == "b"
    )
    newer = runtime("z", SKLEARN, created="2026-02-01T00:00:00Z")
    assert chosen(runtime("a", SKLEARN), newer) == "z"
    assert chosen(runtime("b", SKLEARN), runtime("a", SKLEARN)) == "a"


@pytest.mark.parametrize(
    "spec",
    [{"disabled": True}, {"multiModel": True}, {"protocolVersions": ["v2"]}, {"workerSpec": {"containers": []}}],
)
def test_a_runtime_that_does_not_fit_is_passed_over(spec: dict[str, Any]) -> None:
    assert chosen(runtime("no", SKLEARN | {"priority": 9}, **spec), runtime("yes", SKLEARN)) == "yes"


def test_a_version_must_match_when_it_is_given() -> None:
    with pytest.raises(SelectionError) as error:
        chosen(runtime("a", SKLEARN), format_=ModelFormat("sklearn", "0"))
    assert error.value.reason == "NoSupportingRuntime"
    assert "no runtime serves sklearn 0; the runtimes here serve: sklearn 1" in error.value.message


def test_only_a_named_runtime_may_serve_without_auto_select() -> None:
    manual = runtime("manual", {"name": "sklearn"})
    assert chosen(manual, wanted="manual") == "manual"
    with pytest.raises(SelectionError):
        chosen(manual)


@pytest.mark.parametrize(
    ("wanted", "reason", "message"),
    [
        ("kserve-sklearn", "RuntimeNotRecognized", 'did you mean "kserve-sklearnserver"?'),
        ("zzz", "RuntimeNotRecognized", "there are: kserve-huggingfaceserver, kserve-lgbserver"),
        (
            "kserve-xgbserver",
            "NoSupportingRuntime",
            'runtime "kserve-xgbserver" does not serve sklearn; it serves: xgboost 2',
        ),
    ],
)
def test_a_wrong_name_says_what_would_be_right(wanted: str, reason: str, message: str) -> None:
    with pytest.raises(SelectionError) as error:
        chosen(*load_runtimes(), wanted=wanted)
    assert error.value.reason == reason
    assert message in error.value.message


def test_a_disabled_runtime_cannot_be_named() -> None:
    with pytest.raises(SelectionError) as error:
        chosen(runtime("off", SKLEARN, disabled=True), wanted="off")
    assert error.value.reason == "RuntimeDisabled"


def test_a_missing_protocol_is_told_from_a_missing_format() -> None:
    with pytest.raises(SelectionError) as error:
        chosen(*load_runtimes(), protocol="grpc-v1")
    assert "with protocol grpc-v1" in error.value.message


def test_entries_of_one_format_must_agree_on_their_priority() -> None:
    bad = runtime("bad", SKLEARN, SKLEARN | {"version": "2", "priority": 2})
    assert [error.field for error in validate(bad, None)] == ["spec.supportedModelFormats[1].priority"]


def test_a_worker_specification_cannot_be_removed() -> None:
    old = runtime("r", SKLEARN, workerSpec={"containers": []})
    assert [error.field for error in validate(runtime("r", SKLEARN), old)] == ["spec.workerSpec"]


@pytest.mark.parametrize(
    "spec",
    [
        {"protocolVersions": ["v2"]},
        {"disabled": True},
        {"multiModel": True},
    ],
)
def test_runtimes_of_one_scope_have_priorities_of_their_own(spec: dict[str, Any]) -> None:
    own = runtime("own", {"name": "odd"}, SKLEARN, protocolVersions=["v1"])
    assert [error.field for error in rivals(own, [runtime("a", SKLEARN)])] == ["spec.supportedModelFormats[1].priority"]
    assert rivals(own, [runtime("a", SKLEARN, **spec), runtime("b", SKLEARN | {"priority": 2})]) == []
    assert rivals(own, [runtime("a", SKLEARN | {"version": "2"}), runtime("b", SKLEARN | {"autoSelect": False})]) == []
    assert [rivals(one, [two for two in load_runtimes() if two != one]) for one in load_runtimes()] == [[]] * len(
        load_runtimes()
    )
