"""An explainer beside a predictor: images that are classified otherwise, found by asking the predictor."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from shallop.embedded.kubelet.environments import Environments
from shallop.settings import Settings

HERE = Path(__file__).parent

pytestmark = pytest.mark.timeout(240)


def post(url: str, payload: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_an_image_is_found_that_is_taken_for_another_and_always_the_same(platform: Any, tmp_path: Path) -> None:
    environments = Environments.of(Settings(home=tmp_path / "builder"))
    python = asyncio.run(environments.ensure(environments.resolve("kserve/sklearnserver:v0.21.0", [], []))).python
    folder = tmp_path / "digits"
    folder.mkdir()
    command = [str(python), str(HERE / "art_model.py"), str(folder / "model.joblib")]
    made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # With probabilities the search has a direction.
    model = {"storageUri": str(folder), "env": [{"name": "PREDICT_PROBA", "value": "true"}]}
    art = {"type": "SquareAttack", "config": {"nb_classes": "10", "eps": "0.5", "max_iter": "200"}}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "explained"},
        "spec": {"predictor": {"sklearn": model}, "explainer": {"art": art}},
    }
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(service))
    platform.kubectl("wait", "isvc/explained", "--for=condition=Ready", "--timeout=120s")
    url = platform.kubectl("get", "isvc", "explained", "-o", "jsonpath={.status.url}")
    for image, label in zip(made["images"], made["labels"], strict=True):
        # Flat, as the predictor takes it, and as the picture that it is.
        square = [image[start : start + 8] for start in range(0, 64, 8)]
        answers = [
            post(f"{url}/v1/models/explained:explain", {"instances": [given, [label]]})["explanations"]
            for given in (image, square, square)
        ]
        assert answers[1] == answers[2]
        for found in answers:
            pixels = flatten(found["adversarial_example"])
            assert found["prediction"] == label
            assert max(abs(a - b) for a, b in zip(pixels, image, strict=True)) <= 0.5 + 1e-6
            scores = post(f"{url}/v1/models/explained:predict", {"instances": [pixels]})["predictions"][0]
            assert scores.index(max(scores)) == found["adversarial_prediction"] != label
    platform.kubectl("delete", "isvc", "explained", "--wait=false")


def flatten(value: Any) -> list[float]:
    return [number for item in value for number in flatten(item)] if isinstance(value, list) else [value]
