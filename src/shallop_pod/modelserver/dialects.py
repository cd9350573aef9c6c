"""
The arguments and variables of the servers whose images this one stands for; pure.

KServe's own servers (``--model_name --model_dir --http_port --nthread --workers``), Triton (``--model-store``,
``--http-port``), TensorFlow Serving (``--model_base_path --rest_api_port``), TorchServe
(``--model-store --ts-config``), MLServer (variables ``MLSERVER_*``, ``model-settings.json``) and
KServe's Hugging Face server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Options", "OptionsError", "parse_options"]

# Words that image entrypoints are called by; what they would do is done anyway.
_PROGRAMS = ("tritonserver", "torchserve", "mlserver", "start", "--start", "/usr/bin/tensorflow_model_server")
# Spelling -> ours. Both "--name value" and "--name=value" are understood.
_NAMES = {
    "model_name": "name",
    "model_dir": "folder",
    "model_base_path": "folder",
    "model_store": "folder",
    "model_repository": "folder",
    "http_port": "http_port",
    "rest_api_port": "http_port",
    "grpc_port": "grpc_port",
    "port": "grpc_port",
    "nthread": "threads",
    "intra_op_parallelism": "threads",
    "tensorflow_intra_op_parallelism": "threads",
    "workers": "workers",
    "rest_api_num_threads": "",
    "framework": "framework",
    "host": "host",
}
# Arguments of models of texts, kept by their names; those without a value are switches.
_TEXT_ARGUMENTS = (
    *("model_id", "model_revision", "tokenizer", "task", "backend", "dtype", "max_length", "max_model_len"),
    *("quantization", "tensor_parallel_size", "speculative_model", "model_class_name"),
)
_SWITCHES = ("return_probabilities", "return_raw_logits", "enable_lora", "disable_lower_case", "trust_remote_code")
_NUMBERS = ("http_port", "grpc_port", "threads", "workers")


class OptionsError(Exception):
    """An argument cannot be understood; the message names it."""


class Options(NamedTuple):
    """
    What to serve and where.

    Args:
        name: of the model; empty in a repository, whose folders are the names.
        grpc_port: 0 for none of its own.
        threads: for one prediction; 0 is the library's own choice.
        arguments: of models of texts.
        ignored: arguments without effect here, as they were given.
    """

    name: str = "model"
    folder: str = "/mnt/models"
    http_port: int = 8080
    grpc_port: int = 8081
    host: str = ""
    threads: int = 0
    workers: int = 1
    framework: str = ""
    mlserver: bool = False
    arguments: Mapping[str, str] = {}
    ignored: tuple[str, ...] = ()


def parse_options(argv: Sequence[str], env: Mapping[str, str]) -> Options:
    """
    Read a command line of any of the servers; what it does not say is as KServe's own have it.

    Raises:
        OptionsError: a number is none.
    """
    found = {"name": env["INFERENCE_SERVICE_NAME"]} if env.get("INFERENCE_SERVICE_NAME") else {}
    found |= _of_mlserver(env)
    arguments: dict[str, str] = {}
    ignored = []
    words = [word for word in argv if word not in _PROGRAMS]
    while words:
        word = words.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if word.startswith("-") and name in _SWITCHES:
            arguments[name] = value or "true"
            continue
        known = name in _NAMES or name in _TEXT_ARGUMENTS
        if not equals and word.startswith("-") and words and not words[0].startswith("--"):
            value = words.pop(0) if known or not words[0].startswith("-") else ""
        if not word.startswith("-") or not known:
            ignored.append(f"{word} {value}".strip() if not equals else word)
        elif name in _NAMES:
            found |= {_NAMES[name]: value} if _NAMES[name] else {}
        else:
            arguments[name] = value
    for key in _NUMBERS:
        if key in found and not found[key].isdigit():
            raise OptionsError(f"--{key}: expected a number, found {found[key]!r}")
    numbers = {key: int(found[key]) for key in _NUMBERS if key in found}
    texts = {key: found[key] for key in ("name", "folder", "host", "framework") if key in found}
    if found.get("framework", "") == "<no value>":
        texts["framework"] = ""
    options = Options(**texts, **numbers, mlserver="mlserver" in found)  # type: ignore[arg-type]
    return options._replace(arguments=arguments, ignored=tuple(ignored))


def _of_mlserver(env: Mapping[str, str]) -> dict[str, str]:
    """Return what MLServer's variables and settings say; empty for other servers."""
    if "MLSERVER_MODEL_IMPLEMENTATION" not in env and "MLSERVER_HTTP_PORT" not in env:
        return {}
    found = {"mlserver": "true"}
    for key, variable in {
        "name": "MLSERVER_MODEL_NAME",
        "folder": "MLSERVER_MODEL_URI",
        "http_port": "MLSERVER_HTTP_PORT",
        "grpc_port": "MLSERVER_GRPC_PORT",
    }.items():
        if env.get(variable):
            found[key] = env[variable]
    if "name" not in found:
        try:
            settings = json.loads((Path(found.get("folder", "/mnt/models")) / "model-settings.json").read_text())
            found["name"] = str(settings["name"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    return found
