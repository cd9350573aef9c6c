"""
Suggestions of any search, whatever kind of object asks for them: from rows and outcomes to new rows.

What an algorithm proposed is stored before anybody acts on it, and names of trials are part of it. So whoever creates
trials may create them again after a crash and gets the same ones.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shallop.kube.objects import Object
from shallop.store.database import Database
from shallop.tuning import tables
from shallop.tuning.algorithms import ALGORITHMS
from shallop.tuning.algorithms.contract import Algorithm, Past, Problem

__all__ = ["Outcome", "Searches", "Suggested", "owner_of", "seed_of"]


class Outcome(NamedTuple):
    """What became of a trial; ``state`` and ``value`` as in ``contract.Past``."""

    state: str
    value: float | None


@dataclass(frozen=True)
class Suggested:
    """One stored suggestion."""

    name: str
    assignments: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)
    rules: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        return {"assignments": self.assignments, "labels": self.labels, "memo": self.memo, "rules": self.rules}


def owner_of(obj: Object) -> str:
    """Return the name of a search in rows: that of the object which asks."""
    return f"{obj['kind']}/{obj['metadata']['uid']}"


def seed_of(uid: str, text: str | None) -> int:
    """Return the seed that a setting gives, or one that belongs to the object."""
    try:
        return int(text) if text else int.from_bytes(hashlib.sha256(uid.encode()).digest()[:4])
    except ValueError:
        return int.from_bytes(hashlib.sha256(str(text).encode()).digest()[:4])


class Searches:
    """The searches of one process; a cache over rows, so forgetting one loses nothing."""

    def __init__(self) -> None:
        self._known: dict[str, list[Suggested]] = {}
        self._algorithms: dict[str, Algorithm] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def suggested(self, database: Database, owner: str) -> list[Suggested]:
        """Return every suggestion for an owner, in order; the caller must not change the list."""
        known = self._known.get(owner)
        if known is None:
            rows = await database.read(lambda connection: tables.suggestions_of(connection, owner))
            known = self._known[owner] = [Suggested(name, **document) for name, document in rows]
        return known

    async def propose(
        self,
        database: Database,
        owner: str,
        algorithm: str,
        problem: Problem,
        outcomes: Mapping[str, Outcome],
        total: int,
        rules: Sequence[dict[str, Any]] = (),
        prefix: str = "",
        ahead: int = 0,
    ) -> tuple[list[Suggested], bool]:
        """
        Ask the algorithm for suggestions until there are ``total``, and store them; several may ask at once.

        Args:
            outcomes: of trials, by name; a suggestion without one counts as active.
            rules: early stopping rules of the new trials.
            prefix: what the names of trials begin with, instead of the search's name.
            ahead: how many more to ask for at once, where outcomes change nothing.

        Returns:
            All suggestions, and whether there will never be more.
        """
        async with self._locks.setdefault(owner, asyncio.Lock()):
            known = await self.suggested(database, owner)
            first = len(known)
            if total <= first:
                return known, False
            active = Outcome("active", None)
            history = [Past(one.name, one.assignments, *outcomes.get(one.name, active), one.memo) for one in known]
            chosen = self._algorithms.setdefault(owner, ALGORITHMS[algorithm]())
            count = total - first + (0 if chosen.uses_results else ahead)
            reply = await asyncio.to_thread(chosen.suggest, problem, history, count)
            new = [
                Suggested(
                    proposal.name or f"{prefix or problem.name}-{_suffix(owner, first + index)}",
                    proposal.assignments,
                    proposal.labels,
                    proposal.memo,
                    list(rules),
                )
                for index, proposal in enumerate(reply.proposals)
            ]
            rows = [(one.name, one.document()) for one in new]
            if rows:
                await database.write(lambda connection: tables.add_suggestions(connection, owner, first, rows))
            self._known[owner] = [*known, *new]
            return self._known[owner], reply.ended

    async def drop(self, database: Database, kind: str, alive: Set[str]) -> None:
        """Remove what was suggested to objects of a kind that are no longer among those with the uids ``alive``."""
        gone = await database.write(lambda connection: tables.delete_others(connection, kind, alive))
        for owner in gone:
            self._known.pop(owner, None)
            self._algorithms.pop(owner, None)
            self._locks.pop(owner, None)


def _suffix(owner: str, number: int) -> str:
    """Eight letters and digits that belong to this suggestion."""
    alphabet = "bcdfghjklmnpqrstvwxz2456789"
    digest = hashlib.sha256(f"{owner}/{number}".encode()).digest()
    return "".join(alphabet[byte % len(alphabet)] for byte in digest[:8])
