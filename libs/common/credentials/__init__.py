"""What auth writes and gateways check must be one thing, so it lives here.

| module        | holds                                                                  |
|---------------|------------------------------------------------------------------------|
| `api_keys`    | the text form of an API key                                            |
| `verifiers`   | how a secret is stored and compared                                    |
| `tokens`      | when an access token counts                                            |
| `standing`    | whether a client or a key counts at all                                |
| `directory`   | all clients and keys in memory, as the bucket `clients` has them       |
| `revocations` | tokens and signing keys that no longer count, as the bucket `revoked` has them |
| `failures`    | how many failed authentications are too many                           |
| `failure_log` | those of all replicas together, as the bucket `attempts` has them      |
"""
