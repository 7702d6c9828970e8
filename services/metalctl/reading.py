"""`list` and `get` for every resource, made from its entry in `resources.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from google.protobuf.message import Message
from metal_kit.client import Peers

from metalctl.output import show_many, show_one
from metalctl.resources import Listing, Resource
from metalctl.session import Options, run

PAGE = 500


def add(app: typer.Typer, resource: Resource) -> None:
    """Add the commands of one resource."""
    app.command("list", help=f"list {resource.help}")(_list_command(resource))
    if resource.getting is not None:
        app.command("get", help=f"show one of the {resource.help}")(_get_command(resource))


def _list_command(resource: Resource) -> Callable[..., None]:
    listing = resource.listing

    def command(ctx: typer.Context, **given: Any) -> None:
        options: Options = ctx.obj
        limit = int(given.pop("limit"))

        async def body(peers: Peers) -> list[Message]:
            method = getattr(peers.stub(resource.stub, resource.service), listing.method)
            return await everything(method, listing, {name: value for name, value in given.items() if value}, limit)

        show_many(run(options, body), listing.columns, options.output)

    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default="",
                annotation=Annotated[str, typer.Option(help=text, show_default=False)],
            )
            for name, (_, text) in listing.filters.items()
        ),
        inspect.Parameter(
            "limit",
            inspect.Parameter.KEYWORD_ONLY,
            default=0,
            annotation=Annotated[int, typer.Option(help="at most so many; 0 for all", min=0)],
        ),
    ]
    return _shaped(command, parameters)


async def everything(method: Any, listing: Listing, filters: dict[str, str], limit: int) -> list[Message]:
    """All pages of a list, or as many entries as are wanted."""
    found: list[Message] = []
    token = ""
    while True:
        wanted = min(PAGE, limit - len(found)) if limit else PAGE
        request = listing.request(page_size=wanted, page_token=token)
        for name, value in filters.items():
            *parents, last = listing.filters[name][0].split(".")
            target: Any = request
            for parent in parents:
                target = getattr(target, parent)
            setattr(target, last, value)
        page = await method(request)
        found += getattr(page, listing.items)
        token = page.next_page_token
        if not token or (limit and len(found) >= limit):
            return found


def _get_command(resource: Resource) -> Callable[..., None]:
    getting = resource.getting
    if getting is None:
        raise ValueError(f"{resource.name} cannot be fetched by its id")

    def command(ctx: typer.Context, key: str) -> None:
        options: Options = ctx.obj

        async def body(peers: Peers) -> Message:
            method = getattr(peers.stub(resource.stub, resource.service), getting.method)
            answer: Message = await method(getting.request(**{getting.key: key}))
            return answer

        show_one(run(options, body), options.output)

    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        inspect.Parameter(
            "key",
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            annotation=Annotated[str, typer.Argument(metavar=getting.key.upper(), help=f"{getting.key} of the object")],
        ),
    ]
    return _shaped(command, parameters)


def _shaped(command: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    """Give a function the signature that typer reads its options from."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command
