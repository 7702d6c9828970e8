"""As much of FRR as one needs to know whether commands lead where they should: contexts, `no`, and FRR's own refusals.

It works on texts in the form of vtysh. It does not route, and it knows only what a leaf of this plane is configured
with. Where the real FRR refuses a command, or takes it and means something else, this one raises.
"""

from __future__ import annotations

_CONTEXTS = ("vrf ", "interface ", "router ", "route-map ")
_CLOSING = frozenset({"exit", "exit-vrf", "exit-address-family"})
# What FRR knows in no context, so that it leaves the one in which it is.
_OUTSIDE = (*_CONTEXTS, "ip prefix-list ", "ipv6 prefix-list ")
Path = tuple[str, ...]


class FrrRefused(Exception):
    """A command that FRR would not take; the ones before it have been carried out."""


class SimFrr:
    """A running configuration that commands change."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._contexts: dict[Path, list[str]] = {}

    def load(self, text: str) -> None:
        """Carry out commands as `vtysh -f` does. Raises FrrRefused."""
        where: Path = ()
        for raw in text.splitlines():
            line = raw.strip()
            if line in {"", "!", "end"} or line.startswith(("frr ", "log ")):
                continue
            if where and line.removeprefix("no ").startswith(_OUTSIDE):
                _demand(not where[0].startswith("router "), "a BGP instance is left open", line)
                where = ()
            if line in _CLOSING:
                where = where[:-1]
            elif (not where and line.startswith(_CONTEXTS)) or line.startswith("address-family "):
                where = (*where, line)
                self._contexts.setdefault(where, [])
            elif not where:
                self._top(line)
            elif line.startswith("no ") and line != "no ipv6 nd suppress-ra":
                self._remove(where, line.removeprefix("no "))
            elif line == "ipv6 nd suppress-ra":
                self._remove(where, "no ipv6 nd suppress-ra")
            else:
                self._add(where, line)
        _demand(where == (), "a context is left open", text)

    def running(self) -> str:
        """What `show running-config` prints."""
        printed = ["Building configuration...", "", "Current configuration:", "!", "frr version 8.4.4", *self._lines]
        for header in dict.fromkeys(path[0] for path in self._contexts):
            printed += [header, *(f" {line}" for line in self._contexts.get((header,), ()))]
            for path, lines in self._contexts.items():
                if len(path) == 2 and path[0] == header:
                    printed += [" !", f" {path[1]}", *(f"  {line}" for line in lines), " exit-address-family"]
            printed += ["exit-vrf" if header.startswith("vrf ") else "exit", "!"]
        return "\n".join([*printed, "end", ""])

    def sessions(self) -> list[tuple[str, str]]:
        """The unnumbered neighbours, each with the header of its BGP instance."""
        return sorted(
            (line.split()[1], path[0])
            for path, lines in self._contexts.items()
            for line in lines
            if line.startswith("neighbor ") and line.split()[2] == "interface"
        )

    def _top(self, line: str) -> None:
        if line.startswith("no "):
            self._remove_top(line.removeprefix("no "))
            return
        words = line.split()
        if line.startswith(("ip route ", "ip protocol ")):
            _demand(line not in self._lines, "said already", line)
            if words[1] == "protocol":
                self._lines = [old for old in self._lines if old.split()[:3] != words[:3]]
                _demand(any(path[0].startswith(f"route-map {words[-1]} ") for path in self._contexts), "no map", line)
            self._lines.append(line)
            return
        _demand(len(words) > 6 and words[1] == "prefix-list", "unknown command", line)
        same = [old.split() for old in self._lines if old.split()[:3] == words[:3] and " prefix-list " in old]
        _demand(all(old[6] != words[6] for old in same), "the prefix is in the list already", line)
        _demand(all(old[4] != words[4] for old in same), "the sequence number is in use", line)
        self._lines.append(line)

    def _remove_top(self, line: str) -> None:
        if line.startswith(("ip route ", "ip protocol ")):
            _demand(line in self._lines, "no such line", line)
            self._lines.remove(line)
            return
        if " prefix-list " in line:
            whole = len(line.split()) == 3
            gone = [old for old in self._lines if old == line or (whole and old.startswith(f"{line} "))]
            _demand(bool(gone), "no such list", line)
            self._lines = [old for old in self._lines if old not in gone]
            return
        whole_map = line.startswith("route-map ") and len(line.split()) == 2
        gone_paths = [
            path for path in self._contexts if path[0] == line or (whole_map and path[0].startswith(f"{line} "))
        ]
        _demand(bool(gone_paths), "no such context", line)
        if line.startswith("router bgp"):
            vrf = line.partition(" vrf ")[2]
            vnis = [old for old in self._contexts.get((f"vrf {vrf}",), ()) if old.startswith("vni ")]
            _demand(not (vrf and vnis), "the VRF still has its VNI", line)
            left = [path for path in self._contexts if path[0].startswith(f"{line} vrf ")]
            _demand(bool(vrf) or not left, "instances of VRFs are left", line)
        for path in gone_paths:
            del self._contexts[path]

    def _remove(self, where: Path, line: str) -> None:
        _demand(line in self._contexts[where], "no such line", f"{where}: {line}")
        self._contexts[where].remove(line)
        words = line.split()
        if where[0].startswith("router bgp") and (words[2:3] == ["interface"] or words[2:] == ["peer-group"]):
            # A neighbour takes all that is said about it along.
            for path, lines in self._contexts.items():
                if path[0] == where[0]:
                    lines[:] = [old for old in lines if old.split()[:2] != words[:2]]

    def _add(self, where: Path, line: str) -> None:
        words, lines = line.split(), self._contexts[where]
        _demand(line not in lines, "said already", f"{where}: {line}")
        if words[0] == "neighbor":
            self._check_neighbour(where, words)
        if "route-map" in words:
            name = words[words.index("route-map") + 1]
            _demand(any(path[0].startswith(f"route-map {name} ") for path in self._contexts), "undefined map", line)
            lines[:] = [old for old in lines if old.split()[:3] != words[:3] or old.split()[-1] != words[-1]]
        if words[0] == "neighbor" and words[2:3] == ["timers"]:
            lines[:] = [old for old in lines if old.split()[:3] != words[:3]]
        if words[:2] == ["bgp", "router-id"]:
            lines[:] = [old for old in lines if not old.startswith("bgp router-id ")]
        if "prefix-list" in words:
            _demand(any(old.split()[2] == words[-1] for old in self._lines), "undefined list", line)
        lines.append(line)

    def _check_neighbour(self, where: Path, words: list[str]) -> None:
        line = " ".join(words)
        if words[2] == "interface":
            known = [old for old in self._contexts[where] if old.startswith(f"neighbor {words[1]} interface ")]
            _demand(not known, "the neighbour is in another peer group", line)
        elif words[2:] != ["peer-group"]:
            defined = {old.split()[1] for old in self._contexts[where[:1]] if old.startswith("neighbor ")}
            _demand(words[1] in defined, "the neighbour is not defined", f"{where}: {line}")


def _demand(holds: bool, complaint: str, line: str) -> None:
    if not holds:
        raise FrrRefused(f"{complaint}: {line}")
