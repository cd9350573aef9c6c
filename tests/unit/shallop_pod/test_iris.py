"""Arguments of the stand-in for the image of XGBoost's example."""

from __future__ import annotations

import pytest

from shallop_pod.iris import main, parse_parameters


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_parameters_may_stand_in_quotes_and_have_colons_in_their_values(quote: str) -> None:
    text = f"{quote}objective:multi:softprob,num_class:3{quote}"
    assert parse_parameters(text) == {"objective": "multi:softprob", "num_class": "3"}


def test_an_object_store_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--job_type=Predict", "--model_path=autoAI/xgb-opt/2", "--model_storage_type=oss"])
    assert "--model_storage_type: only 'local' is there" in capsys.readouterr().err
