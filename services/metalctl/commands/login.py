"""Logging in and out: a token for the context, from the identity provider or from standard input."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from metal_kit.client import Peers
from metal_kit.errors import Unauthenticated
from metalplane.tenancy.v1 import token_pb2 as pb
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub

from metalctl.context import TOKEN, TOKEN_VARIABLE, Context, ContextError, load
from metalctl.context_file import set_token
from metalctl.failure import DENIED, INTERRUPTED, REFUSED, UNREACHABLE, USAGE, fail
from metalctl.output import Format, note, show_one, write
from metalctl.session import Options, run
from metalctl.values import minute, until

INPUT = "standard input"
NO_PROVIDER = "this plane has no identity provider; put a token in: metalctl login --token-stdin"


def login(
    ctx: typer.Context,
    device: Annotated[
        bool, typer.Option("--device", help="type a code in on another computer instead of coming back to this one")
    ] = False,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="only print the address")] = False,
    port: Annotated[
        int, typer.Option(help="port of this host that the browser comes back to; 0 for a free one", min=0, max=65535)
    ] = 0,
    token_stdin: Annotated[
        bool, typer.Option("--token-stdin", help="read a token from standard input and keep that")
    ] = False,
) -> None:
    """Get a token and keep it in the context."""
    options: Options = ctx.obj
    context = _context(options)
    if token_stdin:
        token = _given(options)
    else:
        token = _from_provider(options, device=device, browser=not no_browser, port=port)
    try:
        set_token(context.path, token[1])
    except ContextError as error:
        fail(str(error))
    if os.environ.get(TOKEN_VARIABLE):
        note(f"metalctl: warning: ${TOKEN_VARIABLE} is set, and goes before the token that was just put into the file")
    if options.output is Format.JSON:
        show_one(token[0], options.output)
    else:
        ends = token[0].expire_time
        write(f"logged in as {token[0].user}, until {minute(ends)} ({until(ends)}); the token is in {context.path}")


def logout(ctx: typer.Context) -> None:
    """End the context's token and take it out of the file."""
    options: Options = ctx.obj
    context = _context(options)
    if not context.token:
        fail(f"{context.path} has no token")

    async def body(peers: Peers) -> bool:
        stub = peers.stub(TokenServiceStub, "tenancy")
        try:
            mine = await stub.WhoAmI(pb.WhoAmIRequest())
            await stub.RevokeToken(pb.RevokeTokenRequest(id=mine.token.id))
        except Unauthenticated as problem:
            if problem.reason != "TOKEN_INVALID":
                raise
            return False
        return True

    held = run(options, body, token=context.token)
    try:
        set_token(context.path, "")
    except ContextError as error:
        fail(str(error))
    write("logged out" if held else "the token had ended before; it is out of the file")
    if os.environ.get(TOKEN_VARIABLE):
        note(f"metalctl: warning: ${TOKEN_VARIABLE} is still set, and its token was not ended")


def _context(options: Options) -> Context:
    """The context as its file has it: a token of the environment is not what is kept there."""
    try:
        return load(options.context, stored=True)
    except ContextError as error:
        fail(str(error), USAGE)


def _given(options: Options) -> tuple[pb.Token, str]:
    """The token of standard input, when the plane takes it: a mistyped one must not replace one that holds."""
    token = sys.stdin.readline().strip()
    if TOKEN.fullmatch(token) is None:
        fail(f"{INPUT}: has no token, or one with characters that no token has", USAGE)

    async def body(peers: Peers) -> pb.WhoAmIResponse:
        return await peers.stub(TokenServiceStub, "tenancy").WhoAmI(pb.WhoAmIRequest())

    return run(options, body, token=token, token_source=INPUT).token, token


def _from_provider(options: Options, *, device: bool, browser: bool, port: int) -> tuple[pb.Token, str]:
    # Only here: no other command needs an HTTP client.
    from metalctl.oidc import code_flow, device_flow  # noqa: PLC0415
    from metalctl.oidc.provider import LoginError, ProviderUnreachable, discover  # noqa: PLC0415

    async def methods(peers: Peers) -> pb.GetLoginMethodsResponse:
        return await peers.stub(TokenServiceStub, "tenancy").GetLoginMethods(pb.GetLoginMethodsRequest())

    found = run(options, methods, token="")
    if not found.HasField("oidc"):
        fail(NO_PROVIDER)
    oidc = found.oidc
    try:
        endpoints = discover(oidc.issuer)
        if device:
            id_token, nonce = device_flow.log_in(endpoints, oidc.client_id, oidc.scopes, show=_show_code)
        else:
            id_token, nonce = code_flow.log_in(
                endpoints, oidc.client_id, oidc.scopes, port=port, show=_open if browser else _show
            )
    except LoginError as error:
        unreached = isinstance(error, ProviderUnreachable)
        fail(str(error), DENIED if error.refused else UNREACHABLE if unreached else REFUSED)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    if not nonce:
        note("metalctl: the provider has left the nonce out; the plane takes that with METALPLANE_OIDC_WITHOUT_NONCE")

    async def exchange(peers: Peers) -> pb.ExchangeIdTokenResponse:
        request = pb.ExchangeIdTokenRequest(id_token=id_token, nonce=nonce)
        return await peers.stub(TokenServiceStub, "tenancy").ExchangeIdToken(request)

    answer = run(options, exchange, token="")
    return answer.token, answer.secret


def _show(address: str) -> None:
    note(f"open this address to log in: {address}")


def _open(address: str) -> None:
    _show(address)
    # Without a desktop the browser would be one in this terminal.
    if sys.platform in {"darwin", "win32"} or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        import webbrowser  # noqa: PLC0415 - only this needs it

        webbrowser.open(address)


def _show_code(address: str, code: str) -> None:
    note(f"open {address} on any computer and type in: {code}")
