"""The service runtime that every metalplane service stands on.

It knows gRPC, Postgres, NATS, certificates and tokens. It does not know what a machine, a network or a switch is, and
imports no service. Modules that need server-only packages (asyncpg, nats, prometheus, uvloop) are imported by servers
alone, so that the agents on leaves and in the ramdisk live on the base dependencies.
"""

import os

# Whoever starts programs (vtysh, ipmitool) under uvloop forks, and gRPC's own handlers of forks then run in the child
# before the program does: beside busy channels some children die of SIGSEGV or SIGABRT. gRPC reads this when it is
# imported; nobody here uses gRPC in a child without a new program.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
