"""kfp.local with its SubprocessRunner, spared the environment that it would make for every step."""

import os
import sys
import tempfile
import time
import warnings

warnings.filterwarnings("ignore", category=FutureWarning, module="kfp")

import shapes_kfp  # noqa: E402
import timing  # noqa: E402
from kfp import dsl, local  # noqa: E402

# It starts "python3".
os.environ["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
COMPONENT = dsl.component(shapes_kfp.increment, base_image=shapes_kfp.IMAGE, install_kfp_package=False)


def run(pipeline: object) -> float:
    with tempfile.TemporaryDirectory() as folder:
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=folder)
        begun = time.perf_counter()
        pipeline()
        return time.perf_counter() - begun


timing.report(
    "kfp.local",
    "process",
    {
        "chain": lambda length: run(shapes_kfp.chain(length, COMPONENT)),
        "fan-out": lambda width: run(shapes_kfp.fan_out(width, COMPONENT)),
    },
)
