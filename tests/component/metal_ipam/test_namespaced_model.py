"""Namespaced super networks against a model of sets: children come and go and prefixes change in any order, and each
project has what it should have, or the refusal names why not. METALPLANE_MODEL_RUNS makes more runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_network
from random import Random
from typing import Any

import pytest
from metal_kit.errors import Problem
from metalplane.ipam.v1 import namespace_pb2, network_pb2, prefix_pb2

RUNS = int(os.environ.get("METALPLANE_MODEL_RUNS", "2"))
STEPS = 60
PROJECTS = tuple(f"0198c1d2-0000-7000-8000-00000000000{letter}" for letter in "abc")
# The last one of each is in the way of the other's.
PREFIXES = {
    "one": ("10.0.0.0/27", "10.0.1.0/27", "10.9.0.0/27"),
    "two": ("10.2.0.0/27", "10.3.0.0/27", "10.9.0.0/26"),
}
LENGTH = 28


@dataclass
class Model:
    """Prefixes of each super network, and its children: id to project and prefix."""

    prefixes: dict[str, set[IPv4Network]]
    children: dict[str, dict[str, tuple[str, IPv4Network]]] = field(
        default_factory=lambda: {name: {} for name in PREFIXES}
    )

    def projects(self, network: str) -> set[str]:
        return {project for project, _ in self.children[network].values()}

    def clash(self, network: str, project: str, wanted: set[IPv4Network]) -> bool:
        """Whether another network's copy in the project's namespace overlaps."""
        return any(
            one.overlaps(other)
            for name, prefixes in self.prefixes.items()
            if name != network and project in self.projects(name)
            for one in prefixes
            for other in wanted
        )

    def refusal_of_child(self, network: str, project: str) -> str:
        has = self.prefixes[network]
        if project not in self.projects(network) and self.clash(network, project, has):
            return "PREFIX_OVERLAPS"
        room = sum(1 << (LENGTH - prefix.prefixlen) for prefix in has)
        mine = sum(owner == project for owner, _ in self.children[network].values())
        return "PREFIX_FULL" if mine == room else ""

    def refusal_of_change(self, network: str, wanted: set[IPv4Network]) -> str:
        has = self.prefixes[network]
        if any(cut.subnet_of(gone) for gone in has - wanted for _, cut in self.children[network].values()):
            return "PREFIX_IN_USE"
        added = wanted - has
        return "PREFIX_OVERLAPS" if any(self.clash(network, each, added) for each in self.projects(network)) else ""

    def copies(self) -> set[tuple[str, str, str]]:
        return {
            (name, f"project-{project}", str(prefix))
            for name, prefixes in self.prefixes.items()
            for project in self.projects(name)
            for prefix in prefixes
        }


async def reason_of(call: Any) -> tuple[str, Any]:
    try:
        return "", await call
    except Problem as problem:
        return problem.reason, None


async def compare(ipam: Any, model: Model) -> None:
    found = set()
    for name in PREFIXES:
        listed = await ipam.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest(network=name, page_size=500))
        found |= {(name, each.namespace, each.cidr) for each in listed.prefixes}
        shown = await ipam.get(name)
        assert {ip_network(text) for text in shown.prefixes} == model.prefixes[name]
        assert shown.ipv4.used_prefixes == len(model.children[name])
    assert found == model.copies()
    spaces = await ipam.namespaces().ListNamespaces(namespace_pb2.ListNamespacesRequest())
    assert {each.id for each in spaces.namespaces} == {"default"} | {home for _, home, _ in found}


@pytest.mark.parametrize("seed", range(RUNS))
async def test_copies_are_as_the_model_says_whatever_comes_and_goes(ipam: Any, seed: int) -> None:
    random = Random(seed)
    model = Model({name: {ip_network(texts[0])} for name, texts in PREFIXES.items()})
    for name, prefixes in model.prefixes.items():
        await ipam.create(
            id=name, type=network_pb2.NETWORK_TYPE_SUPER_NAMESPACED, prefixes=map(str, prefixes),
            default_child_prefix_length=(LENGTH, 0),
        )  # fmt: skip
    outcomes: set[str] = set()
    for _ in range(STEPS):
        name = random.choice(list(PREFIXES))
        what = random.choice(("child", "child", "delete", "change"))
        if what == "child":
            project = random.choice(PROJECTS)
            expected = model.refusal_of_child(name, project)
            reason, child = await reason_of(ipam.child(name, project))
            assert reason == expected
            if child is not None:
                [cut] = child.prefixes
                taken = {prefix for owner, prefix in model.children[name].values() if owner == project}
                assert not any(ip_network(cut).overlaps(each) for each in taken)
                assert any(ip_network(cut).subnet_of(each) for each in model.prefixes[name])
                model.children[name][child.id] = (project, ip_network(cut))
        elif what == "delete":
            reason = ""
            if model.children[name]:
                gone = random.choice(sorted(model.children[name]))
                await ipam.delete(gone)
                del model.children[name][gone]
        else:
            wanted = set(map(ip_network, random.sample(PREFIXES[name], random.randint(1, 3))))
            expected = model.refusal_of_change(name, wanted)
            request = network_pb2.UpdateNetworkRequest(network={"id": name, "prefixes": map(str, wanted)})
            request.update_mask.paths.append("prefixes")
            reason, _ = await reason_of(ipam.networks().UpdateNetwork(request))
            assert reason == expected
            if not reason:
                model.prefixes[name] = wanted
        outcomes.add(f"{what} {reason}")
        await compare(ipam, model)
    assert len(outcomes) >= 4, outcomes
    await ipam.clean()
    for children in model.children.values():
        for child in list(children):
            await ipam.delete(child)
            del children[child]
    await compare(ipam, model)
