"""Save a model as MLflow does, with a signature; print what it and an ONNX model answer in-process."""

import json
import sys
from pathlib import Path

import mlflow.sklearn
import numpy as np
import onnxruntime
import pandas as pd
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

ROOT, ONNX = Path(sys.argv[1]), sys.argv[2]
rows, labels = load_iris(return_X_y=True)
frame = pd.DataFrame(rows, columns=["a", "b", "c", "d"])
model = LogisticRegression(max_iter=500).fit(frame, labels)
mlflow.sklearn.save_model(
    model,
    str(ROOT / "mlflow"),
    signature=infer_signature(frame, model.predict(frame)),
    serialization_format="cloudpickle",
    pip_requirements=sys.argv[3].split(),
)
inputs = rows[::40]
session = onnxruntime.InferenceSession(ONNX)
onnx = session.run(None, {session.get_inputs()[0].name: inputs.astype(np.float32)})
answers = {"inputs": inputs.tolist(), "mlflow": model.predict(frame[::40]).tolist(), "onnx": [o.tolist() for o in onnx]}
print(json.dumps(answers))
