"""
The server of ``explainer.art``: looks for a small change of an image that makes its predictor say something else.

``python3 -m shallop_pod.modelserver.explainer --adversary_type SquareAttack --model_name M --predictor_host H``, with
``--nb_classes``, ``--max_iter`` and further arguments of the attack. ``POST /v1/models/M:explain`` takes
``{"instances": [image, label]}``; the predictor is asked for classes by the V1 protocol, one flat row per image.

Source: KServe's artserver, by what it takes and answers; the attack is of the Adversarial Robustness Toolbox.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from shallop_pod.modelserver.dialects import OptionsError, parse_options
from shallop_pod.modelserver.models import LoadError, Model
from shallop_pod.modelserver.server import fail, run

__all__ = ["SquareAttackExplainer", "main"]

_TIMEOUT_S = 60.0
_ATTEMPTS = 10


class SquareAttackExplainer:
    """
    Attacks a predictor of which only the answers are known.

    Args:
        url: of the predictor's predictions.
        attack: arguments of ``art.attacks.evasion.SquareAttack``.
    """

    def __init__(self, url: str, classes: int, attack: Mapping[str, Any]) -> None:
        self._url = url
        self._classes = classes
        self._attack = attack

    def explain(self, payload: Any) -> Any:
        """
        Return an image that is classified otherwise, its distance, and both classes.

        Raises:
            ValueError: the payload is no image and its label, or no such image was found.
        """
        import numpy as np
        from art.attacks.evasion import SquareAttack
        from art.estimators.classification import BlackBoxClassifierNeuralNetwork

        instances = payload.get("instances") if isinstance(payload, dict) else None
        if not isinstance(instances, list) or len(instances) != 2:
            raise ValueError('expected {"instances": [image, label]}')
        image, label = _as_batch(np.array(instances[0], dtype=np.float32)), np.array(instances[1]).reshape(-1)
        anything = (-float("inf"), float("inf"))
        classifier = BlackBoxClassifierNeuralNetwork(
            self._predict, image.shape[1:], self._classes, channels_first=False, clip_values=anything
        )
        before = int(classifier.predict(image).argmax())
        attack = SquareAttack(estimator=classifier, verbose=False, **self._attack)
        for _ in range(_ATTEMPTS):
            changed = attack.generate(x=image, y=label)
            after = int(classifier.predict(changed).argmax())
            if after != before:
                return {
                    "explanations": {
                        "adversarial_example": changed.tolist(),
                        "L2 error": float(np.linalg.norm((changed - image).reshape(-1))),
                        "adversarial_prediction": after,
                        "prediction": before,
                    }
                }
        raise ValueError(f"no image was found that is not of class {before}; raise --eps or --max_iter")

    def _predict(self, images: Any) -> Any:
        import numpy as np

        body = json.dumps({"instances": images.reshape(len(images), -1).tolist()}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                predictions = np.array(json.load(answer)["predictions"])
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(f"the predictor answered {error.code}: {error.read(500)!r}") from error
        chosen = predictions.astype(int) if predictions.ndim == 1 else predictions.argmax(-1)
        return np.eye(self._classes)[chosen]


def _as_batch(image: Any) -> Any:
    """Return one image with the dimensions batch, height, width, channels, which the attack needs."""
    if image.ndim == 1:
        return image.reshape(1, 1, -1, 1)
    if image.ndim == 2:
        return image[None, :, :, None]
    return image[None] if image.ndim == 3 else image


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
    url = f"http://{own.predictor_host}/v1/models/{options.name}:predict"
    attack = {"max_iter": own.max_iter, "eps": own.eps, "nb_restarts": own.nb_restarts}
    explainer = SquareAttackExplainer(url, own.nb_classes, attack)
    return run([Model(options.name, "art", _refuse, explain=explainer.explain)], options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
