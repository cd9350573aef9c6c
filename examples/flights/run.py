"""
Train, register, serve and ask the model of late flights, with public clients only.

    python run.py --web http://127.0.0.1:8080 --gateway http://127.0.0.1:8081 --kubeconfig ~/.shallop/kubeconfig

Needs kfp, model-registry, kubernetes and requests (``requirements/demo.txt``), and nothing of shallop.
"""

import argparse
import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
import time
import warnings
from datetime import datetime
from urllib.parse import urlsplit

warnings.filterwarnings("ignore", category=FutureWarning, module="kfp")
# Registries on one machine ask for no token.
warnings.filterwarnings("ignore", message="User access token is missing")

import kfp  # noqa: E402
import requests  # noqa: E402
from clients import INFERENCE_SERVICE, apply, connect, list_tables, wait_until_ready  # noqa: E402
from model_registry import ModelRegistry  # noqa: E402
from pipeline import flights_pipeline, month_pipeline  # noqa: E402
from progress import follow  # noqa: E402
from scores import accuracy, roc_auc  # noqa: E402

MODEL = "late-flights"
NAMESPACE = "default"
BATCH = 1000
SHOWN = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--web", required=True, help="URL of the KFP and model registry APIs")
    parser.add_argument("--gateway", required=True, help="URL of the inference gateway")
    parser.add_argument("--kubeconfig", required=True, help="how to reach the Kubernetes API")
    options = parser.parse_args()
    start = time.monotonic()
    pipelines = kfp.Client(host=options.web)
    kubernetes = connect(options.kubeconfig)
    arguments = {"version": datetime.now().strftime("%Y%m%d-%H%M%S"), "model_name": MODEL}

    title("Train: a pipeline of real flights, January to March 2013")
    run_pipeline(pipelines, options.web, flights_pipeline, arguments)

    title("Model registry: what the pipeline registered")
    artifact = show_version(options.web, arguments["version"])

    title("Serve: an InferenceService that names the registered version")
    # Meanwhile the same steps make the features of April, which the model has never seen.
    april = submit(pipelines, month_pipeline, {"months": [4]})
    url = serve(kubernetes, options.gateway, arguments["version"], artifact.model_format_name)
    follow(pipelines, options.web, april)

    title("Predict: every flight of April 2013")
    predict(url, read_features(pipelines, options.web, april))

    title("The pipeline again: nothing has changed, so every step comes from the cache")
    run_pipeline(pipelines, options.web, flights_pipeline, arguments)

    title("What exists now")
    show_objects(kubernetes, options.kubeconfig)
    print(f"\n  endpoint       {url}/v1/models/{MODEL}:predict   {url}/v2/models/{MODEL}/infer")
    print(f"  all of this took {time.monotonic() - start:.1f} s")
    return 0


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def submit(client, pipeline, arguments) -> str:
    """Compile a pipeline, start a run of it, return the run's id."""
    # The client prints addresses of pages of the KFP web application; the run's id is all we need.
    with contextlib.redirect_stdout(io.StringIO()):
        run = client.create_run_from_pipeline_func(pipeline, arguments=arguments, enable_caching=True)
    print(f"  run {run.run_id}", flush=True)
    return run.run_id


def run_pipeline(client, web, pipeline, arguments) -> None:
    start = time.monotonic()
    steps = follow(client, web, submit(client, pipeline, arguments))
    cached = sum(step.cached for step in steps)
    print(f"  {len(steps)} steps ({cached} from the cache) in {time.monotonic() - start:.2f} s")


def show_version(web: str, version: str):
    """Read the version back from the registry, print it, return its artifact."""
    url = urlsplit(web)
    secure = url.scheme == "https"
    registry = ModelRegistry(f"{url.scheme}://{url.hostname}", url.port, author="flights", is_secure=secure)
    found = registry.get_model_version(MODEL, version)
    artifact = registry.get_model_artifact(MODEL, version)
    print(f"  {MODEL} {found.name} by {found.author}: {found.description}")
    for name, value in sorted(found.custom_properties.items()):
        print(f"    {name:<28}{value}")
    print(f"    {'format':<28}{artifact.model_format_name}\n    {'uri':<28}{artifact.uri}")
    return artifact


def serve(kubernetes, gateway: str, version: str, model_format: str) -> str:
    """Apply the InferenceService, wait until this version answers, return its URL."""
    service = {
        "apiVersion": INFERENCE_SERVICE[0],
        "kind": INFERENCE_SERVICE[1],
        "metadata": {"name": MODEL, "namespace": NAMESPACE},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": model_format},
                    "storageUri": f"model-registry://{MODEL}/{version}",
                    "env": [{"name": "PREDICT_PROBA", "value": "true"}],
                }
            }
        },
    }
    start = time.monotonic()
    applied = apply(kubernetes, service)
    print(f"  inferenceservice/{MODEL} applied, storageUri {service['spec']['predictor']['model']['storageUri']}")
    wait_until_ready(kubernetes, applied, timeout_s=600)
    print(f"  Ready after {time.monotonic() - start:.1f} s")
    return f"{gateway}/serving/{NAMESPACE}/{MODEL}"


def read_features(client, web: str, run_id: str) -> list[dict[str, float]]:
    """Download what the step ``engineer`` of a run wrote: one row per flight."""
    tasks = client.get_run(run_id).run_details.task_details
    (task,) = [task for task in tasks if task.display_name == "engineer"]
    (artifact_id,) = task.outputs["features"].artifact_ids
    response = requests.get(f"{web}/apis/v2beta1/artifacts/{artifact_id}:download", timeout=60)
    response.raise_for_status()
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(response.text))]


def predict(url: str, flights: list[dict[str, float]]) -> None:
    """Ask for all flights by V2 and for some, from all over the month, by V1; compare with what happened."""
    late = [int(flight["late"]) for flight in flights]
    rows = [[value for name, value in flight.items() if name not in ("month", "late")] for flight in flights]
    start = time.monotonic()
    by_v2 = [p for first in range(0, len(rows), BATCH) for p in ask_v2(url, rows[first : first + BATCH])]
    seconds = time.monotonic() - start
    some = range(0, len(rows), max(1, len(rows) // BATCH))
    by_v1 = dict(zip(some, ask_v1(url, [rows[index] for index in some]), strict=True))
    print("  scheduled  miles   P(late) V1  P(late) V2   in truth")
    for index in list(some)[:: max(1, len(some) // SHOWN)]:
        flight = flights[index]
        clock = f"{int(flight['departure_minute']) // 60:02}:{int(flight['departure_minute']) % 60:02}"
        truth = "late" if late[index] else "on time"
        print(f"  {clock:<9}{flight['distance']:>7.0f}{by_v1[index]:>13.3f}{by_v2[index]:>12.3f}   {truth}")
    for protocol, truth, answers in (
        ("V1", [late[index] for index in some], list(by_v1.values())),
        ("V2", late, by_v2),
    ):
        figures = f"accuracy {accuracy(truth, answers):.4f}, AUC {roc_auc(truth, answers):.4f}"
        print(f"  {protocol}, {len(answers):>6,} flights: {figures}")
    print(f"  always 'on time' would have had accuracy {1 - sum(late) / len(late):.4f}")
    differ = max(abs(by_v1[index] - by_v2[index]) for index in some)
    print(f"  V1 and V2 differ by {differ:.1g} at most; all flights took {seconds:.2f} s in batches of {BATCH}")


def ask_v1(url: str, rows: list[list[float]]) -> list[float]:
    answer = post(f"{url}/v1/models/{MODEL}:predict", {"instances": rows})
    return [late_of(one) for one in answer["predictions"]]


def ask_v2(url: str, rows: list[list[float]]) -> list[float]:
    flat = [value for row in rows for value in row]
    tensor = {"name": "flights", "shape": [len(rows), len(rows[0])], "datatype": "FP64", "data": flat}
    (output,) = post(f"{url}/v2/models/{MODEL}/infer", {"inputs": [tensor]})["outputs"]
    width = output["shape"][1] if len(output["shape"]) > 1 else 1
    # The last column of predict_proba is the probability of "late"; XGBoost answers with that one only.
    return output["data"][width - 1 :: width]


def late_of(prediction: float | list[float]) -> float:
    return prediction[-1] if isinstance(prediction, list) else prediction


def post(url: str, body: dict) -> dict:
    response = requests.post(url, data=json.dumps(body), headers={"Content-Type": "application/json"}, timeout=60)
    if response.status_code != 200:
        raise SystemExit(f"{url} answered {response.status_code}: {response.text[:500]}")
    return response.json()


def show_objects(kubernetes, kubeconfig: str) -> None:
    kubectl = shutil.which("kubectl")
    if not kubectl:
        print(list_tables(kubernetes, NAMESPACE))
        return
    print(f"  $ kubectl get inferenceservices,pods -n {NAMESPACE}", flush=True)
    arguments = ["--kubeconfig", kubeconfig, "get", "inferenceservices,pods", "-n", NAMESPACE]
    subprocess.run([kubectl, *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
