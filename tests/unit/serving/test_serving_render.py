"""The Pods, Deployment, Service and routes of an InferenceService."""

from __future__ import annotations

from typing import Any

from shallop.kube.objects import Object
from shallop.serving.podtemplate import REQUIREMENTS, Storage, render_pod_template
from shallop.serving.render import (
    render_autoscaler,
    render_canary_routes,
    render_deployment,
    render_routes,
    render_service,
    replica_bounds,
)
from shallop.serving.servingruntime import load_runtimes

SKLEARN = next(item for item in load_runtimes() if item["metadata"]["name"] == "kserve-sklearnserver")


def service(predictor: dict[str, Any] | None = None, **metadata: Any) -> Object:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris", "namespace": "team", **metadata},
        "spec": {"predictor": predictor or model()},
    }


def model(**fields: Any) -> dict[str, Any]:
    return {"model": {"modelFormat": {"name": "sklearn"}, **fields}}


def container(template: Object, name: str = "kserve-container") -> Any:
    return next(item for item in template["spec"]["containers"] if item["name"] == name)


def env(template: Object) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container(template)["env"]}


def test_the_runtime_serves_under_the_name_of_the_service() -> None:
    template = render_pod_template(service(), SKLEARN, Storage("/models/iris"))
    serving = container(template)
    assert serving["args"] == ["--model_name=iris", "--model_dir=/mnt/models", "--http_port=8080"]
    assert serving["image"].startswith("kserve/sklearnserver:")
    assert env(template) == {"INFERENCE_SERVICE_NAME": "iris"}
    assert template["metadata"]["labels"]["serving.kserve.io/inferenceservice"] == "iris"


def test_the_users_container_is_merged_and_its_arguments_come_last() -> None:
    given = model(
        args=["--model_name=other"],
        env=[{"name": "PREDICT_PROBA", "value": "true"}],
        resources={"requests": {"cpu": "2"}},
        runtimeVersion="v0.20.0",
    )
    serving = container(render_pod_template(service(given), SKLEARN, Storage("/m")))
    assert serving["args"][-1] == "--model_name=other"
    assert serving["args"][0] == "--model_name=iris"
    assert {"name": "PREDICT_PROBA", "value": "true"} in serving["env"]
    assert serving["resources"]["requests"] == {"cpu": "2", "memory": "256Mi"}
    assert serving["image"] == "kserve/sklearnserver:v0.20.0"
    assert "modelFormat" not in serving
    assert "runtimeVersion" not in serving


def test_expressions_are_expanded_from_the_metadata_of_the_service() -> None:
    runtime = {
        "spec": {
            "containers": [
                {"name": "kserve-container", "args": ["{{ .Namespace }}/{{.Labels.tier}}", "{{.Annotations.none}}"]}
            ]
        }
    }
    template = render_pod_template(service(labels={"tier": "gold"}), runtime, Storage())
    assert container(template)["args"] == ["team/gold", "<no value>"]


def test_a_path_is_copied_by_the_storage_initializer() -> None:
    spec = render_pod_template(service(), SKLEARN, Storage("file:///models/iris"))["spec"]
    assert spec["initContainers"][0]["args"] == ["file:///models/iris", "/mnt/models"]
    assert spec["volumes"] == [{"name": "kserve-provision-location", "emptyDir": {}}]
    assert spec["containers"][0]["volumeMounts"][0]["readOnly"] is True
    assert "readOnly" not in spec["initContainers"][0]["volumeMounts"][0]


def test_a_folder_of_this_machine_is_mounted_where_the_initializer_looks_for_it() -> None:
    spec = render_pod_template(service(), SKLEARN, Storage("file:///tmp/iris", host_path="/tmp/iris"))["spec"]
    assert spec["volumes"][1] == {"name": "kserve-host-source", "hostPath": {"path": "/tmp/iris"}}
    mount = {"name": "kserve-host-source", "mountPath": "/tmp/iris", "readOnly": True}
    assert mount in spec["initContainers"][0]["volumeMounts"]
    assert mount not in spec["containers"][0]["volumeMounts"]


def test_a_claim_is_mounted_and_not_copied() -> None:
    spec = render_pod_template(service(), SKLEARN, Storage("pvc://models/iris/1"))["spec"]
    assert "initContainers" not in spec
    assert spec["volumes"] == [{"name": "kserve-pvc-source", "persistentVolumeClaim": {"claimName": "models"}}]
    assert spec["containers"][0]["volumeMounts"] == [
        {"name": "kserve-pvc-source", "mountPath": "/mnt/models", "subPath": "iris/1", "readOnly": True}
    ]


def test_requirements_of_the_model_reach_the_pod_and_the_user_has_the_last_word() -> None:
    storage = Storage("/m", ("numpy<2", "scikit-learn==1.3.0"))
    annotations = render_pod_template(service(), SKLEARN, storage)["metadata"]["annotations"]
    assert annotations[REQUIREMENTS] == "numpy<2\nscikit-learn==1.3.0"
    own = service(annotations={REQUIREMENTS: "scikit-learn==1.4.2", "modelFormat": "sklearn"})
    annotations = render_pod_template(own, SKLEARN, storage)["metadata"]["annotations"]
    assert annotations[REQUIREMENTS] == "scikit-learn==1.4.2"
    assert "modelFormat" not in annotations


def test_pod_fields_and_labels_of_the_predictor_reach_the_pod() -> None:
    given = {
        **model(),
        "nodeSelector": {"a": "b"},
        "labels": {"tier": "gold"},
        "serviceAccountName": "sa",
        "minReplicas": 2,
    }
    template = render_pod_template(service(given), SKLEARN, Storage())
    assert (template["spec"]["nodeSelector"], template["spec"]["serviceAccountName"]) == ({"a": "b"}, "sa")
    assert template["metadata"]["labels"]["tier"] == "gold"
    assert "minReplicas" not in template["spec"]


def test_a_custom_predictor_keeps_its_containers_and_learns_where_its_model_is() -> None:
    own = {"name": "kserve-container", "image": "x", "env": [{"name": "STORAGE_URI", "value": "/models/iris"}]}
    template = render_pod_template(service({"containers": [own]}), None, Storage("/models/iris"))
    assert env(template) == {"STORAGE_URI": "/mnt/models", "INFERENCE_SERVICE_NAME": "iris"}
    assert "args" not in container(template)


def test_the_service_leads_port_80_to_the_first_port_of_the_container() -> None:
    ports = [{"containerPort": 9090}, {"containerPort": 9000, "name": "grpc"}]
    template = render_pod_template(service(model(ports=ports)), SKLEARN, Storage())
    rendered = render_service(service(), template)
    assert [(port["port"], port["targetPort"]) for port in rendered["spec"]["ports"]] == [(80, 9090), (9000, 9000)]
    assert rendered["spec"]["ports"][1]["appProtocol"] == "kubernetes.io/h2c"
    assert container(template)["readinessProbe"]["tcpSocket"] == {"port": 9090}


def test_a_transformer_in_the_pod_of_its_predictor_stands_before_it() -> None:
    own = [
        {"name": "kserve-container", "image": "p", "args": ["--http_port=8085"]},
        {"name": "transformer-container", "image": "t", "ports": [{"containerPort": 8090}]},
    ]
    given = service({"containers": own, "batcher": {}})
    template = render_pod_template(given, None, Storage())
    agent = next(item for item in template["spec"]["containers"] if item["name"] == "agent")
    assert agent["args"][:2] == ["--component-port", "8090"]
    probes = [item.get("readinessProbe", {}).get("tcpSocket") for item in template["spec"]["containers"]]
    assert probes == [None, {"port": 8090}, {"port": 9081}]
    template["spec"]["containers"].remove(agent)
    assert render_service(given, template)["spec"]["ports"][0]["targetPort"] == 8090


def test_the_deployment_selects_its_pods_and_its_autoscaler_has_the_replicas() -> None:
    given = service({**model(), "minReplicas": 3, "maxReplicas": 5})
    template = render_pod_template(given, SKLEARN, Storage())
    deployment = render_deployment(given, template, {"a": "b"})
    assert deployment["metadata"]["name"] == "iris-predictor"
    assert "replicas" not in deployment["spec"], "they are the autoscaler's"
    autoscaler = render_autoscaler(given)
    assert autoscaler is not None
    assert (autoscaler["spec"]["minReplicas"], autoscaler["spec"]["maxReplicas"]) == (3, 5)
    assert autoscaler["spec"]["metrics"][0]["resource"]["target"] == {"type": "Utilization", "averageUtilization": 80}
    assert deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert replica_bounds({"minReplicas": 0}, "Standard") == (1, 1)
    assert replica_bounds({"minReplicas": 0}, "Knative") == (0, 0)


def test_a_named_predictor_names_its_workload() -> None:
    given = service({**model(), "name": "blue"})
    assert render_deployment(given, {}, {})["metadata"]["name"] == "iris-blue-predictor"


def test_one_route_is_by_host_and_one_by_path() -> None:
    shares = {"predictor": [("iris-predictor", 80, 1)]}
    by_host, by_path, *_ = render_routes(service({**model(), "timeout": 5}), "Standard", shares)
    names = ["iris-team.localhost", "iris.team.localhost", "iris-team.example.com", "iris.team.example.com"]
    assert by_host["spec"]["hostnames"][:4] == names
    assert "iris.team.svc.cluster.local" in by_host["spec"]["hostnames"]
    assert "hostnames" not in by_path["spec"]
    rule = by_path["spec"]["rules"][0]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/serving/team/iris"}}]
    assert rule["filters"][1]["urlRewrite"]["path"] == {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}
    assert (rule["backendRefs"][0]["name"], rule["timeouts"]) == ("iris-predictor", {"request": "5s"})


def test_a_canary_is_reached_by_itself_also_without_traffic() -> None:
    by_path, by_host = render_canary_routes(service(), [("iris-new-predictor", 80, 0)])
    assert by_path["spec"]["rules"][0]["matches"][0]["path"]["value"] == "/serving/team/iris-new-predictor"
    assert "iris-new-predictor-team.example.com" in by_host["spec"]["hostnames"]
    assert [route["spec"]["rules"][0]["backendRefs"][0]["weight"] for route in (by_path, by_host)] == [1, 1]
    assert by_path["metadata"]["name"] != by_host["metadata"]["name"]


def test_grpc_is_batched_where_the_server_answers_rest_beside_it() -> None:
    def agent(predictor: dict[str, Any]) -> Any:
        given, runtime = (
            service({**predictor, "batcher": {"maxBatchSize": 4}}),
            SKLEARN if "model" in predictor else None,
        )
        template = render_pod_template(given, runtime, Storage())
        return container(template, "agent")["args"]

    own = {"containers": [{"name": "kserve-container", "image": "python:3.11"}]}
    assert "--batch-grpc" in agent(model())
    assert "--batch-grpc" not in agent(model(ports=[{"name": "h2c", "containerPort": 9000}]))
    assert "--batch-grpc" not in agent(own)


def logged(**logger: Any) -> Any:
    """Return the Pod specification of a service that logs."""
    return render_pod_template(service({**model(), "logger": logger}), SKLEARN, Storage(), logger_env=[])["spec"]


def test_logs_go_into_a_claim_a_folder_or_a_bucket() -> None:
    storage = {"key": "k", "path": "v1", "parameters": {"format": "csv"}}
    spec = logged(url="pvc://logs/audit", storage=storage, batchSize=10, batchInterval="1m30s", mode="request")
    agent = next(item for item in spec["containers"] if item["name"] == "agent")
    text = " ".join(agent["args"])
    assert "--log-url file:///mnt/logs/audit --log-mode request" in text
    assert "--log-store-path v1 --log-store-format csv --log-batch-size 10 --log-batch-interval 90.0" in text
    assert {"name": "kserve-logs", "persistentVolumeClaim": {"claimName": "logs"}} in spec["volumes"]
    assert agent["volumeMounts"] == [{"name": "kserve-logs", "mountPath": "/mnt/logs"}]
    spec = logged(url="file:///var/log/models")
    place = {"path": "/var/log/models", "type": "DirectoryOrCreate"}
    assert {"name": "kserve-logs", "hostPath": place} in spec["volumes"]
    spec = logged(url="s3://bucket/logs", storage=storage | {"parameters": {"format": "parquet"}})
    agent = next(item for item in spec["containers"] if item["name"] == "agent")
    assert agent["image"].endswith("-parquet") and "s3://bucket/logs" in agent["args"]
    assert "agent" not in [item["name"] for item in logged(url="gs://bucket")["containers"]]
