"""The audit trail: `Audit` writes it, one hash chain for each process; `verify` finds what was changed (docs/audit.md)."""

from libs.common.audit.writer import Audit
from libs.common.contracts.audit import Result

__all__ = ["Audit", "Result"]
