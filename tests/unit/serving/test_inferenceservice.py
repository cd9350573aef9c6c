"""The controller of InferenceServices against the API in memory; the tests play the Deployment controller."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shallop.controller.manager import Manager
from shallop.embedded.apiserver import ApiServer
from shallop.errors import InvalidError, NotFoundError
from shallop.gateway import HTTPROUTE
from shallop.gateway.podautoscaler import POD_AUTOSCALER
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Object, controller_of, find_condition
from shallop.serving import PART
from shallop.serving.podtemplate import REQUIREMENTS
from shallop.settings import Settings
from shallop.store.database import Database

pytestmark = pytest.mark.anyio
MODELS = Path(__file__).with_name("models")
ISVC = Gvk("serving.kserve.io/v1beta1", "InferenceService")
DEPLOYMENT, SERVICE, POD, EVENT = (
    Gvk("apps/v1", "Deployment"),
    Gvk("v1", "Service"),
    Gvk("v1", "Pod"),
    Gvk("v1", "Event"),
)
ROUTE = HTTPROUTE.gvk
DEADLINE_S = 10.0
STANDARD = {"serving.kserve.io/deploymentMode": "Standard"}


@dataclass(frozen=True)
class World:
    client: Client
    settings: Settings
    manager: Manager

    async def until(self, gvk: Gvk, name: str, holds: Callable[[Object], Any], namespace: str = "default") -> Object:
        """Wait until an object exists and ``holds``."""
        found: Object | None = None
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    try:
                        found = await self.client.get(gvk, name, namespace)
                        if holds(found):
                            return found
                    except NotFoundError:
                        pass
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"{gvk.kind} {name} did not get there: {found}") from None

    async def until_gone(self, gvk: Gvk, name: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    await self.client.get(gvk, name, "default")
                except NotFoundError:
                    return
                await asyncio.sleep(0.005)

    async def roll_out(self, name: str = "iris-predictor") -> None:
        """Do what the controllers of Deployments and of endpoints do when every Pod is ready."""
        deployment = await self.until(DEPLOYMENT, name, lambda _: True)
        counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 1)
        available = {"type": "Available", "status": "True"}
        labels = {"kubernetes.io/service-name": name, "serving.kserve.io/inferenceservice": "iris"}
        endpoints = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}],
        }
        await self.client.apply(endpoints)
        generation = deployment["metadata"]["generation"]
        await self.client.patch_status(
            deployment, {"observedGeneration": generation, "conditions": [available], **counts}
        )

    async def event(self, reason: str) -> Object:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for event in (await self.client.list(EVENT, "default")).items:
                    if event["reason"] == reason:
                        return event
                await asyncio.sleep(0.005)


@asynccontextmanager
async def world(home: Path) -> AsyncIterator[World]:
    server = ApiServer(None, admin_token="token")
    settings = Settings(home=home)
    database = Database(f"sqlite:///{home}/rows.db")
    await server.start()
    await server.register_kinds([*PART.kinds, HTTPROUTE, POD_AUTOSCALER])
    client = server.client()
    for obj in PART.objects:
        await client.apply(obj)
    manager = Manager(client, settings, database, PART.kinds)
    started = asyncio.Event()
    running = asyncio.create_task(manager.run(started))
    try:
        await started.wait()
        yield World(client, settings, manager)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await manager.events.flush()
        await server.stop()
        database.close()


def service(uri: str = "s3://models/iris", *, annotations: dict[str, str] | None = None, **predictor: Any) -> Object:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": uri}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris", "namespace": "default", "annotations": STANDARD | (annotations or {})},
        "spec": {"predictor": {"model": model, **predictor}},
    }


def ready(obj: Object) -> str:
    return str((find_condition(obj, "Ready") or {}).get("status"))


async def test_a_service_gets_its_objects_and_becomes_ready_with_its_deployment(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        created = await w.client.create(service())
        deployment = await w.until(DEPLOYMENT, "iris-predictor", lambda _: True)
        owner = controller_of(deployment)
        assert owner is not None
        assert owner["uid"] == created["metadata"]["uid"]
        await w.until(SERVICE, "iris-predictor", lambda _: True)
        await w.until(ROUTE, "iris", lambda _: True)
        await w.until(ROUTE, "iris.path", lambda _: True)
        starting = await w.until(ISVC, "iris", lambda obj: ready(obj) == "Unknown")
        assert starting["status"]["url"] == "http://127.0.0.1:8081/serving/default/iris"
        await w.roll_out()
        done = await w.until(ISVC, "iris", lambda obj: ready(obj) == "True")
        assert done["status"]["clusterServingRuntimeName"] == "kserve-sklearnserver"
        assert done["status"]["observedGeneration"] == done["metadata"]["generation"]
        assert done["status"]["modelStatus"]["states"]["activeModelState"] == "Loaded"
        assert (await w.event("InferenceServiceReady"))["message"] == "InferenceService [iris] is Ready"


async def test_a_bad_service_is_refused_at_the_door(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(InvalidError) as error:
            await w.client.create(service(uri="models/iris"))
        assert "spec.predictor.model.storageUri: Invalid value" in error.value.message
        wrong = service(minReplicas="two")
        with pytest.raises(InvalidError) as error:
            await w.client.create(wrong)
        assert "spec.predictor.minReplicas" in error.value.message


async def test_a_legacy_service_is_stored_with_a_model(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        legacy = service()
        legacy["spec"]["predictor"] = {"xgboost": {"storageUri": "s3://models/iris"}}
        stored = await w.client.create(legacy)
        assert stored["spec"]["predictor"]["model"]["modelFormat"] == {"name": "xgboost"}
        deployment = await w.until(DEPLOYMENT, "iris-predictor", lambda _: True)
        image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
        assert image.startswith("kserve/xgbserver:")


async def test_a_format_that_nothing_serves_is_said_and_a_new_runtime_is_noticed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        odd = service()
        odd["spec"]["predictor"]["model"]["modelFormat"] = {"name": "odd"}
        await w.client.create(odd)
        refused = await w.until(ISVC, "iris", lambda obj: ready(obj) == "False")
        assert refused["status"]["modelStatus"]["transitionStatus"] == "InvalidSpec"
        assert refused["status"]["modelStatus"]["lastFailureInfo"]["reason"] == "NoSupportingRuntime"
        assert "no runtime serves odd" in (find_condition(refused, "Ready") or {})["message"]
        await w.client.create(
            {
                "apiVersion": "serving.kserve.io/v1alpha1",
                "kind": "ServingRuntime",
                "metadata": {"name": "odd", "namespace": "default"},
                "spec": {
                    "supportedModelFormats": [{"name": "odd", "autoSelect": True}],
                    "containers": [{"name": "kserve-container", "image": "odd:1"}],
                },
            }
        )
        await w.until(DEPLOYMENT, "iris-predictor", lambda _: True)
        served = await w.until(ISVC, "iris", lambda obj: ready(obj) == "Unknown")
        assert served["status"]["servingRuntimeName"] == "odd"
        assert "lastFailureInfo" not in served["status"]["modelStatus"]


async def test_a_path_that_is_not_there_is_named_with_its_field_until_it_is(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        folder = tmp_path / "late"
        await w.client.create(service(uri=f"file://{folder}"))
        seen = await w.until(ISVC, "iris", lambda obj: ready(obj) == "False")
        message = (find_condition(seen, "Ready") or {})["message"]
        assert message.startswith(f"spec.predictor.model.storageUri: {folder} does not exist on this machine; put")
        shutil.copytree(MODELS, folder)
        await w.client.patch(ISVC, "iris", "default", {"metadata": {"labels": {"look": "again"}}})
        await w.until(DEPLOYMENT, "iris-predictor", lambda obj: True)


async def test_a_changed_runtime_changes_the_deployment(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.client.create(service())
        await w.until(ISVC, "iris", lambda obj: ready(obj) == "Unknown")
        runtime = await w.client.get(Gvk("serving.kserve.io/v1alpha1", "ClusterServingRuntime"), "kserve-sklearnserver")
        container = runtime["spec"]["containers"][0] | {"image": "kserve/sklearnserver:v9"}
        await w.client.update(runtime | {"spec": runtime["spec"] | {"containers": [container]}})

        def has_image(obj: Object) -> bool:
            image: str = obj["spec"]["template"]["spec"]["containers"][0]["image"]
            return image == "kserve/sklearnserver:v9"

        await w.until(DEPLOYMENT, "iris-predictor", has_image)


async def test_a_deleted_or_edited_child_is_put_back(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.client.create(service())
        old = await w.until(SERVICE, "iris-predictor", lambda _: True)
        await w.client.delete(SERVICE, "iris-predictor", "default")
        uid = old["metadata"]["uid"]
        await w.until(SERVICE, "iris-predictor", lambda obj: obj["metadata"]["uid"] != uid)
        await w.client.patch(DEPLOYMENT, "iris-predictor", "default", {"spec": {"replicas": 7}})
        await w.until(DEPLOYMENT, "iris-predictor", lambda obj: obj["spec"]["replicas"] == 1)


async def test_a_stopped_service_loses_its_objects_and_starts_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.client.create(service())
        await w.roll_out()
        await w.until(ISVC, "iris", lambda obj: ready(obj) == "True")
        stop: dict[str, Any] = {"metadata": {"annotations": {"serving.kserve.io/stop": "true"}}}
        await w.client.patch(ISVC, "iris", "default", stop)
        stopped = await w.until(ISVC, "iris", lambda obj: ready(obj) == "False")
        assert (find_condition(stopped, "Stopped") or {})["status"] == "True"
        assert "url" not in stopped["status"]
        for gvk, name in ((DEPLOYMENT, "iris-predictor"), (SERVICE, "iris-predictor"), (ROUTE, "iris")):
            await w.until_gone(gvk, name)
        assert (await w.event("InferenceServiceNotReady"))["type"] == "Normal"
        stop["metadata"]["annotations"]["serving.kserve.io/stop"] = "false"
        await w.client.patch(ISVC, "iris", "default", stop)
        await w.until(DEPLOYMENT, "iris-predictor", lambda _: True)


async def test_a_canary_without_traffic_has_a_way_to_it_as_long_as_it_is_there(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        new = {"name": "new", "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models/new"}}
        given = service()
        given["spec"]["canary"] = [{"predictor": new, "trafficPercent": 0}]
        await w.client.create(given)
        route = await w.until(ROUTE, "iris.iris-new-predictor", lambda _: True)
        (rule,) = route["spec"]["rules"]
        assert rule["matches"][0]["path"]["value"] == "/serving/default/iris-new-predictor"
        assert [backend["name"] for backend in rule["backendRefs"]] == ["iris-new-predictor"]
        await w.client.patch(ISVC, "iris", "default", {"spec": {"canary": []}})
        await w.until_gone(ROUTE, "iris.iris-new-predictor")
        await w.until_gone(DEPLOYMENT, "iris-new-predictor")


async def test_a_renamed_predictor_leaves_no_orphan(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.client.create(service())
        await w.until(DEPLOYMENT, "iris-predictor", lambda _: True)
        blue = {"name": "blue", "model": {"storageUri": "s3://models/blue"}}
        await w.client.patch(ISVC, "iris", "default", {"spec": {"predictor": blue}})
        await w.until(DEPLOYMENT, "iris-blue-predictor", lambda _: True)
        await w.until_gone(DEPLOYMENT, "iris-predictor")
        await w.until_gone(SERVICE, "iris-predictor")


async def test_a_crashing_pod_makes_the_service_say_why(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.client.create(service())
        deployment = await w.until(DEPLOYMENT, "iris-predictor", lambda _: True)
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        pod = await w.client.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "iris-1", "namespace": "default", "labels": labels},
                "spec": {"containers": [{"name": "kserve-container", "image": "x"}]},
            }
        )
        ended = {"exitCode": 1, "message": "LoadError: model.pkl: needs the package 'odd'"}
        container = {"name": "kserve-container", "state": {"terminated": ended}, "image": "x", "imageID": ""}
        container |= {"ready": False, "restartCount": 0}
        await w.client.patch_status(pod, {"phase": "Running", "containerStatuses": [container]})
        failed = await w.until(ISVC, "iris", lambda obj: ready(obj) == "False")
        assert "needs the package 'odd'" in (find_condition(failed, "Ready") or {})["message"]
        assert failed["status"]["modelStatus"]["states"]["targetModelState"] == "FailedToLoad"
        assert "needs the package 'odd'" in (await w.event("InferenceServiceNotReady"))["message"]


async def test_the_pods_get_what_the_model_was_made_with_once_per_generation(tmp_path: Path) -> None:
    folder = tmp_path / "volumes" / "default" / "models" / "iris"
    folder.mkdir(parents=True)
    shutil.copy(MODELS / "zlib.joblib", folder / "model.joblib")

    def requirements(obj: Object) -> str:
        annotations: dict[str, str] = obj["spec"]["template"]["metadata"]["annotations"]
        return annotations.get(REQUIREMENTS, "")

    async with world(tmp_path) as w:
        await w.client.create(service(uri="pvc://models/iris"))
        await w.until(DEPLOYMENT, "iris-predictor", lambda obj: requirements(obj) == "scikit-learn==1.5.2")
        (folder / "model.joblib").unlink()
        shutil.copy(MODELS / "lightgbm.joblib", folder / "model.joblib")
        await w.roll_out()
        await w.until(ISVC, "iris", lambda obj: ready(obj) == "True")
        assert requirements(await w.client.get(DEPLOYMENT, "iris-predictor", "default")) == "scikit-learn==1.5.2"
        await w.client.patch(ISVC, "iris", "default", {"spec": {"predictor": {"minReplicas": 2}}})
        await w.until(DEPLOYMENT, "iris-predictor", lambda obj: "lightgbm" in requirements(obj))


async def test_fields_without_effect_are_named_in_an_event(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.client.create(service(canaryTrafficPercent=10))  # of Knative mode
        event = await w.event("NotHonoured")
        assert event["type"] == "Warning"
        assert "spec.predictor.canaryTrafficPercent" in event["message"]


KSVC, REVISION = Gvk("serving.knative.dev/v1", "Service"), Gvk("serving.knative.dev/v1", "Revision")


def knative(image: str = "one", **predictor: Any) -> Object:
    container = {"name": "kserve-container", "image": image}
    made = service(annotations={}, containers=[container], **predictor)
    del made["spec"]["predictor"]["model"], made["metadata"]["annotations"]
    return made


async def start(w: World, revision: str) -> None:
    """Do what the Deployment controller does when the Pod of a revision is ready."""
    deployment = await w.until(DEPLOYMENT, f"{revision}-deployment", lambda _: True)
    await w.client.patch_status(deployment, {"readyReplicas": 1, "replicas": 1})


def traffic(obj: Object) -> dict[str, int]:
    shown = ((obj.get("status") or {}).get("components") or {}).get("predictor", {}).get("traffic") or []
    shares: dict[str, int] = {}
    for item in shown:  # until the newest revision is ready its share goes to the one before, by an entry of its own
        shares[item["revisionName"]] = shares.get(item["revisionName"], 0) + item["percent"]
    return shares


async def test_a_service_without_a_mode_gets_revisions_that_share_the_traffic(tmp_path: Path) -> None:
    first, second = "iris-predictor-00001", "iris-predictor-00002"
    async with world(tmp_path) as w:
        await w.client.create(knative())
        await start(w, first)
        done = await w.until(ISVC, "iris", lambda obj: ready(obj) == "True" and traffic(obj) == {first: 100})
        assert done["status"]["deploymentMode"] == "Knative"
        await w.client.patch(ISVC, "iris", "default", {"spec": knative("two", canaryTrafficPercent=10)["spec"]})
        await w.until(REVISION, second, lambda _: True)
        assert traffic(await w.client.get(ISVC, "iris", "default")) == {first: 100}
        await start(w, second)
        shared = await w.until(ISVC, "iris", lambda obj: traffic(obj) == {second: 10, first: 90})
        assert shared["status"]["components"]["predictor"]["latestRolledoutRevision"] == first
        route = await w.until(ROUTE, "iris", lambda obj: len(obj["spec"]["rules"][0]["backendRefs"]) == 2)
        shares = {item["name"]: item["weight"] for item in route["spec"]["rules"][0]["backendRefs"]}
        assert shares == {second: 10, first: 90}
        await w.client.patch(ISVC, "iris", "default", {"spec": {"predictor": {"canaryTrafficPercent": None}}})
        await w.until(ISVC, "iris", lambda obj: traffic(obj) == {second: 100})
        reserve = await w.until(
            REVISION, first, lambda obj: obj["metadata"]["labels"]["serving.knative.dev/routingState"] == "reserve"
        )
        assert reserve["spec"]["containers"][0]["image"] == "one"


async def test_what_only_steers_scaling_makes_no_new_revision(tmp_path: Path) -> None:
    autoscaler = POD_AUTOSCALER.gvk
    async with world(tmp_path) as w:
        await w.client.create(knative(minReplicas=0))
        await start(w, "iris-predictor-00001")
        await w.until(ISVC, "iris", lambda obj: ready(obj) == "True")
        change = {"minReplicas": 2, "maxReplicas": 5, "scaleTarget": 7, "containerConcurrency": 3}
        await w.client.patch(ISVC, "iris", "default", {"spec": {"predictor": change}})

        def follows(obj: Object) -> bool:
            notes = obj["metadata"]["annotations"]
            wanted = {"min-scale": "2", "max-scale": "5", "target": "7"}
            scaled = all(notes.get(f"autoscaling.knative.dev/{name}") == value for name, value in wanted.items())
            return scaled and obj["spec"]["containerConcurrency"] == 3

        await w.until(autoscaler, "iris-predictor-00001", follows)
        assert len((await w.client.list(REVISION, "default")).items) == 1


async def test_a_stopped_service_of_knative_mode_loses_its_knative_service(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.client.create(knative())
        await start(w, "iris-predictor-00001")
        await w.until(ISVC, "iris", lambda obj: ready(obj) == "True")
        stop = {"metadata": {"annotations": {"serving.kserve.io/stop": "true"}}}
        await w.client.patch(ISVC, "iris", "default", stop)
        await w.until(ISVC, "iris", lambda obj: ready(obj) == "False")
        await w.until_gone(KSVC, "iris-predictor")


async def test_a_loader_is_given_what_reaches_its_store(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": "default"}}
        await w.client.create(secret | {"stringData": {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "loader", "namespace": "default"}}
        await w.client.create(account | {"secrets": [{"name": "s3"}]})
        await w.client.create(service(uri="s3://models/iris", serviceAccountName="loader"))
        deployment = await w.until(DEPLOYMENT, "iris-predictor", lambda _: True)
        (initializer,) = deployment["spec"]["template"]["spec"]["initContainers"]
        names = {item["name"]: item["valueFrom"]["secretKeyRef"]["name"] for item in initializer["env"]}
        assert names == {"AWS_ACCESS_KEY_ID": "s3", "AWS_SECRET_ACCESS_KEY": "s3"}
