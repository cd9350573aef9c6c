"""A predictor of plain Flask, on a port of its own."""

import os

import flask

app = flask.Flask(__name__)


@app.post("/score")
def score() -> dict:
    return {"scores": [max(row) for row in flask.request.get_json()["rows"]]}


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=int(os.environ["PORT"]))
