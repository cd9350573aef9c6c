"""Arguments and variables of the servers that this one stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shallop_pod.modelserver.dialects import OptionsError, parse_options
from shallop_pod.modelserver.models import LoadError, LoadOptions, find_model, find_models


def test_kserve_s_own_arguments() -> None:
    options = parse_options(["--model_name=a", "--model_name", "b", "--nthread=2", "--workers=3", "--docs", "x"], {})
    assert (options.name, options.threads, options.workers, options.folder) == ("b", 2, 3, "/mnt/models")
    assert options.ignored == ("--docs x",)


def test_triton_is_called_by_its_name_and_names_a_folder_of_models() -> None:
    argv = ["tritonserver", "--model-store=/m", "--grpc-port=9000", "--http-port=8081", "--allow-grpc=true"]
    options = parse_options(argv, {"INFERENCE_SERVICE_NAME": "iris"})
    assert (options.name, options.folder, options.http_port, options.grpc_port) == ("iris", "/m", 8081, 9000)
    assert options.ignored == ("--allow-grpc=true",)


def test_tensorflow_serving_has_the_port_of_grpc_under_the_name_port() -> None:
    options = parse_options(["--port=9000", "--rest_api_port=8080", "--model_base_path=/m", "--model_name=t"], {})
    assert (options.grpc_port, options.http_port, options.folder, options.name) == (9000, 8080, "/m", "t")


def test_mlserver_is_told_by_variables_and_by_settings_beside_the_model(tmp_path: Path) -> None:
    env = {"MLSERVER_MODEL_IMPLEMENTATION": "x", "MLSERVER_HTTP_PORT": "8090", "MLSERVER_MODEL_URI": str(tmp_path)}
    assert parse_options([], env | {"MLSERVER_MODEL_NAME": "m"}).name == "m"
    (tmp_path / "model-settings.json").write_text(json.dumps({"name": "own", "parameters": {"uri": "./deep/m.joblib"}}))
    options = parse_options([], env)
    assert (options.name, options.http_port, options.mlserver) == ("own", 8090, True)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "m.joblib").touch()
    assert find_model(tmp_path, LoadOptions())[1].name == "m.joblib"


def test_arguments_of_models_of_texts_are_kept() -> None:
    options = parse_options(
        ["--framework=huggingface", "--task=fill_mask", "--return_probabilities", "--dtype", "x"], {}
    )
    assert options.arguments == {"task": "fill_mask", "return_probabilities": "true", "dtype": "x"}


def test_a_port_that_is_no_number_is_named() -> None:
    with pytest.raises(OptionsError, match="http_port"):
        parse_options(["--http_port=many"], {})


@pytest.mark.parametrize(
    ("files", "module", "found"),
    [
        (["MLmodel", "model.pkl"], "mlflow", ""),
        (["1/saved_model.pb", "2/saved_model.pb", "2/variables/x"], "tensorflow", "2"),
        (["config.json", "model.safetensors", "tokenizer.json"], "transformers", ""),
        (["model.onnx", "README.md"], "onnxruntime", "model.onnx"),
        (["model.pt", "net.py"], "torch", "model.pt"),
        (["model-store/net.mar", "config/config.properties"], "torch", "model-store/net.mar"),
        (["config.pbtxt", "3/model.onnx", "1/model.onnx"], "onnxruntime", "3/model.onnx"),
    ],
)
def test_the_files_tell_the_format(tmp_path: Path, files: list[str], module: str, found: str) -> None:
    place(tmp_path, *files)
    assert find_model(tmp_path, LoadOptions()) == (module, tmp_path / found)


def place(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folders_with_models_are_a_repository(tmp_path: Path) -> None:
    place(tmp_path, "a/1/model.onnx", "a/config.pbtxt", "b/model.pt", ".hidden/x")
    assert list(find_models(tmp_path, LoadOptions())) == ["a", "b"]
    assert find_models(tmp_path / "a", LoadOptions()) == {}
    (tmp_path / "c").mkdir()
    with pytest.raises(LoadError, match="no model file"):
        find_models(tmp_path, LoadOptions())


@pytest.mark.parametrize(
    ("name", "said"), [("m.pdmodel", "pdiparams"), ("m.plan", "GPU"), ("model.py", "Python backend")]
)
def test_what_no_server_here_can_load_is_told(tmp_path: Path, name: str, said: str) -> None:
    place(tmp_path, name)
    with pytest.raises(LoadError, match=said):
        find_model(tmp_path, LoadOptions())
