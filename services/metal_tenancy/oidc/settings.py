"""Settings of the login at an OpenID provider; without an issuer there is none."""

from __future__ import annotations

import json
from typing import Annotated, Any

from metal_kit.settings import ServiceSettings
from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from metal_tenancy.oidc.provider import Provider, check_url


def _names(value: Any) -> Any:
    """Names in a list: separated by commas, or JSON for names that have commas themselves."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    return json.loads(text) if text.startswith("[") else [name.strip() for name in text.split(",") if name.strip()]


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]


class LoginSettings(ServiceSettings):
    """One provider, or none."""

    oidc_issuer: str = Field("", description="issuer URL, as the provider's discovery document spells it")
    oidc_client_id: str = Field("", description="client id of metalctl, a public client, at the provider")
    oidc_audiences: Names = Field((), description="further client ids whose ID tokens are accepted")
    oidc_scopes: Names = Field(("openid", "email", "profile"), description="scopes that are asked for")
    oidc_user_claim: str = Field("email", min_length=1, description="claim with the name; email has to be verified")
    oidc_user_prefix: str = Field("oidc:", description="what the provider's names begin with here; ends with a colon")
    oidc_groups_claim: str = Field("groups", min_length=1, description="claim with the groups")
    oidc_operator_groups: Names = Field((), description="groups whose members are plane operators")
    oidc_viewer_groups: Names = Field((), description="groups whose members are plane viewers")
    oidc_token_hours: float = Field(8.0, ge=1 / 60, le=24, description="hours that the token of a login holds")
    oidc_ca: str = Field("", description="CA bundle (PEM) that the provider is verified with; empty: the system's")
    oidc_without_nonce: bool = Field(
        False, description="accept ID tokens without a nonce, as some providers make them in the device flow"
    )

    @field_validator("oidc_issuer")
    @classmethod
    def _check_issuer(cls, value: str) -> str:
        return check_url(value) if value else value

    @field_validator("oidc_user_prefix")
    @classmethod
    def _check_prefix(cls, value: str) -> str:
        if len(value) < 2 or len(value) > 64 or not value.endswith(":") or not value.isprintable() or " " in value:
            raise ValueError("must be 2 to 64 printable characters and end with a colon: users here have names too")
        return value

    @model_validator(mode="after")
    def _check_whole(self) -> LoginSettings:
        if self.oidc_issuer and not self.oidc_client_id:
            raise ValueError("oidc_client_id: must be set beside oidc_issuer")
        if self.oidc_issuer and "openid" not in self.oidc_scopes:
            raise ValueError("oidc_scopes: must have openid, else there is no ID token")
        return self

    def provider(self) -> Provider | None:
        """The provider; None without one."""
        if not self.oidc_issuer:
            return None
        return Provider(
            issuer=self.oidc_issuer,
            client_id=self.oidc_client_id,
            audiences=frozenset({self.oidc_client_id, *self.oidc_audiences}),
            scopes=self.oidc_scopes,
            user_claim=self.oidc_user_claim,
            user_prefix=self.oidc_user_prefix,
            groups_claim=self.oidc_groups_claim,
            operator_groups=frozenset(self.oidc_operator_groups),
            viewer_groups=frozenset(self.oidc_viewer_groups),
            without_nonce=self.oidc_without_nonce,
        )
