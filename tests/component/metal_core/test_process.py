"""The agent as a process: what it may import and when, and how it says what is wrong with its settings."""

from __future__ import annotations

import asyncio
import os
import sys

from leaf_rack import Rack, state
from metal_core.known_good import KnownGood
from metal_core.wire import desired_of

SERVER_ONLY = ["asyncpg", "nats", "aiohttp", "joserfc", "grpc_reflection", "pyghmi", "uvloop"]
BLOCKED = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {SERVER_ONLY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from metal_core.service import main
main()
"""


async def run(**settings: str) -> tuple[int | None, str]:
    """Exit code and standard error of the agent on a leaf, where none of the servers' packages is installed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METALPLANE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BLOCKED, env=environment | settings, stderr=asyncio.subprocess.PIPE
    )
    _, output = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, output.decode()


async def test_the_agent_needs_no_package_of_the_servers_and_names_missing_settings() -> None:
    code, output = await run()
    assert code == os.EX_CONFIG
    assert output.startswith("metal-core: ")
    assert len(output.splitlines()) == 1
    for name in ("METALPLANE_PARTITION", "METALPLANE_RACK", "METALPLANE_UPLINKS"):
        assert name in output


async def test_a_missing_certificate_is_said_in_one_line() -> None:
    code, output = await run(METALPLANE_PARTITION="p", METALPLANE_RACK="r", METALPLANE_UPLINKS="Ethernet120")
    assert code == os.EX_CONFIG
    assert "METALPLANE_TLS_CA is not set" in output


async def test_what_speaks_to_the_plane_is_not_loaded_before_the_leaf_has_its_tenants_back() -> None:
    """It takes as long to load as all that brings them back."""
    later = ["grpc", "metalplane", "cryptography.x509", "google.protobuf.descriptor", "prometheus_client"]
    code = f"import sys, metal_core.service; print([name for name in {later} if name in sys.modules])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert output.decode().strip() == "[]"


async def test_an_agent_whose_certificate_is_damaged_brings_the_tenants_back_before_it_ends(rack: Rack) -> None:
    await rack.bench.known_good.store(KnownGood(desired_of(state(1, 2000)), 0.0))
    (rack.directory / "damaged.pem").parent.mkdir(exist_ok=True)
    (rack.directory / "damaged.pem").write_text("no certificate")
    agent = await rack.start_process(tls_cert=str(rack.directory / "damaged.pem"))
    assert await asyncio.wait_for(agent.wait(), 60) == os.EX_CONFIG
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2000
