"""Settings of a router. Policy has none yet: what decides stands in `decide`."""

from pydantic_settings import SettingsConfigDict

from libs.common.settings import ServiceSettings


class RouterSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="ARRIERO_ROUTER_", extra="ignore", frozen=True)
