"""docs/configuration.md names every setting of every service with its default, and nothing else."""

import re
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from libs.common.settings import ServiceSettings
from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from services.router.settings import RouterSettings
from services.worker.settings import WorkerSettings

CLASSES: dict[str, type[ServiceSettings]] = {
    "GATEWAY": GatewaySettings, "ROUTER": RouterSettings, "WORKER": WorkerSettings, "AUTH": AuthSettings,
}  # fmt: skip
TEXT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
ROWS = dict(re.findall(r"^\| `ARRIERO_(\S+)` \| (.+?) \|", TEXT, re.MULTILINE))


def written(declared: type[ServiceSettings], name: str) -> str:
    field = declared.model_fields[name]
    secret = field.annotation is SecretStr
    if field.is_required():
        return "(required, secret)" if secret else "(required)"
    default: Any = field.default
    if secret:
        return "(secret)"
    return "(none)" if default is None else "(empty)" if default == "" else f"`{default}`"


def test_settings_of_all_services_stand_in_the_common_table():
    expected = {f"<SERVICE>_{name.upper()}": written(ServiceSettings, name) for name in ServiceSettings.model_fields}
    differing = [
        (service, name)
        for service, declared in CLASSES.items()
        for name in ServiceSettings.model_fields
        if written(declared, name) != written(ServiceSettings, name)
    ]

    assert differing == [("GATEWAY", "drain_grace")]
    expected["<SERVICE>_DRAIN_GRACE"] += f" (gateway {written(GatewaySettings, 'drain_grace')})"
    assert {name: default for name, default in ROWS.items() if name.startswith("<")} == expected


def test_each_services_own_settings_stand_in_its_table():
    expected = {
        f"{service}_{name.upper()}": written(declared, name)
        for service, declared in CLASSES.items()
        for name in declared.model_fields
        if name not in ServiceSettings.model_fields
    }

    assert {name: default for name, default in ROWS.items() if not name.startswith("<")} == expected


def test_prefixes_are_as_described():
    for service, declared in CLASSES.items():
        assert declared.model_config["env_prefix"] == f"ARRIERO_{service}_"
