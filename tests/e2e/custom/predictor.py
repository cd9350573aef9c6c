"""A predictor as KServe's documentation has them: a subclass of ``kserve.Model``."""

import argparse

import kserve


class Doubler(kserve.Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.load()

    def load(self) -> bool:
        self.ready = True
        return self.ready

    def predict(self, payload: dict, headers: dict | None = None) -> dict:
        return {"predictions": [[2 * value for value in row] for row in payload["instances"]]}


parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    kserve.ModelServer().start([Doubler(args.model_name)])
