"""Settings of the auth service: ARRIERO_AUTH_…"""

from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from libs.common.edge.settings import HttpSettings
from services.auth.names import client_name
from services.auth.rotation import Schedule

DEFAULT = Schedule()

MIN_SECRET = 32  # characters: nothing a human makes up, because verifiers are fast hashes


class AuthSettings(HttpSettings):
    model_config = SettingsConfigDict(env_prefix="ARRIERO_AUTH_", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="where the service listens")
    port: int = Field(8701, ge=0, le=65535, description="its port")
    issuer: str = Field("http://127.0.0.1:8701", description="its public URL, as gateways and clients know it")
    cluster_secret: SecretStr = Field(
        ...,
        min_length=MIN_SECRET,
        description="32 or more random characters, the same for all auth and gateway processes",
    )
    address_failures: int = Field(
        10, ge=0, description="failed authentications a minute from one address (IPv6: one /64); 0: any number"
    )
    client_failures: int = Field(5, ge=0, description="the same for one client id, from everywhere")
    signing_key_life: float = Field(
        DEFAULT.life_s, ge=1, description="how long a key signs tokens before the next one does"
    )
    signing_key_lead: float = Field(
        DEFAULT.lead_s,
        ge=0,
        description="how long a key is published before it signs; verifiers may cache keys for 300",
    )
    bootstrap_client_id: str = Field("", description="name of an operator's client that is made when it is missing")
    bootstrap_client_secret: SecretStr = Field(
        SecretStr(""), validate_default=True, description="its secret, 32 or more random characters"
    )

    @field_validator("issuer")
    @classmethod
    def _issuer(cls, value: str) -> str:
        # RFC 8414 §2: no query, no fragment. Compared character by character, so it is stored in one form.
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("give an http or https URL without query and fragment")
        return value.rstrip("/")

    @field_validator("bootstrap_client_id")
    @classmethod
    def _bootstrap_client_id(cls, value: str) -> str:
        return client_name(value) if value else value

    @field_validator("bootstrap_client_secret")
    @classmethod
    def _bootstrap_client_secret(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        named: Any = info.data.get("bootstrap_client_id", "")
        if bool(named) != bool(value.get_secret_value()):
            raise ValueError("bootstrap_client_id and bootstrap_client_secret are set together or not at all")
        if named and len(value.get_secret_value()) < MIN_SECRET:
            raise ValueError(f"at least {MIN_SECRET} random characters")
        return value
