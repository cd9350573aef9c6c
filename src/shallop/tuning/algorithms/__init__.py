"""Search algorithms, by the names that Katib gives them; ``asha`` is one more."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from shallop.tuning.algorithms.asha import Asha
from shallop.tuning.algorithms.cmaes import CmaEs
from shallop.tuning.algorithms.contract import Algorithm
from shallop.tuning.algorithms.darts import Darts
from shallop.tuning.algorithms.enas import Enas
from shallop.tuning.algorithms.gaussian import BayesianOptimization
from shallop.tuning.algorithms.grid import GridSearch
from shallop.tuning.algorithms.hyperband import Hyperband
from shallop.tuning.algorithms.pbt import PopulationBasedTraining
from shallop.tuning.algorithms.random_search import RandomSearch
from shallop.tuning.algorithms.sobol import Sobol
from shallop.tuning.algorithms.tpe import Tpe

__all__ = ["ALGORITHMS"]

ALGORITHMS: dict[str, Callable[[], Algorithm]] = {
    "random": RandomSearch,
    "grid": GridSearch,
    "tpe": Tpe,
    "multivariate-tpe": partial(Tpe, multivariate=True),
    "bayesianoptimization": BayesianOptimization,
    "cmaes": CmaEs,
    "sobol": Sobol,
    "hyperband": Hyperband,
    "asha": Asha,
    "pbt": PopulationBasedTraining,
    "enas": Enas,
    "darts": Darts,
}
