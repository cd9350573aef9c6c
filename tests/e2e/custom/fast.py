"""A predictor of plain FastAPI."""

import fastapi
import uvicorn

app = fastapi.FastAPI()


@app.post("/v1/models/{name}:predict")
def predict(name: str, body: dict) -> dict:
    return {"predictions": [len(row) for row in body["instances"]]}


if __name__ == "__main__":
    uvicorn.run(app, host="0.0.0.0", port=8080)
