"""The `arriero` command. It talks to a running stack, or starts services as processes; it imports no service."""
