"""Settings of a worker: one per node."""

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from libs.common.contracts.subjects import BadToken, token
from libs.common.settings import ServiceSettings
from services.worker.vram import BadSize, parse_size


class WorkerSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="ARRIERO_WORKER_", extra="ignore", frozen=True)

    node: str = Field(
        "node",
        description="the node's name in the fleet: 1 to 64 of A-Z a-z 0-9 _ -, different for every Ollama",
        json_schema_extra={"flag": True},
    )
    node_url: str = Field(
        "http://127.0.0.1:11434",
        pattern="^https?://",
        description="where its Ollama listens",
        json_schema_extra={"flag": True},
    )
    slots: int = Field(
        1,
        ge=1,
        le=256,
        description="concurrent generations on the node; no more than its OLLAMA_NUM_PARALLEL",
        json_schema_extra={"flag": True},
    )
    patience: float = Field(
        1.0,
        gt=0,
        le=100,
        description="times the limits on a silent node: larger for a machine that is slower than any",
    )

    vram: str = Field(
        "",
        description="GPU memory that its Ollama may fill, such as 24GB or 24GiB; 0: CPU only; "
        "empty: ask nvidia-smi when the Ollama is on this machine, else not known",
        json_schema_extra={"flag": True},
    )

    @field_validator("node")
    @classmethod
    def _a_subject_token(cls, value: str) -> str:
        if value == "router":
            raise ValueError("a node cannot be called router: its control subjects would be the router's own")
        try:
            return token(value, "node name")
        except BadToken as error:
            raise ValueError(str(error)) from error

    @field_validator("node_url")
    @classmethod
    def _without_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @field_validator("vram")
    @classmethod
    def _a_size(cls, value: str) -> str:
        try:
            parse_size(value)
        except BadSize as error:
            raise ValueError(str(error)) from error
        return value
