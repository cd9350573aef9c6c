"""
The fork-server of one environment: a process starts by a fork, not by an interpreter start.

Started by the node as ``<environment>/bin/python -m shallop_pod.zygote --socket PATH [--preload MODULE]... [--idle-s S]
[--ready-fd N]``. It imports the preload list, then listens on a Unix socket (0600, same user only). Any local process may ask
it: the control plane, or the shim of a Pod. It needs no control plane: it goes on when that is killed.

Asking (blocking, standard library; :func:`spawn` does it)::

    child = spawn(socket_path, Request("shallop_pod.launcher", argv, env, cwd, plan), (0, 1, 2))
    child.pid                   # as the zygote sees it; leader of a new session and process group: os.killpg works
    child.wait(timeout_s=None)  # Exit(code, signal, cpu_s, max_rss_bytes), or None when the time is over
    child.fileno()              # readable when wait() has news, for select and asyncio

Wire: each message is a 4-byte big-endian length and JSON. The request carries the three stdio descriptors by SCM_RIGHTS with
its first byte. Answers, on the same connection: ``{"pid": N}`` or ``{"error": TEXT}`` (nothing runs then), later
``{"exit": {...}, "final": false}`` by the process itself just before it ends, and ``{"exit": {...}, "final": true}`` by its
parent that reaped it. So the exit code arrives when the control plane is dead, and even when the zygote was killed; an end
of the connection without any exit means that zygote and process were both killed: ``Exit(137, 9)``.

What happens in the child, in this order: new session, stdio from the request, every other descriptor closed, signal
handlers and mask at their defaults, umask 022; ``shallop_pod.isolation.enter(plan)`` when there is a plan (see below); the
request's environment replaces the zygote's completely; chdir; ``sys.path`` as ``python3 -m`` would make it (the working
directory and the request's PYTHONPATH first); random generators reseeded; thread pools sized by OMP_NUM_THREADS; then
``import_module(module).main(argv)``. Its return value (None is 0) or SystemExit is the exit code; an uncaught exception prints
its traceback and exits with 1. Threads are joined, atexit functions run, streams flushed.

Contract of ``shallop_pod.isolation.enter(plan: dict) -> bool``: enters namespaces and mounts in the calling, single-threaded
process; raises OSError or RuntimeError with a readable message. True means that a PID namespace waits for the next fork: the
zygote's child then forks once more, stays outside as the one who reaps and reports, and the process is the grandchild
(PID 1 of its namespace, ``child.pid`` is its number outside).

A shim that was itself forked from a zygote (module ``shallop_pod.shim`` or the like) needs no socket for the container of the
same environment: it calls :func:`become` in a child that it forks itself, and reaps that child.

Stopping: SIGTERM (or idle time without living children) closes the socket; children go on, the zygote ends after the last one.
"""
