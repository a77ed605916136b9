"""Settings of a gateway. Times are seconds, sizes bytes."""

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from libs.common.edge.addresses import Network, networks
from libs.common.edge.settings import HttpSettings, split
from services.gateway.limits.budgets import OUTPUT_TOKENS
from services.gateway.options import MAX_NUM_CTX

MIB = 1024 * 1024
MAX_BODY = 64 * MIB  # a body is held whole several times on its way: parsed, encoded, in parts


class GatewaySettings(HttpSettings):
    model_config = SettingsConfigDict(env_prefix="ARRIERO_GATEWAY_", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="where clients connect")
    port: int = Field(8700, ge=0, le=65535, description="the port for clients")
    issuer: str = Field("http://127.0.0.1:8701", description="the auth service's public URL: the issuer of tokens")
    jwks_url: str | None = Field(None, description="where its keys are, if not at <issuer>/.well-known/jwks.json")
    cluster_secret: SecretStr = Field(
        min_length=32, description="shared by all gateways and auth; at least 32 characters, random"
    )
    max_body: int = Field(20 * MIB, ge=1024, le=MAX_BODY, description="largest request body taken")
    max_num_ctx: int = Field(MAX_NUM_CTX, ge=256, description="largest context that a request may ask for, in tokens")
    address_failures: int = Field(
        60, ge=0, description="failed authentications of one address before it has to wait; 0: any number"
    )
    output_tokens: int = Field(
        OUTPUT_TOKENS, ge=1, description="reserved of a client's tokens for a request that sets no limit of its own"
    )
    bytes_per_token: int = Field(
        1,
        ge=1,
        le=8,
        description="of prompts that budgets reserve for; with more than 1, budgets can be passed by an error",
    )
    webhook_networks: str = Field(
        "",
        description="networks beside the public Internet that webhooks may reach, by http:// too, such as 10.1.2.0/24; "
        "comma separated",
    )
    drain_grace: float = Field(300.0, ge=0, description="how long open streams may go on after SIGTERM")

    @field_validator("webhook_networks")
    @classmethod
    def _webhook_networks(cls, value: str) -> str:
        try:
            networks(split(value))
        except ValueError:
            raise ValueError("give networks such as 10.1.2.0/24 or fd00:1::/64") from None
        return value

    @property
    def named_networks(self) -> tuple[Network, ...]:
        return networks(split(self.webhook_networks))
