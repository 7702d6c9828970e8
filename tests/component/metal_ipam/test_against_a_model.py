"""Anything in any order, over gRPC, against a model of sets (`ipam_model`): the same answers, the same fill, and then
everything comes back.

A few long runs; METALPLANE_MODEL_RUNS makes more of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from ipaddress import ip_address, ip_network
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from ipam_model import Address, Held, Model, Unit, leaf
from metal_ipam import quarantine
from metal_kit.errors import AlreadyExists, FailedPrecondition, OutOfRange, Problem, ResourceExhausted
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import ip_pb2, network_pb2, pool_pb2, prefix_pb2
from metalplane.ipam.v1.ip_pb2 import IpWish

PROJECTS = ("0198c1d2-0000-7000-8000-00000000000a", "0198c1d2-0000-7000-8000-00000000000b")
RUNS = int(os.environ.get("METALPLANE_MODEL_RUNS", "4"))
STEPS = 60
ASNS = 3
FAMILIES = {0: AddressFamily.ADDRESS_FAMILY_UNSPECIFIED, 4: AddressFamily.ADDRESS_FAMILY_IPV4}
FAMILIES[6] = AddressFamily.ADDRESS_FAMILY_IPV6
# At the ends of the families, where a step too far has no result; two prefixes a family, to go from one to the next.
# `rests` keeps what is released for a while.
NETWORKS = {
    "ends": ("0.0.0.0/29", "255.255.255.240/28", "::/125", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124"),
    "rests": ("198.51.100.0/28", "2001:db8::/64"),
}
# Owners by what they are called here; those of the kind "allocation" are over once they were released.
OWNERS = ("a1", "a2", "o1")
SUPER = ("10.0.0.0/26", "fd00::/60")
_WIPE = (
    "TRUNCATE ip, prefix, network CASCADE",
    "TRUNCATE id_used, id_free",
    "INSERT INTO id_free (pool_id, auto, hi, lo) SELECT pool_id, auto, hi, lo FROM id_range",
    "UPDATE id_pool SET used = 0, quarantined = 0",
)
networks_ = st.sampled_from([*NETWORKS, "child"])
wishes_ = st.tuples(networks_, st.sampled_from([0, 4, 6]), st.integers(1, 3))
positions = st.integers(0, 30)


class Ipam(RuleBasedStateMachine):
    """One client of the service, and the model. `service` and `loop` are set by the test, which lends its loop."""

    service: ClassVar[Any]
    loop: ClassVar[asyncio.AbstractEventLoop]

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def attempt(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The answer, or the Problem that it ended with."""
        try:
            return self.run(coroutine)
        except Problem as problem:
            return problem

    @initialize()
    def begin(self) -> None:
        self.model = Model(supers=tuple(map(ip_network, SUPER)))
        self.names = {each: f"{each}-{uuid4()}" for each in OWNERS}
        self.over: set[str] = set()
        self.requests: list[tuple[str, list[IpWish], str, list[str]]] = []
        self.run(self._lay_out())

    async def _lay_out(self) -> None:
        for statement in _WIPE:  # A run that failed left its things behind, and is now repeated to find a shorter one.
            await self._sql(statement)
        for network, cidrs in NETWORKS.items():
            await self.service.external(network, *cidrs)
            self.model.leaves[network] = [leaf(cidr, rests=network == "rests") for cidr in cidrs]
        await self.service.super(prefixes=SUPER, default_child_prefix_length=(28, 64))
        await self._sql("UPDATE prefix SET quarantine = '1 hour' WHERE network_id = 'rests'")

    async def _sql(self, statement: str, *args: object) -> Any:
        async with self._db.transaction(purpose="test") as connection:
            return await connection.fetchval(statement, *args)

    @property
    def _db(self) -> Any:
        return self.service.replicas[0].runtime.require_db()

    def _owner(self, name: str) -> ip_pb2.Owner | None:
        if not name:
            return None
        kind = ip_pb2.OWNER_KIND_ALLOCATION if name.startswith("a") else ip_pb2.OWNER_KIND_OTHER
        return ip_pb2.Owner(kind=kind, id=self.names[name])

    def _network(self, name: str, position: int) -> str | None:
        """The network, for "child" one of the children there are."""
        if name != "child":
            return name
        children = sorted(self.model.children)
        return children[position % len(children)] if children else None

    def _some_held(self, position: int) -> tuple[str, Address, Held] | None:
        held = [
            (network, address, each)
            for network, leaves in self.model.leaves.items()
            for home in leaves
            for address, each in home.held.items()
        ]
        return held[position % len(held)] if held else None

    def _acquire(self, wishes: list[IpWish], project: int, owner: str, static: bool, request_id: str = "") -> Any:
        request = {
            "project": PROJECTS[project], "owner": self._owner(owner), "request_id": request_id,
            "type": ip_pb2.IP_TYPE_STATIC if static else ip_pb2.IP_TYPE_EPHEMERAL,
        }  # fmt: skip
        return self.attempt(self.service.acquire(*wishes, stub=self.service.ips_as_allocation(), **request))

    @rule(
        wishes=st.lists(wishes_, min_size=1, max_size=2), position=positions, project=st.integers(0, 1),
        owner=st.sampled_from(["", *OWNERS]), static=st.booleans(),
    )  # fmt: skip
    def acquire(
        self, wishes: list[tuple[str, int, int]], position: int, project: int, owner: str, static: bool
    ) -> None:
        """Next free ones: one, many, in one family or in all, in several networks at once."""
        units: list[Unit] = []
        asked: list[IpWish] = []
        for name, family, count in wishes:
            network = self._network(name, position)
            if network is None or (family and family not in self.model.families(network)):
                continue
            project = 0 if network in self.model.children else project
            asked.append(IpWish(network=network, family=FAMILIES[family], count=count))
            for each in [family] if family else self.model.families(network):
                units += [Unit(network, each)] * count
        if any(unit.network in self.model.children for unit in units):
            project = 0
        if not asked:
            return
        request_id = str(uuid4())
        answer = self._acquire(asked, project, owner, static, request_id)
        planned = self.model.plan(units)
        if owner in self.over:
            assert isinstance(answer, FailedPrecondition | ResourceExhausted), answer
        elif planned is None:
            assert isinstance(answer, ResourceExhausted), answer
        else:
            assert [ip.address for ip in answer] == list(map(str, planned))
            self.model.hold(units, planned, Held(PROJECTS[project], self.names.get(owner, ""), static))
            again = self._acquire(asked, project, owner, static, request_id)
            assert again == answer, "a retry has the same answer"

    @rule(name=networks_, position=positions, offset=st.integers(0, 12), owner=st.sampled_from(["", "o1"]))
    def acquire_given(self, name: str, position: int, offset: int, owner: str) -> None:
        """A given address: free, taken, reserved, resting, or beyond the prefix."""
        network = self._network(name, position)
        if network is None:
            return
        leaves = self.model.leaves[network]
        base = leaves[position % len(leaves)].cidr
        top = 2**base.max_prefixlen - 1
        address = ip_address(min(int(base.network_address) + offset, top)) if base.version == 4 else None
        if address is None:
            address = type(base.network_address)(min(int(base.network_address) + offset, top))
        home = self.model.home(network, address)
        answer = self._acquire([IpWish(network=network, address=str(address))], 0, owner, False)
        if home is None:
            assert isinstance(answer, OutOfRange), answer
        elif address in home.held:
            assert isinstance(answer, AlreadyExists | ResourceExhausted), answer
            if isinstance(answer, AlreadyExists):
                assert answer.metadata["owner"] == home.held[address].owner
        elif not home.is_free(address):
            assert isinstance(answer, FailedPrecondition), answer
        else:
            assert [ip.address for ip in answer] == [str(address)]
            self.model.hold(
                [Unit(network, address.version, address)], [address], Held(PROJECTS[0], self.names.get(owner, ""))
            )

    @rule(position=positions)
    def release(self, position: int) -> None:
        """One address; one that somebody uses stays."""
        some = self._some_held(position)
        if some is None:
            return
        network, address, held = some
        request = ip_pb2.ReleaseIpRequest(address=str(address), network=network)
        answer = self.attempt(self.service.ips("operator").ReleaseIp(request))
        if held.owner:
            assert isinstance(answer, FailedPrecondition), answer
            assert answer.metadata["owner"] == held.owner
        else:
            assert not isinstance(answer, Problem), answer
            home = self.model.home(network, address)
            assert home is not None
            home.release(address)

    @rule(position=positions, owner=st.sampled_from(OWNERS))
    def attach(self, position: int, owner: str) -> None:
        """An address that only the project has goes to an owner."""
        some = self._some_held(position)
        if some is None:
            return
        network, address, held = some
        request = ip_pb2.AttachIpRequest(
            address=str(address), network=network, project=held.project, owner=self._owner(owner)
        )
        answer = self.attempt(self.service.ips_as_allocation().AttachIp(request))
        if owner in self.over or held.owner not in {"", self.names[owner]}:
            assert isinstance(answer, FailedPrecondition), answer
        else:
            assert answer.owner.id == self.names[owner]
            held.owner = self.names[owner]

    @rule(owner=st.sampled_from(OWNERS))
    def let_go(self, owner: str) -> None:
        """All that an owner has: its static addresses stay with the project."""
        name = self.names[owner]
        released = detached = 0
        for leaves in self.model.leaves.values():
            for home in leaves:
                for address in [address for address, held in home.held.items() if held.owner == name]:
                    if home.held[address].static:
                        home.held[address].owner = ""
                        detached += 1
                    else:
                        home.release(address)
                        released += 1
        had_number = self.model.numbers.pop(name, None) is not None
        request = ip_pb2.ReleaseOwnedRequest(owner=self._owner(owner))
        answer = self.run(self.service.ips_as_allocation().ReleaseOwned(request))
        assert (answer.released_ips, answer.detached_ips, answer.released_numbers) == (released, detached, had_number)
        if owner.startswith("a"):
            self.over.add(owner)

    @rule(owner=st.sampled_from(OWNERS), number=st.integers(0, ASNS + 1))
    def acquire_number(self, owner: str, number: int) -> None:
        """An ASN, any (0) or a given one; the owner's own once more."""
        base, name = 4_210_000_000, self.names[owner]
        request = pool_pb2.AcquireNumberRequest(
            pool="asn", owner=self._owner(owner), number=base + number if number else 0
        )
        answer = self.attempt(self.service.pools_as_allocation().AcquireNumber(request))
        taken, mine = set(self.model.numbers.values()), self.model.numbers.get(name)
        free = [each for each in range(1, ASNS + 1) if each not in taken]
        if owner in self.over or (mine and number not in {0, mine}):
            assert isinstance(answer, FailedPrecondition), answer
        elif mine:
            assert answer.number == base + mine
        elif number > ASNS:
            assert isinstance(answer, OutOfRange), answer
        elif number and number not in free:
            assert isinstance(answer, AlreadyExists), answer
        elif not free:
            assert isinstance(answer, ResourceExhausted), answer
        else:
            self.model.numbers[name] = number or free[0]
            assert answer.number == base + self.model.numbers[name]

    @rule(lengths=st.sampled_from([(0, 0), (27, 0), (28, 62), (29, 0), (30, 64), (0, 61)]))
    def create_child(self, lengths: tuple[int, int]) -> None:
        """A child network: best fit in both families, or nothing."""
        wanted = lengths if any(lengths) else (28, 64)
        cut = [self.model.cut(p, n) if n else None for p, n in zip(self.model.supers, wanted, strict=True)]
        answer = self.attempt(self.service.child(length=lengths))
        if any(n and block is None for n, block in zip(wanted, cut, strict=True)):
            assert isinstance(answer, ResourceExhausted), answer
        else:
            blocks = [block for block in cut if block is not None]
            assert list(answer.prefixes) == list(map(str, blocks))
            self.model.children[answer.id] = blocks
            self.model.leaves[answer.id] = [leaf(str(block)) for block in blocks]

    @rule(position=positions)
    def delete_child(self, position: int) -> None:
        """It goes only without addresses in use, and gives its blocks back."""
        child = self._network("child", position)
        if child is None:
            return
        in_use = sum(len(home.held) for home in self.model.leaves[child])
        answer = self.attempt(self.service.delete(child))
        if in_use:
            assert isinstance(answer, FailedPrecondition), answer
            assert answer.metadata["addresses"] == str(in_use)
        else:
            assert answer is None
            del self.model.children[child], self.model.leaves[child]

    @rule(name=networks_, position=positions, offset=st.integers(0, 12), size=st.integers(1, 3))
    def reserve(self, name: str, position: int, offset: int, size: int) -> None:
        """Set a range aside, if all of it is free; take it back at once when it is even."""
        network = self._network(name, position)
        if network is None:
            return
        home = self.model.leaves[network][position % len(self.model.leaves[network])]
        first = int(home.cidr.network_address) + offset
        if first + size - 1 > int(home.cidr.broadcast_address):
            return
        make = type(home.cidr.network_address)
        span = [make(first + number) for number in range(size)]
        call = "FROM prefix WHERE cidr = $1 AND namespace_id = 1 AND kind = 'leaf'"
        answer = self.run(self._sql(f"SELECT reserve(id, $2, $3, 'test', 'test') {call}", home.cidr, span[0], span[-1]))
        assert answer == ("ok" if all(map(home.is_free, span)) else "in_use")
        if answer == "ok" and offset % 2:
            home.reserved |= set(span)
        elif answer == "ok":
            undo = self._sql(f"SELECT unreserve(id, $2, $3, 'test') {call}", home.cidr, span[0], span[-1])
            assert self.run(undo) == "ok"

    @rule(position=positions)
    def end_a_rest(self, position: int) -> None:
        """The sweep gives back the address whose rest is over, and no other."""
        resting = [(home, each) for leaves in self.model.leaves.values() for home in leaves for each in home.resting]
        if not resting:
            return
        home, address = resting[position % len(resting)]
        self.run(self._sql("UPDATE ip SET release_after = now() WHERE addr = $1 RETURNING 1", address))
        self.run(quarantine.sweep(self._db))
        home.resting.remove(address)

    @invariant()
    def the_same_addresses_and_fill(self) -> None:
        found = self.run(self.service.list_ips())
        shown = {(ip.network, ip.address): (ip.project, ip.owner.id, ip.type == ip_pb2.IP_TYPE_STATIC) for ip in found}
        assert shown == self.model.held()
        answer = self.run(self.service.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest(page_size=500)))
        fill = {p.cidr: (p.used, p.reserved, p.free) for p in answer.prefixes if p.network != "super"}
        assert fill == self.model.fill()

    def teardown(self) -> None:
        """Everything is given back: networks go, numbers are free, and nothing is left over."""
        self.run(self._give_all_back())

    async def _give_all_back(self) -> None:
        service = self.service
        await service.clean()
        for owner in OWNERS:
            await service.ips_as_allocation().ReleaseOwned(ip_pb2.ReleaseOwnedRequest(owner=self._owner(owner)))
        for ip in await service.list_ips():
            await service.ips("operator").ReleaseIp(ip_pb2.ReleaseIpRequest(address=ip.address, network=ip.network))
        for child in self.model.children:
            await service.delete(child)
        parents = await service.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest(network="super"))
        assert [(p.children, p.free) for p in parents.prefixes] == [(0, 2**6), (0, 2**63 - 1)]
        assert await self._sql("SELECT array_agg(cidr::text ORDER BY cidr) FROM free_block") == list(SUPER)
        await service.clean()
        for network in (*NETWORKS, "super"):
            await service.delete(network)
        listed = await service.networks().ListNetworks(network_pb2.ListNetworksRequest())
        assert not listed.networks
        pools = await service.pools().ListPools(pool_pb2.ListPoolsRequest())
        assert {p.id: p.used for p in pools.pools} == {"asn": 0, "vrf": 0}
        assert await self._sql("SELECT count(*) FROM ip") == 0


@pytest.mark.timeout(60 + 60 * RUNS)
async def test_any_order_of_operations_has_the_answers_of_a_model_of_sets(
    start_ipam: Callable[..., Awaitable[Any]],
) -> None:
    Ipam.service = await start_ipam(asn_max=ASNS)
    Ipam.loop = asyncio.get_running_loop()
    bounds = settings(
        max_examples=RUNS, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
    )
    await asyncio.to_thread(run_state_machine_as_test, Ipam, settings=bounds)
