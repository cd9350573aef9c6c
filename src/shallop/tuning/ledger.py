"""What is known of the Trials of one Experiment, kept up as they change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shallop.kube.objects import Object, is_deleting
from shallop.tuning.plan import Judgement, Tally, judge

__all__ = ["Ledger"]


class _Entry(NamedTuple):
    trial: Object
    judgement: Judgement


class Ledger:
    """
    Trials by class, and the best of them.

    An Experiment looks at its Trials whenever one of them changes; looking at all of them each time would cost a
    thousand trials a thousand times a thousand looks.
    """

    def __init__(self, *, maximize: bool) -> None:
        self.maximize = maximize
        self._seen: dict[int, Object] = {}
        self._entries: dict[str, _Entry] = {}
        self._classes: dict[str, dict[str, Object]] = {}
        self._best: _Entry | None = None

    def update(self, trials: Sequence[Object]) -> None:
        """Take in what the cache has now: objects that are the same ones as before are not looked at."""
        fresh = [trial for trial in trials if id(trial) not in self._seen]
        for trial in fresh:
            self._forget(trial["metadata"]["name"])
            self._seen[id(trial)] = trial
            self._enter(trial)
        if len(self._seen) > len(trials):
            present = {id(trial) for trial in trials}
            for gone in [trial for number, trial in self._seen.items() if number not in present]:
                self._forget(gone["metadata"]["name"])

    def __contains__(self, name: str) -> bool:
        """Whether there is a Trial of this name, one that is being deleted included."""
        return name in self._entries

    def tally(self) -> Tally:
        return Tally({name: list(trials.values()) for name, trials in self._classes.items() if trials})

    def best(self) -> tuple[Object, float] | None:
        """Return the Trial with the best objective, the first name among equals; None while there is no value."""
        if self._best is None:
            for entry in self._entries.values():
                self._compare(entry)
        return None if self._best is None else (self._best.trial, self._best.judgement.value or 0.0)

    def _enter(self, trial: Object) -> None:
        name = trial["metadata"]["name"]
        entry = self._entries[name] = _Entry(trial, judge(trial))
        if not is_deleting(trial):
            self._classes.setdefault(entry.judgement.name, {})[name] = trial
            if self._best is not None:
                self._compare(entry)

    def _forget(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        self._seen.pop(id(entry.trial), None)
        self._classes.get(entry.judgement.name, {}).pop(name, None)
        if self._best is entry:
            self._best = None

    def _compare(self, entry: _Entry) -> None:
        """Let an entry be the best if it is."""
        if entry.judgement.value is None or is_deleting(entry.trial):
            return
        if self._best is None or self._rank(entry) < self._rank(self._best):
            self._best = entry

    def _rank(self, entry: _Entry) -> tuple[float, str]:
        value = entry.judgement.value or 0.0
        return (-value if self.maximize else value), entry.trial["metadata"]["name"]
