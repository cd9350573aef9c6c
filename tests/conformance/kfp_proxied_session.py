"""
The kfp client as one who has a kubeconfig and nothing else, and who had a whole Kubeflow; prints ``ok`` at the end.

``KUBECONFIG=... python kfp_proxied_session.py WEB``
"""

import base64
import sys
import time
import urllib.request
from typing import Any
from urllib.parse import urlencode

import kfp
import kubernetes
from kfp import dsl
from kfp.kubeflow_client import KubernetesBackendConfig, PipelinesClient

WEB = sys.argv[1]


@dsl.container_component
def write(data: dsl.Output[dsl.Dataset]):
    return dsl.ContainerSpec(image="alpine", command=["sh", "-c", 'echo said; echo kept > "$0"', data.path])


@dsl.pipeline(name="proxied")
def proxied():
    write()


def get(path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{WEB}{path}?{urlencode(query)}", timeout=30) as answer:
        return answer.read()


def run_with(client: kfp.Client) -> Any:
    run = client.create_run_from_pipeline_func(proxied, arguments={}, experiment_name="proxied", enable_caching=False)
    ended = client.wait_for_run_completion(run.run_id, 60, 0.2)
    assert ended.state == "SUCCEEDED", ended
    return ended


# Through the Kubernetes API's proxy of Services, with what the kubeconfig says of certificates and tokens.
run_with(kfp.Client())
kubernetes.config.load_kube_config()
known = kubernetes.client.Configuration.get_default_copy()
token = known.api_key["authorization"].removeprefix("Bearer ")
address = f"{known.host}/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"
run_with(kfp.Client(host=address, existing_token=token, ssl_ca_cert=known.ssl_ca_cert))
# Through the path below which a whole Kubeflow serves pipelines.
run = run_with(kfp.Client(host=f"{WEB}/pipeline"))

(task,) = (task for task in run.run_details.task_details if task.pod_name)
pod, run_id = task.pod_name, run.run_id
assert pod.encode() in get("/pipeline/k8s/pod", podname=pod, podnamespace="kubeflow")
# Events are written a moment after what they tell of.
deadline = time.monotonic() + 30
while b'"Started"' not in (told := get("/pipeline/k8s/pod/events", podname=pod, podnamespace="kubeflow")):
    assert time.monotonic() < deadline, told
    time.sleep(0.05)
assert get("/pipeline/k8s/pod/logs", podname=pod, runid=run_id) == b"said\n"
read = get(f"/apis/v2beta1/runs/{run_id}/nodes/{pod}/artifacts/data:read")
assert base64.b64encode(b"kept\n") in read, read
assert b'shallop_pipelines_runs{state="SUCCEEDED"}' in get("/metrics")

# The client of the Kubeflow SDK (kubeflow.pipelines), which knows everything by name.
named = PipelinesClient(KubernetesBackendConfig(base_url=WEB))
for version in ("one", "two"):
    assert named.upload_pipeline(proxied, name="by name", version=version).display_name == version
assert {one.display_name for one in named.list_pipeline_versions("by name").pipeline_versions} == {"one", "two"}
named.create_experiment("by name")
started = named.run("by name", version="one", experiment="by name")
assert named.wait_for_run_status(started, timeout=60, polling_interval=1).state == "SUCCEEDED"
found = named.list_runs(pipeline="by name", experiment="by name", status="succeeded").runs
assert [one.run_id for one in found] == [started.run_id]
named.delete_pipeline("by name", force=True)
print("ok")
