"""Image -> what it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from shallop.embedded.kubelet.images import ImageTable, add_image, read_requirements, remove_image, stand_in
from shallop.errors import ImageResolutionError, SettingsError

FIXTURES = Path(__file__).parents[4] / ".." / "shared" / "fixtures" / "kfp"


def table(folder: Path) -> ImageTable:
    return ImageTable(folder / "images.yaml")


@pytest.mark.parametrize(
    ("image", "entry", "python"),
    [
        ("python:3.11", "python", "3.11"),
        ("python:3.12-slim-bookworm", "python", "3.12"),
        ("python", "python", ""),
        ("python:latest", "python", ""),
        ("python:alpine3.9", "python", ""),
        ("python:3", "python", ""),
        ("docker.io/library/python:3.9", "python", "3.9"),
        ("localhost:5000/python:3.10", "python", "3.10"),
        ("python:3.11@sha256:0123", "python", "3.11"),
        ("registry.access.redhat.com/ubi9/python-311:latest", "ubi*/python-3*", "3.11"),
        ("ghcr.io/astral-sh/uv:python3.12-bookworm", "*/uv", "3.12"),
        ("ghcr.io/containerd/busybox", "*/busybox", ""),
        ("alpine:3.20", "alpine", ""),
        ("kserve/sklearnserver:v0.15.2", "kserve/sklearnserver", ""),
    ],
)
def test_built_in_images(tmp_path: Path, image: str, entry: str, python: str) -> None:
    found, version = table(tmp_path).find(image)
    assert (found.image, version) == (entry, python)


@pytest.mark.parametrize(
    ("image", "hint"),
    [("acme/sklearnserver:1", "kserve/sklearnserver"), ("pythn:3.11", "python"), ("acme/train:7", "")],
)
def test_an_unknown_image_says_what_to_do(tmp_path: Path, image: str, hint: str) -> None:
    with pytest.raises(ImageResolutionError) as caught:
        table(tmp_path).find(image)
    message = str(caught.value)
    assert message.startswith(f"no local environment for image '{image}'")
    assert f"shallop env add {image} --python 3.11 --requirements FILE" in message
    assert ("did you mean" in message) == bool(hint) and hint in message


def test_what_the_user_adds_is_seen_at_once_and_comes_first(tmp_path: Path) -> None:
    images = table(tmp_path)
    with pytest.raises(ImageResolutionError):
        images.find("acme/train:7")
    add_image(
        tmp_path / "images.yaml", "acme/train:7", python="3.12", requirements=["numpy"], command=["python3", "/t.py"]
    )
    add_image(tmp_path / "images.yaml", "python", requirements=["requests"])
    entry, python = images.find("acme/train:7")
    assert (entry.requirements, entry.command, python) == (("numpy",), ("python3", "/t.py"), "3.12")
    assert images.find("python:3.11")[0].requirements == ("requests",)
    with pytest.raises(ImageResolutionError):
        images.find("acme/train:8")


def test_adding_again_replaces_and_removing_removes(tmp_path: Path) -> None:
    file = tmp_path / "images.yaml"
    add_image(file, "acme/*", python="3.11")
    add_image(file, "acme/*", requirements=["numpy"])
    assert yaml.safe_load(file.read_text()) == {"images": [{"image": "acme/*", "requirements": ["numpy"]}]}
    assert table(tmp_path).find("acme/train:7")[0].requirements == ("numpy",)
    assert remove_image(file, "acme/*") and not remove_image(file, "acme/*")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images: [{python: '3.11'}]", r"images\[0\].image: required"),
        ("images: [{image: a, pythn: '3.11'}]", r"images\[0\].pythn: no such field"),
        ("images: [{image: a}, {image: b, python: 3.11x}]", r"images\[1\].python: '3.11x' is no version"),
        ("images: [{image: a, requirements: numpy}]", r"images\[0\].requirements: expected a list"),
        ("images: {a: b}", "images: expected a list"),
        ("images: [", "cannot be read as YAML"),
    ],
)
def test_a_broken_file_names_the_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "images.yaml").write_text(text)
    with pytest.raises(ImageResolutionError, match=message):
        table(tmp_path).find("python:3.11")
    with pytest.raises(SettingsError):
        add_image(tmp_path / "images.yaml", "x", python="3.11")
    assert (tmp_path / "images.yaml").read_text() == text


def test_requirements_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("# libraries\nnumpy >=2 # fast\n\npkg @ https://x.test/p.whl#sha256=1\npandas \\\n  ==2.0\n")
    assert read_requirements(file) == ("numpy >=2", "pkg @ https://x.test/p.whl#sha256=1", "pandas    ==2.0")
    file.write_text("numpy\n-r other.txt\n")
    with pytest.raises(SettingsError, match=r"requirements.txt:2: -r is an option"):
        read_requirements(file)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the compiled pipelines of ../shared are not there")
def test_every_image_of_the_compiled_pipelines_is_known(tmp_path: Path) -> None:
    images = table(tmp_path)
    for path in FIXTURES.glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            for executor in document.get("deploymentSpec", {}).get("executors", {}).values():
                image = executor.get("container", {}).get("image", "python")
                if not image.startswith("argostub/"):  # these are not run: the engine creates the claim itself
                    images.find(image)


def test_programs_of_an_image_are_stood_in_for_by_their_first_words() -> None:
    programs = {"/bin/served": ("python3", "-m", "own", "$@"), "python3 train.py": ("python3", "-m", "psum")}
    assert stand_in(["/bin/served", "--port=1"], programs) == ["python3", "-m", "own", "--port=1"]
    assert stand_in(["python3", "train.py", "--fast"], programs) == ["python3", "-m", "psum"]
    assert stand_in(["python3", "other.py"], programs) == ["python3", "other.py"]
