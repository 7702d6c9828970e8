"""Become a server process that does not outlive the lab: `python launch.py SIGNAL PARENT UID GID PROGRAM ARGS...`.

Runs between the lab and the server, in a fresh interpreter, because the alternative (a `preexec_fn`) runs Python
between fork and exec of a process full of gRPC threads, where any held lock hangs the child. Standard library only, and
it imports nothing of the project: it may run inside a user namespace that cannot see the rest.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    death_signal, parent, uid, gid = (int(word) for word in argv[1:5])
    program = argv[5:]
    if uid > 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After the change of user, which clears the setting; an exec of a program without setuid bits keeps it.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:  # the lab died before the line above took effect
        raise SystemExit("launch: the parent is gone")
    os.execv(program[0], program)  # noqa: S606 (the program is the caller's choice)


if __name__ == "__main__":
    main(sys.argv)
