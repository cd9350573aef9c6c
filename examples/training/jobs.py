"""
Training functions of all frameworks on scikit-learn's digits, and how to run them as TrainJobs on several nodes.

``python examples/training/jobs.py [NAME...]`` needs the ``kubeflow`` SDK and KUBECONFIG; every function is what runs on
each node, and prints a line ``result: JSON``. Nothing is downloaded but packages.
"""

import json
import sys
import time


def torch_digits():
    """Train on every node's half of each batch; the first node compares with training alone on whole batches."""
    import copy
    import json

    import torch
    import torch.distributed as dist
    from sklearn.datasets import load_digits
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float64), torch.tensor(labels)
    torch.manual_seed(0)
    alone = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)).double()
    model = DistributedDataParallel(copy.deepcopy(alone))
    pairs = [(net, torch.optim.SGD(net.parameters(), lr=0.5)) for net in (model, alone)]
    difference, steps, batch = 0.0, 160, 128
    for step in range(steps):
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(step))[:batch]
        for (net, optimizer), rows in zip(pairs, (chosen[rank::world], chosen), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            difference = max(difference, (ours.grad - theirs.grad).abs().max().item())
        for _, optimizer in pairs:
            optimizer.step()
    accuracy = (model(x).argmax(1) == y).double().mean().item()
    if rank == 0:
        print(
            "result:", json.dumps({"world": world, "gradient_difference": difference, "accuracy": accuracy}), flush=True
        )
    dist.barrier()
    dist.destroy_process_group()


def xgboost_digits():
    """Train on every node's rows; the first node compares the predictions with those of training alone."""
    import json
    import os
    import time

    import numpy as np
    import xgboost as xgb
    from sklearn.datasets import load_digits
    from xgboost import collective
    from xgboost.tracker import RabitTracker

    # What a TrainJob sets, or a classic XGBoostJob.
    rank = int(os.environ.get("DMLC_TASK_ID") or os.environ["RANK"])
    world = int(os.environ.get("DMLC_NUM_WORKER") or os.environ["WORLD_SIZE"])
    uri = os.environ.get("DMLC_TRACKER_URI") or os.environ["MASTER_ADDR"]
    port = int(os.environ.get("DMLC_TRACKER_PORT") or os.environ["MASTER_PORT"])
    if rank == 0:
        tracker = RabitTracker(n_workers=world, host_ip="0.0.0.0", port=port, sortby="task")
        tracker.start()
    images, labels = load_digits(return_X_y=True)
    parameters = {"objective": "multi:softprob", "num_class": 10, "max_depth": 4, "nthread": 1}
    where = {"dmlc_tracker_uri": uri, "dmlc_tracker_port": port, "dmlc_task_id": str(rank)}
    deadline = time.monotonic() + 120
    while True:
        try:
            context = collective.CommunicatorContext(**where)
            context.__enter__()
            break
        except xgb.core.XGBoostError:
            # The first node's tracker may only just start.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    own = xgb.DMatrix(images[rank::world], labels[rank::world])
    together = xgb.train(parameters, own, num_boost_round=10)
    context.__exit__()
    if rank == 0:
        everything = xgb.DMatrix(images, labels)
        alone = xgb.train(parameters, everything, num_boost_round=10)
        difference = float(np.abs(together.predict(everything) - alone.predict(everything)).max())
        print("result:", json.dumps({"world": world, "difference": difference}), flush=True)
        tracker.wait_for()


def tensorflow_digits():
    """Train with a MultiWorkerMirroredStrategy; each worker computes on its share of a batch."""
    import json
    import os
    import time

    import numpy as np
    import tensorflow as tf
    from sklearn.datasets import load_digits

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    workers = strategy.num_replicas_in_sync
    rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    images, labels = load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32), labels.astype(np.int64)
    with strategy.scope():
        start = tf.random.stateless_normal
        sizes = [(64, 64), (64, 10)]
        weights = [tf.Variable(start(size, seed=[1, n]) * 0.1) for n, size in enumerate(sizes)]
        biases = [tf.Variable(tf.zeros(size[1])) for size in sizes]

    def forward(inputs):
        return tf.nn.relu(inputs @ weights[0] + biases[0]) @ weights[1] + biases[1]

    @tf.function
    def train_step(inputs, targets):
        def replica_step(inputs, targets):
            with tf.GradientTape() as tape:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, forward(inputs))
                loss = tf.reduce_mean(losses) / workers
            variables = weights + biases
            gradients = tape.gradient(loss, variables)
            gradients = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            for variable, gradient in zip(variables, gradients, strict=True):
                variable.assign_sub(0.5 * gradient)

        strategy.run(replica_step, args=(inputs, targets))

    for step in range(300):
        chosen = np.random.default_rng(step).permutation(len(x))[:128][rank::workers]
        train_step(tf.constant(x[chosen]), tf.constant(y[chosen]))
    accuracy = float(np.mean(np.argmax(forward(x).numpy(), 1) == y))
    if rank == 0:
        print("result:", json.dumps({"world": workers, "accuracy": accuracy}), flush=True)
        # The first worker coordinates the others: one that is still in its last step fails when the first one leaves.
        time.sleep(3)


def jax_sum():
    """Add up one number from every process."""
    import json
    import os

    import jax
    import jax.numpy as jnp
    from jax.experimental import multihost_utils

    # What a TrainJob sets, or a classic JAXJob.
    rank = int(os.environ.get("JAX_PROCESS_ID") or os.environ["PROCESS_ID"])
    world = int(os.environ.get("JAX_NUM_PROCESSES") or os.environ["NUM_PROCESSES"])
    head = os.environ.get("JAX_COORDINATOR_ADDRESS")
    head = head or f"{os.environ['COORDINATOR_ADDRESS']}:{os.environ['COORDINATOR_PORT']}"
    jax.distributed.initialize(head, world, rank)
    total = multihost_utils.process_allgather(jnp.array([rank + 1.0])).sum()
    if rank == 0:
        print("result:", json.dumps({"world": jax.process_count(), "sum": float(total)}), flush=True)


def mpi_ring():
    """Send a token around all processes, and add up their ranks."""
    import json

    from mpi4py import MPI

    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    token = None if rank else [0]
    if rank:
        token = [*world.recv(source=rank - 1), rank]
    world.send(token, dest=(rank + 1) % size)
    if rank == 0:
        token = world.recv(source=size - 1)
    total = world.allreduce(rank)
    if rank == 0:
        print("result:", json.dumps({"world": size, "ring": token, "sum": total}), flush=True)


def sklearn_digits():
    """Train one model on one node."""
    import json

    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    train, test, train_labels, test_labels = train_test_split(*load_digits(return_X_y=True), random_state=0)
    model = LogisticRegression(max_iter=200).fit(train, train_labels)
    print("result:", json.dumps({"world": 1, "accuracy": model.score(test, test_labels)}), flush=True)


# What runs where: function, runtime, nodes.
JOBS = {
    "torch": (torch_digits, "torch-distributed", 2),
    "xgboost": (xgboost_digits, "xgboost-distributed", 2),
    "tensorflow": (tensorflow_digits, "tensorflow-distributed", 2),
    "jax": (jax_sum, "jax-distributed", 2),
    "mpi": (mpi_ring, "mpi-distributed", 3),
    "sklearn": (sklearn_digits, "sklearn", 1),
}


def run(client, names, timeout_s=900):
    """Run the jobs of these names, all at once; return what each printed, as JSON."""
    from kubeflow.trainer import CustomTrainer

    started = {}
    for name in names:
        function, runtime, nodes = JOBS[name]
        trainer = CustomTrainer(func=function, num_nodes=nodes)
        started[name] = client.train(runtime=client.get_runtime(runtime), trainer=trainer)
    results = {}
    for name, job in started.items():
        begin = time.monotonic()
        try:
            client.wait_for_job_status(job, timeout=timeout_s, polling_interval=1)
        except RuntimeError:
            for event in client.get_job_events(job):
                print(f"{name}: {event.reason}: {event.message}", file=sys.stderr)
            raise
        lines = [line for line in client.get_job_logs(job) if line.startswith("result: ")]
        results[name] = {
            "job": job,
            "waited_s": time.monotonic() - begin,
            **json.loads(lines[-1].removeprefix("result: ")),
        }
        client.delete_job(job)
    return results


if __name__ == "__main__":
    from kubeflow.trainer import TrainerClient

    for name, result in run(TrainerClient(), sys.argv[1:] or list(JOBS)).items():
        print(name, json.dumps(result))
