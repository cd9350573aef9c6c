"""shallop: a running instance, whose address is the argument; times are the server's."""

import sys
import time

import kfp
import shapes_kfp
import timing
from kfp import dsl

CLIENT = kfp.Client(host=sys.argv[1])
COMPONENT = dsl.component(shapes_kfp.increment, base_image=shapes_kfp.IMAGE)


def run(pipeline: object) -> float:
    made = CLIENT.create_run_from_pipeline_func(pipeline, enable_caching=False)
    while (seen := CLIENT.get_run(made.run_id)).state not in ("SUCCEEDED", "FAILED"):
        time.sleep(0.2)
    assert seen.state == "SUCCEEDED", seen.error
    return (seen.finished_at - seen.created_at).total_seconds()


FIRST_S = run(shapes_kfp.chain(1, COMPONENT))
sys.stderr.write(f"first step after start: {FIRST_S * 1000:.0f} ms\n")
timing.report(
    "shallop",
    "process",
    {
        "chain": lambda length: run(shapes_kfp.chain(length, COMPONENT)),
        "fan-out": lambda width: run(shapes_kfp.fan_out(width, COMPONENT)),
    },
)
