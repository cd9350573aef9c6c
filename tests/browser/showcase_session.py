"""Submit runs that show everything a run page has; run by test_dashboard.py in an environment that has kfp."""

import json
import sys

import kfp
from kfp import dsl
from kfp.dsl import HTML, ClassificationMetrics, Dataset, Input, Markdown, Metrics, Model, Output


@dsl.component
def load(rows: int, data: Output[Dataset]) -> int:
    with open(data.path, "w") as file:
        for number in range(rows):
            print(number % 2, number / rows, file=file)
    data.metadata["rows"] = rows
    for part in range(5):
        print(f"part {part}: {rows // 5} rows written")
    return rows


@dsl.component
def clean(data: Input[Dataset], cleaned: Output[Dataset], counts: Output[Metrics]):
    with open(data.path) as source, open(cleaned.path, "w") as target:
        target.write(source.read())
    counts.log_metric("rows_in", 400)
    counts.log_metric("rows_dropped", 0.125)


@dsl.component
def train(data: Input[Dataset], depth: int, model: Output[Model]) -> float:
    with open(model.path, "w") as file:
        file.write(f"a tree of depth {depth}")
    model.metadata["framework"] = "none"
    print(f"depth {depth}: loss 0.{depth}")
    return 0.7 + depth / 100


@dsl.component
def evaluate(scores: list, roc: Output[ClassificationMetrics], report: Output[HTML], notes: Output[Markdown]) -> float:
    thresholds = [1 - step / 20 for step in range(21)]
    rates = [step / 20 for step in range(21)]
    roc.log_roc_curve(rates, [rate**0.4 for rate in rates], thresholds)
    roc.log_confusion_matrix(["on time", "late"], [[812, 96], [71, 221]])
    with open(report.path, "w") as file:
        file.write("<h1>Report of the user</h1><p id=ran>script did not run</p>")
        file.write("<script>document.getElementById('ran').textContent = 'script ran in ' + origin</script>")
    with open(notes.path, "w") as file:
        file.write("# Notes\n\nThe **best** candidate wins.\n\n| depth | score |\n|---|---|\n| 4 | 0.74 |\n")
    return max(scores)


@dsl.component
def announce(score: float):
    print("good enough:", score)


@dsl.component
def tidy():
    print("tidied up")


@dsl.component
def refuse(row: int):
    print("reading row", row)
    raise ValueError(f"row {row} has no label")


@dsl.component
def wait_for(seconds: float):
    import time

    for beat in range(int(seconds * 10)):
        print("beat", beat, flush=True)
        time.sleep(0.1)


@dsl.pipeline(name="pick-a-model", description="Trains two candidates and keeps the better one.")
def pick_a_model(rows: int = 400):
    done = tidy()
    with dsl.ExitHandler(done, name="guarded"):
        loaded = load(rows=rows)
        cleaned = clean(data=loaded.outputs["data"])
        with dsl.ParallelFor([2, 4], name="candidates") as depth:
            trained = train(data=cleaned.outputs["cleaned"], depth=depth)
        evaluated = evaluate(scores=dsl.Collected(trained.outputs["Output"]))
        with dsl.If(evaluated.outputs["Output"] > 0.5, name="good-enough"):
            announce(score=evaluated.outputs["Output"])
        with dsl.If(evaluated.outputs["Output"] > 5, name="too-good"):
            announce(score=evaluated.outputs["Output"])


@dsl.pipeline(name="refusing")
def refusing():
    loaded = load(rows=10)
    refused = refuse(row=7)
    announce(score=0.1).after(loaded, refused)


@dsl.pipeline(name="waiting")
def waiting(seconds: float = 60.0):
    waited = wait_for(seconds=seconds)
    announce(score=0.5).after(waited)


def main(url: str, names: list[str]) -> None:
    client = kfp.Client(host=url)
    functions = {"pick-a-model": pick_a_model, "refusing": refusing, "waiting": waiting}
    ids = {}
    for name in names:
        caching = name != "waiting"
        run = client.create_run_from_pipeline_func(functions[name], run_name=name, enable_caching=caching)
        ids[name] = run.run_id
        if name != "waiting":
            client.wait_for_run_completion(run.run_id, timeout=300, sleep_duration=0.1)
    print(json.dumps(ids))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
