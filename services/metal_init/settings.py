"""What the set-up is told, from the environment (prefix `METALPLANE_INIT_`)."""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_HOST = re.compile(r"(?=.{1,253}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.?)+", re.ASCII)


class Settings(BaseSettings):
    """Everything has a default but the database's, which only `metal-init database` needs."""

    model_config = SettingsConfigDict(env_prefix="METALPLANE_INIT_", extra="forbid", hide_input_in_errors=True)

    root: Path = Field(Path("/secrets"), description="directory with a folder for each bearer of secrets")
    partition: str = Field("partition-1", description="partition that bmc and boot serve")
    edge_names: Annotated[tuple[str, ...], NoDecode] = Field(
        ("localhost", "127.0.0.1"), description="names and addresses that clients reach the edge at, with commas"
    )
    days: float = Field(90.0, gt=0, le=825, description="lifetime of issued certificates")
    database_server: str = Field("postgres:5432", description="host:port of Postgres, as the services see it")
    database_name: str = Field("metalplane", description="database that the services' schemas are in")
    nats_server: str = Field("nats:4222", description="host:port of NATS, as the services see it")
    database_url: SecretStr = Field(
        SecretStr(""), description="how `metal-init database` connects, as an administrator"
    )
    database_roles: dict[str, SecretStr] = Field(
        default_factory=dict, description="JSON: password by role, for `metal-init database`"
    )

    @property
    def lifetime(self) -> timedelta:
        """Lifetime of issued certificates."""
        return timedelta(days=self.days)

    @field_validator("edge_names", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("edge_names")
    @classmethod
    def _check_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not (is_address(name) or _HOST.fullmatch(name)):
                raise ValueError(f"{name!r} is neither a host name nor an address")
        return value

    @field_validator("partition")
    @classmethod
    def _check_partition(cls, value: str) -> str:
        return checked_label(value, what="a partition")


def checked_label(text: str, *, what: str) -> str:
    """`text`, when it can be a segment of an identity; ValueError otherwise."""
    if not _LABEL.fullmatch(text):
        raise ValueError(f"{text!r} cannot be the name of {what}: up to 63 of a-z, 0-9 and dashes between them")
    return text


def is_address(text: str) -> bool:
    """Whether `text` is an IP address and not a name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
