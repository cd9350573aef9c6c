"""
Hugging Face transformers: text generation, classification of texts and tokens, masks, embeddings.

Source: KServe 0.21 huggingfaceserver: tasks by architecture, ``--task``, ``--return_probabilities``; its encoder's
answers are class numbers by default. Embeddings are the mean over tokens, of length 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shallop_pod.modelserver.language import Completion, Sampling, TextStream
from shallop_pod.modelserver.models import LoadError, LoadOptions, Model
from shallop_pod.modelserver.protocol import Tensor

__all__ = ["load"]

_TASKS = {
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForMaskedLM": "fill_mask",
    "ForCausalLM": "text_generation",
    "LMHeadModel": "text_generation",
    "ForConditionalGeneration": "text2text_generation",
}
_MODELS = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "fill_mask": "AutoModelForMaskedLM",
    "text_generation": "AutoModelForCausalLM",
    "text2text_generation": "AutoModelForSeq2SeqLM",
    "text_embedding": "AutoModel",
}
_REFUSED = ("quantization", "tensor_parallel_size", "enable_lora", "speculative_model")


def load(name: str, path: Path, options: LoadOptions) -> Model:
    """Load a folder as ``save_pretrained`` writes one, or the model of the hub that ``--model_id`` names."""
    import torch
    import transformers

    arguments = options.arguments
    if arguments.get("backend", "auto") not in ("auto", "huggingface"):
        raise LoadError(f"--backend={arguments['backend']}: not there; use huggingface.")
    if refused := [item for item in _REFUSED if arguments.get(item) not in (None, "", "1", "false")]:
        raise LoadError(f"--{refused[0]}: not possible with the huggingface backend.")
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    source = arguments.get("model_id") or str(path)
    where = {"revision": arguments["model_revision"]} if arguments.get("model_revision") else {}
    config = transformers.AutoConfig.from_pretrained(source, **where)
    task = arguments.get("task") or _task_of(config)
    if task not in _MODELS:
        raise LoadError(f"task {task} is not served; use one of {', '.join(_MODELS)}.")
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.get("tokenizer") or source, **where)
    dtype = {"auto": "auto", "float16": torch.float16, "bfloat16": torch.bfloat16}.get(arguments.get("dtype", ""))
    model = getattr(transformers, _MODELS[task]).from_pretrained(source, dtype=dtype or torch.float32, **where).eval()
    inputs = (Tensor("input-0", "BYTES", (-1,)),)
    if task in ("text_generation", "text2text_generation"):
        generator = _Generator(model, tokenizer, encoder_decoder=task == "text2text_generation")
        return Model(name, "huggingface", _refuse, 0, inputs, batches=False, language=generator)
    encoder = _Encoder(model, tokenizer, task, arguments)
    language = encoder if task == "text_embedding" else None
    return Model(name, "huggingface", encoder.predict, 0, inputs, batches=False, language=language)


def _task_of(config: Any) -> str:
    for architecture in config.architectures or ():
        for ending, task in _TASKS.items():
            if architecture.endswith(ending):
                return task
    return "text_embedding"


def _refuse(rows: Any) -> Any:
    raise ValueError("this model generates texts: ask at /openai/v1/completions or /openai/v1/chat/completions")


class _Encoder:
    """Reads texts and answers with classes, tokens or vectors."""

    generates = False

    def __init__(self, model: Any, tokenizer: Any, task: str, arguments: Mapping[str, str]) -> None:
        self._model, self._tokenizer, self._task = model, tokenizer, task
        self._limit = int(arguments.get("max_length") or arguments.get("max_model_len") or 0) or _context_of(model)
        self._probabilities = "return_probabilities" in arguments
        self._logits = "return_raw_logits" in arguments
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    def predict(self, rows: Any) -> list[Any]:
        texts = [_text_of(row) for row in (rows.reshape(-1) if hasattr(rows, "reshape") else rows)]
        if self._task == "text_embedding":
            return list(self.embed(texts)[0])
        import torch

        batch = self._encode(texts)
        with torch.inference_mode():
            logits = self._model(**batch).logits
        if self._task == "sequence_classification":
            return self._classes(logits)
        kept = [row.bool() for row in batch["attention_mask"]]
        if self._task == "token_classification":
            return [self._classes(row[mask]) for row, mask in zip(logits, kept, strict=True)]
        masked = batch["input_ids"] == self._tokenizer.mask_token_id
        return [self._tokenizer.decode(row[mask].argmax(-1)) for row, mask in zip(logits, masked, strict=True)]

    def _classes(self, logits: Any) -> list[Any]:
        if self._logits:
            return [_by_class(row) for row in logits]
        if self._probabilities:
            return [_by_class(row) for row in logits.softmax(-1)]
        classes: list[Any] = logits.argmax(-1).tolist()
        return classes

    def _encode(self, texts: Sequence[str]) -> Any:
        return self._tokenizer(list(texts), padding=True, truncation=True, max_length=self._limit, return_tensors="pt")

    def embed(self, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        import torch

        batch = self._encode(texts)
        with torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        vectors: list[list[float]] = torch.nn.functional.normalize(mean, dim=-1).tolist()
        return vectors, int(batch["attention_mask"].sum())

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text)["input_ids"]
        return tokens

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        raise ValueError("this model embeds texts; it cannot chat")

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def generate(self, prompt: Sequence[int], sampling: Sampling, emit: Callable[[str], bool]) -> Completion:
        raise ValueError("this model embeds texts; it cannot generate any")


def _by_class(values: Any) -> dict[str, float]:
    return {str(number): value for number, value in enumerate(values.tolist())}


def _text_of(row: Any) -> str:
    if isinstance(row, bytes):
        return row.decode()
    if not isinstance(row, str):
        raise ValueError(f"the model reads texts; a row is {type(row).__name__}")
    return str(row)


def _context_of(model: Any) -> int:
    config = model.config
    return int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 4096)


class _Generator:
    """Goes on with texts, one request at a time."""

    generates = True

    def __init__(self, model: Any, tokenizer: Any, *, encoder_decoder: bool) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._encoder_decoder = encoder_decoder
        self._context = _context_of(model)

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text)["input_ids"]
        return tokens

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        if not getattr(self._tokenizer, "chat_template", None):
            raise ValueError("the model's tokenizer has no chat template; ask at /openai/v1/completions")
        text = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def generate(self, prompt: Sequence[int], sampling: Sampling, emit: Callable[[str], bool]) -> Completion:
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        used = 0 if self._encoder_decoder else len(prompt)
        wanted = self._context - used if sampling.max_tokens is None else sampling.max_tokens
        if not prompt or used + wanted > self._context:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, of which {wanted} more are asked for; "
                f"the model's context has {self._context}"
            )
        stream = TextStream(self.decode, sampling.stop, emit)
        eos = self._model.generation_config.eos_token_id
        ends = set(eos if isinstance(eos, list) else [eos])

        class Watch(StoppingCriteria):  # type: ignore[misc]
            """Sees each token as it comes."""

            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                token = int(input_ids[0, -1])
                over = token not in ends and not stream.add(token)
                return torch.full((input_ids.shape[0],), over, dtype=torch.bool)

        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        how: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0 and sampling.top_p > 0:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=wanted,
                stopping_criteria=StoppingCriteriaList([Watch()]),
                logits_processor=self._penalties(sampling, len(ids[0])),
                pad_token_id=self._tokenizer.pad_token_id or next(iter(ends)) or 0,
                **how,
            )
        stream.finish()
        ended = stream.ended or int(output[0, -1]) in ends
        return Completion(stream.text, len(stream.tokens), "stop" if ended else "length")

    def embed(self, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        raise ValueError("this model generates texts; it has no embeddings")

    def _penalties(self, sampling: Sampling, start: int) -> Any:
        import torch
        from transformers import LogitsProcessor, LogitsProcessorList

        if not sampling.presence_penalty and not sampling.frequency_penalty:
            return LogitsProcessorList()

        class Penalty(LogitsProcessor):  # type: ignore[misc]
            """Makes tokens that were generated before less likely, as OpenAI defines it."""

            def __call__(self, input_ids: Any, scores: Any) -> Any:
                counts = torch.zeros_like(scores).scatter_add_(
                    1, input_ids[:, start:], torch.ones_like(input_ids[:, start:], dtype=scores.dtype)
                )
                penalty = sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
                return scores - penalty

        return LogitsProcessorList([Penalty()])
