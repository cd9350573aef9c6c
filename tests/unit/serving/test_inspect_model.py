"""
What a model was made with. The files in ``models`` were written by scikit-learn 1.5.2, XGBoost 3.2.0, LightGBM 4.7.0.
"""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import sys
import types
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.serving import inspect_model as module
from shallop.serving.inspect_model import inspect_file, inspect_model

MODELS = Path(__file__).with_name("models")
SKLEARN = "scikit-learn==1.5.2"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((f"{name}.joblib", (SKLEARN,)) for name in ("plain", "zlib", "gzip", "bz2", "lzma", "xz")),
        *((f"protocol{number}.pkl", ("numpy>=2", SKLEARN)) for number in (0, 2, 4, 5)),
        *((f"booster.{suffix}", ("xgboost==3.2.0",)) for suffix in ("json", "ubj", "bst")),
        ("xgbclassifier.joblib", ("xgboost==3.2.0",)),
        ("lightgbm.joblib", ("lightgbm", "numpy>=2", SKLEARN)),
    ],
)
def test_a_real_model_says_what_it_was_made_with(name: str, expected: tuple[str, ...]) -> None:
    inspection = inspect_model(MODELS / name)
    assert inspection is not None
    assert inspection.requirements == expected


def dump(module_name: str, protocol: int, **state: object) -> bytes:
    """Pickle an instance of a class ``Model`` of ``module_name``, without that package."""
    parent, fake = types.ModuleType(module_name.partition(".")[0]), types.ModuleType(module_name)
    model = type("Model", (), {"__module__": module_name, "__qualname__": "Model"})
    fake.Model = model  # type: ignore[attr-defined]
    sys.modules |= {parent.__name__: parent, module_name: fake}
    try:
        instance = model()
        instance.__dict__.update(state)
        return pickle.dumps(instance, protocol)
    finally:
        del sys.modules[module_name], sys.modules[parent.__name__]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("module_name", "state", "expected"),
    [
        ("sklearn.linear_model", {"_sklearn_version": "1.3.0"}, {"scikit-learn==1.3.0", "numpy<2"}),
        ("sklearn.linear_model", {"_sklearn_version": "1.6.dev0"}, {"scikit-learn==1.6.dev0"}),
        ("sklearn.linear_model", {}, {"scikit-learn"}),
        ("imblearn.pipeline", {"_sklearn_version": "1.5.2"}, {"imbalanced-learn", SKLEARN}),
        ("mymodule.pandas_tools", {"note": "pandas are bears"}, set()),
    ],
)
def test_every_pickle_protocol_is_read(
    tmp_path: Path, protocol: int, module_name: str, state: dict[str, object], expected: set[str]
) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(dump(module_name, protocol, **state))
    inspection = inspect_model(tmp_path)
    assert inspection is not None
    assert set(inspection.requirements) == expected


def test_nothing_is_executed(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (open, (str(witness), "w"))

    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Evil()))
    assert inspect_model(tmp_path) is not None
    assert not witness.exists()


def test_a_version_is_found_across_the_border_of_two_chunks(tmp_path: Path) -> None:
    tail = dump("sklearn.linear_model", 4, _sklearn_version="1.5.2")
    for cut in range(0, len(tail), 7):
        path = tmp_path / f"{cut}.pkl"
        path.write_bytes(b"\0" * (module._CHUNK - cut) + tail)
        assert inspect_file(path, 0, 0).requirements == (SKLEARN,)


def test_a_bomb_is_read_to_the_bound_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 4 * module._CHUNK)
    path = tmp_path / "bomb.joblib"
    path.write_bytes(zlib.compress(b"\0" * (64 * module._CHUNK)))
    windows = list(module._windows(module._decompressed(io.BytesIO(path.read_bytes()), path.read_bytes()[:6])))
    assert sum(map(len, windows)) < 6 * module._CHUNK
    assert inspect_file(path, 0, 0).requirements == ()


def test_a_broken_compressed_file_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.joblib"
    path.write_bytes(gzip.compress(b"x" * 100000)[:60])
    assert inspect_file(path, 0, 0).requirements == ()


def test_lz4_needs_its_package(tmp_path: Path) -> None:
    path = tmp_path / "model.joblib"
    path.write_bytes(b"\x04\x22\x4d\x18rest")
    assert inspect_file(path, 0, 0).requirements == ("lz4",)


@pytest.mark.parametrize(("name", "expected"), [("zlib.joblib", (SKLEARN,)), ("booster.ubj", ("xgboost==3.2.0",))])
def test_a_file_without_suffix_is_judged_by_its_first_bytes(
    tmp_path: Path, name: str, expected: tuple[str, ...]
) -> None:
    shutil.copy(MODELS / name, tmp_path / "model")
    for location in (tmp_path, tmp_path / "model"):
        inspection = inspect_model(location)
        assert inspection is not None
        assert inspection.requirements == expected


def test_a_folder_with_a_choice_or_without_a_model_is_not_judged(tmp_path: Path) -> None:
    assert inspect_model(tmp_path) is None
    assert inspect_model(tmp_path / "missing") is None
    for name in ("a.pkl", "b.pkl"):
        shutil.copy(MODELS / "protocol4.pkl", tmp_path / name)
    assert inspect_model(tmp_path) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(data: bytes) -> None:
    list(module._windows(module._decompressed(io.BytesIO(data), data[:6])))
    module._sklearn_version(data)
    module._ubj_version(b"version[" + data)


def test_an_mlflow_model_names_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    (tmp_path / "conda.yaml").write_text(
        "dependencies:\n- python=3.11\n- pip:\n  - mlflow==3.1.0\n  - scikit-learn==1.5.1\n"
    )
    found = inspect_model(tmp_path)
    assert found is not None
    assert found.requirements == ("mlflow-skinny==3.1.0", "numpy", "pandas", "scikit-learn==1.5.1")
    (tmp_path / "requirements.txt").write_text("mlflow[extras]==3.2.0  # as tracked\n--index-url x\npandas<3\n")
    found = inspect_model(tmp_path)
    assert found is not None
    assert found.requirements == ("mlflow-skinny==3.2.0", "numpy", "pandas<3")


def test_requirements_beside_a_model_win_over_its_bytes(tmp_path: Path) -> None:
    shutil.copy(MODELS / "plain.joblib", tmp_path / "model.joblib")
    plain = inspect_model(tmp_path)
    assert plain is not None
    assert any(line.startswith("scikit-learn==") for line in plain.requirements)
    (tmp_path / "requirements.txt").write_text("scikit-learn==9.9\nextra\n")
    found = inspect_model(tmp_path)
    assert found is not None
    assert {"scikit-learn==9.9", "extra"} <= set(found.requirements)
    assert len([line for line in found.requirements if line.startswith("scikit-learn")]) == 1


def test_names_of_files_tell_the_formats_of_a_repository(tmp_path: Path) -> None:
    for name in ("a/1/model.onnx", "b/1/model.pt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    found = inspect_model(tmp_path)
    assert found is not None
    assert (found.requirements, found.formats) == ((), ("onnx", "pytorch"))
