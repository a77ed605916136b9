"""Metrics of the auth service.

| name                               | type    | labels | meaning                                                            |
|------------------------------------|---------|--------|--------------------------------------------------------------------|
| arriero_auth_tokens_issued_total   | counter |        | access tokens handed out                                           |
| arriero_auth_failures_total        | counter | reason | requests refused: OAuth's error code, or the code of our own fault |
| arriero_auth_clients_created_total | counter |        | clients made by the admin route                                    |
| arriero_auth_keys_created_total    | counter |        | API keys made by the admin route                                   |
| arriero_auth_checkpoints_total     | counter |        | checkpoints of the audit trail made                                |
| arriero_auth_signing_key_changes_total | counter |  | writes of the signing keys' record by this process                 |
"""

from prometheus_client import Counter

tokens_issued = Counter("arriero_auth_tokens_issued", "Access tokens handed out")
failures = Counter("arriero_auth_failures", "Requests refused", ["reason"])
clients_created = Counter("arriero_auth_clients_created", "Clients made")
keys_created = Counter("arriero_auth_keys_created", "API keys made")
checkpoints = Counter("arriero_auth_checkpoints", "Checkpoints of the audit trail made")
signing_key_changes = Counter("arriero_auth_signing_key_changes", "Writes of the signing keys' record")
