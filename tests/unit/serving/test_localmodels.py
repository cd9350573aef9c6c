"""Models kept on nodes, and containers that bring models: what is chosen, and what Pods get."""

from __future__ import annotations

from typing import Any

import pytest

from shallop.kube.objects import Object
from shallop.serving.clusterstoragecontainer import (
    DEFAULT_CONTAINER,
    DOWNLOAD_JOB,
    StorageContainerError,
    select_container,
    validate,
)
from shallop.serving.localmodels import (
    CLAIM_NOTE,
    cached_uri,
    find_cache,
    folder_of,
    model_key,
    nodes_of,
    render_claim,
    render_job,
    render_local_models,
)
from shallop.serving.podtemplate import Source, Storage, render_pod_template


def cache(name: str, uri: str, *groups: str, namespace: str = "") -> Object:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"metadata": metadata, "spec": {"sourceModelUri": uri, "nodeGroups": list(groups) or ["disk"]}}


def service(**annotations: str) -> Object:
    notes = {f"serving.kserve.io/{name.replace('_', '-')}": value for name, value in annotations.items()}
    return {
        "metadata": {"name": "s", "namespace": "team", "annotations": notes},
        "spec": {"predictor": {"containers": [{"name": "kserve-container", "image": "i"}]}},
    }


def group(name: str = "disk", **spec: Any) -> Object:
    volume = {"local": {"path": "/models"}, **spec}
    return {
        "metadata": {"name": name},
        "spec": {"storageLimit": "1Gi", "persistentVolumeSpec": volume, "persistentVolumeClaimSpec": {}},
    }


def name_of(found: Any) -> Any:
    return found and (found.cache["metadata"]["name"], found.group)


def test_the_nearest_cache_of_the_own_namespace_is_chosen() -> None:
    caches = [cache("wide", "s3://b"), cache("near", "s3://b/models"), cache("own", "s3://b", namespace="team")]
    assert name_of(find_cache(service(), "s3://b/models/iris", caches[:2])) == ("near", "disk")
    assert name_of(find_cache(service(), "s3://b/models/iris", caches)) == ("own", "disk")
    assert find_cache(service(), "s3://b/models2", caches[1:2]) is None
    assert find_cache(service(), "s3://b", [cache("other", "s3://b", namespace="else")]) is None
    assert find_cache(service(disable_localmodel="true"), "s3://b", caches) is None
    groups = [cache("two", "s3://b", "cpu", "gpu")]
    assert name_of(find_cache(service(nodegroup="gpu"), "s3://b", groups)) == ("two", "gpu")
    assert find_cache(service(nodegroup="none"), "s3://b", groups) is None


def test_a_copy_lies_below_its_key() -> None:
    key = model_key("s3://b/models")
    assert cached_uri("c-disk", "s3://b/models/", "s3://b/models/iris/") == f"pvc://c-disk/models/{key}/iris"
    assert cached_uri("c-disk", "s3://b/models", "s3://b/models") == f"pvc://c-disk/models/{key}"
    assert folder_of(group(), "s3://b/models/") == f"/models/models/{key}"
    assert folder_of(group(local=None, hostPath={"path": "/x/"}), "s3://b/models") == f"/x/models/{key}"


def test_a_group_is_the_nodes_of_its_volume() -> None:
    nodes: list[Object] = [{"metadata": {"name": name, "labels": {"disk": name}}} for name in ("a", "b")]
    term = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["b"]}]}
    some = group(nodeAffinity={"required": {"nodeSelectorTerms": [term]}})
    assert [node["metadata"]["name"] for node in nodes_of(some, nodes)] == ["b"]
    assert len(nodes_of(group(), nodes)) == 2
    listed = render_local_models("b", [cache("m", "s3://b"), cache("n", "s3://n", "other")], {"disk": ["b"]})
    assert listed["spec"]["localModels"] == [{"modelName": "m", "sourceModelUri": "s3://b", "nodeGroup": "disk"}]


def test_a_model_is_brought_into_its_folder_by_a_job_on_its_node() -> None:
    model = {"modelName": "m", "sourceModelUri": "s3://b/m", "nodeGroup": "disk", "serviceAccountName": "reader"}
    env = [{"name": "AWS_DEFAULT_REGION", "value": "eu"}]
    job = render_job("a", model, DEFAULT_CONTAINER["spec"]["container"], env)
    pod = job["spec"]["template"]["spec"]
    assert (job["metadata"]["namespace"], pod["nodeName"], pod["serviceAccountName"]) == (
        "kserve-localmodel-jobs",
        "a",
        "reader",
    )
    (container,) = pod["containers"]
    assert container["args"] == ["s3://b/m", "/mnt/models"]
    assert container["env"] == env
    assert container["volumeMounts"][0]["subPath"] == f"models/{model_key('s3://b/m')}"
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "m-disk"}
    claim = render_claim(cache("m", "s3://b/m"), group(), "team")
    assert (claim["spec"]["volumeName"], claim["spec"]["storageClassName"]) == ("m-disk-team", "")


def test_a_copy_is_mounted_for_reading_only() -> None:
    marked = service()
    marked["metadata"]["annotations"] = {CLAIM_NOTE: "m-disk", "storage.kserve.io/readonly": "false"}
    spec = render_pod_template(marked, None, Storage("pvc://m-disk/models/k"))["spec"]
    (mount,) = spec["containers"][0]["volumeMounts"]
    assert (mount["subPath"], mount["readOnly"]) == ("models/k", True)


def container(name: str, *formats: dict[str, str], **fields: Any) -> Object:
    spec = {"container": {"name": name}, "supportedUriFormats": list(formats)}
    return {"metadata": {"name": name}, "spec": spec | fields.pop("spec", {}), **fields}


def test_who_brings_a_model_is_chosen_by_its_uri() -> None:
    known = [
        DEFAULT_CONTAINER,
        container("zebra", {"prefix": "s3://zoo/"}),
        container("any", {"regex": "^own://.+"}),
        container("off", {"prefix": "s3://"}, disabled=True),
        container("jobs", {"prefix": "s3://"}, spec={"workloadType": DOWNLOAD_JOB}),
    ]

    def chosen(uri: str, **options: Any) -> Any:
        found = select_container(uri, known, **options)
        return found and found["name"]

    assert chosen("s3://zoo/x") == "zebra"
    assert chosen("s3://b/x") == "storage-initializer"
    assert chosen("own://x") == "any"
    assert chosen("ftp://x") is None
    assert chosen("s3://b/x", workload=DOWNLOAD_JOB) == "jobs"
    for name, problem in (("none", "does not exist"), ("off", "is disabled"), ("zebra", "does not support s3://b/x")):
        with pytest.raises(StorageContainerError, match=problem):
            chosen("s3://b/x", name=name)
    bad = container("bad", {"regex": "("}, {}, spec={"workloadType": "pod"})
    assert [error.field for error in validate(bad, None)] == [
        "spec.supportedUriFormats[0].regex",
        "spec.supportedUriFormats[1].prefix",
        "spec.workloadType",
    ]


def test_sources_are_brought_by_their_own_containers() -> None:
    own = {"name": "own", "image": "own:1", "args": ["--quiet"], "env": [{"name": "A", "value": "1"}]}
    others = (Source("own://y", "/mnt/models/y", container=own), Source("s3://b/z", "/mnt/models/z"))
    storage = Storage("s3://b/x", mount_path="/mnt/models/x", others=others, env=[{"name": "K", "value": "v"}])
    spec = render_pod_template(service(), None, storage)["spec"]
    # One volume for all, where they lie together.
    assert [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]] == ["/mnt/models"]
    first, second = spec["initContainers"]
    assert first["args"] == ["s3://b/x", "/mnt/models/x", "s3://b/z", "/mnt/models/z"]
    assert (second["name"], second["image"], second["args"]) == (
        "storage-initializer-1",
        "own:1",
        ["--quiet", "own://y", "/mnt/models/y"],
    )
    assert second["env"] == [{"name": "A", "value": "1"}, {"name": "K", "value": "v"}]
