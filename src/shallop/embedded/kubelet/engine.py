"""
A container engine for images that no environment stands for: podman or docker, when the user asks for one.

The engine's own client is the container's process here: the shim has its output, input and exit code as of any other.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shallop.errors import ImageResolutionError, SettingsError
from shallop.kube.objects import Object, parse_quantity
from shallop.priority import at_usual_priority

__all__ = ["Engine", "find_engine"]

# Of the platform's variables, what tells the client of an engine where its daemon and its settings are.
_OWN_VARIABLES = ("HOME", "PATH", "XDG_", "CONTAINER", "DOCKER_", "REGISTRY_AUTH_FILE", "DBUS_")
_PULL_S = 3600.0


@dataclass(frozen=True)
class Engine:
    """An engine on this machine; ``name`` is ``podman`` or ``docker``."""

    name: str
    program: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables of its client."""
        return {key: value for key, value in os.environ.items() if key.startswith(_OWN_VARIABLES)}

    async def ensure(self, image: str, policy: str) -> None:
        """
        Have an image on this machine.

        Raises:
            ImageResolutionError: it cannot be had; with the engine's words.
        """
        code, _ = await self._call("image", "inspect", image)
        if code == 0 and policy != "Always":
            return
        if policy == "Never":
            raise ImageResolutionError(f"image '{image}': {self.name} does not have it, and imagePullPolicy is Never.")
        failed, words = await self._call("pull", image)
        if failed and code != 0:
            raise ImageResolutionError(f"image '{image}': {self.name} cannot pull it: {words[-500:]}")

    async def kill(self, name: str) -> None:
        await self._call("kill", name)

    async def remove_all(self, prefix: str) -> None:
        """Remove what is left of containers whose names begin so."""
        _, found = await self._call("ps", "--all", "--quiet", "--filter", f"name=^{prefix}")
        for identifier in found.split():
            await self._call("rm", "--force", identifier)

    async def _call(self, *argv: str) -> tuple[int, str]:
        pipe = asyncio.subprocess.PIPE
        null = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *at_usual_priority((self.program, *argv)), stdin=null, stdout=pipe, stderr=pipe, env=self.environment
        )
        try:
            async with asyncio.timeout(_PULL_S):
                output, words = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        # What it says when it works is on stdout, why it does not on stderr.
        return process.returncode or 0, (words if process.returncode else output).decode(errors="replace").strip()

    def render_run(
        self,
        name: str,
        container: Object,
        env: Mapping[str, str],
        mounts: Sequence[Mapping[str, Any]],
        *,
        hostname: str,
        network: str,
    ) -> tuple[list[str], dict[str, str]]:
        """
        Return arguments and environment of the client that runs a container to its end. Pure.

        Args:
            env: the container's own variables, which go over those of the image.
            mounts: as ``shallop_pod.isolation`` takes them.
            network: path of the Pod's network namespace; empty is the machine's.
        """
        argv = [self.program, "run", "--rm", "--name", name, "--hostname", hostname]
        # Only podman can join a network that it has not made.
        argv += ["--network", f"ns:{network}" if network and self.name == "podman" else "host"]
        own = self.environment
        for key, value in env.items():
            # By name where that is possible: arguments can be read by everybody on the machine.
            argv += ["--env", f"{key}={value}" if key in own else key]
        for mount in mounts:
            options = ":ro" if mount.get("readonly") else ""
            argv += ["--volume", f"{mount['source']}:{mount['target']}{options}"]
        limits = (container.get("resources") or {}).get("limits") or {}
        argv += ["--memory", str(int(parse_quantity(limits["memory"])))] if "memory" in limits else []
        argv += ["--cpus", str(float(parse_quantity(limits["cpu"])))] if "cpu" in limits else []
        argv += ["--workdir", container["workingDir"]] if container.get("workingDir") else []
        argv += ["--interactive"] if container.get("stdin") else []
        argv += ["--tty"] if container.get("tty") else []
        command = list(container.get("command") or ())
        argv += ["--entrypoint", command[0]] if command else []
        return [*argv, container["image"], *command[1:], *(container.get("args") or ())], {**env, **own}

    def render_exec(self, name: str, command: Sequence[str], *, stdin: bool, tty: bool) -> list[str]:
        flags = ["--interactive"] * stdin + ["--tty"] * tty
        return [self.program, "exec", *flags, name, *command]


def find_engine(name: str) -> Engine | None:
    """
    Return the engine that the settings ask for; None when they ask for none.

    Raises:
        SettingsError: it is not on this machine.
    """
    if not name:
        return None
    program = shutil.which(name)
    if program is None:
        raise SettingsError(f"engine: {name} is not on this machine; install it, or leave out --engine.")
    return Engine(Path(name).name, program)
