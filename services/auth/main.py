"""The auth service: OAuth 2 (client credentials, revocation, introspection), the public keys, and the administration of
clients and API keys."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from libs.common import runtime
from libs.common.audit import Audit
from libs.common.bus.connection import Bus
from libs.common.bus.failures import BusError
from libs.common.contracts.codec import Malformed
from libs.common.credentials.directory import Directory
from libs.common.credentials.failure_log import FailureLog
from libs.common.credentials.failures import Rate
from libs.common.credentials.verifiers import Verifiers
from libs.common.ids import new_boot_id
from libs.common.ops import Check
from libs.common.runtime import Port, Running, Service
from services.auth.all_routes import all_routes
from services.auth.app import build
from services.auth.authorization import Authorization
from services.auth.checkpoints import Checkpoints
from services.auth.inspection import Inspection
from services.auth.judging import Judge
from services.auth.keyring import Keyring
from services.auth.oauth import OAuth
from services.auth.oauth_routes import OAuthRoutes
from services.auth.once import Once
from services.auth.readiness import Readiness
from services.auth.recording import recorded
from services.auth.registry import Registry
from services.auth.revoker import Revoker
from services.auth.rotation import Schedule
from services.auth.routes import Opening, guarded
from services.auth.settings import AuthSettings
from services.auth.trail import AuditTrail

log = structlog.get_logger()

OPERATOR_RETRY_S = 1.0


@asynccontextmanager
async def start(settings: AuthSettings, bus: Bus) -> AsyncIterator[Running]:
    cluster_secret = settings.cluster_secret.get_secret_value().encode()
    verifiers = Verifiers(cluster_secret)
    directory = Directory(bus)
    keyring = Keyring(bus, cluster_secret, Schedule(settings.signing_key_life, settings.signing_key_lead))
    registry = Registry(bus, directory, verifiers)
    revoker = Revoker(bus)
    audit = Audit(bus, "auth", new_boot_id())
    checkpoints = Checkpoints(bus, keyring, audit)
    operator = Operator(settings, registry, audit)
    checks: dict[str, Check] = {
        "clients": directory.check,
        "signing": keyring.check,
        "revocations": revoker.revocations.check,
        "operator": operator.check,
        "audit": audit.check,
        "checkpoints": checkpoints.check,
    }
    readiness = Readiness(directory.check, keyring.check, revoker.revocations.check)
    failures = FailureLog(
        bus,
        cluster_secret,
        address_rate=Rate(settings.address_failures),
        name_rate=Rate(settings.client_failures),
    )
    judge = Judge(settings.issuer, directory, keyring, revoker.revocations, verifiers)
    oauth = OAuthRoutes(
        OAuth(settings.issuer, directory, keyring, verifiers),
        Inspection(settings.issuer, judge),
        readiness,
        registry,
        revoker,
        Once(bus),
        failures,
    )
    authorization = Authorization(judge, readiness, failures)
    trail = AuditTrail(bus, keyring)
    specs = all_routes(
        settings.issuer, oauth, directory, registry, keyring, trail, operator=settings.bootstrap_client_id
    )
    closed = [guarded(spec, authorization) for spec in specs if spec.access is not Opening.EVERYONE]
    public = [guarded(spec, authorization) for spec in specs if spec.access is Opening.EVERYONE]

    async def drain() -> None:
        """The trail ends with a word, and a signature over it."""
        await audit.close()
        await checkpoints.last(audit.sequence)

    yield Running(
        tasks={
            "clients": directory.run(),
            "signing": keyring.run(),
            "revocations": revoker.revocations.run(),
            "operator": operator.run(),
            "audit": audit.run(),
            "checkpoints": checkpoints.run(),
            "failures": failures.run(),
        },
        ports=[
            Port(
                build([*recorded(closed, audit), *public]),
                settings.host,
                settings.port,
                settings.edge(settings.issuer),
            )
        ],
        checks=checks,
        drain=drain,
    )


class Operator:
    """The client that the settings name: with it, the first administrator makes the others."""

    def __init__(self, settings: AuthSettings, registry: Registry, audit: Audit) -> None:
        self._id = settings.bootstrap_client_id
        self._secret = settings.bootstrap_client_secret
        self._registry = registry
        self._audit = audit
        self._problem: str | None = f"client {self._id} is not stored yet" if self._id else None

    def check(self) -> str | None:
        return self._problem

    async def run(self) -> None:
        while self._problem is not None:
            try:
                done = await self._registry.ensure_operator(self._id, self._secret.get_secret_value())
                if done:
                    self._audit.record(
                        f"client.{done}", "allowed", target=self._id, reason="by this service's settings"
                    )
                self._problem = None
            except (BusError, Malformed) as error:
                self._problem = f"client {self._id} cannot be stored: {error}"
                log.warning("operator.not_stored", client=self._id, error=str(error))
                await asyncio.sleep(OPERATOR_RETRY_S)


SERVICE = Service(name="auth", about=(__doc__ or "").strip(), settings=AuthSettings, start=start)


def main() -> None:
    runtime.main(SERVICE)
