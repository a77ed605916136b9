"""Header names, in one place."""

# On records of a job: one JSON object with everything but the body. One header, because ten cost the index rebuild twice as long.
FACTS = "Arriero-Facts"

# JetStream, as the server defines them.
EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
TTL = "Nats-TTL"
MSG_ID = "Nats-Msg-Id"
KV_OPERATION = "KV-Operation"
MARKER_REASON = "Nats-Marker-Reason"

# HTTP, from and to clients.
DETACH = "Arriero-Detach"
JOB_ID = "Arriero-Job-Id"
IDEMPOTENCY_KEY = "Idempotency-Key"
