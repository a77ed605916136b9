"""`make schemathesis`: a long run against both services. Prints seed, operations and number of cases, and fails with findings."""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.openapi.running import SERVICES, Plan, schemathesis
from tests.support.nats_server import nats_server


async def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.openapi", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=150, help="of each operation, in each phase")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    parser.add_argument("--operations", default="", help="a regular expression: only these paths")
    parser.add_argument("--checks", default="", help="more of schemathesis's own, to look what they say")
    parser.add_argument("--only", choices=list(SERVICES))
    asked = parser.parse_args()
    plan = Plan(asked.seed, asked.examples, asked.phases, asked.operations, asked.checks, deterministic=False)
    failed, lines = False, []
    for name in [asked.only] if asked.only else list(SERVICES):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"openapi-{name}-") as folder:
            async with nats_server(Path(folder) / "nats") as nats, SERVICES[name](nats) as target:
                outcome = await schemathesis(target, Path(folder), plan)
                operations = sum(len(item) for item in target.document["paths"].values())
        print(outcome.text)
        for operation, statuses in sorted(outcome.seen.items()):
            print(f"{operation:50}", *(f"{status}: {count}" for status, count in sorted(statuses.items())), sep="  ")
        failed = failed or not outcome.passed
        lines.append(
            f"{name}: {operations} operations, {outcome.cases} cases, seed {plan.seed}, "
            f"{time.monotonic() - began:.0f} s: {'passed' if outcome.passed else 'FAILED'}"
        )
    print("\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
