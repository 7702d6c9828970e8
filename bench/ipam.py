"""How fast are addresses given and taken back, at any fill, and how near is that to what gRPC itself can do?

`bench/ipam.py [--json FILE] [--quick] [--profile FILE] [--only NAME,...]`. The yardstick is a bare unary echo on the
same kind of server (mutual TLS, uvloop, the same process), measured between the loads. Rates are bound by whoever else
uses the machine; CPU an operation is the figure to compare. `--profile` samples the server process meanwhile.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median

import uvloop
from _ipam_loads import bulk, child_networks, children, echo, mixed, streams
from _ipam_peers import Figures, documents, netbox, ours
from _ipam_plane import Bench, Doubles, Load, ipam
from _ipam_server import PROJECT
from metal_kit import logs
from metalplane.ipam.v1 import ip_pb2, network_pb2, prefix_pb2
from report import Answer, arguments, finish, percentile

AT_ONCE = 64
PAGE = 500
SLASH_16 = 65_534
Question = Callable[[Bench, bool, Doubles], Awaitable[list[Answer]]]


def calm(loads: Sequence[Load]) -> Load:
    """The one that was disturbed least."""
    return max(loads, key=lambda load: load.rate)


def rate(question: str, load: Load, unit: str, goal: str = "", *, value: float | None = None, more: str = "") -> Answer:
    """A load as an answer; milliseconds a call beside it."""
    return Answer(
        question, load.rate if value is None else value, unit, goal,
        percentile(load.samples, 0.5), percentile(load.samples, 0.99), f"ms a call; {load.note()}{more}",
    )  # fmt: skip


async def unary(bench: Bench, quick: bool, doubles: Doubles) -> list[Answer]:
    """Questions 1 and 4: one address a call, on one prefix and on a thousand."""
    rounds, seconds, many = (1, 0.5, 20) if quick else (3, 2.5, 1000)
    one = [await bench.external("one", "10.0.0.0/16", vrf=1)]
    thousand = [await bench.external(f"many-{n}", f"10.{1 + n // 256}.{n % 256}.0/24", vrf=10 + n) for n in range(many)]
    echoes, ones, manies = list[Load](), list[Load](), list[Load]()
    for _ in range(rounds):
        echoes.append(await bench.load(AT_ONCE, seconds, echo(bench)))
        ones.append(await bench.load(AT_ONCE, seconds, mixed(bench, one, doubles)))
        manies.append(await bench.load(AT_ONCE, seconds, mixed(bench, thousand, doubles)))
    bare, single, spread = calm(echoes), calm(ones), calm(manies)
    return [
        rate(f"bare echo, {AT_ONCE} at once", bare, "calls/s"),
        rate(f"acquire and release, one prefix, {AT_ONCE} at once", single, "calls/s"),
        Answer("the same against the echo", single.rate / bare.rate, "x echo", ">= 0.6", note="rates"),
        Answer(
            "the same against the echo, in CPU of client, server and Postgres",
            bare.cpu.total / bare.operations / (single.cpu.total / single.operations), "x echo",
            note="what the ratio of rates is where all processors are busy",
        ),
        Answer("the same, p99", percentile(single.samples, 0.99), "ms", "< 100"),
        rate(f"acquire and release, {many:,} prefixes, {AT_ONCE} at once", spread, "calls/s"),
        Answer(f"{many:,} prefixes against one", spread.rate / single.rate, "x one", ">= 1", note="rates"),
    ]  # fmt: skip


async def exchange(bench: Bench, quick: bool, doubles: Doubles) -> list[Answer]:
    """Question 2: the same work on one stream."""
    rounds, seconds = (1, 0.5) if quick else (3, 3.0)
    network = [await bench.external("stream", "10.20.0.0/16", vrf=2)]
    load = calm([await streams(bench, network, doubles, seconds) for _ in range(rounds)])
    question = "ExchangeIps, one stream, 256 changes under way: pairs of acquire and release"
    return [
        rate(question, load, "pairs/s", ">= 3300", value=load.rate / 2, more=" (an operation is half a pair)"),
        Answer(
            "the same, if the server process had a processor of its own",
            load.operations / load.cpu.server / 2, "pairs/s", note="one over its CPU",
        ),
    ]  # fmt: skip


async def fill(bench: Bench, quick: bool, doubles: Doubles) -> list[Answer]:
    """Question 3: the cost at any fill."""
    # Short rounds by turns: how fast the machine is changes from one second to the next.
    rounds, seconds, size = (1, 0.4, 2_000) if quick else (10, 0.6, SLASH_16)
    networks: dict[str, str] = {}
    for number, share in enumerate((0, 50, 90, 99)):
        name = await bench.external(f"fill-{share}", f"10.{30 + number}.0.0/16", vrf=3000 + number)
        networks[f"{share} % of a /16"] = name
        await take(bench, name, doubles, size * share // 100)
    networks["a /64"] = await bench.external("fill-v6", "2001:db8::/64", vrf=3010)
    loads: dict[str, list[Load]] = {name: [] for name in networks}
    for turn in range(rounds):
        # To and fro, so that a machine that slows down meanwhile slows all of them.
        for name in sorted(networks, key=list(networks).index, reverse=turn % 2 == 1):
            loads[name].append(await streams(bench, [networks[name]], doubles, seconds, in_flight=128))
    middle = {name: median(load.cpu_each for load in each) for name, each in loads.items()}
    answers = [
        Answer(f"CPU of an operation, {name}", cost, "µs", note=f"server and Postgres; {calm(loads[name]).note()}")
        for name, cost in middle.items()
    ]
    spread = max(middle.values()) / min(middle.values())
    answers.append(Answer("slowest fill against the fastest", spread, "x", "<= 1.2", note="CPU; medians of rounds"))
    return answers


async def take(bench: Bench, network: str, doubles: Doubles, wanted: int) -> None:
    """Use so many addresses of a network."""
    while wanted > 0:
        size = min(wanted, 1024)
        await bulk(bench, network, doubles, size)(0)()
        wanted -= size


async def many_at_once(bench: Bench, quick: bool, doubles: Doubles) -> list[Answer]:
    """Question 5: 256 addresses a call."""
    rounds, seconds = (1, 0.5) if quick else (3, 2.0)
    loads: list[Load] = []
    for number in range(rounds):
        network = await bench.external(f"bulk-{number}", f"10.{64 + 16 * number}.0.0/12", vrf=5 + number)
        loads.append(await bench.load(4, seconds, bulk(bench, network, doubles, 256)))
    return [rate("AcquireIps of 256, 4 callers at once", calm(loads), "IPs/s", ">= 45000")]


async def child(bench: Bench, quick: bool, doubles: Doubles) -> list[Answer]:
    """Question 6: /22 out of a /8, with few and with many children."""
    seconds, many, rounds = (0.5, 200, 1) if quick else (2.5, 10_000, 2)
    parent = "11.0.0.0/8"
    await bench.prefixes.CreatePrefix(
        prefix_pb2.CreatePrefixRequest(
            prefix=prefix_pb2.Prefix(cidr=parent, kind=prefix_pb2.PREFIX_KIND_CONTAINER)
        )
    )  # fmt: skip
    bare = calm([await bench.load(AT_ONCE, seconds, echo(bench)) for _ in range(rounds)])
    few = calm([await bench.load(AT_ONCE, seconds, children(bench, parent, doubles)) for _ in range(rounds)])
    async with bench.database.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL search_path TO ipam, public")
        await connection.execute(
            """SELECT count(*) FROM acquire_children(
                   (SELECT id FROM prefix WHERE cidr = $1),
                   (SELECT jsonb_agg('{"length": 22, "actor": "bench"}'::jsonb) FROM generate_series(1, $2::int)))""",
            *(ipaddress.ip_network(parent), many),
            timeout=120,
        )
    much = calm([await bench.load(AT_ONCE, seconds, children(bench, parent, doubles)) for _ in range(rounds)])
    answers = []
    for load, what in ((few, "0"), (much, f"{many:,}")):
        answers.append(rate(f"child /22 out of a /8 with {what} children, {AT_ONCE} at once", load, "calls/s"))
        answers.append(Answer("the same against the echo", load.rate / bare.rate, "x echo", ">= 0.4"))
    answers.append(Answer("many children against none, in CPU", much.cpu_each / few.cpu_each, "x", "<= 1.2"))
    await bench.networks.CreateNetwork(
        network_pb2.CreateNetworkRequest(
            network=network_pb2.Network(
                id="parent", type=network_pb2.NETWORK_TYPE_SUPER, prefixes=["13.0.0.0/8"], vrf=4003,
                default_child_prefix_length=network_pb2.PrefixLengths(ipv4=22),
            )
        )
    )  # fmt: skip
    whole = calm([await bench.load(16, seconds, child_networks(bench, "parent", doubles)) for _ in range(rounds)])
    answers.append(rate("child network with a /22 and a VRF of its own, 16 at once", whole, "calls/s"))
    return answers


async def million(bench: Bench, quick: bool, doubles: Doubles) -> list[Answer]:
    """Question 7: a million addresses in use. They are written by SQL, as many calls would have left them."""
    count, pages, seconds = (20_000, 20, 0.5) if quick else (1_000_000, 200, 3.0)
    network = await bench.external("million", "12.0.0.0/8", vrf=4001)
    await streams(bench, [network], doubles, seconds)
    before = bench.memory()
    async with bench.database.acquire() as connection:
        async with connection.transaction():
            await connection.execute("SET LOCAL search_path TO ipam, public")
            await connection.execute(
                "UPDATE prefix SET used = used + $1 WHERE network_id = 'million' AND kind = 'leaf'", count
            )
            await connection.execute(
                """WITH home AS (SELECT p.id, p.namespace_id, f.lo, f.hi FROM prefix p JOIN free_range f
                       ON f.prefix_id = p.id WHERE p.network_id = 'million' ORDER BY f.hi DESC LIMIT 1),
                   put AS (INSERT INTO ip (namespace_id, addr, prefix_id, project_id)
                       SELECT h.namespace_id, h.lo + n, h.id, $2 FROM home h, generate_series(0, $1::int - 1) AS n)
                   UPDATE free_range f SET lo = h.lo + $1::int FROM home h WHERE f.prefix_id = h.id AND f.hi = h.hi""",
                *(count, PROJECT),
                timeout=300,
            )
        await connection.execute("ANALYZE ipam.ip", timeout=120)
    samples: list[float] = []
    token, seen = "", 0
    loop = asyncio.get_running_loop()
    for _ in range(pages):
        began = loop.time()
        answer = await bench.ips[0].ListIps(ip_pb2.ListIpsRequest(network=network, page_size=PAGE, page_token=token))
        samples.append((loop.time() - began) * 1000)
        token, seen = answer.next_page_token, seen + len(answer.ips)
    small: list[float] = []
    for _ in range(pages):
        began = loop.time()
        await bench.ips[0].ListIps(ip_pb2.ListIpsRequest(project=PROJECT))
        small.append((loop.time() - began) * 1000)
    load = await streams(bench, [network], doubles, seconds)
    grown = (bench.memory() - before) / 1e6
    what = f"{count:,} addresses in use"
    return [
        Answer(f"{what}: page of 50", percentile(small, 0.99), "ms", "< 20", percentile(small, 0.5),
               percentile(small, 0.99), "p99, by project"),
        Answer(f"{what}: page of {PAGE}", percentile(samples, 0.5), "ms", "< 20", percentile(samples, 0.5),
               percentile(samples, 0.99), f"p50, by network; {seen:,} read"),
        Answer(f"{what}: memory of the service, grown by", grown, "MB", "<= 20",
               note=f"resident, {bench.memory() / 1e6:.0f} MB in all; after the pages and {load.operations:,} changes"),
        rate(f"{what}: ExchangeIps", load, "pairs/s", value=load.rate / 2),
    ]  # fmt: skip


async def peers(bench: Bench, quick: bool, doubles: Doubles) -> list[Answer]:
    """The ways of others, on the same Postgres, each from one connection and without gRPC."""
    pairs = 3 if quick else 20
    network = await bench.external("peers", "10.40.0.0/16", vrf=4002)
    prefix_id = await bench.database.fetchval("SELECT id FROM ipam.prefix WHERE network_id = $1", network)
    answers: list[Answer] = []

    def tell(what: str, used: int, figures: Figures) -> None:
        middle, high = percentile(figures.samples, 0.5), percentile(figures.samples, 0.99)
        question = f"{what}, {used:,} of a /16 used: CPU of an operation"
        answers.append(Answer(question, figures.cpu_each, "µs", "", middle, high, "ms each; caller and Postgres"))

    taken = 0
    for used in (655, 6_553) if quick else (655, 6_553, 32_767):
        await take(bench, network, doubles, used - taken)
        taken = used
        tell("our functions, one call each", used, await ours(bench, prefix_id, pairs * 10))
        tell("a document a prefix (emulation)", used, await documents(bench, used, pairs))
        tell("NetBox's scan as SQL", used, await netbox(bench, used, pairs))
    return answers


async def processes(quick: bool) -> list[Answer]:
    """Questions 1 and 2 once more, with two server processes on one port, and enough connections for both."""
    answers: list[Answer] = []
    rounds, seconds = (1, 0.5) if quick else (3, 2.5)
    async with ipam(processes=2, channels=8) as bench:
        network = [await bench.external("shared", "10.0.0.0/16", vrf=1)]
        echoes, ones, many = list[Load](), list[Load](), list[Load]()
        doubles = Doubles()
        for _ in range(rounds):
            echoes.append(await bench.load(AT_ONCE, seconds, echo(bench)))
            ones.append(await bench.load(AT_ONCE, seconds, mixed(bench, network, doubles)))
            many.append(await streams(bench, network, doubles, seconds, number=8, in_flight=32))
        bare, single, stream = calm(echoes), calm(ones), calm(many)
        answers += [
            rate(f"two processes: bare echo, {AT_ONCE} at once", bare, "calls/s"),
            rate(f"two processes: acquire and release, one prefix, {AT_ONCE} at once", single, "calls/s"),
            Answer("two processes: the same against their echo", single.rate / bare.rate, "x echo", note="rates"),
            rate("two processes: ExchangeIps, 8 streams", stream, "pairs/s", value=stream.rate / 2),
            Answer("two processes: addresses given twice", doubles.count, "addresses", "= 0"),
            Answer("two processes: findings of VerifyPrefixes", await bench.verify(), "findings", "= 0"),
        ]
    return answers


QUESTIONS: dict[str, Question] = {
    "unary": unary, "exchange": exchange, "fill": fill, "bulk": many_at_once, "child": child, "million": million,
    "peers": peers,
}  # fmt: skip


async def audit_share(quick: bool) -> list[Answer]:
    """What the audit log takes of single calls: the same load on a server that drops its entries."""
    async with ipam(without_audit=True) as bench:
        network = [await bench.external("plain", "10.0.0.0/16", vrf=1)]
        seconds = 0.5 if quick else 2.5
        load = calm([await bench.load(AT_ONCE, seconds, mixed(bench, network, Doubles())) for _ in range(2)])
    return [rate(f"without the audit log: acquire and release, one prefix, {AT_ONCE} at once", load, "calls/s")]


async def measure(quick: bool, only: Sequence[str], profile: Path | None) -> list[Answer]:
    """The questions, on one plane."""
    answers: list[Answer] = []
    doubles = Doubles()
    async with ipam(profile=profile) as bench:
        for name, question in QUESTIONS.items():
            if not only or name in only:
                for answer in await question(bench, quick, doubles):
                    print(answer.line(), file=sys.stderr, flush=True)
                    answers.append(answer)
        for name, apart in (("audit", audit_share), ("processes", processes)):
            if not only or name in only:
                answers += await apart(quick)
        answers.append(Answer("addresses given twice", doubles.count, "addresses", "= 0"))
        if "million" not in (only or QUESTIONS) or quick:
            answers.append(Answer("findings of VerifyPrefixes", await bench.verify(), "findings", "= 0"))
    return answers


def main() -> int:
    """The console's entry."""
    options = arguments(__doc__.partition("\n")[0], own=("--only", "--profile"))
    logs.configure("error", json=True)
    only = [name for name in (options.only or "").split(",") if name]
    profile = Path(options.profile) if options.profile else None
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return finish(runner.run(measure(options.quick, only, profile)), options)


if __name__ == "__main__":
    sys.exit(main())
