"""Make a SavedModel of three signatures and a Keras model in a repository; print what they answer in-process."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

ROOT = Path(sys.argv[1])
rows = np.random.default_rng(7).normal(size=(5, 4)).astype(np.float32)


class Scores(tf.Module):
    def __init__(self):
        super().__init__()
        self.weights = tf.Variable(np.random.default_rng(8).normal(size=(4, 3)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="rows")])
    def score(self, rows):
        return {"scores": tf.nn.softmax(rows @ self.weights)}

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="rows")])
    def classify(self, rows):
        scores = tf.nn.softmax(rows @ self.weights)
        return {"class": tf.argmax(scores, axis=1), "scores": scores}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float64, name="left"),
            tf.TensorSpec([None], tf.float64, name="right"),
        ]
    )
    def multiply(self, left, right):
        return {"product": left * right}


module = Scores()
signatures = {"serving_default": module.score, "classify": module.classify, "multiply": module.multiply}
tf.saved_model.save(module, str(ROOT / "scores" / "1"), signatures=signatures)

keras.utils.set_random_seed(9)
network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
(ROOT / "network").mkdir()
network.save(ROOT / "network" / "model.keras")

classified = module.classify(rows)
answers = {
    "rows": rows.tolist(),
    "scores": module.score(rows)["scores"].numpy().tolist(),
    "classes": classified["class"].numpy().tolist(),
    "network": network.predict_on_batch(rows).tolist(),
}
print(json.dumps(answers))
