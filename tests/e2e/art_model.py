"""Fit a classifier of digits; print an image of each of some classes and what it says of them."""

import json
import sys

import joblib
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

images, labels = load_digits(return_X_y=True)
images = images / 16
model = LogisticRegression(max_iter=300).fit(images, labels)
joblib.dump(model, sys.argv[1])
print(json.dumps({"images": images[:2].tolist(), "labels": model.predict(images[:2]).tolist()}))
