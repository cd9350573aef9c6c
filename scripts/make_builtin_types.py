"""
Write ``builtin_types.json``: the facts about Kubernetes' built-in types that the embedded API server needs.

Source: the protobuf definitions in ``../shared/specs/kubernetes/proto`` (field names and numbers, list types, patch
keys); only facts are taken, no descriptions. Without that folder nothing is written: the committed table stands.

Form of the table: ``messages[NAME][FIELD] = "NUMBER TYPE FLAGS..."`` where TYPE is ``string``, ``[]core.v1.Container``,
``map[string]quantity`` ..., and FLAGS are ``required``, ``inline``, ``atomic``, ``set``, ``map=key,key``, ``patch``,
``patch=key`` and ``retain``. ``atomic`` lists messages that are owned as a whole. ``kinds[apiVersion Kind] = NAME``.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / ".." / "shared" / "specs" / "kubernetes" / "proto"
TARGET = ROOT / "src" / "shallop" / "embedded" / "apiserver" / "builtin_types.json"

GROUPS = {
    "admissionregistration": "admissionregistration.k8s.io",
    "authentication": "authentication.k8s.io",
    "authorization": "authorization.k8s.io",
    "coordination": "coordination.k8s.io",
    "core": "",
    "discovery": "discovery.k8s.io",
    "events": "events.k8s.io",
    "networking": "networking.k8s.io",
    "rbac": "rbac.authorization.k8s.io",
    "scheduling": "scheduling.k8s.io",
    "storage": "storage.k8s.io",
}
SPECIAL = {
    "apimachinery.pkg.api.resource.Quantity": "quantity",
    "apimachinery.pkg.util.intstr.IntOrString": "intorstring",
    "apimachinery.pkg.runtime.RawExtension": "raw",
    "meta.v1.Time": "time",
    "meta.v1.MicroTime": "microtime",
    "meta.v1.Duration": "duration",
    "meta.v1.FieldsV1": "fieldsv1",
    "authentication.v1.ExtraValue": "stringlist",
    "authorization.v1.ExtraValue": "stringlist",
    "meta.v1.Verbs": "stringlist",
}
# Nested in protobuf, flat in JSON (embedded structs in the Go types).
INLINE = {
    ("EphemeralContainer", "ephemeralContainerCommon"),
    ("IngressRule", "ingressRuleValue"),
    ("NamedRuleWithOperations", "ruleWithOperations"),
    ("PersistentVolumeSpec", "persistentVolumeSource"),
    ("Probe", "handler"),
    ("RuleWithOperations", "rule"),
    ("Volume", "volumeSource"),
} | {
    (f"{source}{suffix}", "localObjectReference")
    for source in ("ConfigMap", "Secret")
    for suffix in ("EnvSource", "KeySelector", "Projection", "VolumeSource")
}
# Where protobuf and JSON name a field differently.
JSON_NAMES = {
    "Expression": "expression",
    "Name": "name",
    "Webhooks": "webhooks",
    "aPIGroup": "apiGroup",
    "uID": "uid",
}
# Not marked optional in the protobuf definitions, and yet not required by the API.
NOT_REQUIRED = {
    "ApplyConfiguration": {"expression"},
    "AzureDiskVolumeSource": {"kind"},
    "CSIDriver": {"metadata"},
    "CSINode": {"metadata"},
    "ControllerRevision": {"data"},
    "DeploymentCondition": {"lastTransitionTime", "lastUpdateTime", "message", "reason"},
    "DeploymentSpec": {"progressDeadlineSeconds"},
    "DeploymentStatus": {"conditions"},
    "Endpoint": {"conditions"},
    "EndpointHints": {"forNodes", "forZones"},
    "EndpointPort": {"name", "protocol"},
    "EphemeralContainerCommon": {"image"},
    "EphemeralVolumeSource": {"volumeClaimTemplate"},
    "Event": {"action", "reason", "reportingController", "reportingInstance", "type"},
    "HostAlias": {"hostnames"},
    "IngressClassSpec": {"controller"},
    "IngressServiceBackend": {"port"},
    "JSONPatch": {"expression"},
    "JobStatus": {"ready"},
    "ListMeta": {"continue"},
    "ManagedFieldsEntry": {"apiVersion", "fieldsType", "manager", "operation", "subresource"},
    "ModifyVolumeStatus": {"targetVolumeAttributesClassName"},
    "MutatingAdmissionPolicy": {"spec"},
    "MutatingAdmissionPolicyBinding": {"spec"},
    "MutatingAdmissionPolicyBindingSpec": {"policyName"},
    "MutatingAdmissionPolicySpec": {"matchConstraints", "reinvocationPolicy"},
    "MutatingWebhook": {"rules"},
    "Mutation": {"applyConfiguration", "jsonPatch"},
    "NodeConfigSource": {"configMap"},
    "NodeSystemInfo": {"swap"},
    "ParamKind": {"apiVersion", "kind"},
    "ParamRef": {"name", "parameterNotFoundAction"},
    "PersistentVolumeSource": {"photonPersistentDisk"},
    "PhotonPersistentDiskVolumeSource": {"fsType"},
    "PodCertificateProjection": {"userAnnotations"},
    "PodDNSConfigOption": {"name"},
    "PodResourceClaim": {"resourceClaimName", "resourceClaimTemplateName"},
    "PodSpec": {"initContainers"},
    "PodStatus": {"initContainerStatuses"},
    "PortworxVolumeSource": {"fsType"},
    "ResourceHealth": {"health"},
    "ResourceStatus": {"resources"},
    "Rule": {"apiGroups", "apiVersions", "resources"},
    "RuleWithOperations": {"operations"},
    "ScaleIOPersistentVolumeSource": {"volumeName"},
    "ScaleIOVolumeSource": {"volumeName"},
    "SelfSubjectRulesReviewSpec": {"namespace"},
    "ServiceSpec": {"ports"},
    "StatefulSetPersistentVolumeClaimRetentionPolicy": {"whenDeleted", "whenScaled"},
    "StatefulSetSpec": {"revisionHistoryLimit", "updateStrategy"},
    "StatefulSetStatus": {"currentReplicas", "currentRevision", "readyReplicas", "updateRevision", "updatedReplicas"},
    "StorageOSPersistentVolumeSource": {"volumeName"},
    "StorageOSVolumeSource": {"volumeName"},
    "ValidatingAdmissionPolicy": {"spec"},
    "ValidatingAdmissionPolicySpec": {"matchConstraints"},
    "ValidatingWebhook": {"rules"},
    "VolumeSource": {"photonPersistentDisk", "projected"},
    "VolumeAttributesClass": {"parameters"},
    "VolumeNodeAffinity": {"required"},
}
NO_KINDS = {"JobTemplateSpec", "PartialObjectMetadata", "PersistentVolumeClaimTemplate", "PodTemplateSpec"}
EXTRA_ROOTS = {"meta.v1.DeleteOptions", "meta.v1.ListMeta", "meta.v1.Status"}

FIELD = re.compile(r"\s+(?:(optional|repeated|required)\s+(\S+)|map<(\w+), (\S+)>)\s+(\w+)\s*=\s*(\d+)")


def short(name: str) -> str:
    """``k8s.io.api.core.v1.Pod`` -> ``core.v1.Pod``."""
    name = name.removeprefix(".").removeprefix("k8s.io.").removeprefix("api.")
    return name.replace("apimachinery.pkg.apis.meta.", "meta.")


def parse(path: Path) -> tuple[dict[str, dict[str, str]], set[str]]:
    package, message, fields = "", "", {}
    messages: dict[str, dict[str, str]] = {}
    atomic: set[str] = set()
    comment: list[str] = []
    for line in path.read_text().splitlines():
        if found := re.match(r"package (\S+);", line):
            package = short(found[1])
        elif found := re.match(r"message (\w+) \{", line):
            message, fields = found[1], {}
            messages[f"{package}.{message}"] = fields
            if "+structType=atomic" in comment:
                atomic.add(f"{package}.{message}")
            comment = []
        elif found := re.match(r"\s*// ?(.*)", line):
            comment.append(found[1])
        elif found := FIELD.match(line):
            fields[JSON_NAMES.get(found[5], found[5])] = describe(found, package, message, comment)
            comment = []
        elif not line.strip():
            if not line and message == "":
                comment = []
        else:
            comment = []
    return messages, atomic


def describe(found: re.Match[str], package: str, message: str, comment: list[str]) -> str:
    def resolve(name: str) -> str:
        if name in {"string", "bytes", "bool", "int32", "int64", "double"}:
            return name
        full = short(name) if name.startswith(".") else f"{package}.{name}"
        return SPECIAL.get(full, full)

    if found[4]:
        kind = f"map[{found[3]}]{resolve(found[4])}"
    else:
        kind = ("[]" if found[1] == "repeated" else "") + resolve(found[2])
    marks = [line.strip()[1:] for line in comment if line.startswith("+")]
    values = dict(mark.split("=", 1) for mark in marks if "=" in mark and not mark.startswith("k8s:"))
    keys = ",".join(mark.split("=", 1)[1] for mark in marks if mark.startswith("listMapKey="))
    is_optional = "optional" in marks or found[5] in NOT_REQUIRED.get(message, ())
    flags = [] if is_optional else ["required"]
    if (message, found[5]) in INLINE:
        flags = ["inline"]
    match values.get("listType"), values.get("mapType"), values.get("structType"):
        case ("map", _, _):
            flags.append(f"map={keys}")
        case ("set", _, _):
            flags.append("set")
        case ("atomic", _, _) | (_, "atomic", _) | (_, _, "atomic"):
            flags.append("atomic")
    if values.get("structType") == "granular":
        flags.append("granular")
    strategy = values.get("patchStrategy", "").split(",")
    if "merge" in strategy:
        key = values.get("patchMergeKey")
        flags.append(f"patch={key}" if key else "patch")
    if "retainKeys" in strategy:
        flags.append("retain")
    return " ".join((found[6], kind, *flags))


def referenced(descriptor: str) -> str:
    return re.sub(r"^(\[\]|map\[\w+\])", "", descriptor.split()[1])


def main() -> int:
    if not SOURCE.is_dir():
        print(f"{SOURCE} is absent: {TARGET.name} is left as it is")
        return 0
    messages: dict[str, dict[str, str]] = {}
    atomic: set[str] = set()
    for path in sorted(SOURCE.rglob("*.proto")):
        found, found_atomic = parse(path)
        messages |= found
        atomic |= found_atomic
    kinds = {}
    for name, fields in messages.items():
        package, version, message = name.rsplit(".", 2)
        if package == "meta" or fields.get("metadata", "").split()[1:2] != ["meta.v1.ObjectMeta"]:
            continue
        if message not in NO_KINDS:
            group = GROUPS.get(package, package)
            kinds[f"{group}/{version} {message}".removeprefix("/")] = name
    wanted = set(kinds.values()) | EXTRA_ROOTS
    queue = sorted(wanted)
    while queue:
        for descriptor in messages[queue.pop()].values():
            name = referenced(descriptor)
            if name in messages and name not in wanted:
                wanted.add(name)
                queue.append(name)
    table = {
        "atomic": sorted(atomic & wanted),
        "kinds": dict(sorted(kinds.items())),
        "messages": {name: dict(sorted(messages[name].items())) for name in sorted(wanted)},
    }
    TARGET.write_text(json.dumps(table, indent=0, ensure_ascii=False) + "\n")
    print(f"{TARGET}: {len(wanted)} messages, {len(kinds)} kinds, {TARGET.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
