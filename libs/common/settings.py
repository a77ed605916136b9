"""Settings from the environment: prefix `ARRIERO_<SERVICE>_`, a secret also as `…_FILE` that names a file holding it.

A flag goes before the environment. A secret given both ways is refused: which of the two is meant cannot be known.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from libs.common.bus.tls import Tls
from libs.common.logs import without_password

S = TypeVar("S", bound="ServiceSettings")


class _Unusable(Exception):
    """Sentences for a human, one each variable."""


class SecretFiles(PydanticBaseSettingsSource):
    """`ARRIERO_X_SECRET_FILE=/path` gives ARRIERO_X_SECRET; pydantic-settings only knows whole folders of secrets."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = f"{self.config.get('env_prefix', '')}{field_name}_FILE".upper()
        path = os.environ.get(name)
        if path is None or field.annotation is not SecretStr:
            return None, field_name, False
        if (plain := name.removesuffix("_FILE")) in os.environ:
            raise _Unusable(f"{name}: {plain} is given, too; give one of them")
        try:
            return Path(path).read_text(encoding="utf-8").strip(), field_name, False
        except OSError as error:
            raise _Unusable(f"{name}: cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise _Unusable(f"{name}: {path} is not text in UTF-8") from error

    def __call__(self) -> dict[str, Any]:
        found, unusable = {}, []
        for name, field in self.settings_cls.model_fields.items():
            try:
                value, key, _ = self.get_field_value(field, name)
            except _Unusable as error:
                unusable.append(str(error))
                continue
            if value is not None:
                found[key] = value
        if unusable:
            raise _Unusable(*unusable)
        return found


class ServiceSettings(BaseSettings):
    """What every service has. Times are seconds."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    nats_url: str = Field("nats://127.0.0.1:8702", description="NATS servers, comma separated")
    nats_user: str = Field("", description="user name at NATS; its inboxes are under _INBOX.<user>")
    nats_password: SecretStr = Field(SecretStr(""), description="password at NATS, for a user that has one")
    nats_nkey: SecretStr = Field(
        SecretStr(""), description="nkey seed (SU…) of the user at NATS, instead of a password"
    )
    nats_tls_ca: str = Field(
        "", description="file of the authorities trusted for tls:// URLs; empty: this machine's own"
    )
    nats_tls_cert: str = Field("", description="file of the client certificate, for a NATS that asks for one")
    nats_tls_key: str = Field("", validate_default=True, description="file of its key")
    nats_tls_first: bool = Field(False, description="the NATS server has handshake_first: TLS before anything is said")
    ops_host: str = Field("127.0.0.1", description="where /livez, /readyz and /metrics listen")
    ops_port: int = Field(0, ge=0, le=65535, description="their port; 0 takes a free one")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error")
    drain_grace: float = Field(30.0, ge=0, description="how long work in flight may go on after SIGTERM")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SecretFiles(settings_cls)

    @field_validator("nats_nkey")
    @classmethod
    def _a_seed(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        if seed := value.get_secret_value():
            from libs.common.bus.nkeys import public_key

            if (password := info.data.get("nats_password")) and password.get_secret_value():
                raise ValueError("a password is given, too; give one of them")
            public_key(seed)
        return value

    @field_validator("nats_tls_ca", "nats_tls_cert", "nats_tls_key", "nats_tls_first")
    @classmethod
    def _only_with_tls(cls, value: str | bool, info: ValidationInfo) -> str | bool:
        """A server behind nats:// could be anybody, and what was set here would be passed over in silence."""
        urls = [part.strip() for part in str(info.data.get("nats_url", "")).split(",")]
        if value and not all(url.startswith("tls://") for url in urls):
            raise ValueError("every URL in NATS_URL has to begin with tls://")
        if info.field_name == "nats_tls_key" and bool(value) != bool(info.data.get("nats_tls_cert")):
            raise ValueError("NATS_TLS_CERT and NATS_TLS_KEY go together")
        return value

    @property
    def nats_tls(self) -> Tls:
        return Tls(self.nats_tls_ca, self.nats_tls_cert, self.nats_tls_key, self.nats_tls_first)

    @property
    def nats_servers(self) -> list[str]:
        return [url.strip() for url in self.nats_url.split(",") if url.strip()]

    def redacted(self) -> dict[str, Any]:
        """Effective values; of secrets only whether they are set, and URLs without passwords."""
        return {name: _redacted(value) for name, value in self}


def _redacted(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return "(set)" if value.get_secret_value() else "(not set)"
    return without_password(value) if isinstance(value, str) else value


def load(settings: type[S], **given: Any) -> S:
    """Settings from the environment, `given` before it; on bad values all of them are named and the process ends with 2."""
    try:
        return settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        prefix = str(settings.model_config.get("env_prefix", ""))
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            print(f"{prefix}{name.upper()}: {problem['msg']}", file=sys.stderr)
    except _Unusable as error:
        print("\n".join(error.args), file=sys.stderr)
    except SettingsError as error:  # a list or mapping that is no JSON
        print(error, file=sys.stderr)
    raise SystemExit(2)


def show(settings: ServiceSettings) -> str:
    """What `--check` prints: one line per variable."""
    prefix = str(settings.model_config.get("env_prefix", ""))
    lines = []
    for name, value in settings.redacted().items():
        about = type(settings).model_fields[name].description or ""
        lines.append(f"{prefix}{name.upper()}={json.dumps(value) if not isinstance(value, str) else value}  # {about}")
    return "\n".join(lines)
