"""
Installs, upgrades, rolls back and uninstalls a small chart by Helm's own library.

Run with: NAMESPACE FOLDER; the chart is written to FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

import helm_python as helm

FILES = {
    "Chart.yaml": "apiVersion: v2\nname: small\nversion: 0.1.0\nappVersion: '1'\n",
    "values.yaml": "replicas: 1\ncolour: red\n",
    "templates/_helpers.tpl": '{{- define "labels" -}}\napp: {{ .Release.Name }}\n{{- end }}\n',
    "templates/config.yaml": """
apiVersion: v1
kind: ConfigMap
metadata: {name: "{{ .Release.Name }}", labels: {{ include "labels" . | fromYaml | toJson }}}
data: {colour: {{ .Values.colour | quote }}}
""",
    "templates/deployment.yaml": """
apiVersion: apps/v1
kind: Deployment
metadata: {name: "{{ .Release.Name }}"}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {{ include "labels" . | fromYaml | toJson }}}
  template:
    metadata: {labels: {{ include "labels" . | fromYaml | toJson }}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: main, image: "python:3.11", command: [sleep, "1000"]}
""",
    "templates/service.yaml": """
apiVersion: v1
kind: Service
metadata: {name: "{{ .Release.Name }}"}
spec: {selector: {{ include "labels" . | fromYaml | toJson }}, ports: [{port: 80}]}
""",
    "templates/hook.yaml": """
apiVersion: batch/v1
kind: Job
metadata:
  name: "{{ .Release.Name }}-before"
  annotations: {helm.sh/hook: "pre-install,pre-upgrade", helm.sh/hook-delete-policy: before-hook-creation}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: main, image: "python:3.11", command: ["true"]}
""",
}


def main(namespace: str, folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    assert [item for item in [helm.lint(str(folder))] if "ERROR" in str(item)] == []
    with helm.Config(namespace=namespace) as config:
        installed = config.install(str(folder), "demo", {"colour": "blue"}, wait="watcher", timeout=90)
        assert (installed["revision"], installed["status"]) == (1, "deployed"), installed
        upgraded = config.upgrade(str(folder), "demo", {"colour": "green", "replicas": 2}, wait="watcher", timeout=90)
        assert (upgraded["revision"], upgraded["status"]) == (2, "deployed"), upgraded
        assert config.get_values("demo") == {"colour": "green", "replicas": 2}
        config.rollback("demo", version=1)
        assert len(config.history("demo")) == 3
        assert [item["name"] for item in config.list()] == ["demo"]
        print("rolled back", flush=True)
        sys.stdin.readline()
        config.uninstall("demo")
        assert config.list() == []
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
