"""A fleet in virtual time: the production decision code and simple rules over the same jobs (docs/simulate.md).

Discrete events, no asyncio, no wall clock: the same fleet, jobs, policy and seed give the same figures on any machine.
"""
