"""
PyTorch models: TorchScript, programs of ``torch.export`` (.pt2), state dicts and whole modules with their class.

The class of a state dict is in a ``.py`` file beside it. TorchServe's archives (.mar) are opened; what their custom
handlers would do is not done, so that an archive with one is refused.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shallop_pod.modelserver.formats.tensors import feed
from shallop_pod.modelserver.models import LoadError, LoadOptions, Model
from shallop_pod.modelserver.protocol import Tensor

__all__ = ["load"]

# Up to so many weights, waking other threads takes longer than they save, and the cores are others', too: one row of a
# network of 64 x 128 x 128 x 10 took 0.78 ms through the gateway with two threads and 0.58 with one (2 cores).
_FEW_WEIGHTS = 1 << 20
_CLASS = "MODEL_CLASS_NAME"
_PLAIN_HANDLERS = ("", "base_handler")
_TYPES = {
    "torch.float64": "FP64", "torch.float32": "FP32", "torch.float16": "FP16", "torch.bool": "BOOL",
    "torch.int8": "INT8", "torch.int16": "INT16", "torch.int32": "INT32", "torch.int64": "INT64",
    "torch.uint8": "UINT8",
}  # fmt: skip


def load(name: str, path: Path, options: LoadOptions) -> Model:
    """Load a module in evaluation mode, on the CPU."""
    import torch

    if path.suffix == ".mar":
        with tempfile.TemporaryDirectory() as folder:
            return load(name, _unpack(path, Path(folder)), options)
    if path.suffix == ".pt2":
        return _load_exported(name, path, options)
    if _is_script(path):
        script = torch.jit.load(path, map_location="cpu").eval()
        names = [argument.name for argument in script.forward.schema.arguments][1:]
        return _model(name, "pytorch_libtorch", script, options, names)
    module = _load_module(path, options).eval()
    return _model(name, "pytorch", module, options, list(inspect.signature(module.forward).parameters))


@functools.lru_cache(maxsize=1)
def _own_threads() -> int:
    """Return the library's own choice; to be asked before it is changed."""
    import torch

    return int(torch.get_num_threads())


def _choose_threads(module: Any, options: LoadOptions) -> None:
    """Set the threads of one prediction: as asked, else one while all networks of this process are small."""
    import torch

    own = _own_threads()
    _sizes.append(sum(weights.numel() for weights in module.parameters()))
    torch.set_num_threads(options.threads or (1 if max(_sizes) <= _FEW_WEIGHTS else own))


_sizes: list[int] = []


def _load_exported(name: str, path: Path, options: LoadOptions) -> Model:
    import torch

    program = torch.export.load(str(path))
    user_inputs = program.graph_signature.user_inputs
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    inputs = tuple(_tensor(item, values[item]) for item in user_inputs)
    return _model(name, "pytorch_export", program.module(), options, [tensor.name for tensor in inputs], inputs)


def _tensor(name: str, value: Any) -> Tensor:
    shape = tuple(size if type(size) is int else -1 for size in value.shape)
    return Tensor(name, _TYPES.get(str(value.dtype), ""), shape)


def _model(
    name: str,
    platform: str,
    module: Callable[..., Any],
    options: LoadOptions,
    parameters: Sequence[str],
    inputs: tuple[Tensor, ...] = (),
) -> Model:
    import torch

    _choose_threads(module, options)
    weights = next(iter(module.parameters()), None)  # type: ignore[attr-defined]
    floating = weights.dtype if weights is not None and weights.is_floating_point() else torch.get_default_dtype()

    def tensor_of(array: Any) -> Any:
        # A copy where the array is a view of the request: torch would write to it.
        tensor = torch.tensor(array)
        return tensor.to(floating) if tensor.is_floating_point() and not inputs else tensor

    def predict(arrays: Any) -> Any:
        if inputs:
            arrays = feed(arrays, inputs)
        tensors = {key: tensor_of(array) for key, array in arrays.items()}
        with torch.inference_mode():
            try:
                named = not inputs and set(tensors) <= set(parameters)
                result = module(**tensors) if named else module(*tensors.values())
            except (RuntimeError, AssertionError) as error:
                # Wrong shapes, above all: the request's fault, as far as can be told.
                raise ValueError(str(error).strip().splitlines()[0]) from error
        return _outputs(result)

    features = weights.shape[1] if weights is not None and weights.ndim == 2 and len(parameters) == 1 else 0
    return Model(name, platform, predict, features, inputs, named=True, batches=False)


def _outputs(result: Any) -> dict[str, Any]:
    if isinstance(result, Mapping):
        return {str(key): value.numpy() for key, value in result.items() if hasattr(value, "numpy")}
    values = result if isinstance(result, tuple | list) else (result,)
    return {f"output-{number}": value.numpy() for number, value in enumerate(values)}


def _is_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def _load_module(path: Path, options: LoadOptions) -> Any:
    import torch

    sources = sorted(file for file in path.parent.glob("*.py") if file.is_file())
    modules = [_import(source) for source in sources]
    # Whole modules are pickles, as the models of other libraries are: whoever deploys one trusts its author.
    content = torch.load(path, map_location="cpu", weights_only=False)
    if isinstance(content, torch.nn.Module):
        return content
    if not isinstance(content, Mapping):
        raise LoadError(f"{path.name}: neither a module nor a state dict, but {type(content).__name__}.")
    for key in ("state_dict", "model_state_dict"):
        content = content.get(key, content)
    module = _class_of(path, modules, options)()
    module.load_state_dict(content)
    return module


def _import(source: Path) -> Any:
    spec = importlib.util.spec_from_file_location(source.stem, source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Pickles find classes by the name of their module.
    sys.modules[source.stem] = module
    spec.loader.exec_module(module)
    # Whole modules that a script pickled look for their classes in the script.
    main = sys.modules["__main__"]
    for name, value in vars(module).items():
        if isinstance(value, type) and not hasattr(main, name):
            setattr(main, name, value)
    return module


def _class_of(path: Path, modules: Sequence[Any], options: LoadOptions) -> Any:
    import torch

    found = {
        key: value
        for module in modules
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, torch.nn.Module) and value.__module__ == module.__name__
    }
    wanted = options.env.get(_CLASS) or options.arguments.get("model_class_name", "")
    if wanted in found:
        return found[wanted]
    if wanted:
        raise LoadError(
            f"{path.name}: no class {wanted} ({_CLASS}) in the .py files beside it; they have {_names(found)}."
        )
    if len(found) != 1:
        raise LoadError(
            f"{path.name}: a state dict needs its class: put model.py beside it, with one torch.nn.Module that is made "
            f"without arguments, or name it in the variable {_CLASS}; found {_names(found)}."
        )
    return next(iter(found.values()))


def _names(found: Mapping[str, Any]) -> str:
    return ", ".join(found) or "none"


def _unpack(path: Path, folder: Path) -> Path:
    """Unpack a TorchServe archive; returns its model."""
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())["model"]
    handler = manifest.get("handler", "")
    if handler.removesuffix(".py") not in _PLAIN_HANDLERS:
        raise LoadError(
            f"{path.name}: its handler {handler!r} would change inputs and outputs, and TorchServe's handlers are not "
            "there. Serve the model file itself, with a transformer for what the handler does."
        )
    return folder / str(manifest["serializedFile"])
