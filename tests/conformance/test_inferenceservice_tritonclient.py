"""The unmodified ``tritonclient`` asks a scikit-learn model over the Open Inference Protocol."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

SESSION = Path(__file__).with_name("tritonclient_session.py")
GRPC_SESSION = Path(__file__).with_name("tritonclient_grpc_session.py")
MODELS = Path(__file__).parents[1] / "unit" / "serving" / "models"


def test_tritonclient_asks_a_model(platform: Any, client_env: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "model.joblib").write_bytes((MODELS / "plain.joblib").read_bytes())
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": f"file://{tmp_path}"}
    metadata = {"name": "triton", "namespace": "default"}
    service = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata}
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(service | {"spec": {"predictor": {"model": model}}}))
    platform.kubectl("wait", "isvc/triton", "--for=condition=Ready", "--timeout=90s")
    url = platform.kubectl("get", "isvc", "triton", "-o", "jsonpath={.status.url}").removeprefix("http://")
    address, _, path = url.partition("/")
    for session in (
        [str(SESSION), url, "triton"],
        [str(GRPC_SESSION), address, "triton.default.example.com", f"/{path}", "triton"],
    ):
        command = [str(client_env("tritonclient")), *session]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            break
    platform.kubectl("delete", "isvc", "triton", "--wait=false")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
