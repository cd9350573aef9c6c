"""Python programs in forked processes: what they see and say is what an interpreter of their own would."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest

from shallop.embedded.kubelet.environments import Environment, EnvironmentSpec
from shallop.embedded.kubelet.zygotes import Zygotes
from shallop.settings import Settings
from shallop_pod.interpreter import Program, recognise
from shallop_pod.zygote import Request, spawn

SCRIPT = """
import atexit, inspect, os, pickle, sys, threading
class Thing: pass
def where(): return __name__, __file__, sys.path[0], sys.argv, os.getcwd()
if __name__ == "__main__":
    import beside
    print(beside.__file__, where(), __spec__, __doc__, sorted(k for k in globals() if k.startswith("__")))
    print(type(pickle.loads(pickle.dumps(Thing()))).__module__, inspect.getsource(where))
    atexit.register(lambda: print("at the end"))
    threading.Thread(target=lambda: print("thread")).start()
"""
RAISES = "def f():\n    raise RuntimeError('broken')\nf()\n"
POOL = """
import multiprocessing
def double(x): return 2 * x
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool: print(pool.map(double, [1, 2]))
"""
FACTS = "import sys, __main__; print(sys.argv, sys.path[0], sorted(vars(__main__)), sys.executable, sys.orig_argv)"


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    texts = {"program": SCRIPT, "raises": RAISES, "broken": "x = = 1\n", "pool": POOL, "beside": "", "hook": HOOK}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "package").mkdir()
    (folder / "package" / "__main__.py").write_text("import sys; print(__package__, sys.argv, __spec__.name)")
    return folder


HOOK = "import sys\nsys.excepthook = lambda kind, *_: print('hook', kind.__name__)\n1 / 0\n"


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    servers = Zygotes.of(Settings(home=tmp_path_factory.mktemp("zygotes") / "home"))
    spec = EnvironmentSpec("python", "3", sys.executable)
    environment = Environment("0" * 32, Path(sys.prefix), Path(sys.executable), "sha256:0", (), spec)
    yield anyio.run(servers.socket, environment)
    servers.stop()


def environ(**more: str) -> dict[str, str]:
    return {"PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin", "LANG": "C.UTF-8", **more}


def forked(socket: Path, folder: Path, argv: tuple[str, ...], env: dict[str, str]) -> Outcome:
    outputs = [folder / "out", folder / "err"]
    with open(os.devnull) as stdin, outputs[0].open("wb") as out, outputs[1].open("wb") as err:
        stdio = stdin.fileno(), out.fileno(), err.fileno()
        request = Request("shallop_pod.interpreter", argv, env, str(folder))
        found = spawn(str(socket), request, stdio).wait(60)
    assert found is not None
    return Outcome(found.code, *(path.read_text() for path in outputs))


def started(folder: Path, argv: tuple[str, ...], env: dict[str, str]) -> Outcome:
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


CASES: dict[str, tuple[str, ...]] = {
    "text": ("-c", FACTS, "one", "two words"),
    "text that ends with a code": ("-c", "import sys; print('x'); sys.exit(7)"),
    "text that leaves with a message": ("-c", "import sys; sys.exit('goodbye')"),
    "text that raises": ("-c", RAISES),
    "text that is wrong": ("-c", "x = = 1"),
    "script": ("program.py", "--lr=0.1"),
    "script that raises": ("raises.py",),
    "script that is wrong": ("broken.py",),
    "script with a hook of its own": ("hook.py",),
    "script that starts processes": ("pool.py",),
    "script that is not there": ("absent.py",),
    "module": ("-m", "package", "a"),
    "module that is not there": ("-m", "absent"),
    "unbuffered": ("-u", "-c", "import os; print('a', end=''); os._exit(3)"),
    "with an option of the interpreter's start": ("-O", "-c", "print(__debug__)"),
    "version": ("--version",),
}


@pytest.mark.parametrize("case", CASES)
def test_a_forked_program_says_what_a_started_one_does(case: str, socket: Path, folder: Path) -> None:
    argv = ("python3", *CASES[case])
    assert forked(socket, folder, argv, environ()) == started(folder, argv, environ())


def test_files_that_a_program_leaves_open_are_written(socket: Path, folder: Path) -> None:
    text = "import gzip, json\ndef f(): return kept\nkept = open('kept', 'w'); kept.write('a')\n"
    text += (
        "json.kept = open('held', 'w'); json.kept.write('b'); packed = gzip.open('packed', 'wb'); packed.write(b'c')"
    )
    for argv in (("python3", "-c", text), ("python3", "-c", f"{text}\n1 / 0")):
        for name in ("kept", "held", "packed"):
            (folder / name).unlink(missing_ok=True)
        forked(socket, folder, argv, environ())
        assert (folder / "kept").read_text() == "a" and (folder / "held").read_text() == "b"
        assert gzip.decompress((folder / "packed").read_bytes()) == b"c"


def test_what_only_an_interpreters_start_can_honour_is_started(socket: Path, folder: Path) -> None:
    argv, env = ("python3", "-c", "print(hash('a'))"), environ(PYTHONHASHSEED="0")
    assert forked(socket, folder, argv, env) == started(folder, argv, env)
    assert recognise(argv, environ()) == Program("-c", "print(hash('a'))", ())
    assert recognise(argv, env) is None
    assert recognise(("sh", "-c", "true"), environ()) is None
    assert recognise(argv, {"PATH": str(folder)}) is None, "another interpreter, or none"
