"""How tests are shared out among several workers: those that share servers stay together and run in their order.

A scheduler of our own, since the marker that pytest-xdist 3.8 has for this does nothing under pytest 9.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# Modules that share one lab or plane; any other module is a group of its own.
GROUPS = {
    "lab": ("faults", "leaves_follow_fabric", "life_of_a_machine", "metalctl", "power_commands"),
    "plane": ("composed_plane", "edge"),
}
_GROUP_OF = {f"{module}.py": group for group, modules in GROUPS.items() for module in modules}


class Together(LoadScopeScheduling):
    """A module's tests on one worker, and modules of one group too."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        if module.startswith(("tests/e2e/", "tests/component/deploy/")):
            return _GROUP_OF.get(module.rpartition("/test_")[2], module)
        return module
