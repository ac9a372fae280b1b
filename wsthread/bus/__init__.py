"""What carries messages between the processes that serve one manager: a contract, and the ways to fulfil it.

:mod:`wsthread.bus.backplane` is the contract. The workers of one host need nothing else than :mod:`wsthread.bus.local`;
several hosts have a Redis, :mod:`wsthread.bus.redis`. What the messages mean to a manager is in
:mod:`wsthread.exchange`.
"""
