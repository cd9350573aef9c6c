"""The object store: durable, ordered, resumable."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shallop.embedded.apiserver import objects_store
from shallop.embedded.apiserver.objects_store import ObjectsStore
from shallop.errors import ExpiredError, UnavailableError


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, "namespace": "ns"}, "data": data}


def run(path: Path | None, test: Callable[[ObjectsStore], Awaitable[None]], synchronous: str = "normal") -> None:
    async def inside() -> None:
        store = ObjectsStore(path, synchronous=synchronous)
        store.start()
        try:
            await test(store)
        finally:
            await store.stop()

    asyncio.run(inside())


async def put(store: ObjectsStore, name: str, **data: str) -> int:
    async with store.lock("configmaps", "ns", name):
        return (await store.put("configmaps", "ns", name, config_map(name, **data))).revision


async def remove(store: ObjectsStore, name: str) -> int:
    async with store.lock("configmaps", "ns", name):
        return (await store.remove("configmaps", "ns", name, config_map(name))).revision


def names(store: ObjectsStore) -> list[str]:
    return [stored.name for stored in store.list("configmaps", "ns")]


@pytest.mark.parametrize("synchronous", ["normal", "full"])
def test_what_was_written_is_there_after_a_restart(tmp_path: Path, synchronous: str) -> None:
    async def write(store: ObjectsStore) -> None:
        await put(store, "a", k="1")
        await put(store, "b", k="1")
        await put(store, "a", k="2")
        await remove(store, "b")

    async def read(store: ObjectsStore) -> None:
        assert names(store) == ["a"]
        stored = store.get("configmaps", "ns", "a")
        assert stored is not None
        assert stored.object["data"] == {"k": "2"}
        assert store.revision == 1004
        assert await put(store, "c") == 1005

    run(tmp_path / "objects.db", write, synchronous)
    run(tmp_path / "objects.db", read, synchronous)


def test_a_watch_resumes_across_a_restart(tmp_path: Path) -> None:
    async def write(store: ObjectsStore) -> None:
        await put(store, "a", k="1")
        await put(store, "a", k="2")
        await remove(store, "a")

    async def read(store: ObjectsStore) -> None:
        changes = await store.subscribe("configmaps", "ns", after=1001).next()
        assert [(change.revision, change.deleted) for change in changes] == [(1002, False), (1003, True)]
        assert changes[0].old is not None
        assert changes[0].old.object["data"] == {"k": "1"}

    run(tmp_path / "objects.db", write)
    run(tmp_path / "objects.db", read)


def test_watchers_see_every_revision_once_and_in_order() -> None:
    async def test(store: ObjectsStore) -> None:
        subscription = store.subscribe("configmaps")
        await asyncio.gather(*(put(store, f"n{number}") for number in range(200)))
        seen = [change.revision for change in await subscription.next()]
        assert seen == list(range(1001, 1201))

    run(None, test)


@pytest.mark.parametrize("synchronous", ["normal", "full"])
def test_nobody_hears_of_a_write_before_it_is_committed(tmp_path: Path, synchronous: str) -> None:
    async def test(store: ObjectsStore) -> None:
        other = sqlite3.connect(tmp_path / "objects.db")
        found = []
        store.listeners.append(
            lambda change: found.append(
                other.execute("SELECT count(*) FROM versions WHERE revision = ?", (change.revision,)).fetchone()[0]
            )
        )
        for number in range(20):
            await put(store, f"n{number}")
        other.close()
        assert found == [1] * 20

    run(tmp_path / "objects.db", test, synchronous)


@pytest.mark.parametrize("synchronous", ["normal", "full"])
def test_writes_under_way_are_done_when_the_store_stops(tmp_path: Path, synchronous: str) -> None:
    async def test() -> None:
        store = ObjectsStore(tmp_path / "objects.db", synchronous=synchronous)
        store.start()
        writes = [asyncio.create_task(put(store, f"n{number}")) for number in range(100)]
        await asyncio.sleep(0)
        await store.stop()
        assert await asyncio.gather(*writes) == list(range(1001, 1101))
        with pytest.raises(UnavailableError):
            await put(store, "late")

    asyncio.run(test())

    async def read(store: ObjectsStore) -> None:
        assert store.count("configmaps") == 100

    run(tmp_path / "objects.db", read)


@pytest.mark.parametrize("longest", [0, 1000])
def test_the_log_does_not_grow_with_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    monkeypatch.setattr(objects_store, "_CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(objects_store, "_MAX_LOG_PAGES", longest)

    async def test(store: ObjectsStore) -> None:
        for number in range(200):
            await put(store, f"n{number}", k="x" * 20_000)
            if store._checkpointer is not None:
                await asyncio.to_thread(store._checkpointer.join)
        assert (tmp_path / "objects.db-wal").stat().st_size < 1_000_000
        assert (tmp_path / "objects.db").stat().st_size > 3_000_000

    run(tmp_path / "objects.db", test)


def test_a_long_log_that_a_killed_process_left_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def killed(store: ObjectsStore) -> None:
        for number in range(200):
            await put(store, f"n{number}", k="x" * 20_000)
        for file in tmp_path.glob("objects.db*"):
            (tmp_path / f"left-{file.name}").write_bytes(file.read_bytes())

    async def started(store: ObjectsStore) -> None:
        assert (tmp_path / "left-objects.db").stat().st_size < 100_000
        await put(store, "first")
        assert store._checkpointer is not None
        await asyncio.to_thread(store._checkpointer.join)
        assert (tmp_path / "left-objects.db").stat().st_size > 3_000_000

    with monkeypatch.context() as patched:
        patched.setattr(objects_store, "_CHECKPOINT_PAGES", 1_000_000)
        run(tmp_path / "objects.db", killed)
    monkeypatch.setattr(objects_store, "_CHECKPOINT_PAGES", 500)
    run(tmp_path / "left-objects.db", started)


def test_a_write_that_cannot_be_stored_is_refused_and_not_seen(tmp_path: Path) -> None:
    async def test(store: ObjectsStore) -> None:
        other = sqlite3.connect(tmp_path / "objects.db")
        other.execute("CREATE TRIGGER full BEFORE INSERT ON versions BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
        subscription = store.subscribe("configmaps")
        with pytest.raises(UnavailableError, match="disk is full"):
            await put(store, "a")
        assert names(store) == []
        other.execute("DROP TRIGGER full")
        other.close()
        await put(store, "b")
        assert [change.new.name for change in await subscription.next()] == ["b"]

    run(tmp_path / "objects.db", test)


def test_a_failing_listener_does_not_stop_writers() -> None:
    async def test(store: ObjectsStore) -> None:
        store.listeners.append(lambda change: 1 / 0)
        await asyncio.wait_for(put(store, "a"), 2)
        assert names(store) == ["a"]

    run(None, test)


def test_history_that_was_dropped_is_expired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_store, "KEEP_REVISIONS", 10)
    monkeypatch.setattr(objects_store, "MAX_REVISIONS", 10)

    async def write(store: ObjectsStore) -> None:
        for number in range(30):
            await put(store, "a", k=str(number))
        with pytest.raises(ExpiredError):
            store.subscribe("configmaps", after=1005)
        assert len(await store.subscribe("configmaps", after=1025).next()) == 5

    async def read(store: ObjectsStore) -> None:
        assert names(store) == ["a"]
        with pytest.raises(ExpiredError):
            store.subscribe("configmaps", after=1005)
        assert store.list_at("configmaps", "ns", 1025)[0].object["data"] == {"k": "24"}

    run(tmp_path / "objects.db", write)
    run(tmp_path / "objects.db", read)


def test_history_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_store, "MAX_BYTES", 100_000)

    async def test(store: ObjectsStore) -> None:
        first = await put(store, "small")
        for number in range(30):
            await put(store, "large", k=str(number) * 5_000)
        with pytest.raises(ExpiredError):
            store.subscribe("configmaps", after=first)
        assert 8 <= len(await store.subscribe("configmaps", after=store.revision - 8).next()) <= 20
        assert names(store) == ["large", "small"]

    run(None, test)


def test_decoded_objects_are_kept_of_what_is_new_or_watched_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_store, "_DECODED", 3)

    async def test(store: ObjectsStore) -> None:
        def decoded() -> list[bool]:
            return [change.new._object is not None for change in store._log]

        for _ in range(6):
            await put(store, "a")
        assert decoded() == [False] * 3 + [True] * 3
        store.subscribe("configmaps")
        await put(store, "b")
        for _ in range(5):
            await put(store, "c")
        assert decoded()[6], "watchers hold the newest version of each object, and so may the store"
        assert store.get("configmaps", "ns", "a").object["metadata"]["name"] == "a"  # type: ignore[union-attr]

    run(None, test)


@pytest.mark.parametrize("restart", [False, True])
def test_history_that_is_read_from_disk_is_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, restart: bool
) -> None:
    monkeypatch.setattr(objects_store, "_FRESH_BYTES", 500)

    async def write(store: ObjectsStore) -> None:
        for number in range(40):
            await put(store, f"x{number % 3}", k=str(number))
        await remove(store, "x0")

    async def read(store: ObjectsStore) -> None:
        changes = await store.subscribe("configmaps", after=1010).next()
        seen = [(change.new.object["data"]["k"], change.deleted) for change in changes if not change.deleted]
        assert seen == [(str(number), False) for number in range(10, 40)]
        assert [change.old.object["data"]["k"] for change in changes if change.old][:30] == list(map(str, range(7, 37)))
        assert changes[-1].deleted
        assert changes[-1].old is not None and b'"k":"39"' in changes[-1].old.raw
        assert sum(change.new._raw is not None for change in changes) < 10
        past = store.list_at("configmaps", "ns", 1011)
        assert [stored.object["data"]["k"] for stored in past] == ["9", "10", "8"]
        assert names(store) == ["x1", "x2"]

    async def both(store: ObjectsStore) -> None:
        await write(store)
        await read(store)

    if restart:
        run(tmp_path / "objects.db", write)
        run(tmp_path / "objects.db", read)
    else:
        run(tmp_path / "objects.db", both)


def test_an_old_version_that_somebody_held_too_long_is_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_store, "_FRESH_BYTES", 500)
    monkeypatch.setattr(objects_store, "KEEP_REVISIONS", 10)
    monkeypatch.setattr(objects_store, "KEEP_S", 0.0)

    async def test(store: ObjectsStore) -> None:
        await put(store, "a", k="1")
        held = store.get("configmaps", "ns", "a")
        for number in range(40):
            await put(store, "a", k=str(number))
        assert held is not None
        with pytest.raises(ExpiredError):
            _ = held.object

    run(None, test)


def test_lists_of_the_past_are_those_of_the_past() -> None:
    async def test(store: ObjectsStore) -> None:
        await put(store, "a")
        await put(store, "b")
        await remove(store, "a")
        await put(store, "c")
        at = {revision: [s.name for s in store.list_at("configmaps", "ns", revision)] for revision in range(1001, 1005)}
        assert at == {1001: ["a"], 1002: ["a", "b"], 1003: ["b"], 1004: ["b", "c"]}

    run(None, test)


def test_owners_are_indexed_through_changes() -> None:
    async def test(store: ObjectsStore) -> None:
        obj = config_map("child")
        obj["metadata"]["ownerReferences"] = [{"uid": "u1"}]
        async with store.lock("configmaps", "ns", "child"):
            await store.put("configmaps", "ns", "child", obj)
        assert [stored.name for stored in store.by_owner("u1")] == ["child"]
        await put(store, "child")
        assert store.by_owner("u1") == []

    run(None, test)


@pytest.mark.parametrize("synchronous", ["normal", "full"])
def test_a_follower_hears_of_a_write_before_its_writer_goes_on(tmp_path: Path, synchronous: str) -> None:
    async def test(store: ObjectsStore) -> None:
        await put(store, "a", k="1")
        heard: list[tuple[int, str]] = []

        def tell(change: objects_store.Change) -> None:
            # What it hears of is on the disk, and what readers get.
            with sqlite3.connect(tmp_path / "objects.db") as db:
                [(last,)] = db.execute("SELECT max(revision) FROM versions").fetchall()
            assert last >= change.revision == store.revision
            heard.append((change.revision, change.new.name))

        store.subscribe("configmaps", after=1000, tell=tell)
        assert heard == [(1001, "a")]
        await put(store, "b")
        assert heard[1:] == [(1002, "b")]
        await asyncio.gather(put(store, "c"), put(store, "d"))
        assert heard[2:] == [(1003, "c"), (1004, "d")]

    run(tmp_path / "objects.db", test, synchronous)


def test_a_follower_that_fails_ends_and_disturbs_nobody() -> None:
    async def test(store: ObjectsStore) -> None:
        calls: list[int] = []

        def tell(change: objects_store.Change) -> None:
            calls.append(change.revision)
            raise ValueError("a defect")

        failing, other = store.subscribe("configmaps", tell=tell), store.subscribe("configmaps")
        await put(store, "a")
        await put(store, "b")
        assert calls == [1001]
        with pytest.raises(ValueError, match="a defect"):
            await failing.ended()
        assert [change.new.name for change in await other.next()] == ["a", "b"]

    run(None, test)


def test_a_follower_ends_where_its_resource_does() -> None:
    async def test(store: ObjectsStore) -> None:
        subscription = store.subscribe("configmaps", tell=lambda change: None)
        store.close_subscriptions("configmaps")
        await asyncio.wait_for(subscription.ended(), 30)

    run(None, test)
