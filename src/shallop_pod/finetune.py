"""
The two programs of ``TrainingClient.train``: one brings a language model and a data set, the other fine-tunes.

``python3 -m shallop_pod.finetune fetch`` stands for the image ``kubeflow/training-v1/storage-initializer``, and
``torchrun -m shallop_pod.finetune train`` for ``kubeflow/training-v1/trainer-huggingface``. The model is
``hf://OWNER/NAME`` or what the storage module brings (``file:///FOLDER``, ``s3://``...); the data set a name on the
hub, ``file:///FOLDER``, or S3's parameters of the client. ``HF_ENDPOINT`` is a mirror of the hub. Data sets need a
column ``text``, and ``label`` where the model classifies. Code that comes with a model is not run. The adapter is
saved to the client's ``output_dir``.

An error of ``fetch`` is one line on stderr and in the termination log, exit code 1.

Source: arguments and folders of kubeflow-training 1.9, ``train``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, Mapping, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod import storage
from shallop_pod.paths import UnsupportedUriError, local_path

__all__ = ["known_fields", "main", "s3_source"]

MODEL, DATASET = "/workspace/model", "/workspace/dataset"
_HUB = "hf://"
# The same weights for other frameworks.
_IGNORED = ["*.msgpack", "*.h5", "*.ot", "*.onnx", "*.tflite", "*.gguf"]
_LONGEST = 512


def main(argv: Sequence[str]) -> int:
    step = argv[0] if argv else ""
    if step not in ("fetch", "train"):
        print("usage: python3 -m shallop_pod.finetune fetch|train ARGUMENTS", file=sys.stderr)
        return 2
    return _fetch(argv[1:]) if step == "fetch" else _train(argv[1:])


def _fetch(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="storage-initializer")
    for name in ("model_provider", "model_provider_parameters", "dataset_provider", "dataset_provider_parameters"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args(argv)
    model, dataset = json.loads(options.model_provider_parameters), json.loads(options.dataset_provider_parameters)
    try:
        _fetch_model(model["model_uri"], model.get("access_token"))
        if options.dataset_provider == "s3":
            uri, environ = s3_source(dataset)
            storage.fetch(uri, DATASET, {**os.environ, **environ})
        else:
            _fetch_dataset(dataset["repo_id"], dataset.get("split"), dataset.get("access_token"))
    except (storage.StorageError, UnsupportedUriError, OSError) as error:
        return storage.fail(str(error))
    print("the model and the data set are in /workspace", flush=True)
    return 0


def _fetch_model(uri: str, token: str | None) -> None:
    if not uri.startswith(_HUB):
        storage.fetch(uri, MODEL, os.environ)
        return
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(uri[len(_HUB) :], cache_dir=MODEL, token=token, ignore_patterns=_IGNORED)
    except Exception as error:  # the library's own errors, and those of the network below it
        raise storage.StorageError(_unreachable(uri, error)) from error


def _fetch_dataset(name: str, split: str | None, token: str | None) -> None:
    from datasets import load_dataset

    path = local_path(name) if name.startswith("file://") else name
    try:
        load_dataset(path, split=split, token=token, cache_dir=f"{DATASET}.cache").save_to_disk(DATASET)
    except Exception as error:  # as above
        raise storage.StorageError(f"{name}: {error}" if path != name else _unreachable(name, error)) from error


def _unreachable(name: str, error: Exception) -> str:
    return f"{name}: the hub does not give it: {error}; without the internet use file:///FOLDER, S3, or HF_ENDPOINT"


def s3_source(parameters: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the URI and the variables that mean what the client's ``S3DatasetParams`` say."""
    names = {
        "endpoint_url": "AWS_ENDPOINT_URL",
        "access_key": "AWS_ACCESS_KEY_ID",
        "secret_key": "AWS_SECRET_ACCESS_KEY",
        "region_name": "AWS_DEFAULT_REGION",
    }
    environ = {variable: str(parameters[name]) for name, variable in names.items() if parameters.get(name)}
    return f"s3://{parameters['bucket_name']}/{parameters['file_key']}", environ


def known_fields(given: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the arguments that a class of this version of its library takes.

    Args:
        given: what the client's version wrote; ``<...>`` stands for a secret that it left out.
        fields: dataclass fields by name.
    """
    # The rank is a matter of the process, not of the client that wrote its own one down.
    return {
        name: value
        for name, value in given.items()
        if name in fields and fields[name].init and name != "local_rank" and not str(value).startswith("<")
    }


def _train(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="trainer-huggingface")
    for name in ("model_uri", "transformer_type", "lora_config", "training_parameters"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--num_labels", default="None")
    parser.add_argument("--model_dir", default=MODEL)
    parser.add_argument("--dataset_dir", default=DATASET)
    options = parser.parse_args(argv)

    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    arguments = known_fields(
        json.loads(options.training_parameters), transformers.TrainingArguments.__dataclass_fields__
    )
    if not torch.cuda.is_available():
        # Unless told so, the library would let each process of several train by itself.
        arguments["use_cpu"] = True
    training = transformers.TrainingArguments(**arguments)
    folder = _model_folder(options.model_uri, options.model_dir)
    labels = {"num_labels": int(options.num_labels)} if options.num_labels.isdigit() else {}
    model = getattr(transformers, options.transformer_type).from_pretrained(folder, **labels)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    lora = known_fields(json.loads(options.lora_config), LoraConfig.__dataclass_fields__)
    model = get_peft_model(model, LoraConfig(**lora))
    learns, judges = _data(options.dataset_dir, tokenizer)
    if options.transformer_type in ("AutoModelForCausalLM", "AutoModelForMaskedLM"):
        masked = options.transformer_type == "AutoModelForMaskedLM"
        collator: Any = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=masked)
    else:
        collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer = transformers.Trainer(
        model=model, args=training, train_dataset=learns, eval_dataset=judges, data_collator=collator
    )
    done = trainer.train()
    trainer.save_model()
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(training.output_dir)
        figures = {**done.metrics, "processes": training.world_size}
        print("result:", json.dumps(figures), f"the adapter is in {training.output_dir}", flush=True)
    return 0


def _model_folder(uri: str, folder: str) -> str:
    if not uri.startswith(_HUB):
        return folder
    from huggingface_hub import snapshot_download

    path: str = snapshot_download(uri[len(_HUB) :], cache_dir=folder, local_files_only=True)
    return path


def _data(folder: str, tokenizer: Any) -> tuple[Any, Any]:
    """Return what is trained on and what is evaluated on (None where there is no such part), as tokens."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    saved = any(os.path.exists(os.path.join(folder, name)) for name in ("dataset_dict.json", "dataset_info.json"))
    found = load_from_disk(folder) if saved else load_dataset(folder)
    parts = found if isinstance(found, DatasetDict) else {"train": found}
    if "train" not in parts:
        sys.exit(f"the data set has no part 'train', it has {', '.join(parts)}: choose one by the parameter split")
    columns = parts["train"].column_names
    if "text" not in columns:
        sys.exit(f"the data set has no column 'text', it has {', '.join(columns)}: rename the one to be learnt")
    longest = min(tokenizer.model_max_length, _LONGEST)

    def tokens(part: Any) -> Any:
        dropped = [name for name in part.column_names if name not in ("label", "labels")]
        return part.map(
            lambda rows: tokenizer(rows["text"], truncation=True, max_length=longest),
            batched=True,
            remove_columns=dropped,
        )

    return tokens(parts["train"]), tokens(parts["eval"]) if "eval" in parts else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
