"""What the API server does with an Experiment before it stores it: defaults and validation; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shallop.errors import FieldError
from shallop.kube.objects import Object
from shallop.tuning.algorithms import ALGORITHMS
from shallop.tuning.earlystopping import EARLY_STOPPING
from shallop.tuning.space import parse_parameter
from shallop.tuning.template import metadata_reference, placeholders, template_text

__all__ = ["default", "validate"]

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MAX_NAME = 40
_RESUME = ("Never", "LongRunning", "FromVolume")
_COLLECTORS = ("StdOut", "File", "TensorFlowEvent", "PrometheusMetric", "Custom", "Push", "None")
_EDITABLE = ("parallelTrialCount", "maxTrialCount", "maxFailedTrialCount")
_DISTRIBUTIONS = ("uniform", "logUniform", "normal", "logNormal")
_TYPES = ("double", "int", "discrete", "categorical")
_TRAINING = ("TFJob", "PyTorchJob", "XGBoostJob", "MPIJob", "JAXJob", "PaddleJob")


def _is_true(type_: str) -> str:
    return f'status.conditions.#(type=="{type_}")#|#(status=="True")#'


def default(experiment: Object) -> Object:
    """Return the Experiment with everything written down that it leaves open."""
    spec = experiment.get("spec")
    if not isinstance(spec, Mapping):
        return experiment
    spec = {**spec}
    if spec.get("parallelTrialCount") is None:
        spec["parallelTrialCount"] = 3
    spec["resumePolicy"] = spec.get("resumePolicy") or "Never"
    if isinstance(spec.get("objective"), Mapping):
        spec["objective"] = _default_objective(spec["objective"])
    if isinstance(spec.get("parameters"), list):
        spec["parameters"] = [_default_parameter(parameter) for parameter in spec["parameters"]]
    if isinstance(spec.get("nasConfig"), Mapping):
        spec["nasConfig"] = _default_nas(spec["nasConfig"])
    if isinstance(spec.get("trialTemplate"), Mapping):
        spec["trialTemplate"] = _default_template(spec["trialTemplate"])
    spec["metricsCollectorSpec"] = _default_collector(spec.get("metricsCollectorSpec"))
    return {**experiment, "spec": spec}


def _default_objective(objective: Mapping[str, Any]) -> dict[str, Any]:
    kind = {"minimize": "min", "maximize": "max"}.get(objective.get("type", ""))
    names = [objective.get("objectiveMetricName"), *(objective.get("additionalMetricNames") or ())]
    strategies = [*(objective.get("metricStrategies") or ())]
    known = {strategy.get("name") for strategy in strategies if isinstance(strategy, Mapping)}
    strategies += [{"name": name, "value": kind} for name in names if name and kind and name not in known]
    return {**objective} | ({"metricStrategies": strategies} if strategies else {})


def _default_parameter(parameter: Any) -> Any:
    space = parameter.get("feasibleSpace") if isinstance(parameter, Mapping) else None
    if not isinstance(space, Mapping) or not space:
        return parameter
    return {**parameter, "feasibleSpace": {**space, "distribution": space.get("distribution") or "uniform"}}


def _default_nas(nas: Mapping[str, Any]) -> dict[str, Any]:
    operations = [
        {**operation, "parameters": [_default_parameter(p) for p in operation.get("parameters") or ()]}
        if isinstance(operation, Mapping)
        else operation
        for operation in nas.get("operations") or ()
    ]
    return {**nas, "operations": operations}


def _default_template(template: Mapping[str, Any]) -> dict[str, Any]:
    result = {**template}
    spec = template.get("trialSpec")
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    group = str(spec.get("apiVersion", "")).rpartition("/")[0] if isinstance(spec, Mapping) else ""
    ends, labels = None, None
    if (group, kind) == ("batch", "Job"):
        ends = ("Complete", "Failed")
    elif group == "kubeflow.org" and kind in _TRAINING:
        ends, labels = ("Succeeded", "Failed"), {"training.kubeflow.org/job-role": "master"}
    elif (group, kind) == ("trainer.kubeflow.org", "TrainJob"):
        ends = ("Complete", "Failed")
        labels = {
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": "0",
        }
    if ends is not None:
        result["successCondition"] = result.get("successCondition") or _is_true(ends[0])
        result["failureCondition"] = result.get("failureCondition") or _is_true(ends[1])
    if labels is not None and not result.get("primaryPodLabels"):
        result["primaryPodLabels"] = labels
    return result


def _default_collector(spec: Any) -> Any:
    if spec is not None and not isinstance(spec, Mapping):
        return spec
    result = {**(spec or {})}
    collector = {**(result.get("collector") or {})}
    collector["kind"] = collector.get("kind") or "StdOut"
    result["collector"] = collector
    source = {**(result.get("source") or {})}
    path = {**(source.get("fileSystemPath") or {})}
    if collector["kind"] == "File":
        path["kind"] = path.get("kind") or "File"
        path["path"] = path.get("path") or "/var/log/katib/metrics.log"
        path["format"] = path.get("format") or "TEXT"
        source["fileSystemPath"] = path
    elif collector["kind"] == "TensorFlowEvent":
        path["kind"] = path.get("kind") or "Directory"
        path["path"] = path.get("path") or "/var/log/katib/tfevent/"
        source["fileSystemPath"] = path
    elif collector["kind"] == "PrometheusMetric":
        get = {**(source.get("httpGet") or {})}
        get["path"] = get.get("path") or "/metrics"
        get["port"] = get.get("port") or 8080
        source["httpGet"] = get
    if source:
        result["source"] = source
    return result


def validate(experiment: Object, old: Object | None) -> list[FieldError]:
    """Check an Experiment; one error per thing to put right."""
    spec = experiment.get("spec")
    if not isinstance(spec, Mapping):
        return [FieldError.required("spec", "an Experiment needs objective, algorithm, parameters and trialTemplate")]
    if old is not None and (experiment["metadata"].get("deletionTimestamp") or spec == old.get("spec")):
        return []
    errors = [] if old else _check_name(experiment)
    errors += _check_counts(spec)
    errors += _check_update(experiment, old) if old else []
    errors += _check_objective(spec.get("objective"))
    errors += _check_algorithms(spec)
    errors += _check_space(spec)
    errors += _check_template(spec)
    errors += _check_collector(spec.get("metricsCollectorSpec") or {})
    if spec.get("resumePolicy") not in _RESUME:
        errors.append(FieldError.not_supported("spec.resumePolicy", spec.get("resumePolicy"), _RESUME))
    return errors


def _check_name(experiment: Object) -> list[FieldError]:
    name = experiment["metadata"].get("name") or ""
    if name and (not _NAME.fullmatch(name) or len(name) > _MAX_NAME):
        detail = (
            "must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
            f"and be at most {_MAX_NAME} characters long: names of trials begin with it"
        )
        return [FieldError.invalid("metadata.name", name, detail)]
    return []


def _check_counts(spec: Mapping[str, Any]) -> list[FieldError]:
    errors = []
    most, failed, parallel = (spec.get(name) for name in ("maxTrialCount", "maxFailedTrialCount", "parallelTrialCount"))
    if most is not None and most <= 0:
        errors.append(FieldError.invalid("spec.maxTrialCount", most, "must be greater than 0"))
    if failed is not None and failed < 0:
        errors.append(FieldError.invalid("spec.maxFailedTrialCount", failed, "should not be less than 0"))
    if parallel is not None and parallel <= 0:
        errors.append(FieldError.invalid("spec.parallelTrialCount", parallel, "must be greater than 0"))
    if most is not None and failed is not None and failed > most:
        detail = "should be less than or equal to spec.maxTrialCount"
        errors.append(FieldError.invalid("spec.maxFailedTrialCount", failed, detail))
    if most is not None and parallel is not None and parallel > most:
        detail = "should be less than or equal to spec.maxTrialCount"
        errors.append(FieldError.invalid("spec.parallelTrialCount", parallel, detail))
    return errors


def _check_update(experiment: Object, old: Object) -> list[FieldError]:
    new_spec, old_spec = experiment["spec"], default(old)["spec"]
    changed = [key for key in {*new_spec, *old_spec} if key not in _EDITABLE and new_spec.get(key) != old_spec.get(key)]
    detail = "only spec.parallelTrialCount, spec.maxTrialCount and spec.maxFailedTrialCount are editable"
    found = f"{detail}; this changes {', '.join(sorted(changed))}"
    errors = [FieldError.forbidden("spec", found)] if changed else []
    status = old.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or () if c.get("status") == "True"}
    if "Failed" not in conditions and "Succeeded" not in conditions:
        return errors
    reason = (conditions.get("Succeeded") or {}).get("reason")
    resumable = new_spec.get("resumePolicy") in ("LongRunning", "FromVolume")
    trials = status.get("trials") or 0
    if reason != "ExperimentMaxTrialsReached" or not resumable:
        detail = (
            "Experiment can be restarted if it is in succeeded state by reaching max trials and "
            "spec.resumePolicy = LongRunning or spec.resumePolicy = FromVolume"
        )
        errors.append(FieldError.invalid("spec.resumePolicy", new_spec.get("resumePolicy"), detail))
    elif new_spec.get("maxTrialCount") is not None and new_spec["maxTrialCount"] <= trials:
        detail = f"must be greater than status.trials count, which is {trials}"
        errors.append(FieldError.invalid("spec.maxTrialCount", new_spec["maxTrialCount"], detail))
    return errors


def _check_objective(objective: Any) -> list[FieldError]:
    if not isinstance(objective, Mapping):
        return [FieldError.required("spec.objective", "must be specified")]
    errors = []
    if objective.get("type") not in ("minimize", "maximize"):
        detail = "must be minimize or maximize"
        errors.append(FieldError.invalid("spec.objective.type", objective.get("type") or "", detail))
    name, more = objective.get("objectiveMetricName"), objective.get("additionalMetricNames") or ()
    if not name:
        errors.append(FieldError.required("spec.objective.objectiveMetricName", "must be specified"))
    elif name in more:
        detail = "should not contain spec.objective.objectiveMetricName"
        errors.append(FieldError.invalid("spec.objective.additionalMetricNames", ", ".join(more), detail))
    for index, strategy in enumerate(objective.get("metricStrategies") or ()):
        path = f"spec.objective.metricStrategies[{index}]"
        if strategy.get("name") not in (name, *more):
            errors.append(FieldError.invalid(f"{path}.name", strategy.get("name"), "is no metric of the objective"))
        if strategy.get("value") not in ("min", "max", "latest"):
            errors.append(FieldError.not_supported(f"{path}.value", strategy.get("value"), ("min", "max", "latest")))
    return errors


def _check_algorithms(spec: Mapping[str, Any]) -> list[FieldError]:
    errors = []
    for field, known in (("algorithm", tuple(ALGORITHMS)), ("earlyStopping", EARLY_STOPPING)):
        chosen = spec.get(field)
        if chosen is None and field == "earlyStopping":
            continue
        name = (chosen or {}).get("algorithmName")
        if not name:
            errors.append(FieldError.required(f"spec.{field}.algorithmName", "must be specified"))
        elif name not in known:
            errors.append(FieldError.not_supported(f"spec.{field}.algorithmName", name, known))
    return errors


def _check_space(spec: Mapping[str, Any]) -> list[FieldError]:
    parameters, nas = spec.get("parameters"), spec.get("nasConfig")
    if not parameters and not nas:
        return [FieldError.required("spec", "spec.parameters or spec.nasConfig must be specified")]
    if parameters and nas:
        return [FieldError.invalid("spec", "", "only one of spec.parameters and spec.nasConfig can be specified")]
    if nas:
        return _check_nas(nas)
    errors: list[FieldError] = []
    names: set[str] = set()
    for index, parameter in enumerate(parameters or ()):
        path = f"spec.parameters[{index}]"
        name = parameter.get("name")
        if not name:
            errors.append(FieldError.required(f"{path}.name", "must be specified"))
        elif name in names:
            errors.append(FieldError("FieldValueDuplicate", f'Duplicate value: "{name}"', f"{path}.name"))
        names.add(name)
        errors += _check_parameter(path, parameter)
    return errors


def _check_parameter(path: str, parameter: Mapping[str, Any]) -> list[FieldError]:
    kind, space = parameter.get("parameterType"), parameter.get("feasibleSpace")
    if kind not in _TYPES:
        return [FieldError.not_supported(f"{path}.parameterType", kind or "", _TYPES)]
    if not space:
        return [FieldError.required(f"{path}.feasibleSpace", "feasibleSpace must be specified")]
    errors = []
    unsupported = f"is not supported for parameterType: {kind}"
    distribution = space.get("distribution")
    if distribution and distribution not in _DISTRIBUTIONS:
        errors.append(FieldError.not_supported(f"{path}.feasibleSpace.distribution", distribution, _DISTRIBUTIONS))
    if kind in ("double", "int"):
        if space.get("list"):
            given = ", ".join(map(str, space["list"]))
            errors.append(FieldError.invalid(f"{path}.feasibleSpace.list", given, f"feasibleSpace.list {unsupported}"))
        errors += [
            FieldError.required(f"{path}.feasibleSpace.{name}", f"must be specified for parameterType: {kind}")
            for name in ("max", "min")
            if space.get(name) in (None, "")
        ]
    else:
        if not space.get("list"):
            detail = f"must be specified for parameterType: {kind}"
            errors.append(FieldError.required(f"{path}.feasibleSpace.list", detail))
        if any(space.get(name) not in (None, "") for name in ("max", "min", "step")):
            detail = f"feasibleSpace .max, .min and .step {unsupported}"
            errors.append(FieldError.invalid(f"{path}.feasibleSpace", "", detail))
    if not errors:
        try:
            parse_parameter(parameter)
        except ValueError as error:
            field, _, detail = str(error).partition(": ")
            errors.append(FieldError.invalid(f"{path}.{field}", _field(parameter, field), detail))
    return errors


def _field(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return str(value)


def _check_nas(nas: Mapping[str, Any]) -> list[FieldError]:
    graph = nas.get("graphConfig") or {}
    errors = [
        FieldError.required(f"spec.nasConfig.graphConfig.{name}", "must be specified")
        for name in ("inputSizes", "outputSizes", "numLayers")
        if not graph.get(name)
    ]
    if not nas.get("operations"):
        errors.append(FieldError.required("spec.nasConfig.operations", "must be specified"))
    for index, operation in enumerate(nas.get("operations") or ()):
        path = f"spec.nasConfig.operations[{index}]"
        if not operation.get("operationType"):
            errors.append(FieldError.required(f"{path}.operationType", "must be specified"))
        for number, parameter in enumerate(operation.get("parameters") or ()):
            errors += _check_parameter(f"{path}.parameters[{number}]", parameter)
    return errors


def _check_template(spec: Mapping[str, Any]) -> list[FieldError]:
    template = spec.get("trialTemplate")
    path = "spec.trialTemplate"
    if not isinstance(template, Mapping):
        return [FieldError.required(path, "must be specified")]
    errors = []
    if not template.get("primaryContainerName"):
        errors.append(FieldError.required(f"{path}.primaryContainerName", "must be specified"))
    if not template.get("successCondition") or not template.get("failureCondition"):
        detail = "successCondition and failureCondition must be specified: this kind of run has no default for them"
        errors.append(FieldError.required(path, detail))
    run, source = template.get("trialSpec"), template.get("configMap")
    if not run and not source:
        detail = "spec.trialTemplate.trialSpec or spec.trialTemplate.configMap must be specified"
        return [*errors, FieldError.required(f"{path}.TrialSource", detail)]
    if run and source:
        detail = "only one of spec.trialTemplate.trialSpec or spec.trialTemplate.configMap can be specified"
        return [*errors, FieldError.required(path, detail)]
    errors += _check_trial_parameters(spec, template)
    if source:
        if not all(source.get(name) for name in ("configMapName", "configMapNamespace", "templatePath")):
            detail = "configMapName, configMapNamespace and templatePath must be specified"
            errors.append(FieldError.required(f"{path}.configMap", detail))
        return errors
    return errors + _check_trial_spec(template, run)


def _check_trial_parameters(spec: Mapping[str, Any], template: Mapping[str, Any]) -> list[FieldError]:
    errors: list[FieldError] = []
    path = "spec.trialTemplate.trialParameters"
    parameters = template.get("trialParameters") or ()
    if not parameters:
        return [FieldError.required(path, "must be specified")]
    known = {parameter.get("name") for parameter in spec.get("parameters") or ()}
    names: set[str] = set()
    references: set[str] = set()
    for index, parameter in enumerate(parameters):
        here = f"{path}[{index}]"
        name, reference = parameter.get("name"), parameter.get("reference")
        if not name or not reference or "{" in name or "}" in name:
            detail = "name and reference must be specified and name must not contain '{' or '}'"
            errors.append(FieldError.invalid(here, "", detail))
            continue
        if name in names:
            errors.append(FieldError.invalid(f"{here}.name", name, "parameter name must be unique"))
        if reference in references:
            errors.append(FieldError.invalid(f"{here}.reference", reference, "parameter reference must be unique"))
        names.add(name)
        references.add(reference)
        if spec.get("parameters") and reference not in known and metadata_reference(reference) is None:
            detail = "must be the name of a parameter in spec.parameters, or metadata such as ${trialSpec.Name}"
            errors.append(FieldError.invalid(f"{here}.reference", reference, detail))
    return errors


def _check_trial_spec(template: Mapping[str, Any], run: Any) -> list[FieldError]:
    if not isinstance(run, Mapping):
        return [FieldError.invalid("spec.trialTemplate.trialSpec", "", "must be an object")]
    errors = []
    if not run.get("apiVersion") or not run.get("kind"):
        detail = "APIVersion and Kind in spec.trialTemplate must be specified"
        errors.append(FieldError.required("spec.trialTemplate", detail))
    if any((run.get("metadata") or {}).get(name) for name in ("name", "namespace")):
        detail = "metadata.name and metadata.namespace in spec.trialTemplate must be omitted"
        errors.append(FieldError.invalid("spec.trialTemplate", "", detail))
    used = placeholders(template_text(run))
    declared = {parameter.get("name") for parameter in template.get("trialParameters") or ()}
    if missing := sorted(used - declared):
        detail = f"parameters {', '.join(missing)} in spec.trialTemplate not found in spec.trialParameters"
        errors.append(FieldError.invalid("spec.trialTemplate", "", detail))
    for index, parameter in enumerate(template.get("trialParameters") or ()):
        if parameter.get("name") and parameter["name"] not in used:
            where = f"spec.trialTemplate.trialParameters[{index}].name"
            errors.append(FieldError.invalid(where, parameter["name"], "not found in spec.trialTemplate"))
    return errors


def _check_collector(collector: Mapping[str, Any]) -> list[FieldError]:
    errors = []
    path = "spec.metricsCollectorSpec"
    kind = (collector.get("collector") or {}).get("kind")
    source = collector.get("source") or {}
    file = source.get("fileSystemPath") or {}
    if kind not in _COLLECTORS:
        return [FieldError.not_supported(f"{path}.collector.kind", kind or "", _COLLECTORS)]
    if kind == "File":
        if file.get("kind") != "File":
            errors.append(FieldError.not_supported(f"{path}.source.fileSystemPath.kind", file.get("kind"), ("File",)))
        if file.get("format") not in ("TEXT", "JSON"):
            errors.append(
                FieldError.not_supported(f"{path}.source.fileSystemPath.format", file.get("format"), ("TEXT", "JSON"))
            )
        if file.get("format") == "JSON" and source.get("filter"):
            detail = "must be nil when the file format is JSON"
            errors.append(FieldError.forbidden(f"{path}.source.filter", detail))
    elif kind == "TensorFlowEvent":
        if file.get("kind") != "Directory":
            errors.append(
                FieldError.not_supported(f"{path}.source.fileSystemPath.kind", file.get("kind"), ("Directory",))
            )
        if file.get("format"):
            errors.append(FieldError.forbidden(f"{path}.source.fileSystemPath.format", "must be empty for event files"))
    elif kind == "PrometheusMetric":
        get = source.get("httpGet") or {}
        if not str(get.get("path", "")).startswith("/"):
            errors.append(FieldError.invalid(f"{path}.source.httpGet.path", get.get("path"), "must begin with '/'"))
        if not str(get.get("port", "")).isdigit() or int(get["port"]) <= 0:
            errors.append(
                FieldError.invalid(f"{path}.source.httpGet.port", get.get("port"), "must be a positive integer")
            )
    elif kind == "Custom" and not (collector.get("collector") or {}).get("customCollector"):
        errors.append(FieldError.required(f"{path}.collector.customCollector", "must be specified for kind Custom"))
    if kind in ("File", "TensorFlowEvent") and not str(file.get("path", "")).startswith("/"):
        detail = "must be an absolute path"
        errors.append(FieldError.invalid(f"{path}.source.fileSystemPath.path", file.get("path"), detail))
    return errors + _check_formats(source.get("filter") or {})


def _check_formats(filter_: Mapping[str, Any]) -> list[FieldError]:
    errors = []
    for text in filter_.get("metricsFormat") or ():
        path = "spec.metricsCollectorSpec.source.filter.metricsFormat"
        try:
            pattern = re.compile(text)
        except re.error as error:
            errors.append(FieldError.invalid(path, text, f"invalid filter: {error}"))
            continue
        if pattern.groups < 2:
            detail = "two top subexpressions are required: the name of the metric and its value"
            errors.append(FieldError.invalid(path, text, detail))
    return errors
