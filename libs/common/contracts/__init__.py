"""Everything that travels between processes: read this folder as the specification of the system.

| module      | holds                                                                     |
|-------------|---------------------------------------------------------------------------|
| `subjects`  | every NATS subject, its builder and its parser                            |
| `streams`   | streams and buckets as data                                               |
| `headers`   | every header name, NATS and HTTP                                          |
| `codec`     | encoding, and the one failure of decoding                                 |
| `jobs`      | the records of a job's folder: `new`, `active`, `done`, and cancel marks  |
| `requests`  | what a client asks for: the body of `new`                                 |
| `events`    | the token log: its events, its chunks on the wire, positions              |
| `nodes`     | heartbeats                                                                |
| `control`   | what router, worker and gateway say to each other on core NATS            |
| `api`       | `api.<client>.…`: the gateway's door for internal services                |
| `clients`   | clients, API keys, token claims                                           |
| `faults`    | every error code, its HTTP status, whether trying again helps             |

Rules of evolution: readers ignore fields they do not know; a new field has a default; the type and the meaning of a field
never change. The samples in `tests/golden/contracts/` decode for ever.
"""
