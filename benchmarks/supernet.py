"""
What a trial of ``darts`` does, small enough for a benchmark: a differentiable search among operations on the digits.

The network is a stem, one of the operations per layer, a pooling and a linear layer. While it searches each layer is
the mixture of all operations; the weights of the mixtures are learned on one half of the training data, all others on
the other half (first order), with a learning rate that falls along a cosine and gradients that are clipped. For the
first third the mixtures stay as they are, and what operations without weights give is dropped in part: they are good at
once, and would win before the others have learned anything. The strongest operation of each layer is the architecture
found. Needs torch and scikit-learn.

Source: Liu, Simonyan, Yang, DARTS: Differentiable Architecture Search, 2019; the late start of the mixtures and the
dropout are from Chen, Xie, Wu, Tian, Progressive Differentiable Architecture Search, 2019.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

__all__ = ["CHANNELS", "Data", "error_of", "random_architecture", "search"]

CHANNELS, BATCH = 8, 50
_CLIP, _DROPPED = 5.0, 0.3


class Data:
    """The digits as images: two halves to search with, both to train with, one sixth to choose by, one to test."""

    def __init__(self) -> None:
        x, y = load_digits(return_X_y=True)
        images = torch.tensor(x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        labels = torch.tensor(y)
        known, self.test = train_test_split(range(len(y)), test_size=1 / 6, random_state=0, stratify=y)
        self.train, self.validation = train_test_split(known, test_size=1 / 5, random_state=0, stratify=y[known])
        self.images, self.labels = images, labels

    def batches(self, rows: Sequence[int], order: random.Random) -> list[tuple[Any, Any]]:
        shuffled = order.sample(list(rows), len(rows))
        parts = (shuffled[at : at + BATCH] for at in range(0, len(shuffled), BATCH))
        return [(self.images[part], self.labels[part]) for part in parts]


def _operation(name: str) -> nn.Module:
    kind, _, size = name.rpartition("_")
    if name == "skip_connection":
        return nn.Identity()
    width = int(size.partition("x")[0])
    if kind == "max_pooling":
        return nn.MaxPool2d(width, stride=1, padding=width // 2)
    if kind == "avg_pooling":
        return nn.AvgPool2d(width, stride=1, padding=width // 2)
    gap = 2 if kind == "dilated_convolution" else 1
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, width, padding=gap * (width // 2), dilation=gap, groups=CHANNELS, bias=False),
        nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False),
        nn.BatchNorm2d(CHANNELS),
    )


def _mixed(name: str) -> nn.Module:
    """Return an operation as one of a mixture."""
    operation = _operation(name)
    return operation if any(True for _ in operation.parameters()) else nn.Sequential(operation, nn.Dropout(_DROPPED))


class _Network(nn.Module):
    def __init__(self, layers: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS))
        self.layers = nn.ModuleList(
            nn.ModuleList((_mixed if len(names) > 1 else _operation)(name) for name in names) for names in layers
        )
        self.head = nn.Linear(CHANNELS * 4, 10)
        self.mixture = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(len(names))) for names in layers)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for operations, logits in zip(self.layers, self.mixture, strict=True):
            shares = torch.softmax(logits, 0) if len(operations) > 1 else [1.0]
            x = sum(share * operation(x) for share, operation in zip(shares, operations, strict=True))
        return self.head(nn.functional.adaptive_avg_pool2d(torch.relu(x), 2).flatten(1))

    def weights(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if not name.startswith("mixture")]


def search(data: Data, names: Sequence[str], layers: int, epochs: int, seed: int) -> list[str]:
    """Return the architecture that a differentiable search finds; an epoch sees all training data at most once."""
    torch.manual_seed(seed)
    order, loss = random.Random(seed), nn.CrossEntropyLoss()
    network = _Network([names] * layers)
    inner = torch.optim.SGD(network.weights(), lr=0.1, momentum=0.9, weight_decay=3e-4)
    outer = torch.optim.Adam(network.mixture.parameters(), lr=0.05, betas=(0.5, 0.999), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(inner, epochs)

    def step(optimizer: torch.optim.Optimizer, batch: tuple[Any, Any]) -> None:
        network.zero_grad()
        loss(network(batch[0]), batch[1]).backward()
        nn.utils.clip_grad_norm_(network.weights(), _CLIP)
        optimizer.step()

    half = len(data.train) // 2
    rows = order.sample(list(data.train), len(data.train))
    for epoch in range(epochs):
        for mine, theirs in zip(data.batches(rows[:half], order), data.batches(rows[half:], order), strict=False):
            if epoch >= epochs // 3:
                step(outer, theirs)
            step(inner, mine)
        schedule.step()
    return [names[int(logits.argmax())] for logits in network.mixture]


def error_of(data: Data, architecture: Sequence[str], epochs: int, seed: int) -> tuple[float, float]:
    """Train an architecture anew; return its errors in percent on what is for choosing and on the test data."""
    torch.manual_seed(seed)
    order, loss = random.Random(seed), nn.CrossEntropyLoss()
    network = _Network([[name] for name in architecture])
    optimizer = torch.optim.SGD(network.weights(), lr=0.1, momentum=0.9, weight_decay=3e-4)
    steps = epochs * -(-len(data.train) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for x, y in data.batches(data.train, order):
            optimizer.zero_grad()
            loss(network(x), y).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        answers = network(data.images).argmax(1)
    wrong = (answers != data.labels).float()
    return 100 * float(wrong[data.validation].mean()), 100 * float(wrong[data.test].mean())


def random_architecture(names: Sequence[str], layers: int, seed: int) -> list[str]:
    return random.Random(seed).choices(names, k=layers)
