"""One process changes a leaf at a time, and no dead one keeps others out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from metal_core.lock import LeafLock, LockHeld

HOLDER = """
import sys
from pathlib import Path
from metal_core.lock import LeafLock
with LeafLock(Path(sys.argv[1])).held("the agent"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_who_comes_second_is_told_who_holds_the_leaf(tmp_path: Path) -> None:
    lock, other = LeafLock(tmp_path / "state"), LeafLock(tmp_path / "state")
    assert lock.holder() == ""
    with lock.held("the agent"):
        assert other.holder().startswith("the agent, process ")
        with pytest.raises(LockHeld, match="the agent"), other.held("metal-core apply"):
            pytest.fail("two hold it")
    assert other.holder() == ""
    with other.held("metal-core apply"):
        assert "metal-core apply" in lock.holder()


def test_a_killed_holder_leaves_no_lock_behind(tmp_path: Path) -> None:
    lock = LeafLock(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockHeld, match=f"the agent, process {holder.pid}"), lock.held("me"):
            pytest.fail("two hold it")
        holder.kill()
        holder.wait()
        with lock.held("me"):
            assert lock.holder().startswith("me, ")
