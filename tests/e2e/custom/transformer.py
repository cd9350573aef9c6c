"""A transformer as KServe's documentation has them: it changes requests and answers around a predictor."""

import argparse

import kserve
from kserve.model import PredictorConfig


class Shift(kserve.Model):
    def __init__(self, name: str, predictor_config: PredictorConfig) -> None:
        super().__init__(name, predictor_config)
        self.ready = True

    def preprocess(self, payload: dict, headers: dict | None = None) -> dict:
        return {"instances": [[value + 1 for value in row] for row in payload["instances"]]}

    def postprocess(self, result: dict, headers: dict | None = None, response_headers: dict | None = None) -> dict:
        return {"predictions": [sum(row) for row in result["predictions"]]}


parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    config = PredictorConfig(args.predictor_host, args.predictor_protocol, args.predictor_use_ssl)
    kserve.ModelServer().start([Shift(args.model_name, config)])
