"""Ask estimators in their own way and in the model server's quick way; print those that differ, or are not quick."""

import warnings

import numpy as np
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import ExtraTreesRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import SVC, SVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from shallop_pod.modelserver.formats.quick import quickened

warnings.simplefilter("ignore")
ROWS, NUMBERS = load_iris(return_X_y=True)
LABELS = np.array(["setosa", "versicolor", "virginica"])[NUMBERS]
SIZES, TARGETS = load_diabetes(return_X_y=True)


def outcome(predict, rows):
    try:
        answer = predict(rows)
    except Exception as error:
        return type(error), str(error)
    return answer.dtype, answer.shape, answer.tobytes()


def compare(estimator, rows, targets):
    estimator.fit(rows, targets)
    quick = quickened(estimator)
    if quick.__module__ != quickened.__module__:
        print("not quick:", estimator)
    width = rows.shape[1]
    good = [rows, rows[:1], rows.astype("f4"), (rows * 10).astype(int), np.asfortranarray(rows[:7]), rows[::3]]
    bad = [np.full((1, width), value) for value in (np.nan, np.inf, 1e300)]
    for asked in (*good, *bad, np.zeros((1, width - 1)), np.zeros((0, width)), rows[0], rows.astype(object)):
        if outcome(quick, asked) != outcome(estimator.predict, asked):
            print("differs:", estimator, asked.dtype, asked.shape)


for classifier in (
    *(SVC(), SVC(kernel="linear"), DecisionTreeClassifier(random_state=0), LogisticRegression(max_iter=500)),
    RandomForestClassifier(7, random_state=0),
    RandomForestClassifier(7, n_jobs=2, max_depth=2, random_state=0),
    make_pipeline(StandardScaler(), SVC()),
    make_pipeline(StandardScaler(with_mean=False), MinMaxScaler(), "passthrough", LogisticRegression(max_iter=500)),
):
    compare(classifier, ROWS, LABELS)
compare(SGDClassifier(random_state=0), ROWS[:100], LABELS[:100])
compare(LinearRegression(), SIZES, np.c_[TARGETS, TARGETS])
for regressor in (
    *(SVR(), LinearRegression(), Ridge(), DecisionTreeRegressor(random_state=0)),
    *(RandomForestRegressor(7, random_state=0), ExtraTreesRegressor(7, random_state=0)),
    make_pipeline(StandardScaler(with_std=False), RandomForestRegressor(7, random_state=0)),
):
    compare(regressor, SIZES, TARGETS)


class Own(LogisticRegression):
    def predict(self, rows):
        return super().predict(rows)[::-1]


print("done", quickened(Own().fit(ROWS, LABELS)).__module__ == quickened.__module__)
