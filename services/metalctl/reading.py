"""`list` and `get` for every resource, made from its entry in `resources.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from google.protobuf.message import Message
from metal_kit.client import Peers

from metalctl import command, naming
from metalctl.output import show_many, show_one
from metalctl.resource import Listing, Resource
from metalctl.session import run

PAGE = 500
KEYS = {"machine": "UUID of the machine", "address": "IPv4 or IPv6 address"}
CONTEXT = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)


def add(app: typer.Typer, resource: Resource) -> None:
    """Add the commands of one resource."""
    command.add(app, "list", _list_command(resource), f"list {resource.help}")
    if resource.getting is not None:
        command.add(app, "get", _get_command(resource), f"show one {resource.name}, all of it")


def _list_command(resource: Resource) -> Callable[..., None]:
    listing = resource.listing

    def list_(ctx: typer.Context, **given: Any) -> None:
        limit = int(given.pop("limit"))
        chosen = {name: value for name, value in given.items() if value}

        async def body(peers: Peers) -> list[Message]:
            for name in chosen.keys() & naming.RESOLVERS.keys():
                chosen[name] = await naming.RESOLVERS[name](peers, chosen[name])
            method = getattr(peers.stub(resource.stub, resource.service), listing.method)
            return await everything(method, listing, chosen, limit)

        show_many(run(ctx.obj, body), listing.columns, ctx.obj.output)

    limit_help = "at most so many; 0 for all"
    parameters = [
        CONTEXT,
        *(_option(name, str, "", text) for name, (_, text) in listing.filters.items()),
        *(_option(name, bool, False, text) for name, (_, text) in listing.flags.items()),
        _option("limit", int, 0, limit_help, min=0),
    ]
    return command.shape(list_, parameters)


async def everything(method: Any, listing: Listing, filters: Mapping[str, Any], limit: int) -> list[Message]:
    """All pages of a list, or as many entries as are wanted."""
    found: list[Message] = []
    paths = {name: path for name, (path, _) in [*listing.filters.items(), *listing.flags.items()]}
    token = ""
    while True:
        wanted = min(PAGE, limit - len(found)) if limit else PAGE
        request = listing.request(page_size=wanted, page_token=token)
        for name, value in filters.items():
            *parents, last = paths[name].split(".")
            target: Any = request
            for parent in parents:
                target = getattr(target, parent)
            setattr(target, last, value)
        page = await method(request)
        found += getattr(page, listing.items)
        token = page.next_page_token
        if not token or (limit and len(found) >= limit):
            return found[:limit] if limit else found


def _get_command(resource: Resource) -> Callable[..., None]:
    getting = resource.getting
    if getting is None:
        raise ValueError(f"{resource.name} cannot be fetched by its id")
    resolve = naming.RESOLVERS.get(resource.name)

    def get(ctx: typer.Context, key: str, **given: str) -> None:
        async def body(peers: Peers) -> Message:
            method = getattr(peers.stub(resource.stub, resource.service), getting.method)
            found = await resolve(peers, key) if resolve is not None else key
            for name in given.keys() & naming.RESOLVERS.keys():
                given[name] = given[name] and await naming.RESOLVERS[name](peers, given[name])
            answer: Message = await method(getting.request(**{getting.key: found}, **given))
            return answer

        show_one(run(ctx.obj, body), ctx.obj.output)

    text = KEYS.get(getting.key) or (f"id or name of the {resource.name}" if resolve else f"id of the {resource.name}")
    argument = typer.Argument(metavar=getting.key.upper(), help=text)
    key = inspect.Parameter("key", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[str, argument])
    return command.shape(get, [CONTEXT, key, *(_option(name, str, "", text) for name, text in getting.options.items())])


def _option(name: str, kind: type, default: object, text: str, **rest: Any) -> inspect.Parameter:
    declared = [f"--{name}"] if kind is bool else []
    option = typer.Option(*declared, help=text, show_default=False, **rest)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
