"""Run commands in a Pod and connect to it with the unmodified ``kubernetes`` client: KUBECONFIG NAMESPACE POD."""

import socket
import sys

from kubernetes import client, config
from kubernetes.client.rest import ApiException
from kubernetes.stream import portforward, stream


def main(kubeconfig: str, namespace: str, pod: str) -> None:
    config.load_kube_config(kubeconfig)
    api = client.CoreV1Api()
    options = {"stderr": True, "stdin": False, "stdout": True, "tty": False}
    text = stream(api.connect_get_namespaced_pod_exec, pod, namespace, command=["sh", "-c", "echo $COLOUR"], **options)
    assert text == "blue\n", text

    command = ["sh", "-c", "read word; echo got $word; echo bad >&2; exit 3"]
    options |= {"stdin": True}
    talk = stream(
        api.connect_get_namespaced_pod_exec, pod, namespace, command=command, _preload_content=False, **options
    )
    talk.write_stdin("hello\n")
    talk.run_forever(timeout=60)
    assert (talk.read_stdout(), talk.read_stderr(), talk.returncode) == ("got hello\n", "bad\n", 3)

    forward = portforward(api.connect_get_namespaced_pod_portforward, pod, namespace, ports="8080")
    connection = forward.socket(8080)
    connection.settimeout(60)
    connection.sendall(b"GET / HTTP/1.0\r\nHost: pod\r\n\r\n")
    answer = b""
    while b"</html>" not in answer and (data := connection.recv(65536)):
        answer += data
    assert answer.startswith(b"HTTP/1.0 200"), answer
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()

    try:
        stream(api.connect_get_namespaced_pod_exec, pod, namespace, container="nobody", command=["true"], **options)
    except ApiException as error:
        assert "container nobody is not valid" in str(error), error
    else:
        raise AssertionError("a container that is not there was found")
    print("ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
