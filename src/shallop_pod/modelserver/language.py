"""What a model of texts offers to the OpenAI API, whatever library runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

__all__ = ["Completion", "Language", "Sampling", "TextStream"]


class Sampling(NamedTuple):
    """
    How to choose tokens.

    Args:
        max_tokens: at most so many new ones; None up to the end of the model's context.
        temperature: 0 takes the likeliest token.
        stop: texts before which the answer ends.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


class Completion(NamedTuple):
    """A text that was generated; ``reason`` is ``stop`` or ``length``."""

    text: str
    tokens: int
    reason: str


class Language(Protocol):
    """
    A model of texts. Methods are called in one thread, one after the other.

    Raises:
        ValueError: the request asks for what the model cannot do; the message is for its sender.
    """

    generates: bool

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with those that begin one."""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant speaks."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens without special ones."""

    def generate(self, prompt: Sequence[int], sampling: Sampling, emit: Callable[[str], bool]) -> Completion:
        """Go on with a prompt; ``emit`` gets each piece of text and returns False when nobody wants more."""

    def embed(self, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        """Return one vector per text, and the number of tokens read."""


class TextStream:
    """
    Makes a text of tokens that come one by one.

    Characters of several tokens and what may be the beginning of a stop text are held back until they are whole.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop: Sequence[str], emit: Callable[[str], bool]
    ) -> None:
        self._decode = decode
        self._stop = stop
        self._emit = emit
        self._sent = 0
        self.tokens: list[int] = []
        self.text = ""
        self.ended = False

    def add(self, token: int) -> bool:
        """Take a token; False when the text ends here: at a stop text, or because nobody listens."""
        self.tokens.append(token)
        text = self._decode(self.tokens)
        found = min((position for position in map(text.find, self._stop) if position >= 0), default=-1)
        if found >= 0:
            self.text, self.ended = text[:found], True
            self._send(found)
            return False
        self.text = text
        if text.endswith("\ufffd"):
            return True
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        return self._send(len(text) - held)

    def finish(self) -> None:
        """Send what was held back."""
        self._send(len(self.text))

    def _send(self, end: int) -> bool:
        if end <= self._sent:
            return True
        piece, self._sent = self.text[self._sent : end], end
        return self._emit(piece)


def _overlap(text: str, stop: str) -> int:
    """Return how much of the beginning of ``stop`` the text ends with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
