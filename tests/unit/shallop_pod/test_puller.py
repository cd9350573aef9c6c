"""The puller makes a server have the models of a list, and tries again what failed."""

from __future__ import annotations

import json
from pathlib import Path

from shallop_pod.puller import Puller, parse_list


class Server:
    """Remembers what it was asked; answers with ``error``."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error = ""

    def __call__(self, path: str) -> str:
        self.asked.append(path.removeprefix("/v2/repository/models/"))
        return self.error


def source(tmp_path: Path, name: str = "source") -> str:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "model.joblib").write_text(name)
    return str(folder)


def test_models_of_the_list_are_brought_loaded_and_taken_away(tmp_path: Path) -> None:
    server, folder = Server(), tmp_path / "models"
    folder.mkdir()
    (folder / "stranger").mkdir()
    puller = Puller(str(folder), server, {})
    first, second = source(tmp_path), source(tmp_path, "other")
    puller.step({"iris": first}, 0)
    assert server.asked == ["stranger/unload", "iris/load"]
    assert (folder / "iris" / "model.joblib").read_text() == "source"
    puller.step({"iris": first}, 1)
    assert len(server.asked) == 2
    puller.step({"iris": second}, 2)
    assert server.asked[2:] == ["iris/load"]
    assert (folder / "iris" / "model.joblib").read_text() == "other"
    puller.step({}, 3)
    assert server.asked[3:] == ["iris/unload"]
    assert list(folder.iterdir()) == []


def test_what_fails_is_tried_again_more_and_more_seldom(tmp_path: Path) -> None:
    server = Server()
    server.error = "broken"
    puller, uri = Puller(str(tmp_path / "models"), server, {}), source(tmp_path)
    (tmp_path / "models").mkdir()
    for now in (0, 0.5, 1, 1.5, 2.5, 3):
        puller.step({"iris": uri}, now)
    assert server.asked == ["iris/load"] * 3
    server.error = ""
    puller.step({"iris": uri}, 8)
    puller.step({"iris": uri}, 100)
    assert server.asked == ["iris/load"] * 4


def test_a_source_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    server, folder = Server(), tmp_path / "models"
    folder.mkdir()
    Puller(str(folder), server, {}).step({"iris": str(tmp_path / "nowhere")}, 0)
    assert server.asked == []
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == []


def test_names_that_are_no_folders_are_not_in_the_list() -> None:
    spec = {"storageUri": "s3://b"}
    text = json.dumps([{"modelName": name, "modelSpec": spec} for name in ("../x", "m", ".hidden")])
    assert parse_list(text) == {"m": "s3://b"}
    assert parse_list("") == {}
