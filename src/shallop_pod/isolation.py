"""
Entering the namespaces of a Pod: private mounts at their absolute paths, the Pod's network, own processes.

In a forked, single-threaded process. The first steps may be taken before it is known for which Pod, because they look
at no more of the plan than ``shape_of(plan)`` keeps::

    entrance = Entrance(plan)
    if not entrance.forks or os.fork() == 0:
        entrance.finish()
        entrance.complete(plan)      # and then the user's code
    else: ...                        # wait for the child, then entrance.end()

``with visiting(plan): ...`` enters for a while, all but a PID namespace.

Keys of a plan, all optional:

- ``user``: true for an ordinary user: a user namespace comes first.
- ``netns``: path of the network namespace to join, such as ``/proc/PID/ns/net``.
- ``join``: pid of a process whose namespaces are entered instead of making new ones.
- ``cgroups``: folders of the control groups to join.
- ``hostname``: as ``hostname`` will say.
- ``pid``: true for an own PID namespace; it begins with the next fork, unless this process is the first of one already:
  ``fork_first``.
- ``reap``: true where there is no PID namespace: what leaves the process group is found by its parentage, which
  takes a fork too.
- ``mounts``: ``{"target": absolute path, "source": path, "readonly": bool}``, or ``{"target": path, "tmpfs": true}``
  for an empty folder, or ``{"target": "/dev", "devices": true}`` for the devices that a program needs, a shared memory
  of its own and room for more. Mount points need not exist on the machine, and nothing is ever created there.

Measured on Linux 6.18, 2 cores: 20 mounts and a new root 1.3 ms; see docs/design/isolation.md.

Source: mount_namespaces(7), user_namespaces(7), pivot_root(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import os
import signal
import stat
from dataclasses import dataclass
from typing import Any, Iterator, List, Sequence, Tuple  # noqa: UP035  environments may be Python 3.9

__all__ = ["TOKEN_FOLDER", "Entrance", "Surroundings", "fork_first", "look_around", "shape_of", "visiting"]

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_SLAVE = 4096, 16384, 1 << 19
_MNT_DETACH = 2
_PR_SET_CHILD_SUBREAPER = 36
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

# What container engines give, and GPUs: their owner decides who may use them.
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "pts", "nvidia*", "kfd", "dri", "infiniband")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}

# Where nearly every Pod has a token, in a folder of the machine's that must be shown with one entry more.
TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _call(f"mount {source} on {target}", result)


def shape_of(plan: dict[str, Any]) -> dict[str, Any]:
    """Return what making and finishing an :class:`Entrance` need of a plan; most Pods of a node have the same."""
    shape = {key: plan[key] for key in ("user", "pid", "reap", "join") if plan.get(key)}
    mounts = plan.get("mounts") or ()
    if devices := [mount for mount in mounts if mount.get("devices")]:
        shape["mounts"] = devices
        shape["points"] = [TOKEN_FOLDER] if any(mount["target"] == TOKEN_FOLDER for mount in mounts) else []
    return shape


def fork_first() -> int:
    """
    Fork the first process of a new PID namespace, as ``os.fork`` does; root can do so without one in between.

    Raises:
        OSError: the kernel refused.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare PID namespace", _libc.unshare(_CLONE_NEWPID))
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                _call("return to the own PID namespace", _libc.setns(own, _CLONE_NEWPID))
        return pid
    finally:
        os.close(own)


# An entry of a folder: its name, what lstat says (mode, device number) and where a symbolic link leads.
_Entry = Tuple[str, int, int, str]  # noqa: UP006


@dataclass(frozen=True)
class Surroundings:
    """
    What a container is shown of the machine, looked up before there is one.

    Args:
        root: the entries of the machine's root.
        added_to: those of a folder in the root that gets entries of the container's own, by the folder's name.
        devices: those of /dev that a container has.
    """

    root: List[_Entry]  # noqa: UP006
    added_to: dict[str, list[_Entry]]
    devices: List[_Entry]  # noqa: UP006


def look_around(shape: dict[str, Any]) -> Surroundings:
    """Look up what a container of a shape is shown."""
    missing = [point for point in shape.get("points") or () if not os.path.exists(point)]
    folders = {os.path.realpath(_existing(point)) for point in missing}
    in_root = [folder for folder in folders if os.path.dirname(folder) == "/" != folder]
    found = [name for name in os.listdir("/dev") if any(fnmatch.fnmatch(name, pattern) for pattern in _DEVICES)]
    return Surroundings(
        _entries("/"),
        {os.path.basename(folder): _entries(folder) for folder in in_root},
        [_entry("/dev", name) for name in found],
    )


def _entries(folder: str) -> list[_Entry]:
    return [_entry(folder, name) for name in os.listdir(folder)]


def _entry(folder: str, name: str) -> _Entry:
    path = f"{folder}/{name}"
    found = os.lstat(path)
    return name, found.st_mode, found.st_rdev, os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""


class Entrance:
    """
    A process on its way into namespaces; making one leaves the machine's.

    ``forks`` says that the rest belongs into a child, which the caller forks.

    Args:
        surroundings: ``look_around(shape)``, where that is known already.

    Raises:
        OSError: the kernel refused; the message names the step.
    """

    def __init__(self, shape: dict[str, Any], surroundings: Surroundings | None = None) -> None:
        self._shape = shape
        self._view = _View()
        own_processes = bool(shape.get("pid")) and os.getpid() != 1
        self.forks = own_processes or bool(shape.get("reap"))
        # The machine's /proc, where networks are found, is covered soon.
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        if shape.get("reap"):
            _call("become the parent of orphans", _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
            return
        if shape.get("join"):
            self.forks = _join(shape["join"])
            return
        if shape.get("user"):
            _enter_user_namespace()
        flags = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | (_CLONE_NEWPID if own_processes else 0)
        _call("unshare", _libc.unshare(flags))
        # What is mounted on the machine later still appears here; nothing of ours appears there.
        _mount("none", "/", None, _MS_REC | _MS_SLAVE)
        if shape.get("mounts"):
            # Such a plan is a container's; its mount points hardly ever all exist.
            self._view.enter_container(surroundings or look_around(shape))
            for point in shape["points"]:
                self._view.make_point(point, folder=True)

    def finish(self) -> None:
        """Complete a PID namespace, in its first process: /proc shows what is in it."""
        if self._shape.get("pid"):
            _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)

    def complete(self, plan: dict[str, Any]) -> None:
        """
        Become a process of one Pod: its control group, network, mounts and name.

        Raises:
            OSError: the kernel refused; the message names the step.
        """
        for group in plan.get("cgroups") or ():
            with open(f"{group}/cgroup.procs", "w") as file:
                file.write("0")
        if plan.get("netns"):
            descriptor = os.open(plan["netns"].removeprefix("/proc/"), os.O_RDONLY, dir_fd=self._proc)
            _call(f"join network of {plan['netns']}", _libc.setns(descriptor, _CLONE_NEWNET))
            os.close(descriptor)
        os.close(self._proc)
        if self._shape.get("reap"):
            return
        done = self._shape.get("mounts") or []
        self._view.build([mount for mount in plan.get("mounts") or [] if mount not in done])
        if plan.get("hostname"):
            name = plan["hostname"].encode()
            _call("sethostname", _libc.sethostname(name, len(name)))

    def end(self) -> None:
        """Kill what a container's first process has left running; with a PID namespace the kernel has done so."""
        while self._shape.get("reap"):
            for pid in _children():
                os.kill(pid, signal.SIGKILL)
            try:
                # Whoever loses its parent by this becomes a child of ours, until nobody is left.
                os.wait()
            except ChildProcessError:
                return


@contextlib.contextmanager
def visiting(plan: dict[str, Any]) -> Iterator[None]:
    """
    Be where a Pod's process would be, but for a PID namespace, and come back; with a single thread.

    An ordinary user comes back to the machine's view in a user namespace, whose children can enter Pods as ever. After
    an exception the process stays, and is to end.

    Raises:
        OSError: the kernel refused, on the way there or back; the message names the step.
    """
    groups = _own_groups(plan.get("cgroups") or ())
    if plan.get("user"):
        _enter_user_namespace()
        # The machine's own could not be entered again from here.
        _call("unshare", _libc.unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC))
        _mount("none", "/", None, _MS_REC | _MS_SLAVE)
    folder = os.getcwd()
    homes = {name: os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in ("net", "uts", "ipc", "mnt")}
    entrance = Entrance({key: value for key, value in shape_of(plan).items() if key in ("mounts", "points")})
    entrance.complete(plan)
    yield
    for name, home in homes.items():
        # One that was never left may not be entered.
        if not os.path.samestat(os.fstat(home), os.stat(f"/proc/self/ns/{name}")):
            _call(f"come back to {name}", _libc.setns(home, 0))
        os.close(home)
    os.chdir(folder)
    for group in groups:
        with open(f"{group}/cgroup.procs", "w") as file:
            file.write("0")


def _own_groups(others: Sequence[str]) -> list[str]:
    """Return the control groups of this process, of the hierarchies in which others lie."""
    with open("/proc/self/cgroup") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    own = {name: path for _, names, path in lines for name in names.split(",")}
    roots = [os.path.dirname(other) for other in others]
    found = []
    for root in roots:
        # The one hierarchy of version 2 has no name; those of version 1 have their controllers'.
        path = own.get(os.path.basename(root), own.get("", "/"))
        # Seen from inside of a container the path may be one that only the machine has.
        found.append(root + path if os.path.isdir(root + path) else root)
    return found


def _children() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid() and fields[0] != b"Z":
                found.append(int(name))
    return found


def _join(pid: int) -> bool:
    """Enter the namespaces of a process, the user's first: it gives the right to enter the others."""
    names = ("user", "ipc", "uts", "net", "pid", "mnt")
    # What is the same already may not be entered again, and needs not.
    paths = [f"/proc/{pid}/ns/{name}" for name in names if os.path.exists(f"/proc/self/ns/{name}")]
    differing = [path for path in paths if not os.path.samefile(path, f"/proc/self/ns/{os.path.basename(path)}")]
    descriptors = [(path, os.open(path, os.O_RDONLY)) for path in differing]
    for path, descriptor in descriptors:
        _call(f"join {path}", _libc.setns(descriptor, 0))
        os.close(descriptor)
    return any(path.endswith("/pid") for path in differing)


def _enter_user_namespace() -> None:
    uid, gid = os.getuid(), os.getgid()
    _call("unshare user namespace", _libc.unshare(_CLONE_NEWUSER))
    # Our own ids stay what they are, so that files have the owner that users expect.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


class _View:
    """Builds mounts, each time in the order from the root downwards."""

    def __init__(self) -> None:
        self._own: set[str] = set()
        self._made: dict[str, bool] = {}  # what is mounted or made here, and whether it is ours and began empty

    def build(self, mounts: list[dict[str, Any]]) -> None:
        mounts = sorted(mounts, key=lambda mount: (mount["target"].rstrip("/").count("/"), mount["target"]))
        mounts = [mount for number, mount in enumerate(mounts) if not _is_there(mount, mounts[:number])]
        missing = [mount["target"] for mount in mounts if "/" not in self._own and not os.path.exists(mount["target"])]
        if any(_existing(target) == "/" for target in missing):
            with self._new_root(_entries("/")):
                pass
        # Opened before anything is covered, so that a mount may show what another one hides.
        sources = {m["source"]: os.open(m["source"], os.O_PATH) for m in mounts if "source" in m}
        for mount in mounts:
            self._place(mount, sources)
        for descriptor in sources.values():
            os.close(descriptor)

    def _place(self, mount: dict[str, Any], sources: dict[str, int]) -> None:
        target = mount["target"].rstrip("/") or "/"
        if mount.get("tmpfs"):
            self.make_point(target, folder=True)
            _mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, mount.get("options", "mode=0755"))
            self._own.add(target)
            self._made[target] = True
            return
        descriptor = sources[mount["source"]]
        self.make_point(target, folder=stat.S_ISDIR(os.fstat(descriptor).st_mode))
        _mount(f"/proc/self/fd/{descriptor}", target, None, _MS_BIND | _MS_REC)
        self._made[target] = False
        if mount.get("readonly"):
            _mount("none", target, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _locked_flags(target))

    def enter_container(self, seen: Surroundings) -> None:
        """Make a root of its own, with devices, for a container."""
        others = [entry for entry in seen.root if entry[0] != "dev" and entry[0] not in seen.added_to]
        with self._new_root(others) as root:
            for name, entries in seen.added_to.items():
                os.mkdir(f"{root}/{name}")
                _show(f"/{name}", entries, f"{root}/{name}")
            os.mkdir(f"{root}/dev")
            _make_devices(seen.devices, f"{root}/dev")
        self._made["/dev"] = True

    @contextlib.contextmanager
    def _new_root(self, entries: list[_Entry]) -> Iterator[str]:
        """Make a root in memory that shows entries of the machine's; it can be added to until it is entered."""
        # Any existing folder can carry the new root for the moment; /proc exists everywhere and is bound again.
        staging = next(folder for folder in ("/mnt", "/media", "/srv", "/opt", "/var", "/usr") if os.path.isdir(folder))
        _mount("tmpfs", staging, "tmpfs", 0, "mode=0755")
        hidden = os.path.basename(staging)
        _show("", [entry for entry in entries if entry[0] != hidden], staging)
        os.mkdir(f"{staging}/{hidden}")
        yield staging
        old = f"{staging}/.old"
        os.mkdir(old, 0o700)
        number = _PIVOT_ROOT[os.uname().machine]
        _call("pivot_root", _libc.syscall(number, staging.encode(), old.encode()))
        os.chdir("/")
        # The folder that carried the new root is empty now; show what it held: pivot_root has moved our tmpfs away
        # from it, so that its own content is visible again.
        _mount(f"/.old/{hidden}", f"/{hidden}", None, _MS_BIND | _MS_REC)
        _call("leave the old root", _libc.umount2(b"/.old", _MNT_DETACH))
        os.rmdir("/.old")
        self._own.add("/")

    def make_point(self, target: str, *, folder: bool) -> None:
        """Make a file or folder to mount on, unless it is there."""
        above = max((made for made in self._made if target.startswith(f"{made}/")), key=len, default="")
        if not self._made.get(above):
            if os.path.exists(target):
                return
            ancestor = _existing(target)
            if not self._is_own(ancestor):
                self._split(ancestor)
        os.makedirs(target if folder else os.path.dirname(target), mode=0o755, exist_ok=True)
        if not folder:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))

    def _is_own(self, folder: str) -> bool:
        """Say whether a folder lies on one of our tmpfs mounts, where new entries harm nobody."""
        device = os.stat(folder).st_dev
        return any(os.stat(own).st_dev == device for own in self._own)

    def _split(self, folder: str) -> None:
        """Put a tmpfs over a folder that shows the same entries, so that a mount point can be added to it."""
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        covered = f"/proc/self/fd/{descriptor}"
        entries = _entries(covered)
        _mount("tmpfs", folder, "tmpfs", _MS_NOSUID, f"mode={mode:o}")
        _show(covered, entries, folder)
        os.close(descriptor)
        self._own.add(folder)


def _is_there(mount: dict[str, Any], above: list[dict[str, Any]]) -> bool:
    """Say whether what a mount would show is at its place already."""
    target = mount["target"].rstrip("/")
    covered = any(target.startswith(f"{other['target'].rstrip('/')}/") for other in above)
    return mount.get("source") == target and not mount.get("readonly") and not covered


def _show(source: str, entries: list[_Entry], target: str) -> None:
    """Show entries of one folder in another, which is new."""
    for name, mode, _, link in entries:
        place = f"{target}/{name}"
        if link:
            os.symlink(link, place)
            continue
        if stat.S_ISDIR(mode):
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o600))
        _mount(f"{source}/{name}", place, None, _MS_BIND | _MS_REC)


def _make_devices(devices: list[_Entry], target: str) -> None:
    shown = []
    mask = os.umask(0)
    for entry in devices:
        name, mode, number, _ = entry
        try:
            if not stat.S_ISCHR(mode):
                raise PermissionError
            os.mknod(f"{target}/{name}", mode, number)
        except PermissionError:  # not root, or not allowed to where this machine is a container itself
            shown.append(entry)
    os.mkdir(f"{target}/shm", 0o1777)
    os.umask(mask)
    _show("/dev", shown, target)
    for name, place in _DEVICE_LINKS.items():
        os.symlink(place, f"{target}/{name}")


def _existing(path: str) -> str:
    """Return the deepest ancestor of ``path`` that is a folder, ``path`` itself included."""
    while not os.path.isdir(path):
        path = os.path.dirname(path) or "/"
    return path


def _locked_flags(target: str) -> int:
    # Inside a user namespace flags of the original mount are locked and must be repeated.
    flags = os.statvfs(target).f_flag
    return int(flags & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC))
