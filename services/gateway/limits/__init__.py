"""Limits of clients and API keys over all gateways together (docs/limits.md, ADR 0010)."""

from services.gateway.limits.limiter import Limiter

__all__ = ["Limiter"]
