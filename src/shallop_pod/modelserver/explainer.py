"""
The server of ``explainer.art``: looks for a small change of an image that makes its predictor say something else.

``python3 -m shallop_pod.modelserver.explainer --adversary_type SquareAttack --model_name M --predictor_host H``, with
``--nb_classes``, ``--max_iter`` and further arguments of the attack. ``POST /v1/models/M:explain`` takes
``{"instances": [image, label]}``; the predictor is asked for classes by the V1 protocol, one flat row per image.

Source: KServe's artserver, by what it takes and answers; the attack is of the Adversarial Robustness Toolbox.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from shallop_pod.modelserver.dialects import OptionsError, parse_options
from shallop_pod.modelserver.models import LoadError, Model
from shallop_pod.modelserver.server import fail, run

__all__ = ["SquareAttackExplainer", "main"]

_TIMEOUT_S = 10.0
_ATTEMPTS = 10
# Of one explanation: whoever asks has a time limit, too.
_SEARCH_S = 40.0
_P_INIT = 0.8


class SquareAttackExplainer:
    """
    Attacks a predictor of which only the answers are known; the same image gets the same explanation.

    A predictor that answers with classes only says nothing of how near it is to another: then it takes luck, and
    attempts. With probabilities (``PREDICT_PROBA=true`` of scikit-learn) each step leads on.

    Args:
        host: of the predictor, with its port if it has another than 80.
        path: of its predictions.
        attack: arguments of ``art.attacks.evasion.SquareAttack``.
    """

    def __init__(self, host: str, path: str, classes: int, attack: Mapping[str, Any]) -> None:
        self._host = host
        self._path = path
        self._classes = classes
        self._attack = attack
        # The attack draws from the generators of the process.
        self._lock = threading.Lock()

    def explain(self, payload: Any) -> Any:
        """
        Return an image that is classified otherwise, its distance, and both classes.

        Raises:
            ValueError: the payload is no image and its label, or no such image was found.
        """
        import numpy as np

        instances = payload.get("instances") if isinstance(payload, dict) else None
        if not isinstance(instances, list) or len(instances) != 2:
            raise ValueError('expected {"instances": [image, label]}')
        image, label = np.array(instances[0], dtype=np.float32), np.array(instances[1]).reshape(-1)
        shape = _batch_shape(image.shape)
        with self._lock, closing(http.client.HTTPConnection(self._host, timeout=_TIMEOUT_S)) as connection:
            until = time.monotonic() + _SEARCH_S
            found = self._search(image, label, lambda rows: self._predict(connection, rows, until))
        changed, before, after = found
        return {
            "explanations": {
                "adversarial_example": changed.reshape(shape).tolist(),
                "L2 error": float(np.linalg.norm((changed - image).reshape(-1))),
                "adversarial_prediction": after,
                "prediction": before,
            }
        }

    def _search(self, image: Any, label: Any, predict: Callable[[Any], Any]) -> tuple[Any, int, int]:
        """
        Return an image of another class, and the classes before and after.

        Args:
            image: of any shape; squares are laid over it, so that it is put into a square if it is flat.
            predict: rows of pixels -> a number per row and class.
        """
        import numpy as np
        from art.attacks.evasion import SquareAttack
        from art.estimators.classification import BlackBoxClassifierNeuralNetwork

        canvas, size = _on_canvas(image), image.size

        def ask(images: Any) -> Any:
            return predict(images.reshape(len(images), -1)[:, :size])

        anything = (-float("inf"), float("inf"))
        classifier = BlackBoxClassifierNeuralNetwork(
            ask, canvas.shape[1:], self._classes, channels_first=False, clip_values=anything
        )
        before = int(classifier.predict(canvas).argmax())
        # One that is not what its label says is off it from the start, and there would be nothing to look for.
        target = label if len(label) == 1 and int(label[0]) == before else np.array([before])
        height, width = canvas.shape[1:3]
        # Squares must have room to move, or there is no place to draw for them.
        largest = ((min(height, width) - 0.6) / math.sqrt(height * width)) ** 2
        attack = SquareAttack(classifier, verbose=False, p_init=min(_P_INIT, largest), **self._attack)
        try:
            for attempt in range(_ATTEMPTS):
                np.random.seed(attempt)
                random.seed(attempt)
                changed = attack.generate(x=canvas, y=target)
                after = int(classifier.predict(changed).argmax())
                if after != before:
                    return changed.reshape(-1)[:size].reshape(image.shape), before, after
        except TimeoutError as error:
            raise ValueError(f"no image was found in {_SEARCH_S:.0f} s that is not of class {before}") from error
        raise ValueError(f"no image was found that is not of class {before}; raise eps or max_iter")

    def _predict(self, connection: http.client.HTTPConnection, rows: Any, until: float) -> Any:
        """Ask the predictor, by one connection for all of an explanation."""
        import numpy as np

        if time.monotonic() > until:
            raise TimeoutError
        body = json.dumps({"instances": rows.tolist()}).encode()
        connection.request("POST", self._path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the predictor answered {answer.status}: {content[:500]!r}")
        predictions = np.array(json.loads(content)["predictions"])
        if predictions.ndim == 2 and predictions.shape[1] == self._classes:
            return predictions
        chosen = predictions.astype(int) if predictions.ndim == 1 else predictions.argmax(-1)
        return np.eye(self._classes)[chosen]


def _batch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an answer: one image, with channels where it has height and width."""
    if len(shape) == 2:
        return (1, *shape, 1)
    return shape if len(shape) == 4 else (1, *shape)


def _on_canvas(image: Any) -> Any:
    """Return an image with the dimensions batch, height, width, channels; one without height or width in a square."""
    import numpy as np

    shape = _batch_shape(image.shape)
    if len(shape) == 4 and min(shape[1:3]) > 1:
        return image.reshape(shape)
    side = max(2, math.isqrt(image.size - 1) + 1)
    canvas = np.zeros(side * side, dtype=image.dtype)
    canvas[: image.size] = image.reshape(-1)
    return canvas.reshape(1, side, side, 1)


def _refuse(rows: Any) -> Any:
    raise ValueError("an explainer explains: ask for :explain, or the predictor for :predict")


def main(argv: list[str]) -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="artserver")
    parser.add_argument("--adversary_type", required=True)
    parser.add_argument("--predictor_host", required=True)
    parser.add_argument("--nb_classes", type=int, default=10)
    parser.add_argument("--max_iter", type=int, default=1000)
    parser.add_argument("--eps", type=float, default=0.3)
    parser.add_argument("--nb_restarts", type=int, default=1)
    own, rest = parser.parse_known_args(argv)
    try:
        options = parse_options(rest, os.environ)
        if own.adversary_type.lower() != "squareattack":
            raise LoadError(f"explainer.art.type: {own.adversary_type} is not served; use SquareAttack.")
    except (LoadError, OptionsError) as error:
        return fail(error)
    path = f"/v1/models/{options.name}:predict"
    attack = {"max_iter": own.max_iter, "eps": own.eps, "nb_restarts": own.nb_restarts}
    explainer = SquareAttackExplainer(own.predictor_host, path, own.nb_classes, attack)
    return run([Model(options.name, "art", _refuse, explain=explainer.explain)], options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
