"""What a user does with the ``model-registry`` client; run by that client's own interpreter: SCRIPT PORT."""

from __future__ import annotations

import sys

from model_registry import ModelRegistry
from model_registry.exceptions import StoreError
from model_registry.types import DocArtifact, ModelArtifact


def main(port: int) -> None:
    registry = ModelRegistry("http://127.0.0.1", port, author="ann", is_secure=False)
    model = registry.register_model(
        "flights",
        "/models/flights/1",
        model_format_name="sklearn",
        model_format_version="1",
        version="1",
        owner="ann",
        storage_key="key",
        storage_path="path",
        model_source_kind="kfp",
        model_source_class="pipelinerun",
        model_source_group="default",
        model_source_id="run-1",
        model_source_name="flights run",
        version_description="first",
        metadata={"auc": 0.75, "rows": 1000, "best": True, "note": "a, b"},
    )
    assert (model.name, model.owner, model.state.value) == ("flights", "ann", "LIVE"), model
    version = registry.get_model_version("flights", "1")
    assert version is not None
    assert (version.name, version.author, version.description) == ("1", "ann", "first"), version
    assert version.custom_properties == {"auc": 0.75, "rows": 1000, "best": True, "note": "a, b"}, version
    artifact = registry.get_model_artifact("flights", "1")
    assert artifact is not None
    assert (artifact.uri, artifact.model_format_name) == ("/models/flights/1", "sklearn"), artifact
    assert (artifact.model_source_kind, artifact.model_source_id) == ("kfp", "run-1"), artifact
    refuse_a_known_version(registry)
    update_all(registry)
    page_through(registry)
    low_level(registry)
    assert registry.get_registered_model("nope") is None
    assert registry.get_model_version("flights", "nope") is None


def refuse_a_known_version(registry: ModelRegistry) -> None:
    try:
        registry.register_model("flights", "/x", model_format_name="a", model_format_version="1", version="1")
    except StoreError:
        return
    raise AssertionError("a known version was registered again")


def update_all(registry: ModelRegistry) -> None:
    model = registry.get_registered_model("flights")
    version = registry.get_model_version("flights", "1")
    artifact = registry.get_model_artifact("flights", "1")
    assert model is not None
    assert version is not None
    assert artifact is not None
    model.description = "late flights"
    version.custom_properties = {"auc": 0.8}
    artifact.uri = "/models/flights/moved"
    assert registry.update(model).description == "late flights"
    assert registry.update(version).custom_properties == {"auc": 0.8}
    assert registry.update(artifact).uri == "/models/flights/moved"
    again = registry.get_model_artifact("flights", "1")
    assert again is not None
    assert again.uri == "/models/flights/moved"


def page_through(registry: ModelRegistry) -> None:
    for number in range(2, 8):
        registry.register_model(
            "flights", f"/models/{number}", model_format_name="xgboost", model_format_version="2", version=str(number)
        )
    newest_first = registry.get_model_versions("flights").page_size(3).order_by_creation_time().descending()
    assert [version.name for version in newest_first] == list("7654321")
    assert [version.name for version in registry.get_model_versions("flights").order_by_id()] == list("1234567")
    assert [model.name for model in registry.get_registered_models().page_size(1)] == ["flights"]


def low_level(registry: ModelRegistry) -> None:
    api, run = registry._api, registry.async_runner
    version = registry.get_model_version("flights", "1")
    assert version is not None
    doc = run(api.upsert_model_version_artifact(DocArtifact(name="card", uri="/docs/card.md"), version.id))
    assert doc.name == "card"
    found = run(api.get_model_artifact_by_params("flights", model_version_id=version.id))
    assert isinstance(found, ModelArtifact)
    assert found.uri == "/models/flights/moved"
    names = {type(item).__name__ for item in run(api.get_model_version_artifacts(version.id))}
    assert names == {"DocArtifact", "ModelArtifact"}, names
    moved = run(api.get_artifacts(filter_query="uri LIKE '%/moved'", artifact_type="model-artifact"))
    assert [item.uri for item in moved] == ["/models/flights/moved"]


if __name__ == "__main__":
    main(int(sys.argv[1]))
    print("ok")
