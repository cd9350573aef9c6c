from dataclasses import dataclass, field, fields

import pytest

from shallop_pod.finetune import known_fields, main, s3_source


@dataclass
class Settings:
    rate: float = 0.1
    rank: int = 0
    local_rank: int = -1
    token: str = ""
    made: str = field(init=False, default="")


def test_settings_of_another_version_are_left_out_with_ranks_and_secrets() -> None:
    known = {item.name: item for item in fields(Settings)}
    sent = {"rate": 0.5, "local_rank": 0, "token": "<TOKEN>", "made": "x", "removed_since": True}
    assert known_fields(sent, known) == {"rate": 0.5}


def test_a_bucket_is_said_as_a_uri_and_variables() -> None:
    parameters = {
        "endpoint_url": "http://127.0.0.1:9",
        "bucket_name": "b",
        "file_key": "texts/train.jsonl",
        "region_name": None,
        "access_key": "a",
        "secret_key": "s",
    }
    assert s3_source(parameters) == (
        "s3://b/texts/train.jsonl",
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"},
    )


def test_another_step_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    assert "fetch|train" in capsys.readouterr().err
