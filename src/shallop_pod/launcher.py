"""
Runs one pipeline task inside its Pod and leaves ``result.json`` behind.

``python3 -m shallop_pod.launcher --task JSON -- ARGV...`` (or ``--task @FILE``). ARGV is the component's own command and
arguments with all placeholders resolved; an element that is exactly ``{{$}}`` is replaced by the executor input, so that a
large one need not be carried twice. The task, a JSON object::

    name               the task's name, for messages
    dir                the task's folder: exists afterwards, holds result.json; parameter files are usually here too
    executorInput      the executor input object: inputs{parameterValues, artifacts}, outputs{parameters{n: {outputFile}},
                       artifacts{n: {artifacts: [{name, type, uri, metadata}]}}, outputFile}; empty parts may be absent
    executorInputFile  path of a JSON file with it, instead of executorInput
    outputParameters   {name: type}, type one of STRING NUMBER_INTEGER NUMBER_DOUBLE BOOLEAN LIST STRUCT
    optionalOutputs    [name], declared output parameters that may stay absent (default none)
    retryIndex         attempt, from 0 (default 0)

URIs are plain paths (``file://`` too); ``shallop_pod.paths`` is where object stores will join.

Before: a result of an earlier attempt is removed; the parents of output files and artifacts are made. The component: a KFP Python
component (recognised by shape, ``shallop_pod.kfp_component``) runs in this very process, with no pip, shell or second
interpreter, its source in a file; anything else is a subprocess whose stdout and stderr pass through. SIGTERM reaches it.

``result.json`` in ``dir``, written to a temporary name and renamed, before the process exits::

    state       "SUCCEEDED" or "FAILED"
    exitCode    the component's (128+n for signal n); 1 when it was 0 but its outputs are not what it declared
    parameters  {name: value}, typed: integers are integers; empty after a failure
    artifacts   {name: [{name, type, uri, metadata, digest, sizeBytes}]}; digest "sha256:..." of file or directory content, null
                and sizeBytes 0 when nothing was written; all outputs on success, {} after a failure
    error       null, or {"message": TEXT}: the last lines of the traceback, or what was wrong with the outputs
    usage       {"cpuSeconds", "maxRssBytes"}
    retryIndex, startedAt, endedAt   RFC 3339, UTC

The exit code of the process is ``exitCode``. No result.json means that the process was killed (or its disk was full beyond writing
a small file): the Pod's exit code tells which.
"""
