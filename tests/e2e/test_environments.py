"""Building environments with uv, from wheels that the test makes: no network."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import pytest

from shallop.embedded.kubelet.environments import Environment, Environments
from shallop.embedded.kubelet.housekeeping import clean_up
from shallop.embedded.kubelet.images import ImageTable
from shallop.errors import EnvironmentBuildError
from shallop.settings import Settings


def wheel(folder: Path, name: str, version: str, requires: Sequence[str] = ()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    files = {
        f"{name}/__init__.py": f"version = {version!r}\n\n\ndef main():\n    print(version)\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-tool = {name}:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


@pytest.fixture
def environments(tmp_path: Path) -> Environments:
    """A machine whose pip.conf names a folder of wheels and no index."""
    wheels = tmp_path / "wheels"
    wheel(wheels, "alpha", "1.0")
    wheel(wheels, "alpha", "2.0")
    wheel(wheels, "beta", "1.0", ["alpha>=1"])
    (tmp_path / "pip.conf").write_text(f"[global]\nfind-links = {wheels}\nno-index = true\n")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "UV_NO_CONFIG": "1",
        "UV_HTTP_RETRIES": "0",
    }
    return Environments(tmp_path / "envs", ImageTable(tmp_path / "images.yaml"), environ)


def ensure(environments: Environments, *requirements: str, command: str = "") -> Environment:
    argv = ["sh", "-c", f'python3 -m pip install {command} && "$0" "$@"', "true"] if command else []
    return anyio.run(environments.ensure, environments.resolve("python", argv, requirements))


def run(environment: Environment, code: str) -> str:
    return subprocess.run(
        [environment.python, "-c", code], capture_output=True, text=True, check=True, env={}
    ).stdout.strip()


def test_an_environment_has_what_was_asked_for_and_a_lock(environments: Environments) -> None:
    environment = ensure(environments, "beta")
    assert run(environment, "import alpha, beta; print(alpha.version, beta.version)") == "2.0 1.0"
    assert (environment.path / "shallop-lock.txt").read_text() == "alpha==2.0\nbeta==1.0\n"
    site = run(environment, "import alpha; print(alpha.__file__, alpha.__cached__)").split()
    assert os.path.exists(site[1]) and os.stat(site[0]).st_nlink > 1  # compiled; hard link into uv's cache
    tool = subprocess.run([environment.path / "bin" / "alpha-tool"], capture_output=True, text=True, check=True)
    assert tool.stdout == "2.0\n"  # scripts survive the rename from the work folder


def test_no_deps_come_alone_and_in_place_of_the_others(environments: Environments) -> None:
    alone = ensure(environments, command="'beta' '--no-deps'")
    assert (alone.path / "shallop-lock.txt").read_text() == "beta==1.0\n"
    replaced = ensure(environments, command="'beta' && python3 -m pip install 'alpha==1.0' '--no-deps'")
    assert (replaced.path / "shallop-lock.txt").read_text() == "alpha==1.0\nbeta==1.0\n"
    assert alone.digest != replaced.digest


def test_the_second_time_nothing_is_built(environments: Environments) -> None:
    messages: list[str] = []
    spec = environments.resolve("python", [], ["alpha"])
    first = anyio.run(environments.ensure, spec, messages.append)
    assert messages[0].startswith("creating Python") and "installing 1 packages" in messages
    messages.clear()
    started = time.monotonic()
    assert anyio.run(environments.ensure, spec, messages.append) == first
    assert time.monotonic() - started < 0.5 and messages == []


def test_eight_at_once_build_once(environments: Environments) -> None:
    messages: list[str] = []
    spec = environments.resolve("python", [], ["beta"])

    async def all_at_once() -> list[Environment]:
        found: list[Environment] = []

        async def one() -> None:
            found.append(await environments.ensure(spec, messages.append))

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(one)
        return found

    found = anyio.run(all_at_once)
    assert len(found) == 8 and len({environment.path for environment in found}) == 1
    assert len([message for message in messages if message.startswith("creating")]) == 1


ANOTHER = """
import anyio, json, sys
from pathlib import Path
from shallop.embedded.kubelet.environments import Environments
from shallop.embedded.kubelet.images import ImageTable
root, environ = Path(sys.argv[1]), json.loads(sys.argv[2])
environments = Environments(root / "envs", ImageTable(root / "images.yaml"), environ)
anyio.run(environments.ensure, environments.resolve("python", [], ["beta"]), print)
"""


def test_processes_build_once_together(environments: Environments, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ANOTHER, str(tmp_path), json.dumps(environments._environ)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert "".join(outputs).count("creating Python") == 1


def test_a_failed_build_explains_itself_and_leaves_nothing(environments: Environments, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentBuildError) as caught:
        ensure(environments, "beta", "gamma==3")
    message = str(caught.value)
    assert message.startswith("image 'python' (Python 3.")
    assert "gamma" in message and "\n" not in message and "Correct the package names" in message
    assert [path.name for path in (tmp_path / "envs").iterdir()] == [".locks"]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """A package index on loopback, which the test may end."""
    wheel(tmp_path / "index" / "delta", "delta", "1.0")
    wheel(tmp_path / "index" / "epsilon", "epsilon", "1.0")
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_without_a_network_environments_and_cached_packages_go_on_working(
    environments: Environments, tmp_path: Path, index: ThreadingHTTPServer
) -> None:
    url = f"http://127.0.0.1:{index.server_address[1]}/"
    environ = {**environments._environ, "PIP_CONFIG_FILE": os.devnull, "UV_DEFAULT_INDEX": url}
    online = Environments(tmp_path / "envs", ImageTable(tmp_path / "images.yaml"), environ)
    built = ensure(online, "delta")
    index.shutdown()
    index.server_close()
    messages: list[str] = []
    offline = Environments(tmp_path / "envs", ImageTable(tmp_path / "images.yaml"), environ)
    # What is built needs nobody.
    assert anyio.run(offline.ensure, offline.resolve("python", [], ["delta"]), messages.append) == built
    assert messages == []
    # Another environment of the same packages comes from uv's cache.
    other = anyio.run(offline.ensure, offline.resolve("python", [], ["delta>=1"]), messages.append)
    assert run(other, "import delta; print(delta.version)") == "1.0"
    assert any("cannot be reached" in message for message in messages)
    # What was never downloaded is said to be so, with uv's own words.
    with pytest.raises(EnvironmentBuildError) as caught:
        ensure(offline, "epsilon")
    message = str(caught.value)
    assert "epsilon" in message and "cache does not have everything" in message and "Check the network" in message


def test_passwords_are_not_shown(environments: Environments) -> None:
    messages: list[str] = []
    spec = environments.resolve("python", [], ["gamma @ http://me:secret@127.0.0.1:9/gamma-1-py3-none-any.whl"])
    with pytest.raises(EnvironmentBuildError) as caught:
        anyio.run(environments.ensure, spec, messages.append)
    assert "secret" not in str(caught.value) + "".join(messages)
    assert "Check the network" in str(caught.value)


def test_a_cancelled_build_leaves_nothing(environments: Environments, tmp_path: Path) -> None:
    async def cancel() -> None:
        with anyio.CancelScope() as scope:

            def progress(message: str) -> None:
                if message.startswith("resolving"):
                    scope.cancel()

            await environments.ensure(environments.resolve("python", [], ["beta"]), progress)

    anyio.run(cancel)
    assert [path.name for path in (tmp_path / "envs").iterdir()] == [".locks"]
    assert ensure(environments, "beta").digest


def test_a_full_disk_is_said(environments: Environments, tmp_path: Path) -> None:
    uv = tmp_path / "uv-on-a-full-disk"
    uv.write_text("#!/bin/sh\necho 'error: failed to write: No space left on device (os error 28)' >&2\nexit 2\n")
    uv.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shallop.embedded.kubelet.environments._find_uv", lambda _: str(uv))
        with pytest.raises(EnvironmentBuildError, match=r"no space left for its environment in .*SHALLOP_CACHE"):
            ensure(environments, "alpha")
    assert ensure(environments, "alpha").digest


def test_leftovers_of_killed_builds_are_removed(environments: Environments, tmp_path: Path) -> None:
    environment = ensure(environments, "alpha")
    leftover = tmp_path / "envs" / f".tmp-{environment.key}-12345678"
    leftover.mkdir()
    environments.sweep()
    assert not leftover.exists() and environment.python.exists()


def test_compiled_modules_are_shared_between_environments(environments: Environments) -> None:
    first, second = ensure(environments, "alpha==2.0"), ensure(environments, "beta")
    paths = [run(environment, "import alpha; print(alpha.__cached__)") for environment in (first, second)]
    assert paths[0] != paths[1] and os.path.samefile(*paths)
    assert run(second, "import beta; import os; print(os.path.exists(beta.__cached__))") == "True"
    other = ensure(environments, "alpha==1.0")
    assert not os.path.samefile(paths[0], run(other, "import alpha; print(alpha.__cached__)"))
    environments.remove(first.key)
    assert (
        run(second, "import alpha; print(alpha.version, alpha.main.__code__.co_filename == alpha.__file__)")
        == "2.0 True"
    )


def test_a_vanished_interpreter_means_a_new_build(environments: Environments) -> None:
    environment = ensure(environments, "alpha")
    environment.python.unlink()
    environment.python.symlink_to("/no/such/python")
    assert run(ensure(environments, "alpha"), "import alpha; print(alpha.version)") == "2.0"


def test_environments_are_listed_and_removed_by_use(environments: Environments, tmp_path: Path) -> None:
    old, new = ensure(environments, "alpha==1.0"), ensure(environments, "alpha==2.0")
    os.utime(old.path / "shallop-used", (1.0, 1.0))
    infos = environments.list_all()
    assert [info.key for info in infos] == [new.key, old.key]
    assert infos[0].packages == ("alpha==2.0",) and infos[0].size_bytes > 0
    settings = Settings(home=tmp_path, env_max_age_days=1.0)
    assert clean_up(environments, settings, set()) == [f"environment {old.key}"]
    assert environments.remove(new.key) and not environments.remove(new.key)
    assert environments.list_all() == []
    assert run(ensure(environments, "alpha==2.0"), "import alpha; print(alpha.version)") == "2.0"


def test_posix_images_have_a_shell_that_knows_double_brackets(environments: Environments) -> None:
    environment = anyio.run(environments.ensure, environments.resolve("busybox", []))
    path = f"{environment.path}/bin:/usr/bin:/bin"
    subprocess.run(["sh", "-ec", "[[ $0 == 'a b' ]]", "a b"], check=True, env={"PATH": path})
