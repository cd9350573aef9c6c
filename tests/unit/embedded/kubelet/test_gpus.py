"""Which Pod has which GPU."""

from __future__ import annotations

from pathlib import Path

from shallop.embedded.kubelet.gpus import Gpus, asked_gpus, find_gpus


def container(name: str, gpus: int) -> dict[str, object]:
    return {"name": name, "resources": {"limits": {"nvidia.com/gpu": gpus}} if gpus else {}}


def pod(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def visible(gpus: Gpus, folder: Path, name: str, count: int) -> str:
    return gpus.variables(folder, container(name, count))["CUDA_VISIBLE_DEVICES"]


def test_devices_are_found_by_their_numbers(tmp_path: Path) -> None:
    for name in ("nvidia10", "nvidia0", "nvidiactl", "nvidia-uvm", "nvidia2", "null"):
        (tmp_path / name).touch()
    assert find_gpus(tmp_path) == (0, 2, 10)


def test_each_container_has_gpus_of_its_own_and_others_see_none(tmp_path: Path) -> None:
    gpus = Gpus((0, 1, 2, 3))
    first, second = pod(tmp_path, "a"), pod(tmp_path, "b")
    assert visible(gpus, first, "main", 2) == "0,1"
    assert visible(gpus, first, "side", 0) == ""
    assert visible(gpus, second, "main", 1) == "2"
    assert visible(gpus, second, "more", 1) == "3"


def test_a_container_that_starts_again_keeps_its_gpus_and_an_ended_pod_frees_them(tmp_path: Path) -> None:
    first, second, third = (pod(tmp_path, name) for name in "abc")
    assert visible(Gpus((0, 1)), first, "main", 1) == "0"
    # As seen by the next control plane.
    gpus = Gpus((0, 1))
    assert visible(gpus, second, "main", 1) == "1"
    assert visible(gpus, first, "main", 1) == "0"
    gpus.release(first)
    gpus.release(first)
    assert visible(gpus, third, "main", 1) == "0"


def test_a_pod_that_comes_while_another_ends_shares_for_a_moment(tmp_path: Path) -> None:
    gpus = Gpus((0, 1))
    assert visible(gpus, pod(tmp_path, "a"), "main", 2) == "0,1"
    assert visible(gpus, pod(tmp_path, "b"), "main", 1) == "0"
    assert visible(gpus, pod(tmp_path, "c"), "main", 1) == "1"


def test_nothing_is_said_of_gpus_where_there_are_none(tmp_path: Path) -> None:
    assert Gpus(()).variables(pod(tmp_path, "a"), container("main", 0)) == {}
    assert asked_gpus({"name": "main", "resources": {"requests": {"nvidia.com/gpu": "2"}}}) == 2
