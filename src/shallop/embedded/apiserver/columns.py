"""The columns that ``kubectl get`` shows, per resource."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from shallop.embedded.apiserver.jsonpath import compile_path
from shallop.embedded.apiserver.resources import Resource
from shallop.embedded.apiserver.scale import format_selector
from shallop.kube.objects import Object, is_condition_true, parse_time

__all__ = ["TableColumn", "columns_of", "format_age"]

Read = Callable[[Object, datetime], Any]


class TableColumn(NamedTuple):
    """A column; priority 1 is for ``-o wide``."""

    name: str
    read: Read
    type: str = "string"
    priority: int = 0
    format: str = ""
    description: str = ""


def format_age(text: str | None, now: datetime) -> str:
    """Write the time since ``text`` as kubectl does: two units at most."""
    if not text:
        return "<unknown>"
    try:
        then = parse_time(text)
    except ValueError:
        return "<invalid>"
    return format_duration((now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds())


def format_duration(seconds: float) -> str:
    if seconds < -1:
        return "<invalid>"
    total = max(int(seconds), 0)
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if total < 120:
        return f"{total}s"
    if minutes < 10:
        return f"{minutes}m{total % 60}s" if total % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 730:
        return f"{days}d"
    years, rest = days // 365, days % 365
    return f"{years}y{rest}d" if rest and years < 8 else f"{years}y"


def _spec(obj: Object) -> Object:
    return obj.get("spec") or {}


def _status(obj: Object) -> Object:
    return obj.get("status") or {}


def _name(obj: Object, now: datetime) -> str:
    return str(obj["metadata"].get("name", ""))


def _age(obj: Object, now: datetime) -> str:
    return format_age(obj["metadata"].get("creationTimestamp"), now)


NAME = TableColumn("Name", _name, format="name", description="Name of the object, unique in its namespace.")
AGE = TableColumn("Age", _age, description="Time since the object was created.")
CREATED = TableColumn("Created At", lambda obj, now: obj["metadata"].get("creationTimestamp"), "date")


def _column(name: str, read: Callable[[Object], Any], type_: str = "string", priority: int = 0) -> TableColumn:
    return TableColumn(name, lambda obj, now: read(obj), type_, priority)


def _containers(template: Callable[[Object], Object]) -> tuple[TableColumn, TableColumn]:
    def read(obj: Object, key: str) -> str:
        return ",".join(container.get(key, "") for container in template(obj).get("containers") or ())

    return (
        _column("Containers", lambda obj: read(obj, "name"), priority=1),
        _column("Images", lambda obj: read(obj, "image"), priority=1),
    )


def _template(obj: Object) -> Object:
    return (_spec(obj).get("template") or {}).get("spec") or {}


def _selector(obj: Object) -> str:
    return format_selector(_spec(obj).get("selector") or {}) or "<none>"


_SELECTOR = _column("Selector", _selector, priority=1)


# ---- Pods


def _pod_ready(pod: Object) -> str:
    states = _status(pod).get("containerStatuses") or ()
    ready = sum(1 for state in states if state.get("ready"))
    return f"{ready}/{len(_spec(pod).get('containers') or ())}"


def _pod_status(pod: Object) -> str:
    """The one word that says how a Pod is, as ``kubectl get`` computes it."""
    status = _status(pod)
    word = status.get("reason") or status.get("phase") or ""
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "SchedulingGated":
            word = "SchedulingGated"
    initializing, word = _init_status(pod, word)
    if not initializing:
        word = _running_status(status, word)
    if pod["metadata"].get("deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            return "Unknown"
        if status.get("phase") not in ("Failed", "Succeeded"):
            return "Terminating"
    return str(word)


def _init_status(pod: Object, word: str) -> tuple[bool, str]:
    specs = {container["name"]: container for container in _spec(pod).get("initContainers") or ()}
    for index, state in enumerate(_status(pod).get("initContainerStatuses") or ()):
        current = state.get("state") or {}
        terminated, waiting = current.get("terminated"), current.get("waiting")
        sidecar = specs.get(state.get("name", ""), {}).get("restartPolicy") == "Always"
        if (terminated and terminated.get("exitCode") == 0) or (sidecar and state.get("started")):
            continue
        if terminated:
            return True, "Init:" + (_ended(terminated) if not terminated.get("reason") else terminated["reason"])
        if waiting and waiting.get("reason") not in (None, "", "PodInitializing"):
            return True, f"Init:{waiting['reason']}"
        return True, f"Init:{index}/{len(specs)}"
    return False, word


def _ended(terminated: Object) -> str:
    if terminated.get("signal"):
        return f"Signal:{terminated['signal']}"
    return f"ExitCode:{terminated.get('exitCode', 0)}"


def _running_status(status: Object, word: str) -> str:
    running = False
    for state in reversed(status.get("containerStatuses") or ()):
        current = state.get("state") or {}
        waiting, terminated = current.get("waiting") or {}, current.get("terminated")
        if waiting.get("reason"):
            word = waiting["reason"]
        elif terminated and terminated.get("reason"):
            word = terminated["reason"]
        elif terminated:
            word = _ended(terminated)
        elif state.get("ready") and current.get("running") is not None:
            running = True
    if word == "Completed" and running:
        return "Running" if is_condition_true({"status": status}, "Ready") else "NotReady"
    return word


def _restarts(pod: Object, now: datetime) -> str:
    status = _status(pod)
    states = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    count = sum(state.get("restartCount", 0) for state in states)
    times = [
        state["lastState"]["terminated"]["finishedAt"]
        for state in states
        if ((state.get("lastState") or {}).get("terminated") or {}).get("finishedAt")
    ]
    return f"{count} ({format_age(max(times), now)} ago)" if count and times else str(count)


def _pod_gates(pod: Object) -> str:
    gates = _spec(pod).get("readinessGates") or ()
    if not gates:
        return "<none>"
    held = sum(is_condition_true(pod, gate["conditionType"]) for gate in gates)
    return f"{held}/{len(gates)}"


# ---- Others


def _node_status(node: Object) -> str:
    words = ["Ready" if is_condition_true(node, "Ready") else "NotReady"]
    if not any(c.get("type") == "Ready" for c in _status(node).get("conditions") or ()):
        words = ["Unknown"]
    return ",".join(words + (["SchedulingDisabled"] if _spec(node).get("unschedulable") else []))


def _node_roles(node: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = node["metadata"].get("labels") or {}
    roles = sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix) and key != prefix)
    return ",".join(roles) or "<none>"


def _node_address(kind: str) -> Callable[[Object], str]:
    def read(node: Object) -> str:
        for address in _status(node).get("addresses") or ():
            if address.get("type") == kind:
                return str(address["address"])
        return "<none>"

    return read


def _node_info(key: str, absent: str = "<unknown>") -> Callable[[Object], str]:
    return lambda node: (_status(node).get("nodeInfo") or {}).get(key) or absent


def _external_ip(service: Object) -> str:
    spec = _spec(service)
    kind = spec.get("type", "ClusterIP")
    external = spec.get("externalIPs") or []
    if kind == "ExternalName":
        return str(spec.get("externalName", ""))
    if kind == "LoadBalancer":
        ingress = (_status(service).get("loadBalancer") or {}).get("ingress") or ()
        found = [entry.get("ip") or entry.get("hostname", "") for entry in ingress] + external
        return ",".join(found) or "<pending>"
    return ",".join(external) or "<none>"


def _service_ports(service: Object) -> str:
    parts = []
    for port in _spec(service).get("ports") or ():
        node = f":{port['nodePort']}" if port.get("nodePort") else ""
        parts.append(f"{port['port']}{node}/{port.get('protocol', 'TCP')}")
    return ",".join(parts) or "<none>"


def _limited(parts: list[str], limit: int = 3) -> str:
    if not parts:
        return "<none>"
    more = f" + {len(parts) - limit} more..." if len(parts) > limit else ""
    return ",".join(parts[:limit]) + more


def _endpoints(obj: Object) -> str:
    parts = []
    for subset in obj.get("subsets") or ():
        ports = [f":{port['port']}" for port in subset.get("ports") or ()] or [""]
        parts += [f"{address['ip']}{port}" for port in ports for address in subset.get("addresses") or ()]
    return _limited(parts)


def _slice_ports(obj: Object) -> str:
    ports = obj.get("ports")
    if not ports:
        return "<unset>"
    return _limited([str(port.get("port", "*")) for port in ports])


def _slice_endpoints(obj: Object) -> str:
    found = [address for endpoint in obj.get("endpoints") or () for address in endpoint.get("addresses") or ()]
    return _limited(found) if found else "<unset>"


_ACCESS = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}


def _access_modes(modes: list[str] | None) -> str:
    return ",".join(_ACCESS.get(mode, mode) for mode in dict.fromkeys(modes or ()))


def _claim_bound(read: Callable[[Object], Any]) -> Callable[[Object], Any]:
    return lambda claim: read(claim) if _spec(claim).get("volumeName") else ""


def _claim_status(claim: Object) -> str:
    return "Terminating" if claim["metadata"].get("deletionTimestamp") else str(_status(claim).get("phase", ""))


def _claim_of(volume: Object) -> str:
    reference = _spec(volume).get("claimRef")
    return f"{reference.get('namespace')}/{reference.get('name')}" if reference else ""


def _quota(kind: str) -> Callable[[Object], str]:
    def read(quota: Object) -> str:
        status = _status(quota)
        hard, used = status.get("hard") or {}, status.get("used") or {}
        parts = [
            f"{name}: {used.get(name, '0')}/{hard[name]}"
            for name in sorted(hard)
            if name.startswith("limits.") == (kind == "limits")
        ]
        return ", ".join(parts)

    return read


def _job_status(job: Object) -> str:
    for type_, word in (("Complete", "Complete"), ("Failed", "Failed")):
        if is_condition_true(job, type_):
            return word
    if job["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for type_, word in (
        ("Suspended", "Suspended"),
        ("FailureTarget", "FailureTarget"),
        ("SuccessCriteriaMet", "SuccessCriteriaMet"),
    ):
        if is_condition_true(job, type_):
            return word
    return "Running"


def _job_completions(job: Object) -> str:
    spec, status = _spec(job), _status(job)
    done = status.get("succeeded", 0)
    if spec.get("completions") is not None:
        return f"{done}/{spec['completions']}"
    parallelism = spec.get("parallelism", 1)
    return f"{done}/1 of {parallelism}" if parallelism > 1 else f"{done}/1"


def _job_duration(job: Object, now: datetime) -> str:
    status = _status(job)
    if not status.get("startTime"):
        return ""
    end = status.get("completionTime")
    if not end and is_condition_true(job, "Failed"):
        end = next(c["lastTransitionTime"] for c in status["conditions"] if c["type"] == "Failed")
    return format_age(status["startTime"], parse_time(end) if end else now)


def _event_object(event: Object) -> str:
    involved = event.get("involvedObject") or event.get("regarding") or {}
    return f"{involved.get('kind', '').lower()}/{involved.get('name', '')}"


def _event_count(event: Object) -> int:
    counted = (event.get("series") or {}).get("count") or event.get("count") or event.get("deprecatedCount")
    return int(counted or 1)


def _event_seen(*keys: str, last: bool = False) -> Read:
    def read(event: Object, now: datetime) -> str:
        if last and (seen := (event.get("series") or {}).get("lastObservedTime")):
            return format_age(seen, now)
        for key in keys:
            if event.get(key):
                return format_age(event[key], now)
        return _age(event, now)

    return read


def _event_source(event: Object) -> str:
    source = event.get("source") or event.get("deprecatedSource") or {}
    component = source.get("component") or event.get("reportingComponent") or event.get("reportingController", "")
    parts = [component, source.get("host") or event.get("reportingInstance", "")]
    return ", ".join(part for part in parts if part)


def _subjects(kind: str) -> Callable[[Object], str]:
    def read(binding: Object) -> str:
        found = [subject for subject in binding.get("subjects") or () if subject.get("kind") == kind]
        if kind == "ServiceAccount":
            return ", ".join(f"{subject.get('namespace', '')}/{subject['name']}" for subject in found)
        return ", ".join(subject["name"] for subject in found)

    return read


def _role(binding: Object) -> str:
    reference = binding.get("roleRef") or {}
    return f"{reference.get('kind', '')}/{reference.get('name', '')}"


def _binding_columns() -> tuple[TableColumn, ...]:
    wide = [("Users", "User"), ("Groups", "Group"), ("ServiceAccounts", "ServiceAccount")]
    return (
        NAME,
        _column("Role", _role),
        AGE,
        *(_column(name, _subjects(kind), priority=1) for name, kind in wide),
    )


def _hpa_targets(hpa: Object) -> str:
    metrics = _spec(hpa).get("metrics") or ()
    current = _status(hpa).get("currentMetrics") or ()
    parts = []
    for index, metric in enumerate(metrics):
        source = metric.get("resource") or metric.get("external") or metric.get("pods") or metric.get("object") or {}
        target = source.get("target") or {}
        state = current[index] if index < len(current) else {}
        value = ((state.get("resource") or {}).get("current") or {}) if state else {}
        name = (metric.get("resource") or {}).get("name", metric.get("type", "").lower())
        if "averageUtilization" in target:
            shown = f"{value['averageUtilization']}%" if "averageUtilization" in value else "<unknown>"
            parts.append(f"{name}: {shown}/{target['averageUtilization']}%")
        else:
            goal = target.get("averageValue") or target.get("value")
            parts.append(f"{name}: {value.get('averageValue', '<unknown>')}/{goal}")
    return ", ".join(parts) or "<none>"


def _hpa_reference(hpa: Object) -> str:
    target = _spec(hpa).get("scaleTargetRef") or {}
    return f"{target.get('kind', '')}/{target.get('name', '')}"


def _ingress_hosts(ingress: Object) -> str:
    return _limited([rule["host"] for rule in _spec(ingress).get("rules") or () if rule.get("host")]).replace(
        "<none>", "*"
    )


def _ingress_address(ingress: Object) -> str:
    entries = (_status(ingress).get("loadBalancer") or {}).get("ingress") or ()
    return ",".join(entry.get("ip") or entry.get("hostname", "") for entry in entries)


def _is_default_class(obj: Object) -> bool:
    annotations = obj["metadata"].get("annotations") or {}
    return annotations.get("storageclass.kubernetes.io/is-default-class") == "true"


def _class_name(obj: Object, now: datetime) -> str:
    return f"{_name(obj, now)} (default)" if _is_default_class(obj) else _name(obj, now)


def _number(read: Callable[[Object], Object], key: str) -> Callable[[Object], int]:
    return lambda obj: int(read(obj).get(key) or 0)


def _last_schedule(job: Object, now: datetime) -> str:
    last = _status(job).get("lastScheduleTime")
    return format_age(last, now) if last else "<none>"


_REPLICAS = (
    _column("Desired", _number(_spec, "replicas"), "integer"),
    _column("Current", _number(_status, "replicas"), "integer"),
    _column("Ready", _number(_status, "readyReplicas"), "integer"),
)


def _controller(obj: Object) -> str:
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            group = owner["apiVersion"].rpartition("/")[0]
            return f"{owner['kind'].lower()}{'.' if group else ''}{group}/{owner['name']}"
    return "<none>"


def _pod_template(obj: Object) -> Object:
    return (obj.get("template") or {}).get("spec") or {}


def _pod_template_labels(obj: Object) -> str:
    labels = ((obj.get("template") or {}).get("metadata") or {}).get("labels") or {}
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "<none>"


def _class_parameters(obj: Object) -> str:
    parameters = _spec(obj).get("parameters")
    if not parameters:
        return "<none>"
    group = parameters.get("apiGroup")
    return f"{parameters.get('kind')}{'.' if group else ''}{group or ''}/{parameters.get('name')}"


def _param_kind(obj: Object) -> str:
    kind = _spec(obj).get("paramKind")
    return f"{kind.get('apiVersion')}/{kind.get('kind')}" if kind else "<unset>"


def _param_ref(obj: Object) -> str:
    reference = _spec(obj).get("paramRef")
    if not reference:
        return "<unset>"
    return "/".join(filter(None, (reference.get("namespace"), reference.get("name"))))


def _policy_columns(rules: str) -> tuple[TableColumn, ...]:
    count = _column(rules.title(), lambda obj: len(_spec(obj).get(rules) or ()), "integer")
    return NAME, count, _column("ParamKind", _param_kind), AGE


_WEBHOOKS = (NAME, _column("Webhooks", lambda obj: len(obj.get("webhooks") or ()), "integer"), AGE)
_POLICY_BINDINGS = (
    NAME,
    _column("PolicyName", lambda obj: _spec(obj).get("policyName", "")),
    _column("ParamRef", _param_ref),
    AGE,
)

_TABLES: dict[str, tuple[TableColumn, ...]] = {
    "pods": (
        NAME,
        _column("Ready", _pod_ready),
        _column("Status", _pod_status),
        TableColumn("Restarts", _restarts),
        AGE,
        _column("IP", lambda pod: _status(pod).get("podIP") or "<none>", priority=1),
        _column("Node", lambda pod: _spec(pod).get("nodeName") or "<none>", priority=1),
        _column("Nominated Node", lambda pod: _status(pod).get("nominatedNodeName") or "<none>", priority=1),
        _column("Readiness Gates", _pod_gates, priority=1),
    ),
    "nodes": (
        NAME,
        _column("Status", _node_status),
        _column("Roles", _node_roles),
        AGE,
        _column("Version", _node_info("kubeletVersion", "")),
        _column("Internal-IP", _node_address("InternalIP"), priority=1),
        _column("External-IP", _node_address("ExternalIP"), priority=1),
        _column("OS-Image", _node_info("osImage"), priority=1),
        _column("Kernel-Version", _node_info("kernelVersion"), priority=1),
        _column("Container-Runtime", _node_info("containerRuntimeVersion"), priority=1),
    ),
    "namespaces": (NAME, _column("Status", lambda obj: _status(obj).get("phase", "")), AGE),
    "events": (
        TableColumn(
            "Last Seen",
            _event_seen(
                "lastTimestamp",
                "deprecatedLastTimestamp",
                "eventTime",
                "firstTimestamp",
                "deprecatedFirstTimestamp",
                last=True,
            ),
        ),
        _column("Type", lambda event: event.get("type", "")),
        _column("Reason", lambda event: event.get("reason", "")),
        _column("Object", _event_object),
        _column("Subobject", lambda event: (event.get("involvedObject") or {}).get("fieldPath", ""), priority=1),
        _column("Source", _event_source, priority=1),
        _column("Message", lambda event: (event.get("message") or event.get("note") or "").strip()),
        TableColumn("First Seen", _event_seen("firstTimestamp", "deprecatedFirstTimestamp", "eventTime"), priority=1),
        _column("Count", _event_count, "string", 1),
        TableColumn("Name", _name, priority=1, format="name"),
    ),
    "configmaps": (
        NAME,
        _column("Data", lambda obj: len(obj.get("data") or ()) + len(obj.get("binaryData") or ())),
        AGE,
    ),
    "secrets": (
        NAME,
        _column("Type", lambda obj: obj.get("type", "")),
        _column("Data", lambda obj: len(obj.get("data") or ())),
        AGE,
    ),
    "services": (
        NAME,
        _column("Type", lambda obj: _spec(obj).get("type", "")),
        _column("Cluster-IP", lambda obj: _spec(obj).get("clusterIP") or "<none>"),
        _column("External-IP", _external_ip),
        _column("Port(s)", _service_ports),
        AGE,
        _column("Selector", _selector, priority=1),
    ),
    "endpoints": (NAME, _column("Endpoints", _endpoints), AGE),
    "endpointslices.discovery.k8s.io": (
        NAME,
        _column("AddressType", lambda obj: obj.get("addressType", "")),
        _column("Ports", _slice_ports),
        _column("Endpoints", _slice_endpoints),
        AGE,
    ),
    "persistentvolumeclaims": (
        NAME,
        _column("Status", _claim_status),
        _column("Volume", lambda obj: _spec(obj).get("volumeName", "")),
        _column("Capacity", _claim_bound(lambda obj: (_status(obj).get("capacity") or {}).get("storage", ""))),
        _column("Access Modes", _claim_bound(lambda obj: _access_modes(_status(obj).get("accessModes")))),
        _column("StorageClass", lambda obj: _spec(obj).get("storageClassName") or ""),
        _column("VolumeAttributesClass", lambda obj: _spec(obj).get("volumeAttributesClassName") or "<unset>"),
        AGE,
        _column("VolumeMode", lambda obj: _spec(obj).get("volumeMode") or "<unset>", priority=1),
    ),
    "persistentvolumes": (
        NAME,
        _column("Capacity", lambda obj: (_spec(obj).get("capacity") or {}).get("storage", "")),
        _column("Access Modes", lambda obj: _access_modes(_spec(obj).get("accessModes"))),
        _column("Reclaim Policy", lambda obj: _spec(obj).get("persistentVolumeReclaimPolicy", "")),
        _column("Status", _claim_status),
        _column("Claim", _claim_of),
        _column("StorageClass", lambda obj: _spec(obj).get("storageClassName") or ""),
        _column("VolumeAttributesClass", lambda obj: _spec(obj).get("volumeAttributesClassName") or "<unset>"),
        _column("Reason", lambda obj: _status(obj).get("reason", "")),
        AGE,
        _column("VolumeMode", lambda obj: _spec(obj).get("volumeMode") or "<unset>", priority=1),
    ),
    "serviceaccounts": (NAME, AGE),
    "resourcequotas": (NAME, _column("Request", _quota("requests")), _column("Limit", _quota("limits")), AGE),
    "limitranges": (NAME, CREATED),
    "replicationcontrollers": (NAME, *_REPLICAS, AGE, *_containers(_template), _SELECTOR),
    "deployments.apps": (
        NAME,
        _column("Ready", lambda obj: f"{_status(obj).get('readyReplicas', 0)}/{_spec(obj).get('replicas', 0)}"),
        _column("Up-to-date", _number(_status, "updatedReplicas")),
        _column("Available", _number(_status, "availableReplicas")),
        AGE,
        *_containers(_template),
        _SELECTOR,
    ),
    "statefulsets.apps": (
        NAME,
        _column("Ready", lambda obj: f"{_status(obj).get('readyReplicas', 0)}/{_spec(obj).get('replicas', 0)}"),
        AGE,
        *_containers(_template),
    ),
    "daemonsets.apps": (
        NAME,
        _column("Desired", _number(_status, "desiredNumberScheduled"), "integer"),
        _column("Current", _number(_status, "currentNumberScheduled"), "integer"),
        _column("Ready", _number(_status, "numberReady"), "integer"),
        _column("Up-to-date", _number(_status, "updatedNumberScheduled"), "integer"),
        _column("Available", _number(_status, "numberAvailable"), "integer"),
        _column("Node Selector", lambda obj: format_selector(_template(obj).get("nodeSelector") or {}) or "<none>"),
        AGE,
        *_containers(_template),
        _SELECTOR,
    ),
    "replicasets.apps": (NAME, *_REPLICAS, AGE, *_containers(_template), _SELECTOR),
    "jobs.batch": (
        NAME,
        _column("Status", _job_status),
        _column("Completions", _job_completions),
        TableColumn("Duration", _job_duration),
        AGE,
        *_containers(_template),
        _SELECTOR,
    ),
    "cronjobs.batch": (
        NAME,
        _column("Schedule", lambda obj: _spec(obj).get("schedule", "")),
        _column("Timezone", lambda obj: _spec(obj).get("timeZone") or "<none>"),
        _column("Suspend", lambda obj: str(bool(_spec(obj).get("suspend"))), "boolean"),
        _column("Active", lambda obj: len(_status(obj).get("active") or ()), "integer"),
        TableColumn("Last Schedule", _last_schedule),
        AGE,
        *_containers(lambda obj: _template(_spec(obj).get("jobTemplate") or {})),
        _column("Selector", lambda obj: "<none>", priority=1),
    ),
    "storageclasses.storage.k8s.io": (
        TableColumn("Name", _class_name, format="name"),
        _column("Provisioner", lambda obj: obj.get("provisioner", "")),
        _column("ReclaimPolicy", lambda obj: obj.get("reclaimPolicy") or "Delete"),
        _column("VolumeBindingMode", lambda obj: obj.get("volumeBindingMode") or "<unset>"),
        _column("AllowVolumeExpansion", lambda obj: bool(obj.get("allowVolumeExpansion")), "boolean"),
        AGE,
    ),
    "ingresses.networking.k8s.io": (
        NAME,
        _column("Class", lambda obj: _spec(obj).get("ingressClassName") or "<none>"),
        _column("Hosts", _ingress_hosts),
        _column("Address", _ingress_address),
        _column("Ports", lambda obj: "80, 443" if _spec(obj).get("tls") else "80"),
        AGE,
    ),
    "networkpolicies.networking.k8s.io": (
        NAME,
        _column("Pod-Selector", lambda obj: format_selector(_spec(obj).get("podSelector") or {}) or "<none>"),
        AGE,
    ),
    "roles.rbac.authorization.k8s.io": (NAME, CREATED),
    "clusterroles.rbac.authorization.k8s.io": (NAME, CREATED),
    "rolebindings.rbac.authorization.k8s.io": _binding_columns(),
    "clusterrolebindings.rbac.authorization.k8s.io": _binding_columns(),
    "poddisruptionbudgets.policy": (
        NAME,
        _column("Min Available", lambda obj: str(_spec(obj).get("minAvailable", "N/A"))),
        _column("Max Unavailable", lambda obj: str(_spec(obj).get("maxUnavailable", "N/A"))),
        _column("Allowed Disruptions", _number(_status, "disruptionsAllowed"), "integer"),
        AGE,
    ),
    "priorityclasses.scheduling.k8s.io": (
        NAME,
        _column("Value", lambda obj: obj.get("value", 0), "integer"),
        _column("Global-Default", lambda obj: bool(obj.get("globalDefault")), "boolean"),
        AGE,
        _column("PreemptionPolicy", lambda obj: obj.get("preemptionPolicy", "")),
    ),
    "horizontalpodautoscalers.autoscaling": (
        NAME,
        _column("Reference", _hpa_reference),
        _column("Targets", _hpa_targets),
        _column("MinPods", lambda obj: str(_spec(obj).get("minReplicas", "<unset>"))),
        _column("MaxPods", _number(_spec, "maxReplicas"), "integer"),
        _column("Replicas", _number(_status, "currentReplicas"), "integer"),
        AGE,
    ),
    "leases.coordination.k8s.io": (NAME, _column("Holder", lambda obj: _spec(obj).get("holderIdentity") or ""), AGE),
    "customresourcedefinitions.apiextensions.k8s.io": (NAME, CREATED),
    "mutatingwebhookconfigurations.admissionregistration.k8s.io": _WEBHOOKS,
    "validatingwebhookconfigurations.admissionregistration.k8s.io": _WEBHOOKS,
    "mutatingadmissionpolicies.admissionregistration.k8s.io": _policy_columns("mutations"),
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io": _POLICY_BINDINGS,
    "validatingadmissionpolicies.admissionregistration.k8s.io": _policy_columns("validations"),
    "validatingadmissionpolicybindings.admissionregistration.k8s.io": _POLICY_BINDINGS,
    "controllerrevisions.apps": (
        NAME,
        _column("Controller", _controller),
        _column("Revision", lambda obj: obj.get("revision", 0), "integer"),
        AGE,
    ),
    "podtemplates": (
        NAME,
        *(column._replace(priority=0) for column in _containers(_pod_template)),
        _column("Pod Labels", _pod_template_labels),
    ),
    "ingressclasses.networking.k8s.io": (
        NAME,
        _column("Controller", lambda obj: _spec(obj).get("controller", "")),
        _column("Parameters", _class_parameters),
        AGE,
    ),
    "csinodes.storage.k8s.io": (
        NAME,
        _column("Drivers", lambda obj: len(_spec(obj).get("drivers") or ()), "integer"),
        AGE,
    ),
    "volumeattachments.storage.k8s.io": (
        NAME,
        _column("Attacher", lambda obj: _spec(obj).get("attacher", "")),
        _column("PV", lambda obj: (_spec(obj).get("source") or {}).get("persistentVolumeName") or ""),
        _column("Node", lambda obj: _spec(obj).get("nodeName", "")),
        _column("Attached", lambda obj: bool(_status(obj).get("attached")), "boolean"),
        AGE,
    ),
    "volumeattributesclasses.storage.k8s.io": (NAME, _column("DriverName", lambda obj: obj.get("driverName", "")), AGE),
}
_PLAIN = (NAME, AGE)
_CREATED_ONLY = (NAME, CREATED)


def columns_of(resource: Resource) -> tuple[TableColumn, ...]:
    """Return the columns of a resource; those of custom resources come from their CRD."""
    if resource.crd_version is not None:
        declared = resource.crd_version.get("additionalPrinterColumns")
        if not declared:
            return (NAME, TableColumn("Age", _age_date, "date", description=AGE.description))
        return (NAME, *(_custom_column(column) for column in declared))
    return _TABLES.get(resource.storage, _CREATED_ONLY)


def _age_date(obj: Object, now: datetime) -> str:
    return _age(obj, now)


def _custom_column(declared: Object) -> TableColumn:
    read = compile_path(declared["jsonPath"])
    type_ = declared["type"]

    def cell(obj: Object, now: datetime) -> Any:
        found = read(obj)
        if not found:
            return None
        return _cell(found[0], type_, now)

    return TableColumn(
        declared["name"],
        cell,
        type_,
        declared.get("priority", 0),
        declared.get("format", ""),
        declared.get("description", ""),
    )


def _cell(value: Any, type_: str, now: datetime) -> Any:
    """Show a value as its column's type; what does not fit the type is empty."""
    if value is None:
        return None
    if type_ == "integer":
        return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if type_ == "number":
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if type_ == "boolean":
        return value if isinstance(value, bool) else None
    if type_ == "date":
        return format_age(value, now) if isinstance(value, str) else None
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":")) if isinstance(value, dict | list | bool) else str(value)
