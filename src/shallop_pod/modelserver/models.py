"""What a loaded model is to the protocols, and which format a folder has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shallop_pod.modelserver.protocol import ProtocolError, Tensor

if TYPE_CHECKING:
    from shallop_pod.modelserver.language import Language

__all__ = ["LoadError", "LoadOptions", "Model", "Signature", "find_model", "find_models", "load_model", "survives_fork"]


class LoadError(Exception):
    """The model cannot be served; the message is for the user who deployed it."""


class Signature(NamedTuple):
    """One of several functions of a model, with inputs and outputs of its own (TensorFlow)."""

    predict: Callable[[Any], Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Model(NamedTuple):
    """
    A loaded model; knows nothing of the protocols that ask it.

    Args:
        predict: takes an array ``(rows, ...)`` or a DataFrame, or when ``named`` a dict of arrays; returns an array or
            a list with one entry per row, a DataFrame, or a dict of such arrays by the names of outputs.
        features: how many numbers a row has; 0 when the model does not know.
        inputs: what it says of its inputs; may be empty.
        named: its inputs have names.
        batches: rows of several requests may be predicted in one call: what they give does not depend on each other.
        methods: further ways to predict, by the name of the output that asks for them (MLServer).
        language: what generates or embeds texts, for the OpenAI API.
        signatures: functions beside ``predict``, by the names that V1's ``signature_name`` asks for.
        explain: answers V1's ``:explain``: takes the body, read, and returns what becomes the answer.
    """

    name: str
    platform: str
    predict: Callable[[Any], Any]
    features: int = 0
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    named: bool = False
    batches: bool = True
    methods: Mapping[str, Callable[[Any], Any]] = {}
    language: Language | None = None
    signatures: Mapping[str, Signature] = {}
    explain: Callable[[Any], Any] | None = None

    def inputs_of(self, signature: str) -> Sequence[Tensor]:
        """
        Return the inputs of one of the signatures.

        Raises:
            ProtocolError: the model has none of this name.
        """
        found = self.signatures.get(signature)
        if found is None:
            names = ", ".join(["serving_default", *self.signatures])
            raise ProtocolError(f'"signature_name": the model has no signature {signature!r}; it has {names}')
        return found.inputs

    @property
    def tensors(self) -> Sequence[Tensor] | None:
        """The inputs as parsers of requests want them: None for a model that takes rows."""
        return self.inputs if self.named else None


class LoadOptions(NamedTuple):
    """
    How to load models.

    Args:
        env: ``PREDICT_PROBA=true`` makes a classifier answer with probabilities; ``MODEL_CLASS_NAME`` names the class
            of a PyTorch state dict.
        threads: for one prediction; 0 is the library's own choice, one for boosters.
        framework: of ``modelFormat``; decides where the files could be read in two ways.
        mlserver: answer as MLServer does: scikit-learn's output is called ``predict``, one column wide.
        arguments: those of the Hugging Face server, by name: ``task``, ``return_probabilities``, ...
    """

    env: Mapping[str, str] = os.environ
    threads: int = 0
    framework: str = ""
    mlserver: bool = False
    arguments: Mapping[str, str] = {}


class _Format(NamedTuple):
    module: str
    suffixes: tuple[str, ...]


# In this order: a pickle beside a booster is the model, the booster a part of it.
_FORMATS = (
    _Format("sklearn", (".joblib", ".pkl", ".pickle")),
    # Before boosters, as its program may be a file of JSON.
    _Format("paddle", (".pdiparams",)),
    _Format("pmml", (".pmml",)),
    _Format("boosters", (".bst", ".ubj", ".json", ".xgb")),
    _Format("onnxruntime", (".onnx",)),
    _Format("torch", (".pt", ".pth", ".pt2", ".mar")),
    _Format("tensorflow", (".keras", ".h5", ".hdf5")),
)
# Files that describe a model without being one.
_NOT_MODELS = (
    *("metadata.json", "model-settings.json", "result.json", "config.json", "signature_def.json", "settings.json"),
    *("input_example.json", "serving_input_example.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
)
# Others have threads of their own from the moment that a model is loaded.
_FORKABLE = ("sklearn", "boosters", "torch")
_NOT_SERVED = {
    ".plan": "no server for it here: TensorRT needs a GPU.",
    ".pdmodel": "its weights are missing: a file of the same name, .pdiparams.",
}


def load_model(name: str, folder: str | Path, options: LoadOptions | None = None) -> Model:
    """
    Load the model of a folder, or the file itself.

    Raises:
        LoadError: none or several candidates, a broken file, a library that is missing or of another version.
    """
    options = options or LoadOptions()
    module, path = find_model(Path(folder), options)
    try:
        loaded: Model = import_module(f"shallop_pod.modelserver.formats.{module}").load(name, path, options)
        return loaded
    except ModuleNotFoundError as error:
        raise LoadError(
            f"{path.name}: the model needs the package {error.name!r}, which its environment lacks. "
            f"Add a line to the annotation environment.shallop.dev/requirements of the InferenceService."
        ) from error
    except LoadError:
        raise
    except Exception as error:
        # Loading runs code of the model's authors, so that anything may be raised here.
        said = " ".join(str(error).split())
        raise LoadError(f"{path.name}: cannot be loaded: {type(error).__name__}: {said}") from error


def find_model(folder: Path, options: LoadOptions) -> tuple[str, Path]:
    """Return the module of ``formats`` that loads a folder, and what it shall load."""
    if options.arguments.get("model_id"):
        return "transformers", folder
    if folder.is_file():
        return _module_of(folder), folder
    if not folder.is_dir():
        raise LoadError(f"model folder {folder} does not exist.")
    if uri := _settings_uri(folder):
        return find_model(uri, options)
    if (folder / "MLmodel").is_file():
        return "mlflow", folder
    if (folder / "saved_model.pb").is_file():
        return "tensorflow", folder
    if _is_transformer(folder, options):
        return "transformers", folder
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in _NOT_MODELS]
    for format_ in _FORMATS:
        found = [path for path in files if path.suffix in format_.suffixes]
        if len(found) == 1:
            return format_.module, found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise LoadError(f"more than one model file in the folder: {names}. Leave the one to serve.")
    if newest := _newest_version(folder):
        return find_model(newest, options)
    if (folder / "model-store").is_dir():
        return find_model(folder / "model-store", options)
    raise LoadError(_nothing_found(files))


def find_models(folder: Path, options: LoadOptions) -> dict[str, Path]:
    """
    Return the models of a repository, name -> folder, when a folder has no model itself but folders with some.

    Source: KServe's scikit-learn server (multi-model mode) and Triton's model repository: ``MODEL/VERSION/model.onnx``.
    """
    if not folder.is_dir() or (folder / "config.pbtxt").exists() or _newest_version(folder):
        return {}
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    if any(path.name not in _NOT_MODELS for path in files):
        return {}
    found = {}
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith(".") or path.name in ("model-store", "config"):
            continue
        find_model(path, options)  # a folder that is no model is told of here
        found[path.name] = path
    return found


def survives_fork(folder: Path, options: LoadOptions) -> bool:
    """Say whether the models of a folder can be loaded once and served by processes that are forked afterwards."""
    try:
        found = find_models(folder, options).values() or [folder]
        return all(find_model(path, options)[0] in _FORKABLE for path in found)
    except LoadError:
        return True  # told when it is loaded


def _module_of(path: Path) -> str:
    for format_ in _FORMATS:
        if path.suffix in format_.suffixes:
            return format_.module
    return "boosters"


def _settings_uri(folder: Path) -> Path | None:
    """Return what MLServer's ``model-settings.json`` names as the model."""
    try:
        settings = json.loads((folder / "model-settings.json").read_text())
        uri = settings["parameters"]["uri"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    path = (folder / uri).resolve()
    return path if path != folder.resolve() and path.exists() else None


def _is_transformer(folder: Path, options: LoadOptions) -> bool:
    weights = any(folder.glob("*.safetensors")) or (folder / "pytorch_model.bin").is_file()
    return (weights or options.framework == "huggingface") and (folder / "config.json").is_file()


def _newest_version(folder: Path) -> Path | None:
    versions = [path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
    return max(versions, key=lambda path: int(path.name), default=None)


def _nothing_found(files: Sequence[Path]) -> str:
    for path in files:
        if path.suffix in _NOT_SERVED:
            return f"{path.name}: {_NOT_SERVED[path.suffix]}"
        if path.name == "model.py":
            return f"{path.name}: Triton's Python backend is not there; serve it with a container of your own."
    names = ", ".join(path.name for path in files) or "nothing"
    wanted = " ".join(suffix for format_ in _FORMATS for suffix in format_.suffixes)
    return f"no model file in the folder (looked for {wanted}, MLmodel, saved_model.pb; found {names})."
