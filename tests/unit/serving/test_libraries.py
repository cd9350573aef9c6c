"""What a model needs beside its server's image."""

from __future__ import annotations

from shallop.serving.libraries import merge_requirements, requirements_for


def test_servers_of_one_format_bring_its_library() -> None:
    assert requirements_for("kserve/sklearnserver:v0.21.0", "sklearn", ["scikit-learn==1.3.0"]) == (
        "scikit-learn==1.3.0",
    )
    assert requirements_for("pytorch/torchserve-kfs:0.9.0", "pytorch", [], ["pytorch"]) == ()


def test_servers_of_several_formats_get_what_the_model_is_of() -> None:
    triton = "nvcr.io/nvidia/tritonserver:23.05-py3"
    assert requirements_for(triton, "onnx", []) == ("onnxruntime",)
    assert requirements_for(triton, "triton", [], ["onnx", "pytorch"]) == ("onnxruntime", "torch==2.13.0")
    found = requirements_for("docker.io/seldonio/mlserver@sha256:ab", "sklearn", ["scikit_learn==1.3.0"])
    assert found == ("scikit_learn==1.3.0",)
    assert requirements_for("seldonio/mlserver:1", "mlflow", ["mlflow-skinny==3"], ["mlflow"]) == ("mlflow-skinny==3",)


def test_of_two_requirements_of_a_package_the_later_wins() -> None:
    assert merge_requirements(["a==1", "b"], ["A>2", "c[x]"]) == ("b", "A>2", "c[x]")
