"""Models of several kinds, from several places, over both protocols; broken ones say why."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import struct
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import shallop_pod
from shallop.embedded.kubelet.environments import Environments
from shallop.settings import Settings

MODELS = Path(__file__).parents[1] / "unit" / "serving" / "models"
ROW = [5.1, 3.5, 1.4, 0.2]
FIT = """
import joblib, sys
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
joblib.dump(LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True)), sys.argv[1])
"""

pytestmark = pytest.mark.timeout(240)


def service(platform: Any, name: str, uri: str, framework: str = "sklearn", **more: Any) -> str:
    """Declare an endpoint, wait until it is ready, return its URL."""
    declare(platform, name, uri, framework, **more)
    platform.kubectl("wait", f"inferenceservice/{name}", "--for=condition=Ready", "--timeout=90s")
    return str(platform.kubectl("get", "inferenceservice", name, "-o", "jsonpath={.status.url}"))


def declare(platform: Any, name: str, uri: str, framework: str = "sklearn", **more: Any) -> None:
    model = {"modelFormat": {"name": framework}, "storageUri": uri} | more
    spec = {"predictor": {"model": model}}
    obj = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": spec,
    }
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(obj))


def post(url: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[bytes, Any]:
    request = urllib.request.Request(url, body, headers or {})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read(), answer.headers


def predict(url: str, name: str, rows: Sequence[Sequence[float]]) -> list[Any]:
    body, _ = post(f"{url}/v1/models/{name}:predict", json.dumps({"instances": rows}).encode())
    answer: list[Any] = json.loads(body)["predictions"]
    return answer


def fitted(tmp_path: Path, requirement: str) -> Path:
    """Fit and pickle a classifier with a given scikit-learn; returns the folder."""
    environments = Environments.of(Settings(home=tmp_path / "builder"))
    spec = environments.resolve("python:3.11", [], [requirement, "numpy<2", "joblib"])
    python = asyncio.run(environments.ensure(spec)).python
    folder = tmp_path / "fitted"
    folder.mkdir()
    subprocess.run([str(python), "-c", FIT, str(folder / "model.joblib")], check=True)
    return folder


def test_a_model_is_served_by_the_version_that_pickled_it(platform: Any, tmp_path: Path) -> None:
    folder = fitted(tmp_path, "scikit-learn==1.3.2")
    url = service(platform, "old", str(folder))
    assert predict(url, "old", [ROW]) == [0]
    # What upstream's example asks, and the answer that its tests expect.
    assert predict(url, "old", [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]) == [1, 1]
    pod = platform.kubectl("get", "pods", "-l", "serving.kserve.io/inferenceservice=old", "-o", "yaml")
    assert "scikit-learn==1.3.2" in pod


@pytest.mark.parametrize(
    ("image", "needed"),
    [("python:3.11", ["scikit-learn==1.5.2", "numpy<2", "joblib"]), ("kserve/sklearnserver:v0.21.0", [])],
)
def test_quick_ways_to_ask_scikit_learn_change_no_bit(tmp_path: Path, image: str, needed: list[str]) -> None:
    environments = Environments.of(Settings(home=tmp_path / "builder"))
    python = asyncio.run(environments.ensure(environments.resolve(image, [], needed))).python
    script = str(Path(__file__).with_name("quick_models.py"))
    environ = os.environ | {"PYTHONPATH": str(Path(shallop_pod.__file__).parents[1])}
    done = subprocess.run([str(python), script], check=True, capture_output=True, text=True, env=environ)
    assert done.stdout == "done False\n"


def test_upstreams_example_inputs_have_the_answers_that_its_tests_expect(
    platform: Any, tmp_path: Path, shared: Path
) -> None:
    shutil.copy(MODELS / "plain.joblib", tmp_path / "model.joblib")
    url = service(platform, "examples", str(tmp_path))
    inputs = shared / "specs" / "kserve" / "e2e-inputs"

    def ask(path: str, file: str) -> tuple[Any, bytes]:
        body, headers = post(f"{url}{path}", (inputs / file).read_bytes(), {"Content-Type": "application/json"})
        length = int(headers.get("Inference-Header-Content-Length") or len(body))
        return json.loads(body[:length]), body[length:]

    assert ask("/v1/models/examples:predict", "iris_input.json")[0] == {"predictions": [1, 1]}
    for batch in json.loads((inputs / "iris_batch_input.json").read_text()):
        assert predict(url, "examples", batch["instances"]) == [1, 1]
    infer = "/v2/models/examples/infer"
    (output,) = ask(infer, "iris_input_v2.json")[0]["outputs"]
    assert (output["name"], output["shape"], output["data"]) == ("output-0", [2], [1, 1])
    for file in ("iris_input_v2_binary.json", "iris_input_v2_all_binary.json"):
        answer, binary = ask(infer, file)
        assert answer["outputs"][0]["parameters"] == {"binary_data_size": 16}, file
        assert struct.unpack("<2q", binary) == (1, 1), file


def test_v2_in_json_and_binary_and_probabilities(platform: Any, tmp_path: Path) -> None:
    folder = fitted(tmp_path, "scikit-learn==1.5.2")
    url = service(platform, "proba", f"file://{folder}", env=[{"name": "PREDICT_PROBA", "value": "true"}])
    (first,) = predict(url, "proba", [ROW])
    assert len(first) == 3
    assert sum(first) == pytest.approx(1)
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP64"}
    infer = f"{url}/v2/models/proba/infer"
    body, _ = post(infer, json.dumps({"inputs": [tensor | {"data": ROW}]}).encode())
    (output,) = json.loads(body)["outputs"]
    assert output["shape"] == [1, 3]
    assert output["data"] == pytest.approx(first)
    raw = struct.pack("<4d", *ROW)
    head = {"inputs": [tensor | {"parameters": {"binary_data_size": 32}}], "parameters": {"binary_data_output": True}}
    text = json.dumps(head).encode()
    body, headers = post(infer, text + raw, {"Inference-Header-Content-Length": str(len(text))})
    length = int(headers["Inference-Header-Content-Length"])
    assert struct.unpack("<3d", body[length:]) == pytest.approx(first)
    with urllib.request.urlopen(f"{url}/v2/models/proba", timeout=10) as answer:
        assert json.load(answer)["inputs"][0]["shape"] == [-1, 4]


MIXED = {
    "MSZoning": "RL",
    "LotArea": 8450,
    "LotShape": "Reg",
    "Utilities": "AllPub",
    "YrSold": 2008,
    "Neighborhood": "CollgCr",
    "OverallQual": 7,
    "YearBuilt": 2003,
    "SaleType": "WD",
    "GarageArea": 548,
}
FIT_MIXED = """
import json, joblib, sys
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
row = json.loads(sys.argv[2])
frame = pd.DataFrame([row, row | {"MSZoning": "RM", "LotArea": 4000}, row | {"SaleType": "New", "GarageArea": 20}])
texts = OneHotEncoder(handle_unknown="ignore")
columns = make_column_transformer((texts, make_column_selector(dtype_include=object)), remainder="passthrough")
model = make_pipeline(columns, Ridge()).fit(frame, [12.0, 11.0, 13.0])
joblib.dump(model, sys.argv[1])
print(json.dumps(model.predict(frame[:1]).tolist()))
"""


def test_texts_and_numbers_come_in_columns_of_both_protocols(platform: Any, tmp_path: Path) -> None:
    environments = Environments.of(Settings(home=tmp_path / "builder"))
    python = asyncio.run(environments.ensure(environments.resolve("kserve/sklearnserver:v0.21.0", [], []))).python
    folder = tmp_path / "mixed"
    folder.mkdir()
    command = [str(python), "-c", FIT_MIXED, str(folder / "model.joblib"), json.dumps(MIXED)]
    expected = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    url = service(platform, "mixed", str(folder))
    body, _ = post(f"{url}/v1/models/mixed:predict", json.dumps({"instances": [MIXED]}).encode())
    assert json.loads(body)["predictions"] == expected
    inputs = [
        {"name": name, "shape": [1], "datatype": "BYTES" if isinstance(value, str) else "INT32", "data": [value]}
        for name, value in MIXED.items()
    ]
    asked = {"parameters": {"content_type": "pd"}, "inputs": inputs}
    body, _ = post(f"{url}/v2/models/mixed/infer", json.dumps(asked).encode())
    assert json.loads(body)["outputs"][0]["data"] == expected


def test_xgboost_from_a_volume_claim(platform: Any) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(claim))
    platform.kubectl("wait", "pvc/models", "--for=jsonpath={.status.phase}=Bound", "--timeout=30s")
    folder = platform.home / "volumes" / "default" / "models" / "boosted"
    folder.mkdir(parents=True)
    shutil.copy(MODELS / "booster.ubj", folder / "model.ubj")
    url = service(platform, "boosted", "pvc://models/boosted", "xgboost")
    with urllib.request.urlopen(f"{url}/v2/models/boosted", timeout=10) as answer:
        features = json.load(answer)["inputs"][0]["shape"][1]
    assert len(predict(url, "boosted", [[0.5] * features, [1.5] * features])) == 2


BOOST = """
import json, sys
import lightgbm
from sklearn.datasets import load_iris
rows, labels = load_iris(return_X_y=True)
options = {"objective": "multiclass", "num_class": 3, "verbose": -1, "num_threads": 1}
names = ["sepal_length_(cm)", "sepal_width_(cm)", "petal_length_(cm)", "petal_width_(cm)"]
booster = lightgbm.train(options, lightgbm.Dataset(rows, labels, feature_name=names), 5)
booster.save_model(sys.argv[1])
nan = float("nan")
one = [[5.1, 3.5, 1.4, 0.2]]
apart = [[5.1, nan, nan, nan], [nan, 3.5, nan, nan], [nan, nan, 1.4, nan]]
print(json.dumps([rows[::40].tolist(), *(booster.predict(asked).tolist() for asked in (rows[::40], one, apart))]))
"""


def test_lightgbm_answers_as_its_own_library_does(platform: Any, tmp_path: Path) -> None:
    environments = Environments.of(Settings(home=tmp_path / "builder"))
    python = asyncio.run(environments.ensure(environments.resolve("kserve/lgbserver:v0.21.0", [], []))).python
    (tmp_path / "light").mkdir()
    command = [str(python), "-c", BOOST, str(tmp_path / "light" / "model.bst")]
    rows, expected, one, apart = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    url = service(platform, "light", str(tmp_path / "light"), "lightgbm")
    assert predict(url, "light", rows) == expected
    # The forms of upstream's examples: columns, values one by one, and with one of them absent.
    names = ["sepal_length_(cm)", "sepal_width_(cm)", "petal_length_(cm)", "petal_width_(cm)"]
    for inputs, answer in (
        ([dict(zip(names, [[5.1], [3.5], [1.4], [0.2]], strict=True))], one),
        ([dict(zip(names, [5.1, 3.5, 1.4, 0.2], strict=True))], one),
        ([[{name: value} for name, value in zip(names, [5.1, 3.5, 1.4], strict=False)]], apart),
    ):
        body, _ = post(f"{url}/v1/models/light:predict", json.dumps({"inputs": inputs}).encode())
        assert json.loads(body)["predictions"] == answer


@pytest.mark.skipif(os.geteuid() != 0, reason="killing a Pod's process by its number needs its PID outside")
def test_a_killed_model_server_is_back_on_its_own(platform: Any, tmp_path: Path) -> None:
    url = service(platform, "killed", str(fitted(tmp_path, "scikit-learn==1.5.2")))
    assert predict(url, "killed", [ROW]) == [0]
    pod = platform.kubectl(
        "get", "pods", "-l", "serving.kserve.io/inferenceservice=killed", "-o", "jsonpath={.items[0].metadata.name}"
    )
    victims = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_server_of(pid, pod)]
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    platform.kubectl(
        "wait",
        f"pod/{pod}",
        "--for=jsonpath={.status.containerStatuses[0].restartCount}=1",
        "--timeout=60s",
    )
    platform.kubectl("wait", "inferenceservice/killed", "--for=condition=Ready", "--timeout=60s")
    platform.kubectl("wait", f"pod/{pod}", "--for=condition=Ready", "--timeout=60s")
    assert predict(url, "killed", [ROW]) == [0]


def is_server_of(pid: int, pod: str) -> bool:
    """Say whether a process is the first one in the PID namespace of a Pod: its host name is the Pod's."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        first = any(line.startswith("NSpid:") and line.split()[-1] == "1" for line in status.splitlines())
        if not first or pid == 1:
            return False
        done = subprocess.run(
            ["nsenter", "--target", str(pid), "--uts", "hostname"], capture_output=True, text=True, check=False
        )
    except OSError:
        return False
    return done.stdout.strip() == pod[:63]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("unpicklable", b"this is no pickle", "model.joblib"),
        ("empty-folder", None, "no model file"),
        ("changed", b"another model", "checksum mismatch"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(
    platform: Any, tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "README.txt").write_text("a folder")
    if content is not None:
        (folder / "model.joblib").write_bytes(content)
    declared = f"file://{folder}/model.joblib#sha256={'0' * 64}"
    declare(platform, name, declared if name == "changed" else str(folder))
    platform.kubectl("wait", f"inferenceservice/{name}", "--for=condition=Ready=False", "--timeout=90s")
    query = "jsonpath={.status.conditions[?(@.type=='Ready')].message} {.status.modelStatus.lastFailureInfo.message}"
    command = ("get", "inferenceservice", name, "-o", query)
    deadline_command = f"until kubectl --kubeconfig {platform.kubeconfig} get inferenceservice {name} -o json | grep -q"
    subprocess.run(["timeout", "60", "bash", "-c", f"{deadline_command} '{expected}'; do sleep 0.3; done"], check=True)
    message = platform.kubectl(*command)
    assert expected in message
    assert "Traceback" not in message.splitlines()[0]
