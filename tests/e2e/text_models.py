"""Make small models of texts, with a tokenizer of their own, and neural networks; print what they answer in-process."""

import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

NETWORKS, TEXTS = map(Path, sys.argv[1:])
WORDS = "the boat sails on a calm sea and the wind is fair today hello user assistant"
NET = """
import torch


class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
"""


def networks() -> dict:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    for name in ("script", "exported", "state"):
        (NETWORKS / name).mkdir()
    torch.jit.trace(net, torch.zeros(1, 4)).save(NETWORKS / "script" / "model.pt")
    rows = torch.export.Dim("rows")
    program = torch.export.export(net, (torch.zeros(2, 4),), dynamic_shapes=({0: rows},))
    torch.export.save(program, str(NETWORKS / "exported" / "model.pt2"))
    torch.save(net.state_dict(), NETWORKS / "state" / "model.pt")
    (NETWORKS / "state" / "net.py").write_text(NET)
    inputs = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
    with torch.inference_mode():
        return {"inputs": inputs, "outputs": net(torch.tensor(inputs)).tolist()}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    made.train_from_iterator([WORDS] * 9, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant"
    return fast


def texts() -> dict:
    torch.manual_seed(0)
    words = tokenizer()
    generator = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=len(words), n_positions=128, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1
        )
    ).eval()
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=3,
        pad_token_id=2,
    )
    classifier = transformers.BertForSequenceClassification(config).eval()
    embedder = transformers.BertModel(config).eval()
    for name, model in (("generator", generator), ("classifier", classifier), ("embedder", embedder)):
        model.save_pretrained(TEXTS / name)
        words.save_pretrained(TEXTS / name)

    prompt = words("the boat", return_tensors="pt")
    tokens = generator.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=2)[0]
    said = words.decode(tokens[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    given = words(["the boat sails", "hello"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        classes = classifier(**given).logits.argmax(-1).tolist()
        hidden = embedder(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(-1).float()
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return {"said": said, "classes": classes, "vectors": vectors.tolist()}


print(json.dumps({"networks": networks(), "texts": texts()}))
