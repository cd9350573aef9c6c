"""How ``tune run`` becomes a whole command: recipe, configuration, overrides. Pure."""

from __future__ import annotations

from typing import Any

from shallop.errors import FieldError
from shallop.kube.objects import Object
from shallop.training.podsets import Training

__all__ = ["TUNE", "extend_command", "validate_tune"]

TUNE = ("tune", "run")
_RUNTIME_PREFIX = "torchtune-"
# Runtime name without prefix -> torchtune's name of the model.
_MODELS = {
    "llama3.2-1b": "llama3_2/1B",
    "llama3.2-3b": "llama3_2/3B",
    "llama3.3-70b": "llama3_3/70B",
    "qwen2.5-1.5b": "qwen2_5/1.5B",
}
_FROM_RUNTIME = ("output_dir", "tokenizer.path", "tokenizer.merges_file", "checkpointer.checkpoint_dir")


def validate_tune(job: Object, runtime: Object) -> list[FieldError]:
    """Check that the runtime is of a known model and the number of nodes fits it."""
    name = job["spec"]["runtimeRef"]["name"]
    model = _MODELS.get(name.removeprefix(_RUNTIME_PREFIX))
    if not name.startswith(_RUNTIME_PREFIX) or model is None:
        known = [_RUNTIME_PREFIX + key for key in _MODELS]
        return [FieldError.not_supported("spec.runtimeRef.name", name, known)]
    trainer = job["spec"].get("trainer") or {}
    nodes = trainer.get("numNodes") or (runtime["spec"].get("mlPolicy") or {}).get("numNodes") or 1
    errors = []
    if nodes > 1 and not model.startswith("llama3_3/"):
        detail = f"the model {model} can be tuned on one node only"
        errors.append(FieldError.invalid("spec.trainer.numNodes", nodes, detail))
    if nodes > 1 and _adapter(trainer.get("args") or ()):
        detail = "LoRA can be used on one node only"
        errors.append(FieldError.invalid("spec.trainer.numNodes", nodes, detail))
    return errors


def extend_command(training: Training, container: Object, nodes: int, processes: str, head: str, port: int) -> None:
    """Complete the container's ``tune run`` with rendezvous, recipe, configuration and the runtime's own overrides."""
    model = _MODELS.get(training.job["spec"]["runtimeRef"]["name"].removeprefix(_RUNTIME_PREFIX), "")
    adapter = _adapter(training.trainer.get("args") or ())
    single = nodes == 1 and processes == "1"
    recipe = f"{'lora' if adapter else 'full'}_finetune_{'single_device' if single else 'distributed'}"
    suffix = adapter or "full"
    suffix += "_single_device" if single else ("_multinode" if nodes > 1 and not adapter else "")
    rendezvous = [] if single else [f"--rdzv_endpoint={head if nodes > 1 else 'localhost'}:{port}"]
    command = [*TUNE, *rendezvous, recipe, "--config", f"{model}_{suffix}"]
    command += [word for word in training.runtime_command if word.partition("=")[0] in _FROM_RUNTIME]
    container["command"] = command


def _adapter(args: Any) -> str:
    text = " ".join(args)
    if "quantize_base=True" in text or "quantize_base=true" in text:
        return "qlora"
    return "lora" if "lora" in text else ""
