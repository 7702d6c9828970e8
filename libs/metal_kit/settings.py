"""Settings of a service, from the environment (prefix `METALPLANE_`) or from keyword arguments.

Each service subclasses `ServiceSettings` in its `service.py`. Nothing here reads files: the TLS settings are paths, and
secrets come from the environment that the deployment controls.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from metal_kit.endpoint import parse_endpoint

if TYPE_CHECKING:
    from metal_kit.limits import Allowances, Kind

MEBIBYTE = 1 << 20
MAX_MESSAGE_BYTES = 4 * MEBIBYTE


def _endpoint(text: str) -> str:
    if text:
        parse_endpoint(text)
    return text


Endpoint = Annotated[str, AfterValidator(_endpoint)]
"""`host:port`, checked; empty means "not used"."""


def _limit(kind: Kind) -> AfterValidator:
    def check(text: str) -> str:
        from metal_kit.limits import read_allowance  # noqa: PLC0415 - with it comes gRPC, and agents start without

        read_allowance(text, kind)
        return text

    return AfterValidator(check)


class AgentSettings(BaseSettings):
    """What every process of the plane knows: its certificate, its peers, its logs. Agents need no more than this."""

    model_config = SettingsConfigDict(
        env_prefix="METALPLANE_", extra="forbid", validate_default=True, hide_input_in_errors=True
    )

    tls_ca: str = Field(default="", description="path of the CA bundle that peers are verified with (PEM)")
    tls_cert: str = Field(default="", description="path of this process's certificate chain (PEM)")
    tls_key: str = Field(default="", description="path of this process's private key (PEM)")
    peers: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, description="endpoint by service name: `ipam=host:port,inventory=host:port`, or JSON"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = True

    @field_validator("peers", mode="before")
    @classmethod
    def _read_peers(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.strip()
        if text.startswith("{"):
            return json.loads(text)
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        return {name.strip(): endpoint.strip() for name, _, endpoint in pairs}

    @field_validator("peers")
    @classmethod
    def _check_peers(cls, value: dict[str, str]) -> dict[str, str]:
        for name, endpoint in value.items():
            if not name:
                raise ValueError(f"the service at {endpoint!r} has no name; write name=host:port")
            parse_endpoint(endpoint)
        return value


class ServiceSettings(AgentSettings):
    """What every server knows on top: where it listens, its database and its bus."""

    listen: Endpoint = Field(default="127.0.0.1:0", description="address of the gRPC server; port 0 takes a free one")
    share_port: bool = Field(
        default=False,
        description="let several processes of this service listen on the same port; the kernel spreads connections",
    )
    metrics_listen: Endpoint = Field(default="", description="address of the metrics page; empty: none")
    database_url: str = Field(default="", repr=False, description="postgresql://user:password@host:port/database")
    nats_url: str = Field(default="", repr=False, description="nats://host:port")
    paging_key: str = Field(default="", repr=False, description="signs page tokens; empty: made from database_url")
    audit_keep_days: int = Field(
        default=400, ge=30, le=10_000, description="how long entries of the audit log are kept, in days"
    )
    drain_seconds: float = Field(
        default=10.0, ge=0, le=300, description="time that running calls get when the service stops"
    )
    drain_notice_seconds: float = Field(
        default=0.0, ge=0, le=60, description="time between NOT_SERVING and the drain, for load balancers to notice"
    )
    max_message_bytes: int = Field(default=MAX_MESSAGE_BYTES, ge=64 * 1024, le=64 * MEBIBYTE)
    max_concurrent_streams: int = Field(default=1000, ge=1, le=100_000, description="calls at once on one connection")
    limit_users: Annotated[str, _limit("user")] = Field(
        default="", description="what one user may, where it differs: `rate=100,burst=500,calls=250,streams=100`"
    )
    limit_agents: Annotated[str, _limit("agent")] = Field(default="", description="the same for one leaf or machine")
    limit_services: Annotated[str, _limit("service")] = Field(default="", description="the same for one service")
    limit_strangers: Annotated[str, _limit("stranger")] = Field(
        default="", description="the same for one address, as long as nobody has proved who calls from there"
    )

    @property
    def allowances(self) -> Allowances:
        """What each kind of caller may."""
        from metal_kit.limits import read_allowance  # noqa: PLC0415 - as in `_limit`

        return {
            "user": read_allowance(self.limit_users, "user"),
            "agent": read_allowance(self.limit_agents, "agent"),
            "service": read_allowance(self.limit_services, "service"),
            "stranger": read_allowance(self.limit_strangers, "stranger"),
        }
