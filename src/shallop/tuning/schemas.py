"""
openAPIV3Schemas of Katib's kinds: typed where Katib's Go types are, so that ``kubectl explain`` tells what is there.

Unknown fields are kept, as Katib's own CRDs do: its admission, not its schema, is what refuses.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ANY", "EXPERIMENT"]

Schema = dict[str, Any]

ANY: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_STRING: Schema = {"type": "string"}
_INT32: Schema = {"type": "integer", "format": "int32"}


def _object(**properties: Schema) -> Schema:
    return {**ANY, "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_PAIR = _object(name=_STRING, value=_STRING)
_ALGORITHM = _object(algorithmName=_STRING, algorithmSettings=_list(_PAIR))
_PARAMETER = _object(
    name=_STRING,
    parameterType=_STRING,
    feasibleSpace=_object(min=_STRING, max=_STRING, step=_STRING, list=_list(_STRING), distribution=_STRING),
)
_OBJECTIVE = _object(
    type=_STRING,
    goal={"type": "number"},
    objectiveMetricName=_STRING,
    additionalMetricNames=_list(_STRING),
    metricStrategies=_list(_PAIR),
)
_TEMPLATE = _object(
    retain={"type": "boolean"},
    trialSpec=ANY,
    configMap=_object(configMapName=_STRING, configMapNamespace=_STRING, templatePath=_STRING),
    trialParameters=_list(_object(name=_STRING, description=_STRING, reference=_STRING)),
    primaryPodLabels={"type": "object", "additionalProperties": _STRING},
    primaryContainerName=_STRING,
    successCondition=_STRING,
    failureCondition=_STRING,
)
_COLLECTOR = _object(
    collector=_object(kind=_STRING, customCollector=ANY),
    source=_object(
        filter=_object(metricsFormat=_list(_STRING)),
        fileSystemPath=_object(path=_STRING, kind=_STRING, format=_STRING),
        httpGet=ANY,
    ),
)
_SPEC = _object(
    parameters=_list(_PARAMETER),
    objective=_OBJECTIVE,
    algorithm=_ALGORITHM,
    earlyStopping=_ALGORITHM,
    trialTemplate=_TEMPLATE,
    parallelTrialCount=_INT32,
    maxTrialCount=_INT32,
    maxFailedTrialCount=_INT32,
    metricsCollectorSpec=_COLLECTOR,
    nasConfig=_object(
        graphConfig=_object(numLayers=_INT32, inputSizes=_list(_INT32), outputSizes=_list(_INT32)),
        operations=_list(_object(operationType=_STRING, parameters=_list(_PARAMETER))),
    ),
    resumePolicy=_STRING,
)
EXPERIMENT: Schema = {"type": "object", "properties": {"spec": _SPEC, "status": ANY}}
