"""Programs that a process starts while its channels are busy, under uvloop: agents do that for each change."""

from __future__ import annotations

import asyncio
import sys

# In a process of its own: what gRPC does in forks is settled when it is imported.
SCRIPT = """
import asyncio
import metal_kit
import grpc, uvloop
from grpc import aio

class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.echo)

    async def echo(self, request, context):
        return request

async def main():
    server = aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = aio.insecure_channel(f"127.0.0.1:{port}")
    call = channel.unary_unary("/test.Echo/Echo")
    ended = asyncio.Event()

    async def talk():
        while not ended.is_set():
            await call(b"x")

    talks = [asyncio.create_task(talk()) for _ in range(4)]
    codes = []
    for _ in range(200):
        process = await asyncio.create_subprocess_exec("true", stderr=asyncio.subprocess.PIPE)
        await process.communicate()
        codes.append(process.returncode)
    ended.set()
    await asyncio.gather(*talks)
    await channel.close()
    await server.stop(0)
    print(len(codes), sum(code != 0 for code in codes))

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


async def test_programs_start_beside_busy_channels() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        said, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    assert said.split() == [b"200", b"0"]
