"""TLS to NATS: which authorities are trusted, what is shown as one's own, and what a refusal means."""

import ssl
from typing import NamedTuple


class Tls(NamedTuple):
    """Files. `ca` empty: Python's own authorities (SSL_CERT_FILE replaces them). `first`: the server says nothing before the
    handshake (its handshake_first), so that nobody in between can speak for it."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    first: bool = False


class BadTls(ValueError):
    """A file that cannot be used; the text is one sentence for a human."""


def context(tls: Tls) -> ssl.SSLContext:
    """Raises BadTls."""
    try:
        made = ssl.create_default_context(cafile=tls.ca or None)
    except OSError as error:  # SSLError is one
        raise BadTls(f"the authorities in {tls.ca} cannot be read: {_why(error)}") from error
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.cert:
        try:
            made.load_cert_chain(tls.cert, tls.key)
        except OSError as error:
            raise BadTls(f"the certificate {tls.cert} with the key {tls.key} cannot be used: {_why(error)}") from error
    return made


def refusal(error: BaseException, tls: Tls) -> str | None:
    """What to tell when a handshake failed for good; None when the error is none of TLS."""
    if isinstance(error, NotEncrypted):
        return str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message or str(error)
        if "match" in why:  # "Hostname mismatch, certificate is not valid for 'x'.", "IP address mismatch, …"
            return f"the server's certificate is for another name: {why.rstrip('.')}"
        trusted = f"the authorities in {tls.ca}" if tls.ca else "this machine's authorities"
        return f"the server's certificate is not trusted by {trusted}: {why.rstrip('.')}"
    text = str(error).upper().replace(" ", "_")
    if "CERTIFICATE_REQUIRED" in text or ("HANDSHAKE_FAILURE" in text and not tls.cert):
        return "the server asks for a client certificate: set …_NATS_TLS_CERT and …_NATS_TLS_KEY"
    if isinstance(error, ssl.SSLError) and tls.cert and "ALERT" in text and ("_CA" in text or "CERTIFICATE" in text):
        return f"the server does not take the client certificate {tls.cert}: {_why(error)}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    return None


class NotEncrypted(ConnectionError):
    """A server that was named with tls:// speaks without. nats-py would go on, and send what it has to sign in with."""


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return error.strerror or str(error)
