"""Who asks, and what they may: credentials in headers, checked without a request to anybody.

`extract` finds the credential, `jwks` keeps the issuer's public keys, `verified` remembers checked signatures,
`principals` puts them together. What auth and gateways must see alike is in `libs.common.credentials`.
"""

from services.gateway.credentials.principals import Credentials, require

__all__ = ["Credentials", "require"]
