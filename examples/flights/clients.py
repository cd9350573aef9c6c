"""What the example needs of the Kubernetes API, through the ``kubernetes`` client."""

import sys
import time
from typing import Any

from kubernetes import config
from kubernetes.client import ApiClient
from kubernetes.dynamic import DynamicClient

INFERENCE_SERVICE = ("serving.kserve.io/v1beta1", "InferenceService")
_POLL_S = 0.1


def connect(kubeconfig: str) -> DynamicClient:
    return DynamicClient(config.new_client_from_config(kubeconfig))


def apply(client: DynamicClient, manifest: dict[str, Any]) -> Any:
    """Do what ``kubectl apply --server-side`` does."""
    kind = client.resources.get(api_version=manifest["apiVersion"], kind=manifest["kind"])
    return kind.server_side_apply(body=manifest, field_manager="flights", force_conflicts=True).to_dict()


def wait_until_ready(client: DynamicClient, applied: dict[str, Any], *, timeout_s: float) -> None:
    """
    Wait until an InferenceService is Ready and serves what was applied; print what keeps it from that.

    While a new model is loading, the old one still answers and the service stays Ready: the transition tells.

    Raises:
        SystemExit: it is not ready in time; the message is that of its conditions.
    """
    kind = client.resources.get(api_version=applied["apiVersion"], kind=applied["kind"])
    metadata = applied["metadata"]
    deadline, said = time.monotonic() + timeout_s, ""
    while True:
        found = kind.get(name=metadata["name"], namespace=metadata["namespace"]).to_dict()
        status = found.get("status") or {}
        conditions = {one["type"]: one for one in status.get("conditions") or []}
        current = status.get("observedGeneration", 0) >= metadata["generation"]
        model = status.get("modelStatus") or {}
        ready = conditions.get("Ready", {}).get("status") == "True"
        if current and ready and model.get("transitionStatus") == "UpToDate":
            return
        reasons = "the old model answers until the new one is loaded" if ready else explain(conditions, model)
        if current and reasons and reasons != said:
            said = reasons
            print(f"  waiting: {said}", flush=True)
        if time.monotonic() > deadline:
            sys.exit(f"{metadata['name']} is not ready after {timeout_s:.0f} s: {said or 'it has no conditions'}")
        time.sleep(_POLL_S)


def explain(conditions: dict[str, Any], model_status: dict[str, Any]) -> str:
    """Say in one line why an InferenceService is not ready; empty when its status does not say."""
    failure = model_status.get("lastFailureInfo") or {}
    if failure.get("message"):
        return f"{failure.get('reason', 'failure')}: {failure['message']}"
    for type_ in ("PredictorReady", "IngressReady", "Ready"):
        one = conditions.get(type_)
        if one and one.get("status") != "True" and (one.get("reason") or one.get("message")):
            return f"{one.get('reason', type_)} {one.get('message', '')}".strip()
    return ""


def list_tables(client: DynamicClient, namespace: str) -> str:
    """Return what ``kubectl get inferenceservices,pods`` prints, for machines without kubectl."""
    paths = (
        f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices",
        f"/api/v1/namespaces/{namespace}/pods",
    )
    return "\n\n".join(render_table(_get_table(client.client, path)) for path in paths)


def _get_table(client: ApiClient, path: str) -> dict[str, Any]:
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
    answer, _, _ = client.call_api(
        path, "GET", header_params={"Accept": accept}, auth_settings=["BearerToken"], response_type="object"
    )
    return answer


def render_table(table: dict[str, Any]) -> str:
    """Lay a Table of the Kubernetes API out in columns; those of priority 0, as kubectl does."""
    columns = [index for index, one in enumerate(table["columnDefinitions"]) if not one.get("priority")]
    lines = [[table["columnDefinitions"][index]["name"].upper() for index in columns]]
    for row in table.get("rows") or []:
        cells = [row["cells"][index] for index in columns]
        lines.append(["" if cell is None else str(cell) for cell in cells])
    widths = [max(len(line[position]) for line in lines) for position in range(len(columns))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
