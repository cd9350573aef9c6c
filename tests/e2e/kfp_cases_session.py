"""
Pipelines that no upstream file covers, compiled and submitted by the unmodified SDK; prints the id of each run as JSON.

Run by test_kfp_cases.py in an environment with kfp and kfp-kubernetes, which says what each run must have computed.
Nothing is waited for: the runs share the machine.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import kfp
from kfp import compiler, dsl, kubernetes
from kfp.dsl import Dataset, Input, Model, Output

URL = sys.argv[1]
IMAGE = "python:3.11"
FOLDER = Path(tempfile.mkdtemp())


# ---- values


@dsl.component(base_image=IMAGE)
def echo(
    text: str = "",
    whole: int = 0,
    number: float = 0.0,
    items: list = [],  # noqa: B006 kfp wants the value
    fields: dict = {},  # noqa: B006
) -> NamedTuple("Echoed", [("text", str), ("whole", int), ("number", float), ("items", list), ("fields", dict)]):
    return (text, whole, number, items, fields)


@dsl.component(base_image=IMAGE)
def sizes(text: str) -> str:
    import hashlib

    return f"{len(text)} {len(text.encode())} {hashlib.sha256(text.encode()).hexdigest()[:8]}"


LARGE = "x\u00e9\u4e2d\U0001f600" * 20_000  # 200 KB of UTF-8


@dsl.pipeline(name="values")
def values(quoted: str, large: str, whole: int, number: float, items: list, fields: dict):
    first = echo(text=f"say \"{quoted}\" \\ '{quoted}' {whole} {items}", whole=whole, number=number, items=items)
    first.set_display_name("first")
    echo(
        text=first.outputs["text"],
        whole=first.outputs["whole"],
        number=-0.0,
        items=["\u00e9\u4e2d\U0001f600", 1e308, 5e-324, True, [], first.outputs["whole"], first.outputs["items"]],
        fields=fields,
    ).set_display_name("second")
    sizes(text=large)


VALUES = {
    "quoted": 'it\'s "so" {{$}} \\n %s',
    "large": LARGE,
    "whole": 2**63 - 1,
    "number": 1e308,
    "items": [2**53 + 1, -(2**63), 5e-324, -0.0, "\u00e9\u4e2d\U0001f600", None, True],
    "fields": {"a 'b' \"c\"": {"deep": [None, 2**53 + 1]}},
}


# ---- control flow


@dsl.component(base_image=IMAGE)
def double(number: int) -> int:
    return 2 * number


@dsl.component(base_image=IMAGE)
def add(numbers: list) -> str:
    import json

    return json.dumps(numbers)


@dsl.component(base_image=IMAGE)
def odd_file(number: int, data: Output[Dataset]):
    Path = __import__("pathlib").Path
    Path(data.path).write_text(str(number))
    data.metadata["number"] = number
    data.metadata["odd"] = bool(number % 2)
    data.metadata["parts"] = [number, {"half": number / 2}]


@dsl.component(base_image=IMAGE)
def read_all(files: Input[list[Dataset]]) -> str:  # type: ignore[type-arg]
    return " ".join(open(file.path).read() for file in files)


@dsl.component(base_image=IMAGE)
def read_one(file: Input[Dataset]) -> str:
    return f"{open(file.path).read()} {file.metadata}"


@dsl.component(base_image=IMAGE)
def plus(a: int, b: int) -> int:
    return a + b


@dsl.component(base_image=IMAGE)
def join(text: str) -> str:
    return text


@dsl.pipeline(name="pairs")
def pairs() -> list:
    with dsl.ParallelFor([1, 2]) as outer, dsl.ParallelFor([10, 20, 30]) as inner:
        made = plus(a=outer, b=inner)
    return dsl.Collected(made.output)


@dsl.pipeline(name="grid")
def grid() -> list:
    """Of three rows the second has nothing in its places."""
    with dsl.ParallelFor([1, 2, 3]) as outer, dsl.ParallelFor([10, 20]) as inner, dsl.If(outer != 2):
        made = plus(a=outer, b=inner)
    return dsl.Collected(made.output)


@dsl.pipeline(name="files")
def files() -> list[Dataset]:
    with dsl.ParallelFor([5, 6]) as item:
        file = odd_file(number=item)
    return dsl.Collected(file.outputs["data"])


@dsl.pipeline(name="flow")
def flow(level: int = 3, empty: list = []):  # noqa: B006
    with dsl.ParallelFor(empty) as item:
        never = double(number=item)
    add(numbers=dsl.Collected(never.output)).set_display_name("of nothing")
    with dsl.ParallelFor([1, 2, 3, 4]) as item, dsl.If(item != 2):
        some = double(number=item).set_display_name("some")
        file = odd_file(number=item)
    add(numbers=dsl.Collected(some.output)).set_display_name("of some")
    read_all(files=dsl.Collected(file.outputs["data"]))
    with dsl.ParallelFor(files().output) as one:
        read_one(file=one)
    add(numbers=pairs().output).set_display_name("of pairs")
    add(numbers=grid().output).set_display_name("of the grid")
    with dsl.ParallelFor([{"a": 1, "b": "x"}]) as outer, dsl.ParallelFor([7, 8]) as inner, dsl.If(inner != 7):
        join(text=f"{outer.a}{outer.b}-{inner}")
    with dsl.If(level > 5):
        high = double(number=1).set_display_name("high")
    with dsl.Elif(level == 4):
        middle = double(number=2).set_display_name("middle")
    with dsl.Elif(level == 3):
        with dsl.If(level != 3):
            double(number=3).set_display_name("no")
        with dsl.Else():
            double(number=4).set_display_name("yes")
        low = double(number=8).set_display_name("low")
    with dsl.Else():
        other = double(number=5).set_display_name("other")
    double(number=dsl.OneOf(high.output, middle.output, low.output, other.output)).set_display_name("one of")


# ---- failures


@dsl.component(base_image=IMAGE)
def flaky(folder: str, times: int) -> int:
    """Fail the first ``times`` times."""
    import os

    os.makedirs(folder, exist_ok=True)
    tries = len(os.listdir(folder))
    open(f"{folder}/{tries}", "w").close()
    if tries < times:
        raise RuntimeError(f"try {tries}")
    return tries


@dsl.component(base_image=IMAGE)
def fail(message: str) -> str:
    raise RuntimeError(message)


@dsl.component(base_image=IMAGE)
def after_all(first: str = "no first", second: str = "no second", third: int = -1) -> str:
    return f"{first}, {second}, {third}"


@dsl.component(base_image=IMAGE)
def report(status: dsl.PipelineTaskFinalStatus) -> str:
    return f"{status.state} {status.pipeline_task_name} {status.error_message}"


@dsl.pipeline(name="twice")
def twice(folder: str) -> int:
    double(number=1)
    return flaky(folder=folder, times=1).output


WORKSPACE = dsl.WorkspaceConfig(size="10Mi", kubernetes=dsl.KubernetesWorkspaceConfig(pvcSpecPatch={}))


@dsl.pipeline(name="retried", pipeline_config=dsl.PipelineConfig(workspace=WORKSPACE))
def retried():
    again = twice(folder=f"{dsl.WORKSPACE_PATH_PLACEHOLDER}/tries")
    again.set_retry(num_retries=2, backoff_duration="0s")
    double(number=again.output).set_display_name("after")


@dsl.pipeline(name="ignoring")
def ignoring():
    first, second = fail(message="one"), fail(message="two")
    third = double(number=7)
    after_all(first=first.output, second=second.output, third=third.output).ignore_upstream_failure().set_display_name(
        "after all"
    )


@dsl.pipeline(name="handled")
def handled():
    end = report()
    with dsl.ExitHandler(end, name="body"):
        first = double(number=1)
        second = fail(message="in the body").after(first)
        double(number=2).after(second).set_display_name("never")


@dsl.container_component
def sleep(seconds: int):
    return dsl.ContainerSpec(image="alpine", command=["sleep", seconds])


@dsl.pipeline(name="late", pipeline_config=dsl.PipelineConfig(active_deadline_seconds=1))
def late():
    sleep(seconds=120)


# ---- artifacts and placeholders


@dsl.container_component
def words(number: int, data: Input[Dataset], said: dsl.OutputPath(str), opt: str = None):  # noqa: RUF013
    return dsl.ContainerSpec(
        image="alpine",
        command=["sh", "-c", 'mkdir -p "$(dirname "$0")"; printf "%s|" "$@" > "$0"', said],
        args=[
            dsl.ConcatPlaceholder(["n=", number, ";", dsl.ConcatPlaceholder([data.uri, "!"])]),
            data.metadata["number"],
            data.metadata["parts"],
            dsl.IfPresentPlaceholder("opt", then=["--opt", opt], else_=["none", "of"]),
            "$HOME {{$}} 'a' \"b\"",
            dsl.PIPELINE_TASK_NAME_PLACEHOLDER,
        ],
    )


(FOLDER / "kept").mkdir()
(FOLDER / "kept" / "note.txt").write_text("embedded \u00e9")


@dsl.component(base_image=IMAGE, embedded_artifact_path=str(FOLDER / "kept"))
def embedded(kept: dsl.EmbeddedInput[Dataset]) -> str:
    import os

    return open(os.path.join(kept.path, "note.txt"), encoding="utf-8").read()


@dsl.component(base_image=IMAGE)
def describe(model: Input[Model]) -> str:
    import json

    return json.dumps([model.uri, model.metadata], sort_keys=True)


@dsl.component(base_image=IMAGE)
def in_workspace(data: Input[Dataset], root: str) -> str:
    import os

    return f"{data.path.startswith(root)} {open(data.path).read()} {os.path.isdir(root)}"


@dsl.pipeline(
    name="things",
    pipeline_config=dsl.PipelineConfig(workspace=WORKSPACE, ttl_seconds_after_finished=3600),
)
def things(uri: str, file: str):
    made = odd_file(number=5)
    words(number=3, data=made.outputs["data"]).set_display_name("without")
    words(number=-1, data=made.outputs["data"], opt="{{$.pipeline_job_uuid}}").set_display_name("with")
    embedded()
    one = dsl.importer(artifact_uri=uri, artifact_class=Model, metadata={"of": f"a {uri}", "rows": 3, "ok": True})
    describe(model=one.output)
    two = dsl.importer(
        artifact_uri=uri, artifact_class=Model, reimport=True, metadata={"of": f"a {uri}", "rows": 3, "ok": True}
    )
    describe(model=two.output).set_display_name("again")
    local = dsl.importer(artifact_uri=file, artifact_class=Dataset, download_to_workspace=True)
    in_workspace(data=local.output, root=dsl.WORKSPACE_PATH_PLACEHOLDER)
    web = dsl.importer(artifact_uri=f"{URL}/apis/v2beta1/healthz", artifact_class=Dataset, download_to_workspace=True)
    in_workspace(data=web.output, root=dsl.WORKSPACE_PATH_PLACEHOLDER).set_display_name("from the web")


# ---- Kubernetes


@dsl.component(base_image=IMAGE)
def look(names: list, files: list) -> dict:
    import os

    seen = {name: os.environ.get(name, "") for name in names}
    return seen | {file: open(file).read() if os.path.exists(file) else "absent" for file in files}


@dsl.component(base_image=IMAGE)
def put(path: str, text: str):
    import os

    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a") as file:
        file.write(text)


@dsl.component(
    base_image=IMAGE,
    task_config_passthroughs=[
        dsl.TaskConfigField.RESOURCES,
        dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
        dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
        dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
        dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
    ],
)
def launches(config: dsl.TaskConfig) -> dict:
    import os

    return {
        "resources": config.resources,
        "tolerations": config.tolerations,
        "selector": config.node_selector,
        "env": config.env,
        "mounts": config.volume_mounts,
        "volumes": len(config.volumes or []),
        "own": [os.environ.get("COLOUR", ""), os.path.isdir("/passed")],
    }


@dsl.pipeline(name="kubernetes")
def kubernetes_features(secret: str, missing: str = None):  # noqa: RUF013
    claim = kubernetes.CreatePVC(access_modes=["ReadWriteOnce"], size="5Mi", pvc_name_suffix="-cases")
    wrote = put(path="/claim/sub/file", text="kept")
    kubernetes.mount_pvc(wrote, pvc_name=claim.outputs["name"], mount_path="/claim")
    seen = look(
        names=["USER_NAME", "COLOUR", "POD_LABEL", "POD_NAME", "PLAIN", "NONE"],
        files=["/secret/username", "/config/colour", "/claim/file", "/none/username"],
    ).after(wrote)
    seen.set_env_variable("PLAIN", "'x' \"y\" é $HOME")
    kubernetes.use_secret_as_env(seen, secret_name=secret, secret_key_to_env={"username": "USER_NAME"})
    kubernetes.use_secret_as_env(seen, secret_name="case-none", secret_key_to_env={"username": "NONE"}, optional=True)
    kubernetes.use_secret_as_volume(seen, secret_name=secret, mount_path="/secret")
    kubernetes.use_secret_as_volume(seen, secret_name="case-none", mount_path="/none", optional=True)
    kubernetes.use_config_map_as_env(seen, config_map_name="case-config", config_map_key_to_env={"colour": "COLOUR"})
    kubernetes.use_config_map_as_volume(seen, config_map_name="case-config", mount_path="/config")
    kubernetes.mount_pvc(seen, pvc_name=claim.outputs["name"], mount_path="/claim", sub_path="sub")
    kubernetes.add_pod_label(seen, "case", "labelled")
    kubernetes.add_pod_annotation(seen, "case/note", "annotated")
    kubernetes.use_field_path_as_env(seen, env_name="POD_LABEL", field_path="metadata.labels['case']")
    kubernetes.use_field_path_as_env(seen, env_name="POD_NAME", field_path="metadata.name")
    kubernetes.set_image_pull_policy(seen, "IfNotPresent")
    kubernetes.set_image_pull_secrets(seen, ["case-none"])
    kubernetes.add_node_selector(seen, "kubernetes.io/os", "linux")
    kubernetes.add_toleration(seen, key="gpu", operator="Exists", effect="NoSchedule")
    kubernetes.empty_dir_mount(seen, volume_name="scratch", mount_path="/scratch")
    kubernetes.add_ephemeral_volume(
        seen, volume_name="brief", mount_path="/brief", access_modes=["ReadWriteOnce"], size="1Mi"
    )
    kubernetes.DeletePVC(pvc_name=claim.outputs["name"]).after(seen)
    given = launches().set_cpu_limit("2").set_memory_request("1Gi").set_env_variable("COLOUR", "green")
    kubernetes.add_node_selector(given, "disk", "fast")
    kubernetes.add_toleration(given, key="spot", operator="Equal", value="yes", effect="NoSchedule")
    kubernetes.empty_dir_mount(given, volume_name="passed", mount_path="/passed")


@dsl.component(base_image=IMAGE)
def memory() -> str:
    """Use the shared memory, and say what kind of file system it is."""
    with open("/dev/shm/x", "w") as file:
        file.write("x" * 1000)
    return next(line.split()[2] for line in reversed(list(open("/proc/mounts"))) if line.split()[1] == "/dev/shm")


@dsl.pipeline(name="named")
def named(secrets: list, config: str, spot: dict, more: list, pins: dict, where: dict, pull: str, image: str, cpu: str):
    """Names and settings that are parameters of the pipeline, or items of a loop."""
    sized = double(number=21).set_container_image(image).set_cpu_request(cpu).set_cpu_limit(cpu)
    sized.set_memory_limit("64Mi").set_display_name("sized")
    with dsl.ParallelFor(secrets) as secret:
        seen = look(names=["USER_NAME", "COLOUR"], files=["/secret/username", "/config/colour"])
        seen.set_display_name("looped")
        kubernetes.use_secret_as_env(seen, secret_name=secret, secret_key_to_env={"username": "USER_NAME"})
        kubernetes.use_secret_as_volume(seen, secret_name=secret, mount_path="/secret")
        kubernetes.use_config_map_as_env(seen, config_map_name=config, config_map_key_to_env={"colour": "COLOUR"})
        kubernetes.use_config_map_as_volume(seen, config_map_name=config, mount_path="/config")
    for name, tolerated in (("placed", spot), ("placed too", more)):
        placed = memory().set_display_name(name)
        kubernetes.add_toleration_json(placed, tolerated)
        kubernetes.add_node_selector_json(placed, pins)
        kubernetes.add_node_affinity_json(placed, where)
        preferred = [{"key": "disk", "operator": "In", "values": ["fast"]}]
        kubernetes.add_node_affinity(placed, match_expressions=preferred, weight=5)
        kubernetes.set_image_pull_secrets(placed, [pull])
        kubernetes.set_security_context(placed, run_as_user=12345, run_as_group=12346)
        kubernetes.empty_dir_mount(placed, "shm", "/dev/shm", medium="Memory", size_limit="64Mi")


@dsl.pipeline(
    name="brief", pipeline_config=dsl.PipelineConfig(ttl_seconds_after_success=1, ttl_seconds_after_failure=3600)
)
def brief():
    double(number=21)


@dsl.pipeline(name="timed")
def timed():
    slow = sleep(seconds=120)
    kubernetes.set_timeout(slow, seconds=1)


@dsl.component(base_image=IMAGE)
def no_number() -> float:
    return float("nan")


@dsl.pipeline(name="nan")
def nan():
    no_number()


# ---- notebooks


def code(source: str, *tags: str) -> dict:
    return {"cell_type": "code", "execution_count": None, "metadata": {"tags": tags}, "outputs": [], "source": source}


CELLS = [
    code("rows, path = 1, ''", "parameters"),
    code("squares = [row * row for row in range(rows)]\nassert rows != 13, 'thirteen'"),
    code("from pathlib import Path\nPath(path).write_text(' '.join(map(str, squares)))"),
]
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
(FOLDER / "study.ipynb").write_text(
    json.dumps({"cells": CELLS, "metadata": KERNEL, "nbformat": 4, "nbformat_minor": 4})
)


@dsl.notebook_component(notebook_path=str(FOLDER / "study.ipynb"), base_image=IMAGE)
def study(rows: int, table: Output[Dataset]) -> str:
    dsl.run_notebook(rows=rows, path=table.path)
    with open(table.path) as file:
        return file.read()


@dsl.pipeline(name="notebook")
def notebook():
    study(rows=4).set_display_name("four")
    study(rows=13).set_display_name("thirteen")


PIPELINES = {
    "values": (values, VALUES),
    "flow": (flow, {}),
    "retried": (retried, {}),
    "ignoring": (ignoring, {}),
    "handled": (handled, {}),
    "late": (late, {}),
    "things": (things, {"uri": "s3://bucket/model", "file": str(FOLDER / "kept" / "note.txt")}),
    "kubernetes": (kubernetes_features, {"secret": "case-secret"}),
    "named": (
        named,
        {
            "secrets": ["case-secret", "case-second"],
            "config": "case-config",
            "spot": {"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoSchedule"},
            "more": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists", "tolerationSeconds": 9}],
            "pins": {"kubernetes.io/os": "linux"},
            "where": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "Exists"}]}]
                }
            },
            "pull": "case-none",
            "image": IMAGE,
            "cpu": "150m",
        },
    ),
    "brief": (brief, {}),
    "timed": (timed, {}),
    "nan": (nan, {}),
    "notebook": (notebook, {}),
}


def main() -> None:
    client = kfp.Client(host=URL)
    runs = {}
    for name, (pipeline, arguments) in PIPELINES.items():
        package = FOLDER / f"{name}.yaml"
        compiler.Compiler().compile(pipeline, str(package))
        run = client.create_run_from_pipeline_package(str(package), arguments=arguments, enable_caching=False)
        runs[name] = run.run_id
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
