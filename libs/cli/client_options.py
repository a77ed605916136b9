"""What can be said about a client or a key on the command line, and what the auth service takes: pure translations."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from libs.cli.failures import CommandFailed

LIMITS = ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "tokens_per_month", "open_streams", "queued")
NEVER, ANY = "never", "any"
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def expiry(text: str, now: float) -> int:
    """`30d`, `12h` … from now, or a date or time of ISO 8601 (UTC when it names no zone), as seconds since the epoch."""
    if (span := seconds(text)) is not None:
        return int(now) + span
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise CommandFailed(
            f"cannot read {text!r} as a time: say 30d, 12h, 2027-01-31 or 2027-01-31T12:00:00Z", code="usage"
        ) from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())


def seconds(text: str) -> int | None:
    """Of `90s`, `30m`, `12h`, `7d`, `2w`; None for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text.strip())
    return int(match[1]) * _SPANS[match[2]] if match else None


def grace(text: str) -> int:
    """Raises CommandFailed."""
    span = seconds(text)
    if span is None:
        raise CommandFailed(f"cannot read {text!r} as a span of time: say 90s, 30m, 12h or 7d", code="usage")
    return span


def models(allow: list[str] | None, deny: list[str] | None) -> dict[str, Any]:
    """A rule on models; empty when nothing was said. `any`: every model, none is denied."""
    rule: dict[str, Any] = {}
    if allow:
        rule["allow"] = ["*"] if allow == [ANY] else allow
    if deny:
        rule["deny"] = [] if deny == [ANY] else deny
    return rule


def limits(said: list[str] | None) -> dict[str, int]:
    """Of `name=number` each. Raises CommandFailed."""
    found = {}
    for text in said or []:
        name, equals, number = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in LIMITS or not number.strip().isdecimal():
            raise CommandFailed(
                f"cannot read the limit {text!r}: say NAME=NUMBER with one of {', '.join(LIMITS)}; 0 means none",
                code="usage",
            )
        found[name] = int(number)
    return found


def key_set(file: Path) -> dict[str, Any]:
    """A JWKS (RFC 7517 §5), or one JWK, from a file. Raises CommandFailed."""
    try:
        content = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise CommandFailed(f"cannot read {file}: {error.strerror}", code="usage") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CommandFailed(
            f"{file} holds no JSON: give a JWKS, {{'keys': […]}}, of public keys", code="usage"
        ) from error
    if isinstance(content, dict) and "kty" in content:
        return {"keys": [content]}
    if isinstance(content, dict) and isinstance(content.get("keys"), list):
        return {"keys": content["keys"]}
    raise CommandFailed(f"{file} holds no JWKS: give {{'keys': […]}} of public keys", code="usage")


def when(at: int | None) -> str:
    """For humans."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC") if at is not None else "never"
