"""The initializer brings a data set or a model to the folder where training looks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shallop_pod.initializer import initialize, main
from shallop_pod.paths import UnsupportedUriError
from shallop_pod.storage import StorageError


def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("model.safetensors", "model.bin", "config.json"):
        (folder / name).write_text(name)
    return folder


def test_a_data_set_comes_whole_and_a_model_without_what_is_not_needed(tmp_path: Path) -> None:
    uri = f"file://{source(tmp_path)}"
    target = tmp_path / "workspace"
    for step, names in (
        ("dataset", {"model.safetensors", "model.bin", "config.json"}),
        ("model", {"model.safetensors", "config.json"}),
    ):
        folder = initialize(step, {"STORAGE_URI": uri}, str(target / step))
        assert {path.name for path in Path(folder).iterdir()} == names


def test_patterns_leave_files_out(tmp_path: Path) -> None:
    environ = {"STORAGE_URI": f"file://{source(tmp_path)}", "IGNORE_PATTERNS": "*.json,*.bin"}
    folder = initialize("dataset", environ, str(tmp_path / "dataset"))
    assert [path.name for path in Path(folder).iterdir()] == ["model.safetensors"]


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StorageError, match="STORAGE_URI"):
        initialize("model", {}, str(tmp_path))
    with pytest.raises(StorageError, match="huggingface_hub"):
        initialize("model", {"STORAGE_URI": "hf://some/model"}, str(tmp_path))
    with pytest.raises(UnsupportedUriError, match="data cache"):
        initialize("dataset", {"STORAGE_URI": "cache://table"}, str(tmp_path))
    assert main(["other"]) == 2
    assert "dataset|model" in capsys.readouterr().err
