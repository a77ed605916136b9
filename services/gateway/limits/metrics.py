"""Instruments of the limits. No client is named: there may be any number of them.

| name                                    | type    | labels | meaning                                              |
|-----------------------------------------|---------|--------|------------------------------------------------------|
| arriero_gateway_limit_refusals_total    | counter | kind   | requests, streams, jobs, minute, day, month (tokens) |
| arriero_gateway_limit_commits_total     | counter |        | ledgers written                                      |
| arriero_gateway_limit_leases_total      | counter |        | leases of permits for requests                       |
| arriero_gateway_limit_reservations_open | gauge   |        | open reservations in the ledgers in use here         |
| arriero_gateway_limit_settlements_total | counter | how    | hint, sweep, absent (not stored), unknown (all gone) |
"""

from prometheus_client import Counter, Gauge

refusals = Counter("arriero_gateway_limit_refusals", "Refused for a limit of the client or key", ["kind"])
commits = Counter("arriero_gateway_limit_commits", "Ledgers written")
leases = Counter("arriero_gateway_limit_leases", "Leases of permits taken")
reservations_open = Gauge("arriero_gateway_limit_reservations_open", "Open reservations in the ledgers in use here")
settlements = Counter("arriero_gateway_limit_settlements", "Reservations settled", ["how"])
